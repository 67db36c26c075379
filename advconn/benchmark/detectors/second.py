"""A detector that asks a second classifier."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from advconn.benchmark.candidate import Candidate, as_numpy
from advconn.errors import DataError
from advconn.models.margin import margin


class SecondModel(Candidate):
    """How little a second model believes in the class that the first one predicts."""

    name, source = "second-model", "PID, 2025"

    def measure(self, images: Tensor) -> np.ndarray:
        """The second model's margin against the first one's prediction."""
        if self.second is None:
            raise DataError("the baseline second-model needs another classifier: give one")
        label = self.classifier.logits(images).argmax(1)
        return as_numpy(margin(self.second.logits(images), label)[:, None])
