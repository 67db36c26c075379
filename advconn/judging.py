"""What a fitted detector says of images: scores, p-values, verdicts, reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from torch import Tensor

from advconn.calibration import Calibration
from advconn.cascade.cascade import Cascade, Found
from advconn.cascade.early_exit import ordered
from advconn.data.inputs import as_tensor
from advconn.errors import DataError, FitError
from advconn.explain import Explanation, explanation
from advconn.features.connectivity import Connectivity
from advconn.groups import Groups
from advconn.inference import counting
from advconn.judgement import Judgement, judgement_of
from advconn.parallel import Progress, silent
from advconn.reasons import Typical, reason


class Judging(ClassifierMixin):  # type: ignore[misc]
    """The half of a detector that judges; the other half fits it, and sets what stands here."""

    connectivity: Connectivity
    cascade_: Cascade
    calibration_: Calibration
    typical_: np.ndarray
    names_: np.ndarray
    groups_: Groups | None

    def calibration(self, most: int | None = None) -> Calibration:
        """The calibration, of a verdict that walks at most so many stages."""
        raise NotImplementedError

    def _fitted(self) -> None:
        if not hasattr(self, "calibration_"):
            raise FitError("the detector has not been fitted: call fit, or load a bundle")

    def _walked_blocks(
        self, images: Tensor, progress: Progress = silent, told: str = "score", **how: Any
    ) -> Iterator[Found]:
        """What the cascade finds for images (n, c, h, w), a block of them at a time."""
        done = 0
        for block in self.cascade_.blocks(images):
            yield self.cascade_.walk(block, **how)
            done += len(block)
            progress(told, done, len(images))

    def judge(self, X: Any, *, full: bool = False, max_stage: int | None = None) -> Judgement:
        """Everything the detector says of images.

        Args:
            X: images (n, c, h, w), uint8 or in [0, 1].
            full: walk every stage for every image, for what it shows; the verdicts stay the same.
            max_stage: go no farther than this stage, with a threshold of its own from the same calibration images: it
                bounds what an image can cost.

        Raises:
            FitError: no such stage, or the detector has not been fitted.
            DataError: no images.
        """
        self._fitted()
        calibration = self.calibration_ if max_stage is None else self.calibration(max_stage)
        images = as_tensor(X)
        if not len(images):
            raise DataError("no images to judge")
        with counting() as cost:
            blocks = list(
                self._walked_blocks(images, full=full, most=max_stage, thresholds=calibration.every_threshold)
            )
        groups = self._group(np.concatenate([block.features for block in blocks]))
        return judgement_of(self.cascade_, calibration, blocks, cost, max_stage, groups)

    @property
    def _typical(self) -> Typical:
        return Typical(self.cascade_, self.typical_)

    def reasons(self, judgement: Judgement) -> list[str]:
        """For each image of a judgement what it showed, in words, see reasons.reason."""
        return [reason(self._typical, judgement, i) for i in range(len(judgement.score))]

    def families(self, judgement: Judgement) -> dict[str, np.ndarray]:
        """By how much each image's log-odds (n,) fall if a family's features are a typical clean image's."""
        groups = {name: (f"{name}.",) for name in dict.fromkeys(str(n).split(".")[0] for n in self.names_)}
        return self._typical.effects(judgement, np.arange(len(judgement.score)), groups)

    def explain(self, image: Any) -> Explanation:
        """What one image showed, through every stage: votes, barrier, secondary barriers, and a figure of them.

        Args:
            image: a tensor (c, h, w) or (1, c, h, w) in [0, 1] or uint8, or what `read` takes.

        Raises:
            DataError: no image, or several.
        """
        given = image if isinstance(image, Tensor) else self.read(image)
        batch = given[None] if given.ndim == 3 else given
        if len(batch) != 1:
            raise DataError(f"expected one image to explain, got {len(batch)}")
        checked = self.connectivity.classifier.check(batch)
        return explanation(self._typical, self.judge(checked, full=True), 0, checked[0])

    def read(self, images: Any, reading: str = "plain") -> Tensor:
        """Images (n, c, h, w) as `judge` takes them, by the classifier's own preprocessing.

        Args:
            images: a path (a file, a folder, an array file), a PIL picture, an array or tensor, or a sequence of these.
            reading: of files, see pictures.readings.

        Raises:
            DataError: what cannot be read.
        """
        from advconn.data.inputs import read_all

        classifier = self.connectivity.classifier
        return read_all(images, classifier.preprocessing, classifier.channels, reading)

    def scores(self, X: Any, progress: Progress = silent) -> np.ndarray:
        """Scores (n,), as `score_samples`; `progress` is told (stage, done, total)."""
        return self._ordered(X, progress)[0]

    def _ordered(self, X: Any, progress: Progress = silent) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Scores (n,), predicted classes (n,) and groups (n,)."""
        self._fitted()
        scores, predicted, features = self._measured(as_tensor(X), progress, "score")
        return ordered(scores, self.cascade_.exits)[0], predicted, self._group(features)

    def _measured(self, images: Tensor, progress: Progress, told: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores (n, stages), predicted classes (n,) and features (n, d) of the last stage's columns."""
        parts = [
            (f.scores, f.query.argmax(1).cpu().numpy(), f.features) for f in self._walked_blocks(images, progress, told)
        ]
        scores, predicted, features = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(predicted), np.concatenate(features)

    def group_of(self, judgement: Judgement) -> np.ndarray | None:
        """The group of pictures (n,) of each image of a judgement; None without groups."""
        return self._group(judgement.features)

    def _group(self, features: np.ndarray) -> np.ndarray | None:
        """The group (n,) of each picture, by features (n, d) of the last stage's columns; None without groups."""
        return None if self.groups_ is None else self.groups_.of(features, tuple(map(str, self.names_)))

    def score_samples(self, X: Any) -> np.ndarray:
        """Scores (n,): higher = more adversarial."""
        return self.scores(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n,) over the threshold: positive = flagged."""
        score, predicted, groups = self._ordered(X)
        return np.asarray(score - self.calibration_.thresholds(predicted, groups))

    def p_value(self, X: Any) -> np.ndarray:
        """Conformal p-values (n,) in (0, 1]: small = unlike clean images."""
        return self.calibration_.p_value(*self._ordered(X))

    def predict(self, X: Any) -> np.ndarray:
        """1 where an image is flagged, else 0; (n,)."""
        return (self.decision_function(X) > 0).astype(int)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Shares (n, 2) of clean and adversarial, of the head of the stage that each image leaves at."""
        self._fitted()
        out = []
        for block in self._walked_blocks(as_tensor(X)):
            _, stage = ordered(block.scores, self.cascade_.exits)
            attacked = np.ones(len(stage))
            for k in range(len(self.cascade_.heads)):
                columns = block.features[:, self.cascade_.places[k]]
                rows = np.flatnonzero((stage == k + 1) & np.isfinite(columns).all(1))
                if len(rows):
                    attacked[rows] = self.cascade_.heads[k].predict_proba(columns[rows])[:, 1:].sum(1)
            out.append(attacked)
        shares = np.concatenate(out)
        return np.stack([1 - shares, shares], 1)
