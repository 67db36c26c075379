"""The papers' own feature as a detector."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from advconn.benchmark.candidate import Candidate
from advconn.errors import DataError
from advconn.features.connectivity import Connectivity
from advconn.features.references import choose


class PaperBarrier(Candidate):
    """Mean height of the cross-entropy barrier on straight paths to references of the predicted class."""

    name, source = "paper-barrier", "Vrabel et al., ICLR 2025"
    connectivity: Connectivity
    column: int

    def prepare(self) -> None:
        """Choose three references of every class among the clean images."""
        references = choose(self.classifier, self.classifier.check(self.clean), None, 3)
        if references.missing:
            raise DataError("paper-barrier: a class has no reference among the training images")
        self.connectivity = Connectivity(self.classifier, references, families=("own",), samples=9)
        self.column = list(self.connectivity.get_feature_names_out()).index("own.barrier.mean")

    def measure(self, images: Tensor) -> np.ndarray:
        """The mean barrier over three references, nine samples each."""
        return np.asarray(self.connectivity.transform(images)[:, [self.column]])
