"""Comparing detectors honestly: attack, prepare, measure, freeze, evade, report.

run        the stages, one after the other
splits     images in their parts, and attacked
attacks    attacks by specification, of other libraries, of anyone's file
candidate  the protocol that every detector follows; baselines/ has them, one file a family
measure    what each shows of every image, fitted and frozen on that
adaptive   the attack that knows the detector
results    frozen values; rows makes them; report/ only writes them

It imports everything below it but scoring's files, and is imported by commands alone.
"""

from advconn.benchmark.candidate import Candidate as Candidate
from advconn.benchmark.candidate import Learned as Learned
