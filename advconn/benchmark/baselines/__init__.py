"""All detectors that a benchmark compares with, by name: one line each here, one file a family."""

from __future__ import annotations

from collections.abc import Mapping

from advconn.benchmark.baselines.barrier import PaperBarrier
from advconn.benchmark.baselines.feature_squeezing import FeatureSqueezing, FlipShift
from advconn.benchmark.baselines.lid_and_mahalanobis import (
    KNN,
    LID,
    LastLayerMahalanobis,
    LayerRegression,
    Mahalanobis,
    MultiLID,
)
from advconn.benchmark.baselines.logits import Energy, LogitsOnly, MaxSoftmax, SecondClassifier
from advconn.benchmark.baselines.noise import Mixup, NoiseLogOdds
from advconn.benchmark.baselines.other_networks import Agreement, Denoiser
from advconn.benchmark.baselines.transformations import RawTransformations, Spectrum, Transformations
from advconn.benchmark.candidate import Candidate

BASELINES: Mapping[str, type[Candidate]] = {
    made.name: made
    for made in (
        MaxSoftmax, Energy, LogitsOnly, Spectrum, FeatureSqueezing, FlipShift, Transformations, RawTransformations,
        NoiseLogOdds, Mixup, Mahalanobis, LastLayerMahalanobis, KNN, LID, MultiLID, LayerRegression, SecondClassifier,
        PaperBarrier,
    )
}  # fmt: skip
BY_NAME_ALONE: Mapping[str, type[Candidate]] = {made.name: made for made in (Denoiser, Agreement)}  # of other packages
