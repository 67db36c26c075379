"""All baselines by name."""

from __future__ import annotations

from collections.abc import Mapping

from advconn.evaluation.baselines import (
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
from advconn.evaluation.on_features import LID, LayerRegression, Mahalanobis, MultiLID, Neighbours
from advconn.evaluation.ours import PaperBarrier

BASELINES: Mapping[str, type[Baseline]] = {
    made.name: made
    for made in (
        MaxSoftmax, Energy, LogitsOnly, Squeezing, FlipShift, NoisyOdds, Mixup, Mahalanobis, Neighbours, LID, MultiLID,
        LayerRegression, SecondModel, PaperBarrier,
    )
}  # fmt: skip
