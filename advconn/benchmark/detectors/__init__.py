"""All detectors that a benchmark compares with, by name: one line each here, one file a family."""

from __future__ import annotations

from collections.abc import Mapping

from advconn.benchmark.candidate import Candidate
from advconn.benchmark.detectors.layers import LID, LayerRegression, Mahalanobis, MultiLID, Neighbours
from advconn.benchmark.detectors.logits import Energy, LogitsOnly, MaxSoftmax
from advconn.benchmark.detectors.noise import Mixup, NoisyOdds
from advconn.benchmark.detectors.paper import PaperBarrier
from advconn.benchmark.detectors.second import SecondModel
from advconn.benchmark.detectors.squeezing import FlipShift, Squeezing

BASELINES: Mapping[str, type[Candidate]] = {
    made.name: made
    for made in (
        MaxSoftmax, Energy, LogitsOnly, Squeezing, FlipShift, NoisyOdds, Mixup, Mahalanobis, Neighbours, LID, MultiLID,
        LayerRegression, SecondModel, PaperBarrier,
    )
}  # fmt: skip
