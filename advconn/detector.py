"""Detector: features to a score, a threshold and a p-value. Higher score = more adversarial; class 1 = adversarial."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from torch import Tensor

from advconn.attacks import MIXTURE, Attack, parse_all
from advconn.calibration import Calibration, enough
from advconn.classifier import Classifier, Cost, counting
from advconn.connectivity import Connectivity, as_tensor, native
from advconn.errors import DataError, FitError
from advconn.features import table
from advconn.making import Hits, Maker, features_of
from advconn.progress import Progress, silent
from advconn.store import Store


@dataclass(frozen=True)
class Judgement:
    """What a detector says of n images.

    logits (n, k) of the classifier; score, p_value, adversarial (n,); features (n, d); families: what each adds to
    an image's score over a typical clean image's (n,); total_cost of all of them together. errors (n,): None, or why an
    image could not be judged: the classifier gives NaN for it or for a copy of it. Such an image is flagged, with an
    infinite score and the smallest p-value there is.
    """

    logits: Tensor
    score: np.ndarray
    p_value: np.ndarray
    adversarial: np.ndarray
    features: np.ndarray
    families: dict[str, np.ndarray]
    total_cost: Cost
    errors: tuple[str | None, ...] = ()

    def loudest(self, i: int) -> str:
        """The family that raises image i's score most."""
        return max(self.families, key=lambda family: float(self.families[family][i]))


@dataclass(frozen=True)
class Fitted:
    """What a fit was made from: images in each use, of every attack how many were tried and succeeded, and `marks`."""

    train: int
    calibrate: int
    attacks: dict[str, tuple[int, int]]
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), compare=False)


def marks(images: Tensor) -> np.ndarray:
    """A number (n,) for every image (n, c, h, w), uint8 or in [0, 1], that is the same for the same bytes alone."""
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().byte()
    digests = (hashlib.blake2b(p.tobytes(), digest_size=8).digest() for p in pixels.cpu().contiguous().numpy())
    return np.frombuffer(b"".join(digests), np.uint64)


