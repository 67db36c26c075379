"""Detector: features to a score, a threshold and a p-value. Higher score = more adversarial; class 1 = adversarial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.pipeline import Pipeline
from torch import Tensor

from advconn.attacks.attack import Attack, compatible_attacks, parse_all
from advconn.attacks.catalog import MIXTURE
from advconn.cascade.attacked_copies import AttackAugmenter
from advconn.cascade.cascade import (
    STAGES,
    Cascade,
    CascadeOutput,
    Stage,
    companion_log_odds,
    continue_rates,
    head_log_odds,
    stage_extractors,
)
from advconn.cascade.early_exit import EarlyExitMisses, cascade_score
from advconn.cascade.heads import clone_unfitted, default_head
from advconn.cascade.pretrained import PretrainedHeads, floor_of
from advconn.cascade.scaling import BoundedScaler
from advconn.cascade.training import (
    TrainingSet,
    build_training_set,
    corrupted_features,
    train_cascade,
    training_set_of,
    with_adaptive,
)
from advconn.data.conditions import BENIGN, CLEAN, CONDITIONS, PROMISED, usable
from advconn.data.input_conversion import as_bytes, as_tensor, image_hashes, parse_y, select_labels
from advconn.detector.calibration import Calibration, check_calibration_size, min_calibration_size
from advconn.detector.doubt import FEWEST, certainty, doubt_threshold
from advconn.detector.efficacy import Efficacy
from advconn.detector.explanation import CleanBaseline, Explanation, explain_image, reason_of
from advconn.detector.fit_plan import FitPlan
from advconn.detector.judgement import Judgement, judgement_of
from advconn.detector.picture_groups import Groups, learn_groups
from advconn.errors import DataError, FitError
from advconn.features.connectivity import Connectivity
from advconn.models.classifier import Classifier
from advconn.models.equivalence import precision_of
from advconn.runtime.forward_passes import count_passes
from advconn.runtime.parallel import Runner
from advconn.runtime.progress import Progress, ignore_progress

HELD_OUT = 0.4  # of the clean images, to calibrate on
PER_ATTACK = 1000  # images that each attack is run on, at most
GATE = 0.5  # of the false-alarm rate: the share of clean images over which a companion is held against the heads
GROUPED = 100  # clean training images that groups of pictures are learned from
TURNS = 2  # in which heads are taught on what evades them


@dataclass(frozen=True)
class FitSummary:
    """What a fit was made from.

    Attributes:
        train: number of clean images that were fitted on.
        calibrate: number of clean images that were calibrated on.
        attacks: for every attack how many images were tried, and on how many it succeeded.
        image_hashes: (m,) uint64 of the images used, see data.input_conversion.image_hashes.
        missed: attacked images that leave early though the last stage would catch them, judged by heads that were not
            fitted on them; None of one stage.
        pretrained: whether the heads were taught on other networks.
        precision: that the calibration's scores were made in, see models.equivalence.precision_of.
        efficacy: how well it caught one attack; None where that was not measured.
        reading: how files of pictures were read, 'plain' or 'upright'; None of arrays.
        plan: what `fit` decided; None where the parts were put together otherwise.
    """

    train: int
    calibrate: int
    attacks: dict[str, tuple[int, int]]
    image_hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), compare=False)
    missed: EarlyExitMisses | None = None
    pretrained: bool = False
    precision: str = "float32"
    efficacy: Efficacy | None = None
    reading: str | None = None
    plan: FitPlan | None = None

    @property
    def shown_reading(self) -> str:
        """How pictures are read where they are judged: as people see them if it was fitted so, else both ways."""
        return "upright" if self.reading == "upright" else "both"


class _Measured(NamedTuple):
    """Of n images: scores (n, stages), predicted classes (n,), features (n, d) of the last stage, certainties (n,)."""

    scores: np.ndarray
    predicted: np.ndarray
    features: np.ndarray
    certainty: np.ndarray


class Detector(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn classifier of images (n, c, h, w): 0 clean, 1 adversarial.

    `predict == 1` and `decision_function > 0` are the verdict, at one threshold for all attacks; so is `p_value <=
    calibration_.level`, where classes share it. `predict_proba` is the head's own and knows of no threshold.

    Args:
        connectivity: how features are made; its classifier is never copied, not by `clone` either.
        head: a scikit-learn classifier of features, one of which is fitted for each stage; `default_head` unless given.
        attacks: the mixture that attacked images are made with, where `fit` is given clean ones alone.
        per_attack: at most so many images are attacked by each.
        fpr: false-alarm rate asked for, in (0, 1).
        calibrate: share of the clean images kept for calibration, in (0, 1).
        seed: of every split and attack.
        stages: what is walked first, and what only of images still in doubt; None walks all of `connectivity` at once.
        benign: conditions that change no verdict: every clean image is fitted on once more under one of them in turn,
            as clean, and every attacked one, if it is still misclassified, as attacked.
        conditions: benign conditions under each of which the false-alarm rate is promised.
        confidence: of that promise, in (0, 1), where there are images enough for one; None promises it on average, for
            pictures of every group (picture_groups.Groups).
        by_class: thresholds of their own for predicted classes that have enough calibration images.
        pretrained: heads taught on other networks; a fit on clean images alone takes these, and makes no attack.
        refine: with pretrained heads, so many images are attacked after all, by `attacks` in turn, and move the heads.
        evasive: from so many images, in each of two turns, are made images that evade the heads fitted so far, within
            the largest changes of `attacks`; the heads are then fitted on these too. 0 for none.

    Example:
        >>> from advconn import bundle
        >>> from advconn.data import datasets
        >>> detector = bundle.load(bundle.default("digits"))
        >>> detector.predict(datasets.digits()[0][1000:1004])
        array([0, 0, 0, 0])
    """

    fitted_: FitSummary
    cascade_: Cascade
    calibration_: Calibration
    typical_: np.ndarray
    names_: np.ndarray
    groups_: Groups | None
    doubt_: float | None

    def __init__(
        self,
        connectivity: Connectivity,
        head: Any = None,
        attacks: Sequence[str | Attack] = MIXTURE,
        per_attack: int = PER_ATTACK,
        fpr: float = 0.05,
        calibrate: float = HELD_OUT,
        seed: int = 0,
        stages: Sequence[Stage] | None = STAGES,
        benign: Sequence[str] = BENIGN,
        conditions: Sequence[str] = PROMISED,
        confidence: float | None = None,
        by_class: bool = False,
        pretrained: PretrainedHeads | None = None,
        refine: int = 0,
        evasive: int = 0,
    ) -> None:
        self.connectivity = connectivity
        self.head = head
        self.attacks = attacks
        self.per_attack = per_attack
        self.fpr = fpr
        self.calibrate = calibrate
        self.seed = seed
        self.stages = stages
        self.benign = benign
        self.conditions = conditions
        self.confidence = confidence
        self.by_class = by_class
        self.pretrained = pretrained
        self.refine = refine
        self.evasive = evasive

    @property
    def classifier(self) -> Classifier:
        """The classifier that is guarded: that of `connectivity`."""
        return self.connectivity.classifier

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        groups: Any = None,
        kept: Any = None,
        surrogate: Classifier | None = None,
        runner: Runner | None = None,
    ) -> Detector:
        """Fit the head and calibrate it.

        Args:
            X: images (n, c, h, w), floats in [0, 1] or uint8.
            y: None if all are clean: the attacked copies are then made here, of the training part's images alone. Else
                0 clean, 1 attacked; or 0 clean and a number for each kind of attack, which the head then tells apart.
            labels: true classes (n,), where known; only images classified right are attacked. Else predictions count.
                -1 for all images to calibrate on, or for all others, says that these are not known.
            groups: with y, which image each row is a copy of (n,); a clean image kept for calibration takes its
                attacked copies out of the training part.
            kept: (n,) true for the clean images to calibrate on, where they are not to be drawn by `calibrate`.
            surrogate: another classifier of the same classes, on which attacks that need a gradient are made where this
                one gives none; only those that change its prediction count.
            runner: spreads the attacks over processes, keeps what is finished, and tells how far it is.

        Raises:
            AttackError: an attack needs a gradient that nothing gives.
            FitError: too few clean images for the false-alarm rate, one class only, or no attack succeeded.
        """
        if not isinstance(self.connectivity, Connectivity):
            given = type(self.connectivity).__name__
            raise FitError(f"Detector(Connectivity(classifier)) takes a Connectivity, got {given}")
        images = as_tensor(X)
        if y is not None and labels is not None:
            raise FitError(
                "pass either y or labels, not both: labels choose the images to attack, and with y nothing is attacked"
            )
        kinds = parse_y(y, len(images))
        names = np.arange(len(images)) if groups is None else np.asarray(groups)
        kept = self._split(kinds, names) if kept is None else np.asarray(kept, dtype=bool) & (kinds == 0)
        check_calibration_size(int(kept.sum()), self.fpr)
        truth = select_labels(labels, kept)
        train = ~np.isin(names, names[kept])
        connectivities = stage_extractors(self.connectivity, self.stages)
        benign = usable(self.benign, images.shape[1])
        runner = Runner() if runner is None else runner
        maker = AttackAugmenter(connectivities, self.per_attack, benign, self.seed, surrogate, runner)
        usual = tuple(self.attacks) == MIXTURE
        mixture = parse_all(compatible_attacks(self.classifier, MIXTURE) if usual else self.attacks)
        if y is None and self.pretrained is not None:
            few = replace(maker, per_attack=-(-self.refine // max(len(mixture), 1)))
            refine_rows = build_training_set(
                images[train], select_labels(labels, train), mixture if self.refine else (), few
            )
            self.use_pretrained_heads(self.pretrained, refine_rows.drop_non_finite())
            return self._calibrated(images, truth, kept, train, runner.progress)
        if y is None:
            rows = build_training_set(images[train], select_labels(labels, train), mixture, maker)
        else:
            rows = training_set_of(maker.features(images[train], "walk"), kinds[train], names[train])
        clean = kinds[train] == 0
        plain = as_bytes(images[train][torch.from_numpy(clean)])
        rows = rows.with_corrupted(
            *corrupted_features(plain, rows.groups[: len(clean)][clean], self.benign, maker, self.seed)
        )
        self.fit_cascade(rows.drop_non_finite())
        if y is None and self.evasive:
            self._harden(rows, images[train], select_labels(labels, train), mixture, maker)
        return self._calibrated(images, truth, kept, train & (kinds == 0), runner.progress)

    def _harden(
        self,
        rows: TrainingSet,
        images: Tensor,
        labels: Tensor | None,
        mixture: Sequence[Attack],
        maker: AttackAugmenter,
    ) -> None:
        """Teach the heads on what evades them, in turns."""
        sizes = sorted({float(a.settings["eps"]) for a in mixture if a.family == "linf" and "eps" in a.settings})
        for turn in range(TURNS):
            rows = with_adaptive(rows, self.cascade_, images, labels, sizes, self.evasive, turn, maker)
            self.fit_cascade(rows.drop_non_finite())

    def _calibrated(
        self, images: Tensor, truth: Tensor | None, kept: np.ndarray, clean: np.ndarray, progress: Progress
    ) -> Detector:
        """With groups of pictures from the clean images that it was fitted on, and thresholds from those kept."""
        if self.confidence is None and not self.by_class:
            self.group_pictures(images[np.flatnonzero(clean)[:GROUPED]], progress)
        self.calibrate_on(images[kept], progress, truth)
        self.fitted_ = replace(self.fitted_, image_hashes=image_hashes(images))
        return self

    def group_pictures(self, images: Tensor, progress: Progress = ignore_progress) -> None:
        """Learn groups of pictures in which clean scores are alike, from images (n, c, h, w) not calibrated on."""
        self.groups_ = None
        parts = []
        for _, measured in self._under_conditions(images, progress, "group"):
            parts.append((cascade_score(measured.scores, self.cascade_.exits)[0], measured.features))
        if parts and len(images):
            scores, features = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            self.groups_ = learn_groups(features, tuple(map(str, self.names_)), scores, self.seed)

    def use_pretrained_heads(self, heads: PretrainedHeads, rows: TrainingSet) -> Detector:
        """Take heads taught on other networks, standardised by clean rows, moved by attacked ones; then calibrate.

        Raises:
            FitError: too few images, or stages that no head was taught for.
        """
        connectivities, shares = self._planned()
        clean, hits = rows.only(rows.plain).features, rows.only(rows.kinds > 0)
        cascade = heads.cascade(connectivities, clean, shares, hits.features if len(hits.kinds) else ())
        fitted = FitSummary(int(rows.plain.sum()), 0, rows.attacks, pretrained=True)
        self.set_cascade(cascade, np.median(clean[-1], axis=0), fitted)
        return self

    def fit_features(
        self,
        features: np.ndarray | Sequence[np.ndarray],
        kinds: np.ndarray,
        clean: np.ndarray | Sequence[np.ndarray],
        attacks: dict[str, tuple[int, int]] | None = None,
        *,
        groups: np.ndarray | None = None,
    ) -> Detector:
        """Fit on features that were made before.

        Args:
            features: (n, d) of `connectivity`; with stages a table for each of
                `connectivities_of(connectivity, stages)`.
            kinds: (n,) 0 clean, 1 and more the attacks.
            clean: features of the clean images to calibrate on, given in the same way.
            attacks: for the record, how many of each attack were tried and succeeded.
            groups: (n,) which image each row is a copy of.

        Raises:
            FitError: no attacked image, or too few clean ones for the false-alarm rate.
        """
        tables = (features,) if isinstance(features, np.ndarray) else tuple(features)
        held = (clean,) if isinstance(clean, np.ndarray) else tuple(clean)
        check_calibration_size(len(held[0]), self.fpr)
        self.fit_cascade(training_set_of(tables, kinds, groups, attacks=attacks or {}))
        self.set_calibration({CLEAN: np.stack([self.cascade_.scored(k, table) for k, table in enumerate(held)], 1)})
        return self

    def fit_cascade(self, rows: TrainingSet) -> Detector:
        """Fit a head for each stage, and where images leave; `calibrate_on` or `set_calibration` makes it whole.

        Raises:
            FitError: no attacked image.
        """

        connectivities, shares = self._planned()

        def new_head(stage: int) -> Any:
            head = default_head(self.seed) if self.head is None else clone(self.head)
            first = head[0] if isinstance(head, Pipeline) else None
            if isinstance(first, BoundedScaler) and first.floor is None:
                first.floor = floor_of(tuple(map(str, connectivities[stage].get_feature_names_out())))
            return head

        cascade, missed = train_cascade(connectivities, rows, new_head, shares, self.fpr, self.seed)
        cascade = replace(cascade, gate=self._gate(cascade, rows))
        typical = np.median(rows.features[-1][rows.plain], axis=0)
        self.set_cascade(cascade, typical, FitSummary(int(rows.plain.sum()), 0, rows.attacks, missed=missed))
        return self

    def _planned(self) -> tuple[tuple[Connectivity, ...], tuple[float, ...]]:
        """What each stage walks, and the share of clean images that goes on from it."""
        asked = self.connectivity, self.stages
        return stage_extractors(*asked), continue_rates(*asked)

    def _gate(self, cascade: Cascade, rows: TrainingSet) -> float | None:
        """What makes the companion's log-odds and the last head's equal where as many clean images lie above each."""
        if "companion" not in self.connectivity.active_families:
            return None
        clean, share = rows.features[-1][rows.plain], 1 - GATE * self.fpr
        both = companion_log_odds(cascade.names[-1], clean), head_log_odds(cascade.heads[-1], clean)
        return float(np.quantile(both[0], share) - np.quantile(both[1], share))

    @classmethod
    def restore(
        cls,
        connectivity: Connectivity,
        cascade: Cascade,
        typical: np.ndarray,
        fitted: FitSummary,
        scores: Mapping[str, np.ndarray],
        predicted: Mapping[str, np.ndarray] | None,
        pictures: tuple[Groups, Mapping[str, np.ndarray]] | None = None,
        doubt: float | None = None,
        **parameters: Any,
    ) -> Detector:
        """A fitted detector from what one was made of.

        Args:
            connectivity: how features are made.
            cascade: its fitted stages; `head` is the last one's, unfitted, unless heads were taught on other networks.
            typical: the median clean image's features (d,) at the last stage.
            fitted: what they were made from.
            scores: of the calibration images, see set_calibration.
            predicted: their classes, see set_calibration.
            pictures: groups of pictures, and that of each calibration image by condition; None without groups.
            doubt: see doubt.doubt_threshold.
            parameters: the others that it was constructed with.
        """
        head = None if fitted.pretrained else clone_unfitted(cascade.heads[-1])
        detector = cls(connectivity, head, **parameters)
        detector.set_cascade(cascade, typical, fitted)
        detector.groups_, groups = (None, None) if pictures is None else pictures
        detector.doubt_ = doubt
        detector.set_calibration(scores, predicted, groups)
        return detector

    def set_cascade(self, cascade: Cascade, typical: np.ndarray, fitted: FitSummary) -> None:
        """Take what was fitted before.

        Args:
            cascade: the stages.
            typical: the median clean image's features (d,) at the last one.
            fitted: what they were made from.
        """
        self.cascade_, self.typical_, self.fitted_, self.groups_, self.doubt_ = cascade, typical, fitted, None, None
        self.classes_ = np.array([0, 1])
        self.head_, self.names_ = cascade.heads[-1], np.asarray(cascade.names[-1], dtype=object)
        self.n_features_in_ = len(self.names_)

    def _split(self, kinds: np.ndarray, names: np.ndarray) -> np.ndarray:
        """Rows of the clean images kept for calibration."""
        clean = np.unique(names[kinds == 0])
        count = round(self.calibrate * len(clean))
        chosen = np.random.default_rng(self.seed).permutation(clean)[:count]
        return np.isin(names, chosen) & (kinds == 0)

    def calibrate_on(self, images: Tensor, progress: Progress = ignore_progress, labels: Tensor | None = None) -> None:
        """Take the threshold from clean images in no other use, under every condition. CLEAN is always one of them.

        Args:
            images: (n, c, h, w), uint8 or in [0, 1].
            progress: told (stage, done, total).
            labels: true classes (n,) where known: they say where the classifier's own prediction is in doubt.
        """
        certainties, wrong = [], []
        scores: dict[str, np.ndarray] = {}
        predicted: dict[str, np.ndarray] = {}
        groups: dict[str, np.ndarray] = {}
        for name, measured in self._under_conditions(images, progress, "calibrate"):
            scores[name], predicted[name] = measured.scores, measured.predicted
            group = self._group(measured.features)
            if group is not None:
                groups[name] = group
            if labels is not None:
                certainties.append(measured.certainty)
                wrong.append(measured.predicted != labels.cpu().numpy())
        self.doubt_ = None
        if wrong:
            least = FEWEST * len(wrong)  # each image stands there under every condition
            self.doubt_ = doubt_threshold(np.concatenate(certainties), np.concatenate(wrong), least)
        self.set_calibration(scores, predicted, groups or None)
        self.fitted_ = replace(self.fitted_, precision=precision_of(self.classifier))

    def _under_conditions(self, images: Tensor, progress: Progress, told: str) -> Iterator[tuple[str, _Measured]]:
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
        scores = {name: cascade_score(self.clean_[name], self.cascade_.exits, most)[0] for name in names}
        whole = np.logical_and.reduce([np.isfinite(v) for v in scores.values()])
        classes = {k: self.predicted_[k][whole] for k in scores} if self.by_class and self.predicted_ else None
        if self.by_class and classes is None:
            raise FitError("this detector's calibration keeps no predicted classes: calibrate it again")
        n, sure = int(whole.sum()), self.confidence
        if sure is not None and n < min_calibration_size(self.fpr, sure):
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
            check_calibration_size(len(calibration.scores), self.fpr, self.confidence)
        if self.by_class and not calibration.by_class:
            least = min_calibration_size(self.fpr, calibration.confidence)
            raise FitError(f"no class has {least} calibration images, which a threshold of its own needs")
        return calibration

    def _fitted(self) -> None:
        if not hasattr(self, "calibration_"):
            raise FitError("the detector has not been fitted: call fit, or load a bundle")

    def _walked_blocks(
        self, images: Tensor, progress: Progress = ignore_progress, told: str = "score", **how: Any
    ) -> Iterator[CascadeOutput]:
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
        with count_passes() as cost:
            blocks = list(
                self._walked_blocks(images, full=full, most=max_stage, thresholds=calibration.every_threshold)
            )
        groups = self._group(np.concatenate([block.features for block in blocks]))
        return judgement_of(self.cascade_, calibration, blocks, cost, max_stage, groups, self.doubt_)

    @property
    def _typical(self) -> CleanBaseline:
        return CleanBaseline(self.cascade_, self.typical_)

    def reasons(self, judgement: Judgement) -> list[str]:
        """For each image of a judgement what it showed, in words, see reasons.reason."""
        return [reason_of(self._typical, judgement, i) for i in range(len(judgement.score))]

    def family_effects(self, judgement: Judgement) -> dict[str, np.ndarray]:
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
        checked = self.classifier.check(batch)
        return explain_image(self._typical, self.judge(checked, full=True), 0, checked[0])

    def read(self, images: Any, reading: str = "plain") -> Tensor:
        """Images (n, c, h, w) as `judge` takes them, by the classifier's own preprocessing.

        Args:
            images: a path (a file, a folder, an array file), a PIL picture, an array or tensor, or a sequence of these.
            reading: of files, see decoding.decode_variants.

        Raises:
            DataError: what cannot be read.
        """
        from advconn.data.input_conversion import read_all

        return read_all(images, self.classifier.preprocessing, reading=reading)

    def scores(self, X: Any, progress: Progress = ignore_progress) -> np.ndarray:
        """Scores (n,), as `score_samples`; `progress` is told (stage, done, total)."""
        return self._ordered(X, progress)[0]

    def _ordered(
        self, X: Any, progress: Progress = ignore_progress
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Scores (n,), predicted classes (n,) and groups (n,)."""
        self._fitted()
        measured = self._measured(as_tensor(X), progress, "score")
        score = cascade_score(measured.scores, self.cascade_.exits)[0]
        return score, measured.predicted, self._group(measured.features)

    def _measured(self, images: Tensor, progress: Progress, told: str) -> _Measured:
        """What is kept of images (n, c, h, w) that went through the stages."""
        parts = [
            (f.scores, f.query.argmax(1).cpu().numpy(), f.features, certainty(f.traces[0][1]))
            for f in self._walked_blocks(images, progress, told)
        ]
        return _Measured(*map(np.concatenate, zip(*parts, strict=True)))

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
            _, stage = cascade_score(block.scores, self.cascade_.exits)
            attacked = np.ones(len(stage))
            for k in range(len(self.cascade_.heads)):
                columns = block.features[:, self.cascade_.places[k]]
                rows = np.flatnonzero((stage == k + 1) & np.isfinite(columns).all(1))
                if len(rows):
                    attacked[rows] = self.cascade_.heads[k].predict_proba(columns[rows])[:, 1:].sum(1)
            out.append(attacked)
        shares = np.concatenate(out)
        return np.stack([1 - shares, shares], 1)
