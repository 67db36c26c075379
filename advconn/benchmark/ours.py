"""advconn behind the baselines' interface, and the paper's own barrier."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from advconn import modes
from advconn.benchmark.baselines import Baseline
from advconn.connectivity import Connectivity
from advconn.detector import Detector
from advconn.errors import DataError
from advconn.modes import References
from advconn.stages import log_odds, ordered


class Advconn(Baseline):
    """advconn behind the baselines' interface: its features, and a head fitted on the benchmark's own images."""

    name, source = "advconn", "this package, head fitted on the same images as the baselines"

    def __init__(self, detector: Detector) -> None:
        self.detector, self.classifier = detector, detector.connectivity.classifier

    def measure(self, images: Tensor) -> np.ndarray:
        """The features."""
        return self.detector.connectivity.transform(images)

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Fit a clone of the detector's head."""
        from sklearn.base import clone

        self.head = clone(self.detector.head_).fit(columns, kinds)
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds of any attack."""
        return log_odds(self.head, columns)


class Shipped(Advconn):
    """The detector as it is: nothing is fitted here, and its own frozen threshold holds."""

    name, source = "advconn (as given)", "this package, the detector given, at its own threshold"

    def measure(self, images: Tensor) -> np.ndarray:
        """Scores (n, stages) of the stages, NaN where an image had left."""
        cascade = self.detector.cascade_
        return np.concatenate([cascade.walk(block).scores for block in cascade.blocks(images)])

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Nothing."""
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Its own score."""
        return ordered(columns, self.detector.cascade_.exits)[0]


class PaperBarrier(Baseline):
    """Mean height of the cross-entropy barrier on straight paths to references of the predicted class."""

    name, source = "paper-barrier", "Vrabel et al., ICLR 2025"
    references: References

    def prepare(self) -> None:
        """Choose three references of every class among the clean images."""
        self.references = modes.choose(self.classifier, self.classifier.check(self.clean), None, 3)
        if self.references.missing:
            raise DataError("paper-barrier: a class has no reference among the training images")

    def measure(self, images: Tensor) -> np.ndarray:
        """The mean barrier over three references, nine samples each."""
        walk = Connectivity(self.classifier, self.references, families=("own",), samples=9)
        names = list(walk.get_feature_names_out())
        return np.asarray(walk.transform(images)[:, [names.index("own.barrier.mean")]])
