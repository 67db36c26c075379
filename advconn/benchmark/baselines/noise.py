"""Detectors that add noise, or other images, to the query."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from advconn.benchmark.candidate import Candidate, as_numpy
from advconn.features import transforms
from advconn.models.classifier import Classifier
from advconn.models.margin import margin


class NoiseLogOdds(Candidate):
    """How far noise moves the log-odds of any class against the predicted one, standardised by the clean class pair."""

    name, source = "noise-log-odds", "Roth et al., ICML 2019 (one noise level, 10 draws)"
    draws, scale = 10, 0.03

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        super().__init__(classifier, clean, second)
        self._made = tuple(transforms.noise(self.scale, 1000 + i) for i in range(self.draws))

    def measure(self, images: Tensor) -> np.ndarray:
        """Predicted class, then the mean move of the log-odds of every class against it."""
        logits = self.classifier.logits(images)
        stops = torch.stack([copy(images) for copy in self._made], 1).flatten(0, 1)
        noisy = self.classifier.logits(stops).view(len(images), self.draws, -1)
        label = logits.argmax(1)
        before = logits - logits.gather(1, label[:, None])
        after = noisy - noisy.gather(2, label[:, None, None].expand(-1, self.draws, 1))
        return as_numpy(torch.cat([label[:, None].float(), after.mean(1) - before], 1))

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Candidate:
        """Mean and deviation for every clean pair of classes, shrunk to those of all pairs where there are few."""
        label, moves = columns[kinds == 0, 0].astype(int), columns[kinds == 0, 1:]
        k = moves.shape[1]
        middle, spread = np.full((k, k), moves.mean()), np.full((k, k), moves.std())
        for c in np.unique(label):
            rows = moves[label == c]
            weight = len(rows) / (len(rows) + 10)
            middle[c] = weight * rows.mean(0) + (1 - weight) * middle[c]
            spread[c] = weight * rows.std(0) + (1 - weight) * spread[c]
        self.middle, self.spread = middle, spread
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """The largest standardised move to another class."""
        label = columns[:, 0].astype(int)
        moves = (columns[:, 1:] - self.middle[label]) / np.maximum(self.spread[label], 1e-9)
        moves[np.arange(len(label)), label] = -np.inf
        return moves.max(1)


class Mixup(Candidate):
    """How little of the predicted class is left where the query is mixed half and half with images of that class."""

    name, source = "mixup-inference", "Pang et al., ICLR 2020 (MI-PL, as a detector)"
    mixes = 5

    def prepare(self) -> None:
        """Keep a few clean images of every class that they are predicted as."""
        images = self.classifier.check(self.clean)
        labels = self.classifier.logits(images).argmax(1)
        kept = torch.cat([(labels == c).nonzero()[: self.mixes, 0] for c in labels.unique()])
        self._kept = images[kept], labels[kept]

    def measure(self, images: Tensor) -> np.ndarray:
        """Mean margin of the prediction over the mixes; with other classes where its own has too few images."""
        anchors, labels = self._kept
        label = self.classifier.logits(images).argmax(1)
        order = (labels[None] != label[:, None]).float().argsort(dim=1, stable=True)[:, : self.mixes]
        mixed = (images[:, None] + anchors[order]) / 2
        after = self.classifier.logits(mixed.flatten(0, 1)).view(len(images), order.shape[1], -1)
        return as_numpy(margin(after, label[:, None]).mean(1)[:, None])
