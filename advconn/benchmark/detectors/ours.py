"""advconn as a candidate: as it was given, and with its head fitted on the benchmark's own images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from advconn.attacks.adaptive import Score
from advconn.benchmark.candidate import Candidate
from advconn.benchmark.following import differentiable
from advconn.cascade.cascade import log_odds
from advconn.cascade.heads import unfitted
from advconn.detector.calibration import Calibration
from advconn.detector.detector import Detector
from advconn.features.connectivity import BARE, Connectivity
from advconn.models.margin import margin


class Advconn(Candidate):
    """The features of its copies, and a head fitted on the same images as the baselines'.

    Without stages, or where every stage walks to references, all that its connectivity walks.
    """

    name, source = "advconn", "this package, head fitted on the same images as the baselines"
    learns = True

    def __init__(self, detector: Detector, clean: Tensor) -> None:
        super().__init__(detector.connectivity.classifier, clean)
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
        self.head = unfitted(self.detector.head_).fit(columns, kinds)
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds of any attack."""
        return log_odds(self.head, columns)

    def state(self) -> bytes:
        """Everything that its walk depends on."""
        return _depends(self.connectivity)


class Given(Candidate):
    """The detector as it is: nothing is fitted here, and its own frozen threshold holds."""

    name, source = "advconn (as given)", "this package, the detector given, at its own threshold"
    differentiable = True

    def __init__(self, detector: Detector, clean: Tensor) -> None:
        super().__init__(detector.connectivity.classifier, clean)
        self.detector = detector

    def measure(self, images: Tensor) -> np.ndarray:
        """Its score, its consensus' class, and what each image cost in forwards and gradients: (n, 4)."""
        judgement = self.detector.judge(images)
        return np.stack([judgement.score, judgement.consensus, judgement.forwards, judgement.gradients], 1)

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Its own score."""
        return columns[:, 0]

    def calibrated(self, scores: np.ndarray, fpr: float) -> Calibration:
        """Its own calibration, at this rate."""
        return self.detector.calibration_.at(fpr=fpr)

    def consensus(self, columns: np.ndarray) -> np.ndarray | None:
        """The class that most copies of an image are given."""
        return columns[:, 1].astype(int)

    def spent(self, columns: np.ndarray) -> np.ndarray | None:
        """Forwards and gradients of each image, which depend on the stage that it leaves at."""
        return columns[:, 2:4]

    def follow(self, threshold: float, images: Tensor) -> Score:
        """See following.differentiable; a head without a gradient is imitated on `images`."""
        return differentiable(self.detector, lambda: self.detector.connectivity.transform(images), threshold)

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
        """Its walk, stages and heads; the scores of its calibration images say what the heads are."""
        cascade = self.detector.cascade_
        stages = [(w.copies, w.halves, w.families) for w in cascade.connectivities]
        scores = b"".join(np.ascontiguousarray(values).tobytes() for values in self.detector.clean_.values())
        return _depends(self.detector.connectivity) + f"{stages} {cascade.exits}".encode() + scores


def _depends(connectivity: Connectivity) -> bytes:
    """What the features of an image depend on besides the classifier, which a candidate's key holds."""
    _, _, references, *settings = connectivity.key()
    return str(settings).encode() + (b"" if references is None else references.tobytes())
