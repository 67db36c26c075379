"""Comparing detectors honestly: attack, prepare, measure, freeze, evade, report.

run        the stages, one after the other
bench      images in their parts, and attacked
attackers  attacks by specification, of other libraries, of anyone's file
candidate  the protocol that every detector follows; detectors/ has them, one file a family
measuring  what each shows of every image, fitted and frozen on that
evasion    the attack that knows the detector (adaptive, following)
results    frozen values; rows makes them; folder, page, terminal and tables only write them
"""

from advconn.benchmark.candidate import Candidate as Candidate
from advconn.benchmark.candidate import Learned as Learned
