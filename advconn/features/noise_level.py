"""Noise levels and fine structure of an image's own pixels, which what its copies show is held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEVELS = ("mean", "median", "colour")
PLANES = ("grey", "first", "second")
ALIKE = ((0, 1), (1, 2), (0, 2))  # pairs of channels
STRUCTURE = (
    *(f"alike.{i}{j}" for i, j in ALIKE),
    *(f"{shape}.{plane}" for plane in PLANES for shape in ("peak", "middle")),
    "speck.peak",
    *(f"speck.alike.{i}{j}" for i, j in ALIKE[:2]),
)
GRAIN = len(LEVELS) + len(STRUCTURE)


def grain(images: Tensor) -> Tensor:
    """Noise levels and fine structure (n, GRAIN) of images (n, c, h, w) in [0, 1].

    Noise levels, in steps of 1/255, are Immerkaer's (1996): sqrt(pi / 2) / 6 times the mean absolute value of the
    difference of two Laplacians, of the mean of the channels; the same by its median, which edges hardly move; and that
    of the difference of the first two channels, which grey structure does not move (0 for one channel).

    Fine structure has no unit: how the same differences go together in two channels (their correlation), how flat they
    are spread (mean absolute value over root mean square, median over mean) in the mean of the channels and in the
    differences of neighbouring ones, and both of what a median of five pixels takes away. A camera's noise goes alike
    in no two channels and is spread as Gaussian noise is; an attack's is neither.
    """
    n = len(images)
    if min(images.shape[2:]) < 3:
        return images.new_zeros(n, GRAIN)
    first, second, third = (images[:, min(k, images.shape[1] - 1)] for k in range(3))
    planes = torch.stack([images.mean(1), first - second, second - third, first, second, third], 1)
    rough = 255 * _bent(_bent(planes, 3), 2).flatten(2)
    specks = 255 * (planes[:, 3:, 1:-1, 1:-1] - _median5(planes[:, 3:])).flatten(2)
    scale = (math.pi / 2) ** 0.5 / 6
    size = rough[:, :2].abs()
    levels = [scale * size[:, 0].mean(1), size[:, 0].median(1).values / (6 * 0.6745), scale * size[:, 1].mean(1)]
    alike = [_correlation(rough[:, 3 + i], rough[:, 3 + j]) for i, j in ALIKE]
    shapes = [shape for k in range(3) for shape in (_peak(rough[:, k]), _middle(rough[:, k]))]
    speckled = [_peak(specks.flatten(1)), *(_correlation(specks[:, i], specks[:, j]) for i, j in ALIKE[:2])]
    return torch.stack([*levels, *alike, *shapes, *speckled], 1)


def _bent(values: Tensor, dim: int) -> Tensor:
    """Second differences along a dimension; those along rows of those along columns are Immerkaer's mask."""
    count = values.shape[dim] - 2
    before, middle, after = (values.narrow(dim, start, count) for start in range(3))
    return before + after - 2 * middle


def _median5(values: Tensor) -> Tensor:
    """Of each inner pixel and its four neighbours, (..., h - 2, w - 2)."""
    inner = values[..., 1:-1, 1:-1]
    pairs = ((values[..., :-2, 1:-1], values[..., 2:, 1:-1]), (values[..., 1:-1, :-2], values[..., 1:-1, 2:]))
    small, large = ([f(a, b) for a, b in pairs] for f in (torch.minimum, torch.maximum))
    low, high = torch.maximum(*small), torch.minimum(*large)  # the middle two of the four
    return torch.maximum(torch.minimum(low, high), torch.minimum(torch.maximum(low, high), inner))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Of each row (n,) of two (n, m); 0 where one does not vary."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / ((a.square().sum(1) * b.square().sum(1) + 1e-12).sqrt() + 1e-6)


def _peak(values: Tensor) -> Tensor:
    """Mean absolute value over root mean square: .80 of Gaussian values, less of peaked ones."""
    return values.abs().mean(1) / ((values.square().mean(1) + 1e-12).sqrt() + 1e-3)


def _middle(values: Tensor) -> Tensor:
    """Median absolute value over the mean one: .85 of Gaussian values, less of peaked ones."""
    size = values.abs()
    return size.median(1).values / (size.mean(1) + 1e-3)
