"""Split-conformal calibration: p-values and a threshold from the scores of clean images kept apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from advconn.errors import FitError


@dataclass(frozen=True)
class Calibration:
    """Scores (n,) of clean images in no other use, and the false-alarm rate asked for, in (0, 1).

    p(s) = (1 + #{clean scores >= s}) / (n + 1) (Vovk et al. 2005; Bates et al. 2023): for a clean image exchangeable
    with these, P(p <= a) <= a. An image is flagged where p <= fpr, which is where its score exceeds `threshold`.

    Raises:
        FitError: too few scores for the rate: the threshold would be infinite and nothing ever flagged.
    """

    scores: np.ndarray
    fpr: float

    def __post_init__(self) -> None:
        enough(len(self.scores), self.fpr)
        if not np.isfinite(self.scores).all():
            raise FitError("the clean images have scores that are not finite")
        object.__setattr__(self, "scores", np.sort(self.scores.astype(np.float64)))

    @property
    def threshold(self) -> float:
        """The largest score that is not flagged."""
        allowed = math.floor(self.fpr * (len(self.scores) + 1) + 1e-9)
        return float(self.scores[-allowed])

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """p-values (m,) in (0, 1] of scores (m,)."""
        n = len(self.scores)
        at_least = n - np.searchsorted(self.scores, scores, side="left")
        return (1 + at_least) / (n + 1)


def enough(count: int, fpr: float) -> None:
    """Raise FitError if `count` clean images cannot calibrate a false-alarm rate of `fpr`, or if that is no rate."""
    if not 0 < fpr < 1:
        raise FitError(f"the false-alarm rate must lie in (0, 1), got {fpr:g}")
    needed = math.ceil(1 / fpr - 1e-9) - 1
    if count < needed:
        raise FitError(f"{count} clean images calibrate no false-alarm rate of {fpr:g}: at least {needed} are needed")
