"""Detectors to compare with, behind one interface: columns measured on images, fitted on columns, scored.

Every one is trained and thresholded on exactly the images that advconn is; higher score = more adversarial. A one-sided
score of its paper keeps its side; what is trained is trained on the same mixture of attacks.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn import copies
from advconn.classifier import Classifier, margin
from advconn.copies import Copy
from advconn.detector import default_head
from advconn.errors import DataError
from advconn.features import Trace, table
from advconn.stages import log_odds


class Baseline:
    """A detector of images by columns (n, d).

    Args:
        classifier: the model under attack.
        clean: images (n, c, h, w) of the training part, uint8: what a baseline compares with.
        second: another classifier of the same classes, where a baseline needs one.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    apart: ClassVar[bool] = False  # whether it is fitted on other images than those it compares with

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        self.classifier, self.clean, self.second = classifier, clean, second

    def prepare(self) -> None:
        """What is computed once, before images are measured in parallel. Raises ImportError where a package lacks."""

    def measure(self, images: Tensor) -> np.ndarray:
        """Columns (n, d) of checked images (n, c, h, w)."""
        raise NotImplementedError

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Learn from columns of kinds (n,): 0 clean, 1 and more the attacks. Nothing to learn unless overridden."""
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Scores (n,)."""
        return columns[:, 0]


class Trained(Baseline):
    """A baseline whose columns go to the head that advconn uses."""

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Fit the head on all attacks of the mixture."""
        self.head = default_head().fit(columns, kinds)
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds of any attack."""
        return log_odds(self.head, columns)


class MaxSoftmax(Baseline):
    """How unsure the classifier is: the margin of its own prediction, monotone in the maximum softmax probability."""

    name, source = "max-softmax", "Hendrycks & Gimpel, ICLR 2017"

    def measure(self, images: Tensor) -> np.ndarray:
        """The margin, which does not saturate as the probability does."""
        logits = self.classifier.logits(images)
        return as_numpy(margin(logits, logits.argmax(1))[:, None])


class Energy(Baseline):
    """Distance of the logits' logsumexp from its clean median: two-sided, since attacks raise it or lower it."""

    name, source = "energy", "Liu et al., NeurIPS 2020 (two-sided here)"

    def measure(self, images: Tensor) -> np.ndarray:
        """The energy."""
        return as_numpy(self.classifier.logits(images).logsumexp(1)[:, None])

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Remember the clean median."""
        self.middle = float(np.median(columns[kinds == 0]))
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Distance from it."""
        return np.abs(columns[:, 0] - self.middle)


class LogitsOnly(Trained):
    """Everything that can be read off the query's own logits: what is left to learn without any path."""

    name, source = "logits-only", "control"

    def measure(self, images: Tensor) -> np.ndarray:
        """Margin, energy, entropy, gap and the sorted logits."""
        return as_numpy(logits_columns(self.classifier.logits(images)))


def logits_columns(logits: Tensor) -> Tensor:
    """Margin, energy, entropy, gap between the first two, and the (up to ten) highest logits: (n, d)."""
    columns, names = table(Trace(logits, ("query",), logits[:, None]))
    keep = [names.index(f"self.{n}") for n in ("margin", "energy", "entropy.query", "gap")]
    return torch.cat([columns[:, keep], logits.topk(min(10, logits.shape[1]), dim=1).values], 1)


def median2(images: Tensor) -> Tensor:
    """Median over 2 x 2 pixels: the mean of the middle two."""
    h, w = images.shape[2:]
    padded = F.pad(images, (0, 1, 0, 1), mode="replicate")
    four = torch.stack([padded[:, :, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)])
    return (four.sum(0) - four.amin(0) - four.amax(0)) / 2


