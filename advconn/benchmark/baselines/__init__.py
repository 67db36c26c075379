"""All detectors that a benchmark compares with, by name: one line each here, one file a family."""

from __future__ import annotations

from collections.abc import Mapping

from advconn.benchmark.baselines.barrier import PaperBarrier
from advconn.benchmark.baselines.layers import LID, LayerRegression, Mahalanobis, MultiLID, Neighbours
from advconn.benchmark.baselines.logits import Energy, LogitsOnly, MaxSoftmax, SecondModel
from advconn.benchmark.baselines.noise import Mixup, NoisyOdds
from advconn.benchmark.baselines.squeezing import FlipShift, Squeezing
from advconn.benchmark.candidate import Candidate

BASELINES: Mapping[str, type[Candidate]] = {
    made.name: made
    for made in (
        MaxSoftmax, Energy, LogitsOnly, Squeezing, FlipShift, NoisyOdds, Mixup, Mahalanobis, Neighbours, LID, MultiLID,
        LayerRegression, SecondModel, PaperBarrier,
    )
}  # fmt: skip
