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


LEPS_MINIMA = torch.tensor([[0.74152066, 1.30341916], [3.00127581, -1.30433828]], dtype=torch.float64)
LEPS_SADDLES = torch.tensor([[2.05689152, 0.58553803], [1.98206356, -1.09596799]], dtype=torch.float64)
LEPS_HEIGHTS = (-0.61676179, -0.50935653)


def leps(points: Tensor) -> Tensor:
    """London-Eyring-Polanyi-Sato with a harmonic bath and a Gaussian that splits its saddle in two."""
    x, y = points[..., 0], points[..., 1]
    well = {"ab": 4.746, "bc": 4.746, "ac": 3.445}
    shrink = {"ab": 1.05, "bc": 1.80, "ac": 1.05}
    apart = {"ab": x, "bc": 3.742 - x, "ac": torch.full_like(x, 3.742)}
    coulomb, exchange = {}, {}
    for bond, r in apart.items():
        e = torch.exp(-1.942 * (r - 0.742))
        coulomb[bond] = well[bond] / 2 * (1.5 * e**2 - e) / shrink[bond]
        exchange[bond] = well[bond] / 4 * (e**2 - 6 * e) / shrink[bond]
    ab, bc, ac = exchange["ab"], exchange["bc"], exchange["ac"]
    bonds = sum(coulomb.values()) - (ab**2 + bc**2 + ac**2 - ab * bc - bc * ac - ab * ac).sqrt()
    bath = 2 * 0.2025 * (x - (3.742 / 2 - y / 1.154)) ** 2
    return bonds + bath + 1.5 * torch.exp(-(((x - 2.02083) / 0.1) ** 2) / 2 - ((y + 0.272881) / 0.35) ** 2 / 2)


HIMMELBLAU_MINIMA = torch.tensor(
    [[3.0, 2.0], [-2.80511809, 3.13131252], [-3.77931025, -3.28318599], [3.58442834, -1.84812653]], dtype=torch.float64
)
HIMMELBLAU_SADDLES = {(0, 3): 13.31192627, (0, 1): 67.71915009, (1, 2): 104.01516292, (2, 3): 178.33723920}


def himmelblau(points: Tensor) -> Tensor:
    """Himmelblau (1972): four minima at zero, four saddles between neighbours."""
    x, y = points[..., 0], points[..., 1]
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


WOLFE_QUAPP_MINIMA = torch.tensor([[-1.17405606, 1.47708706], [1.12410176, -1.48527427]], dtype=torch.float64)
WOLFE_QUAPP_SADDLE = -1.25131237


def wolfe_quapp(points: Tensor) -> Tensor:
    """Quapp (2005): two deep minima, and a shallow one on the way between them."""
    x, y = points[..., 0], points[..., 1]
    return x**4 + y**4 - 2 * x**2 - 4 * y**2 + x * y + 0.3 * x + 0.1 * y


def half_circle(points: Tensor) -> Tensor:
    """(1 - r^2)^2 + y^2 / r^2: minima (+-1, 0) at 0, saddles (0, +-1) at 1, and the path is the unit half circle."""
    square = points.square().sum(-1)
    return (1 - square) ** 2 + points[..., 1] ** 2 / square


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
