"""Landscapes whose saddles, barriers and minimum-energy paths are known on paper.

Points (n, k, d), energies (n, k), in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MULLER_BROWN_MINIMA = torch.tensor(
    [[-0.55822363, 1.44172584], [0.62349940, 0.02803776], [-0.05001082, 0.46669410]], dtype=torch.float64
)
MULLER_BROWN_SADDLES = {(0, 2): -40.66484351, (2, 1): -72.24894011}


def muller_brown(points: Tensor) -> Tensor:
    """Müller & Brown (1979): three minima, two saddles."""
    x, y = points[..., 0, None], points[..., 1, None]
    big_a, a = points.new_tensor([-200, -100, -170, 15]), points.new_tensor([-1, -1, -6.5, 0.7])
    b, c = points.new_tensor([0, 0, 11, 0.6]), points.new_tensor([-10, -10, -6.5, 0.7])
    x0, y0 = points.new_tensor([1, 0, -0.5, -1]), points.new_tensor([0, 0.5, 1.5, 1])
    return (big_a * torch.exp(a * (x - x0) ** 2 + b * (x - x0) * (y - y0) + c * (y - y0) ** 2)).sum(-1)


def ring(points: Tensor) -> Tensor:
    """(1 - r^2)^2 in the first two coordinates: zero on the unit circle."""
    return (1 - points[..., :2].square().sum(-1)) ** 2


def on_circle(angle: float) -> Tensor:
    """A point of the unit circle, (1, 2)."""
    return torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)


class Embedded:
    """A planar landscape turned into d dimensions by an orthonormal frame, with a quadratic well across it."""

    def __init__(self, plane: object, dimension: int, kappa: float = 10.0, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        frame = torch.randn(dimension, 2, generator=generator, dtype=torch.float64)
        self.frame = torch.linalg.qr(frame).Q
        self.plane, self.kappa = plane, kappa

    def __call__(self, points: Tensor) -> Tensor:
        inside = points @ self.frame
        across = points.square().sum(-1) - inside.square().sum(-1)
        return self.plane(inside) + self.kappa / 2 * across

    def lift(self, plane_points: Tensor) -> Tensor:
        """Points of the plane (n, 2) in d dimensions."""
        return plane_points @ self.frame.T