def non_local_means(images: Tensor, reach: int = 6, strength: float = 4 / 255) -> Tensor:
    """Every pixel the mean of those around it, by how alike their 3 x 3 patches are (Buades et al. 2005).

    Looked for in a window of 2 * reach + 1; 13, 3 and 4 are Xu et al.'s for CIFAR-10 and ImageNet.
    """
    h, w = images.shape[2:]
    reach = min(reach, h - 1, w - 1)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for i in range(2 * reach + 1):
        for j in range(2 * reach + 1):
            moved = padded[:, :, i : i + h, j : j + w]
            apart = F.avg_pool2d((images - moved).square().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
            weight = torch.exp(-apart / strength**2)
            total, weights = total + weight * moved, weights + weight
    return total / weights


class Squeezing(Baseline):
    """Largest L1 distance between the softmax of the query and of squeezed copies: 5 bits, median, non-local means."""

    name, source = "feature-squeezing", "Xu et al., NDSS 2018 (5 bits, 2 x 2 median, non-local means 13-3-4)"
    squeezers: ClassVar[tuple[Copy, ...]] = (copies.bits(5), median2, non_local_means)

    def measure(self, images: Tensor) -> np.ndarray:
        """The largest distance, or the mean one."""
        return as_numpy(self.distances(images))

    def distances(self, images: Tensor) -> Tensor:
        """The same (n, 1), differentiable where images are."""
        before, copies = self._shares(images, self.squeezers)
        return (copies - before[:, None]).abs().sum(2).amax(1, keepdim=True)

    def _shares(self, images: Tensor, made: tuple[Copy, ...]) -> tuple[Tensor, Tensor]:
        """Softmax of the images (n, k) and of their copies (n, m, k)."""
        stops = torch.stack([images, *(copy(images) for copy in made)], 1)
        logits = self.classifier.logits(stops.flatten(0, 1)).view(len(images), len(made) + 1, -1)
        shares = logits.softmax(2)
        return shares[:, 0], shares[:, 1:]


class FlipShift(Squeezing):
    """Mean L1 distance of the softmax between the query and its mirrored and shifted copies."""

    name, source = "flip-shift", "Tian et al., AAAI 2018 (transformations' consistency)"
    squeezers: ClassVar[tuple[Copy, ...]] = (
        copies.flip,
        *(copies.shift(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx),
    )

    def distances(self, images: Tensor) -> Tensor:
        """The mean distance (n, 1)."""
        before, copies = self._shares(images, self.squeezers)
        return (copies - before[:, None]).abs().sum(2).mean(1, keepdim=True)


class NoisyOdds(Baseline):
    """How far noise moves the log-odds of any class against the predicted one, standardised by the clean class pair."""

    name, source = "noise-log-odds", "Roth et al., ICML 2019 (one noise level, 10 draws)"
    draws, scale = 10, 0.03

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        super().__init__(classifier, clean, second)
        self._made = tuple(copies.noise(self.scale, 1000 + i) for i in range(self.draws))

    def measure(self, images: Tensor) -> np.ndarray:
        """Predicted class, then the mean move of the log-odds of every class against it."""
        logits = self.classifier.logits(images)
        stops = torch.stack([copy(images) for copy in self._made], 1).flatten(0, 1)
        noisy = self.classifier.logits(stops).view(len(images), self.draws, -1)
        label = logits.argmax(1)
        before = logits - logits.gather(1, label[:, None])
        after = noisy - noisy.gather(2, label[:, None, None].expand(-1, self.draws, 1))
        return as_numpy(torch.cat([label[:, None].float(), after.mean(1) - before], 1))

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
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


class Mixup(Baseline):
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


class SecondModel(Baseline):
    """How little a second model believes in the class that the first one predicts."""

    name, source = "second-model", "PID, 2025"

    def measure(self, images: Tensor) -> np.ndarray:
        """The second model's margin against the first one's prediction."""
        if self.second is None:
            raise DataError("the baseline second-model needs another classifier: give one")
        label = self.classifier.logits(images).argmax(1)
        return as_numpy(margin(self.second.logits(images), label)[:, None])


def as_numpy(values: Tensor) -> np.ndarray:
    """A tensor as an array of doubles."""
    return np.asarray(values.detach().cpu().double().numpy())
