"""Detectors that add noise, or other images, to the query."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from advconn.benchmark.candidate import Candidate, as_numpy
from advconn.models.margin import margin

NOISES: Mapping[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda shape, g: torch.randn(shape, generator=g, dtype=torch.float32, device="cpu"),
    "uniform": lambda shape, g: 2 * torch.rand(shape, generator=g, dtype=torch.float32, device="cpu") - 1,
    "sign": lambda shape, g: torch.randint(0, 2, shape, generator=g, dtype=torch.float32, device="cpu") * 2 - 1,
}


class NoiseLogOdds(Candidate):
    """How far noise moves the log-odds of any class against the predicted one, standardised by the clean class pair.

    Gaussian, uniform and sign noise at the authors' three levels; z-scores are averaged over all nine. They draw 256
    times at each, here `draws` times, the same for all images.
    """

    name, source = "noise-log-odds", "Roth et al., ICML 2019 (nine kinds of noise, 4 draws each)"
    draws = 4
    levels: ClassVar[tuple[float, ...]] = (0.003, 0.005, 0.008)

    def measure(self, images: Tensor) -> np.ndarray:
        """Predicted class, then by kind of noise the mean move of the log-odds of every class against it."""
        logits = self.classifier.logits(images)
        label = logits.argmax(1)
        before = logits - logits.gather(1, label[:, None])
        columns = [label[:, None].float()]
        for i, (kind, level) in enumerate(itertools.product(NOISES, self.levels)):
            generator = torch.Generator(device="cpu").manual_seed(1000 + i)
            moved = torch.zeros_like(before)
            for _ in range(self.draws):
                grain = NOISES[kind](tuple(images.shape[1:]), generator).to(images)
                noisy = self.classifier.logits((images + level * grain).clamp(0, 1))
                moved += noisy - noisy.gather(1, label[:, None]) - before
            columns.append(moved / self.draws)
        return as_numpy(torch.cat(columns, 1))

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Candidate:
        """Mean and deviation for every clean pair of classes, shrunk to those of all pairs where there are few."""
        label, moves = columns[kinds == 0, 0].astype(int), self._by_noise(columns[kinds == 0])
        k = moves.shape[2]
        middle, spread = (
            np.tile(pooled[None, :, None], (k, 1, k)) for pooled in (moves.mean((0, 2)), moves.std((0, 2)))
        )
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
        moves = (self._by_noise(columns) - self.middle[label]) / np.maximum(self.spread[label], 1e-9)
        mean = moves.mean(1)
        mean[np.arange(len(label)), label] = -np.inf
        return np.asarray(mean.max(1))

    def _by_noise(self, columns: np.ndarray) -> np.ndarray:
        """Moves (n, noises, classes)."""
        return columns[:, 1:].reshape(len(columns), len(NOISES) * len(self.levels), -1)


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
