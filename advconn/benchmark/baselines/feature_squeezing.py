"""Detectors that compare the softmax of the query with that of changed copies."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.attacks.adaptive import Score
from advconn.benchmark.candidate import Candidate, as_numpy
from advconn.features import transforms
from advconn.features.transforms import Copy


def median2(images: Tensor) -> Tensor:
    """Median over 2 x 2 pixels, the pixel's own and those above and to the left: the third of the four in order."""
    h, w = images.shape[2:]
    padded = F.pad(images, (1, 0, 1, 0), mode="replicate")
    four = torch.stack([padded[:, :, i : i + h, j : j + w] for i in (0, 1) for j in (0, 1)])
    return four.sort(0).values[2]


def non_local_means(images: Tensor, reach: int = 6, strength: float = 7.4 / 255) -> Tensor:
    """Every pixel the mean of those around it, by how alike their 3 x 3 patches are (Buades et al. 2005).

    Looked for in a window of 2 * reach + 1. Xu et al. take OpenCV's with 13, 3 and 2 for CIFAR-10; the strength here
    moves a pixel as far on average (.0065).

    Args:
        images: (n, c, h, w) in [0, 1].
        reach: pixels that the window extends to each side; cut to the size of the image less one.
        strength: root mean square difference of two patches, in [0, 1], at which the weight falls to 1 / e.
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


class FeatureSqueezing(Candidate):
    """Largest L1 distance between the softmax of the query and of squeezed copies: 5 bits, median, non-local means."""

    name, source = "feature-squeezing", "Xu et al., NDSS 2018 (5 bits, 2 x 2 median, non-local means 13-3-2)"
    differentiable = True
    squeezers: ClassVar[tuple[Copy, ...]] = (transforms.bits(5), median2, non_local_means)

    def measure(self, images: Tensor) -> np.ndarray:
        """The largest distance, or the mean one."""
        return as_numpy(self.distances(images))

    def distances(self, images: Tensor) -> Tensor:
        """The same (n, 1), differentiable where images are."""
        before, transforms = self._shares(images, self.squeezers)
        return (transforms - before[:, None]).abs().sum(2).amax(1, keepdim=True)

    def _shares(self, images: Tensor, made: tuple[Copy, ...]) -> tuple[Tensor, Tensor]:
        """Softmax of the images (n, k) and of their copies (n, m, k)."""
        stops = torch.stack([images, *(copy(images) for copy in made)], 1)
        logits = self.classifier.logits(stops.flatten(0, 1)).view(len(images), len(made) + 1, -1)
        shares = logits.softmax(2)
        return shares[:, 0], shares[:, 1:]

    def follow(self, threshold: float, images: Tensor) -> Score:
        """The same distance; rounding to fewer bits is passed straight through."""
        return lambda images: self.distances(images)[:, 0]


class FlipShift(FeatureSqueezing):
    """Mean L1 distance of the softmax between the query and its mirrored and shifted copies."""

    name, source = "flip-shift", "ours, after Bahat et al. 2019 (L1, nothing learned)"
    squeezers: ClassVar[tuple[Copy, ...]] = (
        transforms.flip,
        *(transforms.shift(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx),
    )

    def distances(self, images: Tensor) -> Tensor:
        """The mean distance (n, 1)."""
        before, transforms = self._shares(images, self.squeezers)
        return (transforms - before[:, None]).abs().sum(2).mean(1, keepdim=True)
