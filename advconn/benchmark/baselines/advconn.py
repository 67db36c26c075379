"""advconn among the detectors that are compared: as it is given, fitted on the baselines' images, and its score as a
function that an attacker follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from advconn.attacks.adaptive import Score
from advconn.benchmark.candidate import Candidate
from advconn.cascade.cascade import head_log_odds, log_odds
from advconn.cascade.differentiable_score import differentiable_score, linear_odds
from advconn.cascade.heads import clone_unfitted, default_head
from advconn.detector.calibration import Calibration
from advconn.detector.detector import Detector
from advconn.errors import AttackError
from advconn.features.connectivity import BARE, Connectivity
from advconn.features.path_features import feature_table
from advconn.models.margin import margin


def differentiable_score_of(
    detector: Detector, columns: Callable[[], np.ndarray] | None = None, threshold: float | None = None
) -> Score:
    """The detector's score as a differentiable function of images (n, c, h, w) in [0, 1].

    Of several stages it is under `threshold` (the detector's own unless told) exactly where a stage of copies clears
    the image, and nothing else of it is the detector's score: the attacker goes for the stage that is nearest to
    letting the image go. The last stage, whose bypass has no gradient, is not followed, but judges in the end.

    A pipeline of StandardScaler and LogisticRegression is followed exactly. For any other head a logistic regression is
    fitted to its verdicts on what `columns` gives (n, d), of clean and attacked images, and followed instead: its even
    odds stand where the detector's threshold does, and nothing else of it is the detector's score.

    Args:
        detector: a fitted one.
        columns: gives the features (n, d) of clean and attacked images, on which a head that has no gradient is
            imitated; not needed for a linear head, nor for several stages.
        threshold: score above which an image is flagged, read only where the detector has several stages; None takes
            its own.

    Raises:
        AttackError: another head, and no columns to imitate it on, or none of them flagged, or all.
    """
    if len(detector.cascade_.connectivities) > 1:
        return differentiable_score(
            detector.cascade_, detector.calibration_.threshold if threshold is None else threshold
        )
    connectivity = detector.connectivity
    odds = linear_odds(detector.head_, connectivity.classifier.device)
    if odds is None:
        if columns is None:
            raise AttackError("this head has no gradient: give columns on which a linear one can imitate it")
        own_threshold = detector.calibration_.threshold
        features = columns()
        flagged = head_log_odds(detector.head_, features) > own_threshold
        if flagged.all() or not flagged.any():
            raise AttackError("this head has no gradient, and its verdicts on the columns are all alike")
        imitated = linear_odds(default_head().fit(features, flagged.astype(int)), connectivity.classifier.device)
        if imitated is None:
            raise AttackError("the default head is not linear")
        return lambda images: imitated(feature_table(connectivity.trace(images))[0]) + own_threshold
    follow = odds
    return lambda images: follow(feature_table(connectivity.trace(images))[0])


class AdvconnRefitted(Candidate):
    """The features of its copies, and a head fitted on the same images as the baselines'.

    Without stages, or where every stage walks to references, all that its connectivity walks.
    """

    name, source = "advconn", "this package, head fitted on the same images as the baselines"
    learns = True

    def __init__(self, detector: Detector, clean: Tensor) -> None:
        super().__init__(detector.classifier, clean)
        self.detector = detector
        bare = [
            connectivity
            for connectivity in detector.cascade_.connectivities
            if not set(connectivity.active_families) - BARE
        ]
        self.connectivity = bare[-1] if bare else detector.connectivity

    def measure(self, images: Tensor) -> np.ndarray:
        """The features."""
        return self.connectivity.transform(images)

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Candidate:
        """Fit a head as the detector's is."""
        self.head = clone_unfitted(self.detector.head_).fit(columns, kinds)
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds of any attack."""
        return log_odds(self.head, columns)

    def state(self) -> bytes:
        """Everything that its walk depends on."""
        return _depends(self.connectivity)


class AdvconnAsGiven(Candidate):
    """The detector as it is: nothing is fitted here, and its own frozen threshold holds."""

    name, source = "advconn (as given)", "this package, the detector given, at its own threshold"
    differentiable = True

    def __init__(self, detector: Detector, clean: Tensor) -> None:
        super().__init__(detector.classifier, clean)
        self.detector = detector

    def measure(self, images: Tensor) -> np.ndarray:
        """Its score, its consensus' class, what each image cost in forwards and gradients, class and group: (n, 6)."""
        judgement = self.detector.judge(images)
        groups = self.detector.group_of(judgement)
        return np.stack([
            judgement.score, judgement.consensus, judgement.forwards, judgement.gradients, judgement.predicted,
            np.full(len(images), -1) if groups is None else groups,
        ], 1)  # fmt: skip

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Its own score."""
        return columns[:, 0]

    def calibrated(self, scores: np.ndarray, fpr: float) -> Calibration:
        """Its own calibration, at this rate."""
        return self.detector.calibration_.at(fpr=fpr)

    def thresholds(self, columns: np.ndarray, calibration: Calibration) -> np.ndarray:
        """Those of each image's class or group of pictures, as the detector has them."""
        groups = columns[:, 5].astype(int)
        return calibration.thresholds(columns[:, 4].astype(int), None if (groups < 0).any() else groups)

    def consensus(self, columns: np.ndarray) -> np.ndarray | None:
        """The class that most copies of an image are given."""
        return columns[:, 1].astype(int)

    def spent(self, columns: np.ndarray) -> np.ndarray | None:
        """Forwards and gradients of each image, which depend on the stage that it leaves at."""
        return columns[:, 2:4]

    def follow(self, threshold: float, images: Tensor) -> Score:
        """See differentiable_score_of; a head without a gradient is imitated on `images`."""
        return differentiable_score_of(self.detector, lambda: self.detector.connectivity.transform(images), threshold)

    def profile(self, image: Tensor) -> dict[str, list[list[float]]]:
        """Margins along an image's paths, by family, at each sample; of copies, the ends."""
        trace = self.detector.connectivity.trace(image[None])
        out: dict[str, list[list[float]]] = {}
        if trace.copies is not None:
            out["self"] = [sorted(margin(trace.copies, trace.predicted[:, None])[0].tolist())]
        for family, logits in (("own", trace.own), ("rival", trace.rival), ("latent", trace.latent)):
            if logits is not None:
                out[family] = margin(logits, trace.predicted[:, None, None])[0].tolist()
        return out

    def state(self) -> bytes:
        """Its walk, stages, heads and groups; the scores of its calibration images say what the heads are."""
        cascade = self.detector.cascade_
        stages = [(w.copies, w.halves, w.families) for w in cascade.connectivities]
        scores = b"".join(np.ascontiguousarray(values).tobytes() for values in self.detector.clean_.values())
        groups = "" if self.detector.groups_ is None else repr(vars(self.detector.groups_))
        return _depends(self.detector.connectivity) + f"{stages} {cascade.exits} {groups}".encode() + scores


def _depends(connectivity: Connectivity) -> bytes:
    """What the features of an image depend on besides the classifier, which a candidate's key holds."""
    _, _, references, *settings = connectivity.key()
    return str(settings).encode() + (b"" if references is None else references.tobytes())
