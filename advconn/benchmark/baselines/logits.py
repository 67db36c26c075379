"""Detectors that read the classifier's own logits alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.adaptive import Score
from advconn.benchmark.candidate import Candidate, Learned, as_numpy
from advconn.cascade.differentiable_score import linear_odds
from advconn.errors import DataError
from advconn.features.path_features import Trace, feature_table
from advconn.models.margin import margin


class SecondClassifier(Candidate):
    """How little a second model believes in the class that the first one predicts."""

    name, source = "second-model", "PID, 2025"

    def measure(self, images: Tensor) -> np.ndarray:
        """The second model's margin against the first one's prediction."""
        if self.second is None:
            raise DataError("the baseline second-model needs another classifier: give one")
        label = self.classifier.logits(images).argmax(1)
        return as_numpy(margin(self.second.logits(images), label)[:, None])


class MaxSoftmax(Candidate):
    """How unsure the classifier is: the margin of its own prediction, monotone in the maximum softmax probability."""

    name, source = "max-softmax", "Hendrycks & Gimpel, ICLR 2017"
    differentiable = True

    def measure(self, images: Tensor) -> np.ndarray:
        """The margin, which does not saturate as the probability does."""
        logits = self.classifier.logits(images)
        return as_numpy(margin(logits, logits.argmax(1))[:, None])

    def follow(self, threshold: float, images: Tensor) -> Score:
        """The same margin."""
        return lambda images: _own_margin(self.classifier.logits(images))


class Energy(Candidate):
    """Distance of the logits' logsumexp from its clean median: two-sided, since attacks raise it or lower it."""

    name, source = "energy", "Liu et al., NeurIPS 2020 (two-sided here)"
    differentiable = True

    def measure(self, images: Tensor) -> np.ndarray:
        """The energy."""
        return as_numpy(self.classifier.logits(images).logsumexp(1)[:, None])

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Candidate:
        """Remember the clean median."""
        self.middle = float(np.median(columns[kinds == 0]))
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Distance from it."""
        return np.abs(columns[:, 0] - self.middle)

    def follow(self, threshold: float, images: Tensor) -> Score:
        """Distance from the clean median."""
        return lambda images: (self.classifier.logits(images).logsumexp(1) - self.middle).abs()


class LogitsOnly(Learned):
    """Everything that can be read off the query's own logits: what is left to learn without any path."""

    name, source = "logits-only", "control"
    differentiable = True

    def measure(self, images: Tensor) -> np.ndarray:
        """Margin, energy, entropy, gap and the sorted logits."""
        return as_numpy(logits_columns(self.classifier.logits(images)))

    def follow(self, threshold: float, images: Tensor) -> Score:
        """The head's log-odds, which are linear in the columns."""
        odds = linear_odds(self.head, self.classifier.device)
        if odds is None:
            return super().follow(threshold, images)
        return lambda images: odds(logits_columns(self.classifier.logits(images)))


def _own_margin(logits: Tensor) -> Tensor:
    return margin(logits, logits.argmax(1))


def logits_columns(logits: Tensor) -> Tensor:
    """Margin, energy, entropy, gap between the first two, and the (up to ten) highest logits: (n, d)."""
    return torch.cat([feature_table(Trace(logits))[0], logits.topk(min(10, logits.shape[1]), dim=1).values], 1)
