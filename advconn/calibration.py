"""Split-conformal calibration: p-values and a threshold from the scores of clean images kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from advconn.errors import FitError

CLEAN = "clean"


@dataclass(frozen=True)
class Calibration:
    """Scores of clean images in no other use, as they are and under benign conditions, and the rate asked for.

    Under each condition p(s) = (1 + #{its scores >= s}) / (n + 1) (Vovk et al. 2005; Bates et al. 2023): for an image
    exchangeable with these, P(p <= a) <= a. The p-value given is the largest over the conditions, so the same holds for
    an image of any of them, and of any mixture.

    An image is flagged where its score exceeds `threshold`, which is where p <= `level`. Without `confidence` the level
    is `fpr`, and the rate holds on average over draws of the calibration images. With it the level is lowered until the
    rate that this very threshold has is at most `fpr` with that confidence: after k of n scores it is distributed as
    Beta(k, n + 1 - k).

    Args:
        scores: (n,) by condition, all of the same n images; an array alone is the condition 'clean'.
        fpr: false-alarm rate asked for, in (0, 1).
        confidence: in (0, 1), or None.
        predicted: (n,) class of each score's image by condition, for thresholds of their own by predicted class, where
            a class has enough images; the others share one.

    Raises:
        FitError: too few scores for the rate: the threshold would be infinite and nothing ever flagged.
    """

    scores: Any
    fpr: float
    confidence: float | None = None
    predicted: Mapping[str, np.ndarray] | None = None
    tables: Mapping[str, np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = self.scores if isinstance(self.scores, Mapping) else {CLEAN: self.scores}
        sizes = {len(values) for values in given.values()}
        if len(sizes) != 1:
            raise FitError("calibration needs the same images under every condition")
        enough(sizes.pop(), self.fpr, self.confidence)
        if not all(np.isfinite(values).all() for values in given.values()):
            raise FitError("the clean images have scores that are not finite")
        object.__setattr__(self, "tables", {name: np.asarray(values, np.float64) for name, values in given.items()})
        object.__setattr__(self, "scores", next(iter(self.tables.values())))

    @cached_property
    def _sorted(self) -> list[np.ndarray]:
        return [np.sort(values) for values in self.tables.values()]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that p is the largest over."""
        return tuple(self.tables)

    def at(self, **changes: object) -> Calibration:
        """The same scores at another `fpr` or `confidence`, or under fewer `conditions`."""
        names = changes.pop("conditions", None)
        kept = {k: v for k, v in self.tables.items() if names is None or k in names}  # type: ignore[operator]
        return replace(self, scores=kept, **changes)  # type: ignore[arg-type]

    @cached_property
    def level(self) -> float:
        """The largest p-value that is flagged."""
        return _allowed(len(self.scores), self.fpr, self.confidence) / (len(self.scores) + 1)

    @cached_property
    def threshold(self) -> float:
        """The largest score that is not flagged (where classes have thresholds of their own: that of the others)."""
        rank = _allowed(len(self.scores), self.fpr, self.confidence)
        return max(float(values[-rank]) for values in self._sorted)

    @cached_property
    def by_class(self) -> dict[int, Calibration]:
        """The calibrations of the classes that have enough images under every condition."""
        out: dict[int, Calibration] = {}
        if self.predicted is None:
            return out
        for label in np.unique(np.concatenate(list(self.predicted.values()))).tolist():
            parts = {name: values[self.predicted[name] == label] for name, values in self.tables.items()}
            n = min(map(len, parts.values()))
            if n >= needed(self.fpr, self.confidence):
                # as many of each condition: those with the highest scores, which can only raise p and the threshold
                out[int(label)] = Calibration(
                    {name: np.sort(values)[-n:] for name, values in parts.items()}, self.fpr, self.confidence
                )
        return out

    def thresholds(self, predicted: np.ndarray) -> np.ndarray:
        """The largest scores (m,) that are not flagged, of images given these classes (m,)."""
        out = np.full(len(predicted), self.threshold)
        for label, part in self.by_class.items():
            out[predicted == label] = part.threshold
        return out

    def p_value(self, scores: np.ndarray, predicted: np.ndarray | None = None) -> np.ndarray:
        """p-values (m,) in (0, 1] of scores (m,), of images that are given the classes `predicted` (m,).

        Example:
            >>> import numpy as np
            >>> from advconn.calibration import Calibration
            >>> calibration = Calibration(np.arange(99.0), fpr=0.05)
            >>> calibration.p_value(np.array([50.0, 98.0, 200.0]))
            array([0.5 , 0.02, 0.01])
        """
        out = np.max([_p_value(values, scores) for values in self._sorted], axis=0)
        if predicted is not None:
            for label, part in self.by_class.items():
                rows = predicted == label
                out[rows] = part.p_value(scores[rows])
        return np.asarray(out)


def _p_value(clean: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """p-values (m,) of scores (m,) among clean ones (n,) in rising order."""
    n = len(clean)
    return (1 + n - np.searchsorted(clean, scores, side="left")) / (n + 1)


def _allowed(n: int, fpr: float, confidence: float | None) -> int:
    """How many of n clean scores may lie at the threshold or above."""
    from scipy.special import betainc

    most = math.floor(fpr * (n + 1) + 1e-9)  # .05 * 20 is 1, not a little less
    if confidence is None or most < 1:
        return most
    counts = np.arange(1, most + 1)
    return int((betainc(counts, n + 1 - counts, fpr) >= confidence - 1e-12).sum())


def needed(fpr: float, confidence: float | None = None) -> int:
    """How many clean images a rate needs at least.

    Raises:
        FitError: a rate or a confidence that is none.
    """
    for name, value in (("false-alarm rate", fpr), ("confidence", 0.5 if confidence is None else confidence)):
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise FitError(f"the {name} must lie in (0, 1), got {value!r}")
    if confidence is None:
        return math.ceil(1 / fpr - 1e-9) - 1
    return math.ceil(math.log(1 - confidence) / math.log(1 - fpr) - 1e-9)


def enough(count: int, fpr: float, confidence: float | None = None) -> None:
    """Check that so many clean images can calibrate a false-alarm rate.

    Args:
        count: number of clean images.
        fpr: false-alarm rate, in (0, 1).
        confidence: with which it is promised, in (0, 1); None promises it on average.

    Raises:
        FitError: too few images, or a rate or a confidence that is none.
    """
    least = needed(fpr, confidence)
    if count < least:
        sure = "" if confidence is None else f" with {confidence:.0%} confidence"
        raise FitError(
            f"{count} clean images calibrate no false-alarm rate of {fpr:g}{sure}: at least {least} are needed"
        )


def upper_share(count: int, of: int, confidence: float = 0.95) -> float:
    """Upper confidence bound of a share (Clopper & Pearson 1934).

    Args:
        count: how many were seen.
        of: among how many.
        confidence: that the true share is not above the bound, in (0, 1).
    """
    from scipy.special import betaincinv

    return 1.0 if count >= of else float(betaincinv(count + 1, of - count, confidence))
