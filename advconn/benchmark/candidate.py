"""What a benchmark compares: a detector by its columns, behind one protocol."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from advconn.attacks.adaptive import Score
from advconn.benchmark.cache_keys import code, parameters
from advconn.cascade.cascade import log_odds
from advconn.cascade.heads import default_head
from advconn.detector.calibration import Calibration
from advconn.errors import AttackError
from advconn.models.classifier import Classifier


class Candidate:
    """A detector that is measured once on every image, and then fitted and thresholded on what it measured.

    One of your own needs a `name` and `measure`; whatever else it does not have is as here. Higher scores are more
    adversarial. Every candidate is fitted, calibrated and tested on the same images.

    Args:
        classifier: the one under attack.
        clean: images (n, c, h, w) of the training part, uint8: what a candidate may compare with.
        second: another classifier of the same classes, where one was given.

    Attributes:
        source: paper or origin, for the report.
        learns: whether `fit` learns from attacked images; such a one is also fitted without each family of attacks.
        apart: whether it is fitted on other images than `clean`, which it compares with.
        differentiable: whether `follow` gives a score that an attacker can climb down.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = "given"
    learns: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        self.classifier, self.clean, self.second = classifier, clean, second

    def prepare(self) -> None:
        """What is computed once, before images are measured in parallel. Raises ImportError where a package lacks."""

    def measure(self, images: Tensor) -> np.ndarray:
        """Columns (n, d) of checked images (n, c, h, w)."""
        raise NotImplementedError

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Candidate:
        """Learn from columns of kinds (n,): 0 clean, 1 and more the attacks. Nothing to learn unless overridden."""
        return self

    @property
    def fits(self) -> bool:
        """Whether `fit` is overridden: what has nothing to learn measures no image of the training part."""
        return type(self).fit is not Candidate.fit

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Scores (n,)."""
        return columns[:, 0]

    def calibrated(self, scores: np.ndarray, fpr: float) -> Calibration:
        """The threshold, from scores (n,) of the calibration part's clean images."""
        return Calibration(scores, fpr)

    def thresholds(self, columns: np.ndarray, calibration: Calibration) -> np.ndarray:
        """The largest score (n,) that is not flagged, of each image: the same of all unless overridden.

        Args:
            columns: (n, d) of the images.
            calibration: what `calibrated` gave, or the same at another rate.
        """
        return np.full(len(columns), calibration.threshold)

    def consensus(self, columns: np.ndarray) -> np.ndarray | None:
        """The class (n,) that it takes each image for, whatever the classifier says; None where it has no opinion."""
        return None

    def spent(self, columns: np.ndarray) -> np.ndarray | None:
        """Forwards and gradients (n, 2) of each image, where they differ from image to image; else None."""
        return None

    def follow(self, threshold: float, images: Tensor) -> Score:
        """Its score as a differentiable function of images (n, c, h, w), as far as it matters near `threshold`.

        Args:
            images: (m, c, h, w) clean and attacked, on which what has no gradient can be imitated.

        Raises:
            AttackError: it has no gradient.
        """
        raise AttackError(f"{self.name} has no gradient to follow")

    def profile(self, image: Tensor) -> dict[str, list[list[float]]]:
        """What one image (c, h, w) shows along its paths, by family, for the page."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """Everything plain that its class or its maker set: what it measures depends on these."""
        return {k: v for k, v in parameters(self).items() if k not in ("source", "second")}

    def state(self) -> bytes:
        """Whatever else its columns depend on besides classifier, parameters and code."""
        second = "" if self.second is None else f"{self.second.fingerprint} {self.second.preprocessing}"
        return self.clean.numpy().tobytes() + second.encode()

    def key(self) -> str:
        """What its columns of an image depend on: parameters, code, images compared with, and both classifiers."""
        identity = f"{self.classifier.fingerprint} {self.classifier.preprocessing}"
        digest = hashlib.sha256(f"{identity} {sorted(self.parameters().items())!r} {code(self)}".encode())
        digest.update(self.state())
        return digest.hexdigest()


class Learned(Candidate):
    """A candidate whose columns go to a head: the one that advconn uses, unless `new_head` gives another.

    Attributes:
        binary: whether the head tells clean from attacked alone; else it tells the attacks apart.
    """

    learns = True
    binary: ClassVar[bool] = False

    def new_head(self) -> Any:
        """An unfitted scikit-learn classifier."""
        return default_head()

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Candidate:
        """Fit the head on all attacks of the mixture."""
        self.head = self.new_head().fit(columns, (kinds > 0).astype(int) if self.binary else kinds)
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds of any attack."""
        return log_odds(self.head, columns)


def as_numpy(values: Tensor) -> np.ndarray:
    """A tensor as an array of doubles."""
    return np.asarray(values.detach().cpu().double().numpy())
