"""The part of a detector that sets its threshold, from clean images in no other use, and moves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from torch import Tensor

from advconn.calibration import Calibration, enough, needed
from advconn.cascade.early_exit import Missed, ordered
from advconn.data.conditions import CLEAN, CONDITIONS, usable
from advconn.data.inputs import as_bytes
from advconn.efficacy import Efficacy
from advconn.errors import FitError
from advconn.judging import Judging
from advconn.models.equivalence import precision_of
from advconn.parallel import Progress, silent


@dataclass(frozen=True)
class Fitted:
    """What a fit was made from.

    Attributes:
        train: number of clean images that were fitted on.
        calibrate: number of clean images that were calibrated on.
        attacks: for every attack how many images were tried, and on how many it succeeded.
        image_hashes: (m,) uint64 of the images used, see given.image_hashes.
        missed: attacked images that leave early though the last stage would catch them, judged by heads that were not
            fitted on them; None of one stage.
        pretrained: whether the heads were taught on other networks.
        precision: that the calibration's scores were made in, see likeness.precision_of.
        efficacy: how well it caught one attack; None where that was not measured.
        reading: how files of pictures were read, 'plain' or 'upright'; None of arrays.
    """

    train: int
    calibrate: int
    attacks: dict[str, tuple[int, int]]
    image_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), compare=False)
    missed: Missed | None = None
    pretrained: bool = False
    precision: str = "float32"
    efficacy: Efficacy | None = None
    reading: str | None = None

    @property
    def shown_reading(self) -> str:
        """How pictures are read where they are judged: as people see them if it was fitted so, else both ways."""
        return "upright" if self.reading == "upright" else "both"


class Calibrating(Judging):
    """What a detector says of images, at a threshold that is set here; the class that fits it has these parameters."""

    fpr: float
    seed: int
    conditions: Sequence[str]
    confidence: float | None
    by_class: bool
    fitted_: Fitted

    def calibrate_on(self, images: Tensor, progress: Progress = silent) -> None:
        """Take the threshold from clean images (n, c, h, w) in no other use, under every condition.

        CLEAN is always one of them.
        """
        scores: dict[str, np.ndarray] = {}
        predicted: dict[str, np.ndarray] = {}
        groups: dict[str, np.ndarray] = {}
        for name, measured in self._under_conditions(images, progress, "calibrate"):
            scores[name], predicted[name], features = measured
            group = self._group(features)
            if group is not None:
                groups[name] = group
        self.set_calibration(scores, predicted, groups or None)
        self.fitted_ = replace(self.fitted_, precision=precision_of(self.connectivity.classifier))

    def _under_conditions(
        self, images: Tensor, progress: Progress, told: str
    ) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """What is measured of clean images (n, c, h, w) as they are and under each condition, by its name."""
        for name in usable((CLEAN, *self.conditions), images.shape[1]):
            changed = images if name == CLEAN else CONDITIONS[name](as_bytes(images), self.seed)
            yield name, self._measured(changed, progress, f"{told} {name}")

    def set_calibration(
        self,
        scores: Mapping[str, np.ndarray],
        predicted: Mapping[str, np.ndarray] | None = None,
        groups: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Take the threshold from scores of clean images. Images with a score that is not finite are left out.

        Args:
            scores: (n, stages) by condition.
            predicted: classes (n,) that the images are given, by condition.
            groups: groups (n,) of the images, by condition.

        Raises:
            FitError: too few images for the false-alarm rate.
        """
        self._calibrations: dict[int | None, Calibration] = {}
        self.clean_ = {name: np.asarray(values, np.float64) for name, values in scores.items()}
        self.predicted_ = None if predicted is None else {k: np.asarray(v, np.int64) for k, v in predicted.items()}
        self.group_ = None if groups is None else {k: np.asarray(v, np.int64) for k, v in groups.items()}
        self.calibration_ = self.calibration()
        self.fitted_ = replace(self.fitted_, calibrate=len(self.calibration_.scores))

    def calibration(self, most: int | None = None) -> Calibration:
        """The calibration, of a verdict that walks at most so many stages.

        Raises:
            FitError: no such stage, or too few images for the false-alarm rate.
        """
        count = len(self.cascade_.connectivities)
        if most is not None and (not isinstance(most, int) or not 1 <= most <= count):
            raise FitError(f"max_stage: this detector has {count} stage{'s' * (count > 1)}, got {most!r}")
        if most not in self._calibrations:
            self._calibrations[most] = self._calibration(most)
        return self._calibrations[most]

    def _calibration(self, most: int | None) -> Calibration:
        names = [name for name in self.clean_ if name in self.conditions] or list(self.clean_)
        scores = {name: ordered(self.clean_[name], self.cascade_.exits, most)[0] for name in names}
        whole = np.logical_and.reduce([np.isfinite(v) for v in scores.values()])
        classes = {k: self.predicted_[k][whole] for k in scores} if self.by_class and self.predicted_ else None
        if self.by_class and classes is None:
            raise FitError("this detector's calibration keeps no predicted classes: calibrate it again")
        n, sure = int(whole.sum()), self.confidence
        if sure is not None and n < needed(self.fpr, sure):
            sure = None  # on average only: the card and `fit` say so
        groups = None if self.group_ is None else {k: self.group_[k][whole] for k in scores}
        return Calibration({k: v[whole] for k, v in scores.items()}, self.fpr, sure, classes, groups)

    def set_params(self, **params: Any) -> Self:
        """Set parameters as scikit-learn has it.

        `fpr`, `confidence`, `conditions` and `by_class` of a fitted detector move its threshold.

        Raises:
            FitError: too few clean images were calibrated on for that rate, or none under such a condition.
        """
        moving = ("fpr", "confidence", "conditions", "by_class")
        before = {name: getattr(self, name) for name in moving if name in params}
        super().set_params(**params)
        if before and hasattr(self, "calibration_"):
            self._calibrations = {}
            try:
                self.calibration_ = self._moved("conditions" in params, "confidence" in params)
            except FitError:
                self._calibrations = {}
                super().set_params(**before)
                raise
        return self

    def _moved(self, conditions: bool, confidence: bool) -> Calibration:
        """The calibration at parameters that were set anew; `conditions`, `confidence`: whether these were.

        Raises:
            FitError: what was asked for cannot be had: nothing is weaker without a word.
        """
        if isinstance(self.conditions, str) or not len(self.conditions):
            raise FitError(f"conditions: expected a sequence of one name or more, got {self.conditions!r}")
        unknown = [name for name in self.conditions if name not in self.clean_]
        if conditions and unknown:
            raise FitError(
                f"not calibrated under {', '.join(unknown)}, only under {', '.join(self.clean_)}: calibrate it anew "
                "for others (advconn calibrate --conditions)"
            )
        calibration = self.calibration()
        if confidence or self.calibration_.confidence is not None:
            enough(len(calibration.scores), self.fpr, self.confidence)
        if self.by_class and not calibration.by_class:
            least = needed(self.fpr, calibration.confidence)
            raise FitError(f"no class has {least} calibration images, which a threshold of its own needs")
        return calibration
