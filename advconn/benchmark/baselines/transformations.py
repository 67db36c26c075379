"""Detectors trained on what the classifier says of turned and shifted copies, and on the pixels alone."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.benchmark.candidate import Learned, as_numpy
from advconn.features import transforms

DEGREES = (-10, -5, 0, 5, 10)
SHIFTS = (-1, 0, 1)
MOST_CLASSES = 10  # of the query's ranking, where classes are ordered by it
MOST_LOGITS = 100  # classes beyond which the logits of all copies are not learned from as they are


def turn(images: Tensor, degrees: float) -> Tensor:
    """Images (n, c, h, w) turned about their middle, bilinear; the border is repeated."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    h, w = images.shape[2:]
    matrix = torch.tensor([[cos, -sin * h / w, 0.0], [sin * w / h, cos, 0.0]], dtype=images.dtype, device=images.device)
    grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Transformations(Learned):
    """A network trained on the logits of 45 turned and shifted copies, classes in the query's own order.

    The order is ours: as published (`transformations-raw`) the classes keep their numbers.
    """

    name, source = "transformations", "after Tian et al., AAAI 2018 (45 copies; classes ordered by the query)"
    ordered: ClassVar[bool] = True
    binary = True

    def measure(self, images: Tensor) -> np.ndarray:
        """Logits of every copy (n, 45 x classes)."""
        logits = self.classifier.logits(images)
        order = logits.argsort(dim=1, descending=True)[:, :MOST_CLASSES]
        columns = []
        for degrees in DEGREES:
            turned = turn(images, degrees) if degrees else images
            for dy in SHIFTS:
                for dx in SHIFTS:
                    moved = transforms.shift(dy, dx)(turned) if dy or dx else turned
                    said = self.classifier.logits(moved)
                    columns.append(said.gather(1, order) if self.ordered else said[:, :MOST_LOGITS])
        return as_numpy(torch.cat(columns, 1))

    def new_head(self) -> Any:
        """A small network."""
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        network = MLPClassifier((64,), alpha=1.0, max_iter=300, early_stopping=True, random_state=0)
        return make_pipeline(StandardScaler(), network)


class RawTransformations(Transformations):
    """The same with the classes as they are numbered: a network trained on the logits of 45 copies."""

    name, source = "transformations-raw", "Tian et al., AAAI 2018 (45 copies; the first 100 classes)"
    ordered = False


class Spectrum(Learned):
    """A control that never asks the classifier: a regression on the magnitudes of the picture's Fourier transform."""

    name, source = "spectrum", "SpectralDefense: Harder et al., IJCNN 2021 (input magnitudes)"
    side: ClassVar[int] = 32
    binary = True

    def measure(self, images: Tensor) -> np.ndarray:
        """Log-magnitudes of every channel's frequencies, averaged to `side` x `side` in larger pictures."""
        magnitudes = torch.fft.fft2(images.float()).abs()
        h, w = images.shape[2:]
        if min(h, w) > self.side:
            magnitudes = F.adaptive_avg_pool2d(magnitudes, (self.side, self.side))
        return as_numpy(magnitudes.flatten(1).clamp(min=1e-6).log())

    def new_head(self) -> Any:
        """A logistic regression."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
