"""A candidate that is fitted on the training part, with its threshold: nothing of it changes any more."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks
from advconn.benchmark.candidate import Candidate
from advconn.benchmark.feature_tables import FeatureTable, FeatureTables
from advconn.benchmark.splits import BenchmarkData
from advconn.detector.calibration import Calibration
from advconn.errors import FitError, wrap_user_errors


def candidate_scores(candidate: Candidate, columns: np.ndarray) -> np.ndarray:
    """Scores (n,) of columns (n, d); of no image, none.

    Raises:
        FitError: the candidate fails, or gives other than one score an image.
    """
    if not len(columns):
        return np.zeros(0)
    with wrap_user_errors(f"{candidate.name}: score", FitError):
        scores = np.asarray(candidate.score(columns), np.float64)
    if scores.shape != (len(columns),):
        raise FitError(f"{candidate.name}: score gives {scores.shape}; expected ({len(columns)},)")
    return scores


@dataclass(frozen=True)
class FittedDetector:
    """A fitted candidate with its threshold, and what it measured: nothing of it changes any more."""

    candidate: Candidate
    calibration: Calibration
    measured: FeatureTables

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    def score(self, columns: FeatureTable) -> np.ndarray:
        """Scores (n,)."""
        return candidate_scores(self.candidate, columns.values)

    def margins(self, columns: FeatureTable, calibration: Calibration | None = None) -> np.ndarray:
        """By how much each image's score exceeds its threshold (n,).

        Args:
            columns: of the images.
            calibration: its own at another rate; None takes its own.
        """
        if not len(columns.values):
            return np.zeros(0)
        thresholds = self.candidate.thresholds(columns.values, calibration or self.calibration)
        return np.asarray(self.score(columns) - thresholds)

    def flags(self, columns: FeatureTable) -> np.ndarray:
        """Which are above their threshold."""
        return self.margins(columns) > 0


def reference_rows(bench: BenchmarkData) -> Tensor:
    """Rows of the training part that a candidate which is fitted apart compares with; it is fitted on the others."""
    rows = bench.parts.train
    return rows[: len(rows) // 2]


def fit_and_threshold(
    candidate: Candidate,
    measured: FeatureTables,
    taught: Mapping[str, SuccessfulAttacks],
    bench: BenchmarkData,
    fpr: float,
    part: str = "train",
) -> FittedDetector:
    """Fit on the training part what has something to learn, and set the threshold on the calibration part.

    Args:
        candidate: stays as it is; a copy is fitted.
        measured: its columns of the images in all three parts.
        taught: the attacked training images that are fitted on, by attack.
        bench: whose training part the columns are of.
        fpr: false-alarm rate of the threshold, in (0, 1).
        part: of the attacked images: 'train', or 'alone' for those of an attack that is trained on alone.

    Raises:
        FitError: none of these attacks succeeded, or the candidate's own `fit` or `score` fails.
    """
    own = copy.copy(candidate)  # fitting one leaves the others as they are
    if own.fits:
        tables = _training(own, measured, taught, bench, part)
        with wrap_user_errors(f"{own.name}: fit", FitError):
            own.fit(np.concatenate(tables), np.repeat(np.arange(len(tables)), [len(t) for t in tables]))
    scores = candidate_scores(own, measured.clean("calibrate").values)
    return FittedDetector(own, own.calibrated(scores, fpr), measured)


def _training(
    candidate: Candidate,
    measured: FeatureTables,
    taught: Mapping[str, SuccessfulAttacks],
    bench: BenchmarkData,
    part: str,
) -> list[np.ndarray]:
    """A candidate's columns (n, d) of the clean training images, and of what each attack made of them."""
    apart = reference_rows(bench)

    def mine(columns: FeatureTable, rows: Tensor) -> np.ndarray:
        return columns.values[~torch.isin(rows, apart).numpy()] if candidate.apart else columns.values

    clean = mine(measured.clean("train"), bench.parts.train)
    tables = [mine(measured.attacked(part, name), hits.rows) for name, hits in taught.items() if len(hits.rows)]
    tables = [table for table in tables if len(table)]
    if not tables:
        raise FitError("no attack succeeded on the images to train on: there is nothing to learn from")
    return [clean, *tables]
