"""Split-conformal calibration: p-values and a threshold from the scores of clean images kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from advconn.data.conditions import CLEAN
from advconn.errors import FitError

MIN_CELL = 40  # unchanged images of one group that are compared with by themselves
MIN_POOLED = 1.25  # over the rate: images in a group, for each condition


@dataclass(frozen=True)
class Calibration:
    """Scores of clean images in no other use, as they are and under benign conditions, and the rate asked for.

    Under each condition p(s) = (1 + #{its scores >= s}) / (n + 1) (Vovk et al. 2005; Bates et al. 2023): for an image
    exchangeable with these, P(p <= a) <= a. The p-value given is the largest over the conditions, so the same holds for
    an image of any of them, and of any mixture.

    With `groups` an image is compared with clean images of its own group of pictures (Mondrian conformal prediction).
    p is then the larger of two: over the group's images as they are (the first condition), where these are enough, and
    over the group's images of all conditions together. Among the latter, the other renditions of the image itself are
    missing: they are counted as if all scored higher. So P(p <= a) <= a for an unchanged image of the group, and for
    one under a condition drawn at random; benchmarks/measure/promise.py measures it under each condition by itself.
    Groups apply only without `confidence` and without classes; small ones are merged, by the number of their images.

    An image is flagged where its score exceeds its threshold, which is where p <= `level`. Without `confidence` the
    level is `fpr`, and the rate holds on average over draws of the calibration images. With it the level is lowered
    until the rate that this very threshold has is at most `fpr` with that confidence: after k of n scores it is
    distributed as Beta(k, n + 1 - k).

    Args:
        scores: (n,) by condition, all of the same n images; an array alone is the condition 'clean'.
        fpr: false-alarm rate asked for, in (0, 1).
        confidence: in (0, 1), or None.
        predicted: (n,) class of each score's image by condition, for thresholds of their own by predicted class, where
            a class has enough images; the others share one.
        groups: (n,) the group of each score's image by condition, see picture_groups.Groups.

    Raises:
        FitError: too few scores for the rate: the threshold would be infinite and nothing ever flagged.
    """

    scores: Any
    fpr: float
    confidence: float | None = None
    predicted: Mapping[str, np.ndarray] | None = None
    groups: Mapping[str, np.ndarray] | None = None
    tables: Mapping[str, np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = self.scores if isinstance(self.scores, Mapping) else {CLEAN: self.scores}
        sizes = {len(values) for values in given.values()}
        if len(sizes) != 1:
            raise FitError("calibration needs the same images under every condition")
        check_calibration_size(sizes.pop(), self.fpr, self.confidence)
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
        if self.by_group:
            return self.fpr
        return _allowed(len(self.scores), self.fpr, self.confidence) / (len(self.scores) + 1)

    @cached_property
    def threshold(self) -> float:
        """The largest score that is not flagged; where classes or groups have their own, that of images of neither."""
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
            if n >= min_calibration_size(self.fpr, self.confidence):
                # as many of each condition: those with the highest scores, which can only raise p and the threshold
                out[int(label)] = Calibration(
                    {name: np.sort(values)[-n:] for name, values in parts.items()}, self.fpr, self.confidence
                )
        return out

    @property
    def every_threshold(self) -> tuple[float, ...]:
        """All scores that decide of some image."""
        own = [max(cell.threshold(self.fpr) for cell in cells) for cells in self.by_group.values()]
        return tuple(dict.fromkeys([self.threshold, *(part.threshold for part in self.by_class.values()), *own]))

    @cached_property
    def by_group(self) -> dict[int, tuple[Cell, ...]]:
        """What an image of each group is compared with; empty where there are not two groups of enough images."""
        if self.groups is None or self.confidence is not None or self.predicted is not None:
            return {}
        siblings = len(self.tables)
        smallest = siblings * math.ceil(MIN_POOLED / self.fpr)
        labels, counts = np.unique(np.concatenate([self.groups[name] for name in self.tables]), return_counts=True)
        order = labels[np.argsort(counts, kind="stable")]
        sizes = dict(zip(labels.tolist(), counts.tolist(), strict=True))
        merged: list[list[int]] = []
        for label in order.tolist():  # the smallest first: they are put together until they are enough
            if merged and sum(sizes[one] for one in merged[-1]) < smallest:
                merged[-1].append(label)
            else:
                merged.append([label])
        if len(merged) > 1 and sum(sizes[one] for one in merged[-1]) < smallest:  # else nothing in it would be flagged
            last = merged.pop()
            merged[-1] += last
        if len(merged) < 2:
            return {}
        out: dict[int, tuple[Cell, ...]] = {}
        for part in merged:
            own = [values[np.isin(self.groups[name], part)] for name, values in self.tables.items()]
            enough_alone = max(MIN_CELL, math.ceil(2 / self.fpr))
            cells = [Cell(np.sort(own[0]), 1)] if len(own[0]) >= enough_alone else []
            cells.append(Cell(np.sort(np.concatenate(own)), siblings))
            out |= dict.fromkeys(part, tuple(cells))
        return out

    def thresholds(self, predicted: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """The largest scores (m,) that are not flagged.

        Args:
            predicted: classes (m,) that the images are given.
            groups: groups (m,) of the images, where there are groups.
        """
        out = np.full(len(predicted), self.threshold)
        for label, part in self.by_class.items():
            out[predicted == label] = part.threshold
        for label, cells in self.by_group.items() if groups is not None else ():
            out[groups == label] = max(cell.threshold(self.fpr) for cell in cells)
        return out

    def p_value(
        self, scores: np.ndarray, predicted: np.ndarray | None = None, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """p-values (m,) in (0, 1].

        Args:
            scores: (m,) of images.
            predicted: classes (m,) that these are given, where classes have thresholds of their own.
            groups: groups (m,) of these, where groups have.

        Example:
            >>> import numpy as np
            >>> from advconn.detector.calibration import Calibration
            >>> calibration = Calibration(np.arange(99.0), fpr=0.05)
            >>> calibration.p_value(np.array([50.0, 98.0, 200.0]))
            array([0.5 , 0.02, 0.01])
        """
        out = np.max([_p_value(values, scores) for values in self._sorted], axis=0)
        if predicted is not None:
            for label, part in self.by_class.items():
                rows = predicted == label
                out[rows] = part.p_value(scores[rows])
        for label, cells in self.by_group.items() if groups is not None else ():
            rows = groups == label
            out[rows] = np.max([cell.p_value(scores[rows]) for cell in cells], axis=0)
        return np.asarray(out)


@dataclass(frozen=True)
class Cell:
    """Clean scores that an image is compared with.

    Attributes:
        scores: (n,) in rising order.
        missing: renditions of the image itself that would stand among them, itself included: counted as higher.
    """

    scores: np.ndarray
    missing: int

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """p-values (m,) of scores (m,)."""
        n = len(self.scores)
        return np.asarray((self.missing + n - np.searchsorted(self.scores, scores, side="left")) / (n + self.missing))

    def threshold(self, fpr: float) -> float:
        """The largest score whose p-value is above a rate; infinite where there is none."""
        above = math.floor(fpr * (len(self.scores) + self.missing) + 1e-9) - self.missing
        return float("inf") if above < 0 else float(self.scores[-above - 1])


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


def min_calibration_size(fpr: float, confidence: float | None = None) -> int:
    """How many clean images a rate needs at least.

    Raises:
        FitError: a rate or a confidence that is none.
    """
    rates = (("false-alarm rate", fpr, 0.05), ("confidence", 0.5 if confidence is None else confidence, 0.95))
    for name, value, usual in rates:
        if not isinstance(value, int | float) or not 0 < value < 1:
            raise FitError(f"the {name} must lie in (0, 1), such as {usual}; got {value!r}")
    if confidence is None:
        return math.ceil(1 / fpr - 1e-9) - 1
    return math.ceil(math.log(1 - confidence) / math.log(1 - fpr) - 1e-9)


def check_calibration_size(count: int, fpr: float, confidence: float | None = None) -> None:
    """Check that so many clean images can calibrate a false-alarm rate.

    Args:
        count: number of clean images.
        fpr: false-alarm rate, in (0, 1).
        confidence: with which it is promised, in (0, 1); None promises it on average.

    Raises:
        FitError: too few images, or a rate or a confidence that is none.
    """
    least = min_calibration_size(fpr, confidence)
    if count < least:
        sure = "" if confidence is None else f" with {confidence:.0%} confidence"
        raise FitError(
            f"a false-alarm rate of {fpr:g}{sure} needs at least {least} clean calibration images; there are "
            f"{count}: give a higher rate, or more images"
        )


def combine_readings(
    p_values: Sequence[float], flags: Sequence[bool], readings: Sequence[str], calibration: Calibration
) -> tuple[int, float, bool]:
    """Which reading of a picture speaks, with which p-value, and whether the picture is flagged.

    A plain reading is what a loader hands to the classifier: it speaks as if it were alone, so that whoever sends a
    file cannot weaken it by a tag that adds a reading. The upright one speaks with its p times the number of readings.
    So of pictures with both at most 1.5 times the promised share is flagged. Few calibration images may allow no
    doubled p under their level: then an upright reading that is beyond them all is flagged.

    Args:
        p_values: of each reading.
        flags: whether each is flagged alone.
        readings: 'plain', 'upright', or 'plain as FORMAT' of a file that several formats open.
        calibration: of the detector.
    """
    count, ways = len(p_values), [reading.partition(" ")[0] for reading in readings]
    held = [p if count == 1 or way == "plain" else min(1.0, count * p) for p, way in zip(p_values, ways, strict=True)]
    first = min(range(count), key=lambda i: (held[i], p_values[i]))
    flagged = False
    for alone, p, flag, way in zip(p_values, held, flags, ways, strict=True):
        beyond = alone <= 1 / (len(calibration.scores) + 1) and p <= calibration.fpr
        flagged |= flag if count == 1 or way == "plain" else beyond or p <= calibration.level + 1e-12
    return first, held[first], bool(flagged)
