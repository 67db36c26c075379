"""All baselines by name."""

from __future__ import annotations

from collections.abc import Mapping

from advconn.benchmark.baselines import (
    Baseline,
    Energy,
    FlipShift,
    LogitsOnly,
    MaxSoftmax,
    Mixup,
    NoisyOdds,
    SecondModel,
    Squeezing,
)
from advconn.benchmark.on_features import LID, LayerRegression, Mahalanobis, MultiLID, Neighbours
from advconn.benchmark.ours import PaperBarrier

BASELINES: Mapping[str, type[Baseline]] = {
    made.name: made
    for made in (
        MaxSoftmax, Energy, LogitsOnly, Squeezing, FlipShift, NoisyOdds, Mixup, Mahalanobis, Neighbours, LID, MultiLID,
        LayerRegression, SecondModel, PaperBarrier,
    )
}  # fmt: skip
