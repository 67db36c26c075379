"""Bounded standardisation: the map from raw features to what a head reads, the same in training and in serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

INNER_QUANTILES = (0.16, 0.84)  # two standard deviations apart where values are Gaussian
MIN_SPREAD_SHARE = 1e-3  # of the standard deviation: under it the quantiles lie on one value, and say nothing
FINE, COARSE = 2.0, 5.0  # spreads from the median at which the fine column bends, and at which the coarse one ends
LARGEST = {"fine": 1.0, "coarse": COARSE}  # absolute value of each column


class BoundedScaler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Two bounded columns of every robustly standardised feature: a fine one near the median, and a coarse one.

    With z = (x - median) / scale these are tanh(z / FINE) and clip(z, -COARSE, COARSE). The scale is the spread of the
    clean rows, half the distance of their 16th and 84th percentiles (where these coincide, the standard deviation), and
    at least `floor`. However far out a value is, its columns are at most LARGEST.
    benchmarks/research/bounds.py compares maps.

    Args:
        floor: (d,) the smallest scale of each feature, above 0; it must not come from the rows that are scaled. None
            sets no floor, and a feature that does not vary is divided by 1.

    Attributes:
        center_: (d,) medians.
        scale_: (d,) what is divided by, above 0.
        n_features_in_: d.
    """

    center_: np.ndarray
    scale_: np.ndarray

    def __init__(self, floor: np.ndarray | None = None) -> None:
        self.floor = floor

    def fit(self, X: Any, y: Any = None) -> Self:
        """Take medians and scales from features (n, d); with kinds y (n,) from the clean rows (y = 0) alone."""
        clean = np.asarray(X, np.float64)
        if y is not None and (np.asarray(y) == 0).any():
            clean = clean[np.asarray(y) == 0]
        self.center_, self.scale_ = np.median(clean, axis=0), spread_of(clean)
        if self.floor is not None:
            self.scale_ = np.maximum(self.scale_, self.floor)
        self.scale_ = np.where(self.scale_ > 0, self.scale_, 1.0)
        self.n_features_in_ = clean.shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Bounded columns (n, 2 d): the fine ones of all features, then the coarse ones."""
        z = (np.asarray(X, np.float64) - self.center_) / self.scale_
        return np.concatenate([np.tanh(z / FINE), z.clip(-COARSE, COARSE)], axis=1)

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> np.ndarray:
        """Names (2 d,) of the columns: 'NAME.fine' and 'NAME.coarse'."""
        names = [f"x{i}" for i in range(self.n_features_in_)] if input_features is None else list(input_features)
        return np.asarray([f"{name}.{kind}" for kind in LARGEST for name in names], dtype=object)


def spread_of(features: np.ndarray) -> np.ndarray:
    """The robust spread (d,) of features (n, d); 0 where a feature does not vary."""
    low, high = np.quantile(features, INNER_QUANTILES, axis=0)
    deviation, spread = features.std(axis=0), (high - low) / 2
    return np.asarray(np.where(spread > MIN_SPREAD_SHARE * deviation, spread, deviation))