def default_head(seed: int = 0) -> Any:
    """The scikit-learn classifier that a detector uses unless told."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, random_state=seed))


def log_odds(head: Any, features: np.ndarray) -> np.ndarray:
    """Log-odds (n,) of any attack against clean, from a scikit-learn classifier whose first class is clean.

    Of several attacks the probabilities are added up: the score is logsumexp over the attacks minus clean.
    """
    if hasattr(head, "decision_function"):
        values = np.asarray(head.decision_function(features), dtype=np.float64)
        if values.ndim == 1:
            return values
    else:
        values = np.log(np.asarray(head.predict_proba(features), dtype=np.float64).clip(1e-12))
    return np.asarray(np.logaddexp.reduce(values[:, 1:], axis=1) - values[:, 0])


class Detector(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn classifier of images (n, c, h, w): 0 clean, 1 adversarial.

    `decision_function > 0`, `predict == 1` and `p_value <= fpr` are the same verdict, at one threshold for all attacks.
    `predict_proba` is the head's own and knows nothing of the threshold.

    Args:
        connectivity: how features are made; its classifier is never copied, not by `clone` either.
        head: a scikit-learn classifier of features; `default_head` unless given.
        attacks: the mixture that attacked images are made with, where `fit` is given clean ones alone.
        per_attack: at most so many images are attacked by each.
        fpr: false-alarm rate asked for.
        calibrate: share of the clean images kept for calibration.
        seed: of every split and attack.
    """

    fitted_: Fitted

    def __init__(
        self,
        connectivity: Connectivity,
        head: Any = None,
        attacks: Sequence[str | Attack] = MIXTURE,
        per_attack: int = 1000,
        fpr: float = 0.05,
        calibrate: float = 0.4,
        seed: int = 0,
    ) -> None:
        self.connectivity = connectivity
        self.head = head
        self.attacks = attacks
        self.per_attack = per_attack
        self.fpr = fpr
        self.calibrate = calibrate
        self.seed = seed

    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        labels: Any = None,
        groups: Any = None,
        kept: Any = None,
        surrogate: Classifier | None = None,
        store: Store | None = None,
        jobs: int = 1,
        progress: Progress = silent,
    ) -> Detector:
        """Fit the head and calibrate it.

        Args:
            X: images (n, c, h, w), floats in [0, 1] or uint8.
            y: None if all are clean: the attacked copies are then made here, of the training part's images alone. Else
                0 clean, 1 attacked; or 0 clean and a number for each kind of attack, which the head then tells apart.
            labels: true classes (n,), where known: only images that the classifier gets right are attacked; without
                them its own predictions stand in.
            groups: with y, which image each row is a copy of (n,); a clean image kept for calibration takes its
                attacked copies out of the training part.
            kept: (n,) true for the clean images to calibrate on, where they are not to be drawn by `calibrate`.
            surrogate: another classifier of the same classes, on which attacks that need a gradient are made where
                this one gives none; only those that change its prediction count.
            store: where finished attacks are kept, so that a fit that was interrupted goes on.
            jobs: processes that attacks are spread over.
            progress: told (stage, done, total).

        Raises:
            AttackError: an attack needs a gradient that nothing gives.
            FitError: too few clean images for the false-alarm rate, one class only, or no attack succeeded.
        """
        if not isinstance(self.connectivity, Connectivity):
            raise FitError(
                f"a Detector is made of a Connectivity, got {type(self.connectivity).__name__}: "
                "Detector(Connectivity(classifier))"
            )
        images = as_tensor(X)
        if y is not None and (labels is not None or len(np.unique(y)) == 1):
            raise FitError("with y, give clean (0) and attacked (1) images, and no labels; without y, clean ones alone")
        kinds = np.zeros(len(images), int) if y is None else np.asarray(y).astype(int)
        if kinds.shape != (len(images),) or kinds.min(initial=0) < 0:
            raise FitError(f"y must be {len(images)} values: 0 (clean), 1 (attacked) or more (other kinds of attack)")
        names = np.arange(len(images)) if groups is None else np.asarray(groups)
        kept = self._split(kinds, names) if kept is None else np.asarray(kept, dtype=bool) & (kinds == 0)
        enough(int(kept.sum()), self.fpr)
        train = ~np.isin(names, names[kept])
        maker = Maker(self.connectivity, self.per_attack, self.seed, surrogate, store or Store(None), jobs, progress)
        if y is None:
            features, kinds, attacks = self._attacked(images[train], _maybe(labels, train), maker)
        else:
            features, kinds, attacks = maker.features(images[train], "walk"), kinds[train], {}
        clean = maker.features(images[kept], "calibrate")
        sound, whole = np.isfinite(features).all(1), np.isfinite(clean).all(1)
        self.fit_features(features[sound], kinds[sound], clean[whole], attacks)
        self.fitted_ = replace(self.fitted_, seen=marks(images))
        return self

    def fit_features(
        self,
        features: np.ndarray,
        kinds: np.ndarray,
        clean: np.ndarray,
        attacks: dict[str, tuple[int, int]] | None = None,
    ) -> Detector:
        """Fit on features (n, d) that `connectivity` made before, of kinds (n,): 0 clean, 1 and more the attacks.

        `clean` (m, d) are those of the clean images to calibrate on; `attacks` tells how many of each attack were tried
        and succeeded, for the record.

        Raises:
            FitError: no attacked image, or too few clean ones for the false-alarm rate.
        """
        enough(len(clean), self.fpr)
        if len(np.unique(kinds)) < 2:
            raise FitError("no attacked image to learn from: no attack of the mixture succeeded")
        self.classes_ = np.array([0, 1])
        self.n_features_in_ = features.shape[1]
        self.head_ = clone(default_head(self.seed) if self.head is None else self.head).fit(features, kinds)
        self.typical_ = np.median(features[kinds == 0], axis=0)
        self.names_ = self.connectivity.get_feature_names_out()
        self.calibration_ = Calibration(self.score_columns(clean), self.fpr)
        self.fitted_ = Fitted(int((kinds == 0).sum()), len(clean), attacks or {})
        return self

    def _split(self, kinds: np.ndarray, names: np.ndarray) -> np.ndarray:
        """Rows of the clean images kept for calibration."""
        clean = np.unique(names[kinds == 0])
        count = round(self.calibrate * len(clean))
        chosen = np.random.default_rng(self.seed).permutation(clean)[:count]
        return np.isin(names, chosen) & (kinds == 0)

    def _attacked(
        self, images: Tensor, labels: Tensor | None, maker: Maker
    ) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, int]]]:
        """Features of clean images and of their successfully attacked copies, by which attack, and what succeeded."""
        attacks = parse_all(self.attacks)
        for attack in attacks:
            maker.source(attack)
        rows = [maker.features(images, "walk")]
        kinds = [np.zeros(len(images), int)]
        seen: dict[str, tuple[int, int]] = {}
        for i, (attack, (tried, features)) in enumerate(
            zip(attacks, maker.walked(images, labels, attacks), strict=True)
        ):
            seen[str(attack)] = (tried, len(features))
            rows.append(features)
            kinds.append(np.full(len(features), i + 1))
        return np.concatenate(rows), np.concatenate(kinds), seen

    def attacked(self, images: Tensor, labels: Tensor | None, attack: Attack, *, seed: int) -> Hits:
        """Successful copies of at most `per_attack` images that the classifier gets right, see Maker.attacked."""
        return Maker(self.connectivity, self.per_attack, self.seed).attacked(images, labels, attack, seed=seed)

    def score_columns(self, features: np.ndarray) -> np.ndarray:
        """Scores (n,) of features (n, d) that `connectivity` made before; infinite where a feature is not finite."""
        sound = np.isfinite(features).all(1)
        if sound.all():
            score = log_odds(self.head_, features)
        else:
            score = np.full(len(features), np.inf)
            score[sound] = log_odds(self.head_, features[sound]) if sound.any() else []
        return np.where(np.isnan(score), np.inf, score)  # a gate fails closed

    def _fitted(self) -> None:
        if not hasattr(self, "calibration_"):
            raise FitError("the detector has not been fitted: call fit, or load a bundle")

    def judge(self, X: Any) -> Judgement:
        """Everything the detector says of images (n, c, h, w)."""
        self._fitted()
        with counting() as cost:
            traces = list(self.connectivity.traces(X))
        features = torch.cat([table(trace)[0] for trace in traces]).double().cpu().numpy()
        logits = torch.cat([trace.query for trace in traces])
        score = self.score_columns(features)
        sound, own = np.isfinite(features).all(1), torch.isfinite(logits).all(1).cpu().numpy()
        errors = tuple(
            None if fine else "the classifier gives NaN for it" + " when it is changed a little" * bool(alone)
            for fine, alone in zip(sound, own, strict=True)
        )
        return Judgement(
            logits,
            score,
            self.calibration_.p_value(score),
            score > self.calibration_.threshold,
            features,
            self._families(features, score),
            cost,
            errors,
        )

    def read(self, images: Any, reading: str = "plain") -> Tensor:
        """Images (n, c, h, w) as `judge` takes them, by the classifier's own preprocessing.

        Args:
            images: a path (a file, a folder, an array file), a PIL picture, an array or tensor, or a sequence of these.
            reading: of files, see pictures.readings.

        Raises:
            DataError: what cannot be read.
        """
        from advconn.images import read_all

        classifier = self.connectivity.classifier
        return read_all(images, classifier.preprocessing, classifier.channels, reading)

    def set_params(self, **params: Any) -> Detector:
        """Set parameters as scikit-learn has it; `fpr` of a fitted detector moves its threshold.

        Raises:
            FitError: too few clean images were calibrated on for that rate.
        """
        if "fpr" in params and hasattr(self, "calibration_"):
            self.calibration_ = Calibration(self.calibration_.scores, float(params["fpr"]))
        super().set_params(**params)
        return self

    def _families(self, features: np.ndarray, score: np.ndarray) -> dict[str, np.ndarray]:
        """By how much the score falls if a family's features are replaced by a typical clean image's."""
        family = np.array([str(name).split(".")[0] for name in self.names_])
        out = {}
        for name in dict.fromkeys(family.tolist()):
            typical = np.where(family == name, self.typical_, features)
            before = self.score_columns(typical)
            both = np.isfinite(score) & np.isfinite(before)
            out[name] = np.where(both, np.where(both, score, 0) - np.where(both, before, 0), 0.0)
        return out

    def scores(self, X: Any, progress: Progress = silent) -> np.ndarray:
        """Scores (n,), as `score_samples`; `progress` is told (stage, done, total)."""
        self._fitted()
        return self.score_columns(features_of(self.connectivity, as_tensor(X), "score", progress))

    def score_samples(self, X: Any) -> np.ndarray:
        """Scores (n,): higher = more adversarial."""
        return self.scores(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores (n,) over the threshold: positive = flagged."""
        return np.asarray(self.score_samples(X) - self.calibration_.threshold)

    def p_value(self, X: Any) -> np.ndarray:
        """Conformal p-values (n,) in (0, 1]: small = unlike clean images."""
        return self.calibration_.p_value(self.score_samples(X))

    def predict(self, X: Any) -> np.ndarray:
        """1 where an image is flagged, else 0; (n,)."""
        return (self.decision_function(X) > 0).astype(int)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The head's shares (n, 2) of clean and adversarial."""
        self._fitted()
        features = features_of(self.connectivity, as_tensor(X), "walk", silent)
        sound = np.isfinite(features).all(1)
        shares = np.asarray(self.head_.predict_proba(np.where(sound[:, None], features, self.typical_)))
        attacked = np.where(sound, shares[:, 1:].sum(1), 1.0)
        return np.stack([1 - attacked, attacked], 1)


def _maybe(labels: Any, rows: np.ndarray) -> Tensor | None:
    if labels is None:
        return None
    return as_labels(labels, len(rows))[torch.from_numpy(rows)]


def as_labels(labels: Any, count: int) -> Tensor:
    """True classes (n,) from a tensor, array or list of integers, whole floats, (n, 1) or one-hot rows.

    Raises:
        DataError: another number of them, or none of these.
    """
    try:
        values = labels.detach().cpu() if isinstance(labels, Tensor) else torch.from_numpy(native(labels))
    except (TypeError, ValueError) as error:
        raise DataError(f"labels: expected {count} integers, got {type(labels).__name__}: {error}") from error
    given = tuple(values.shape)
    if values.ndim == 2 and values.shape[1] > 1 and bool(((values == 0) | (values == 1)).all()):
        values = values.to(torch.float64).argmax(1) if bool((values.sum(1) == 1).all()) else values
    values = values.flatten() if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (count,) or bool((values != values.to(torch.int64)).any()) or bool((values < 0).any()):
        raise DataError(f"{given} labels for {count} images: expected one class index an image")
    return values.to(torch.int64)
