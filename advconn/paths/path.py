"""Paths through many knots and what is met along them: geometry only, no model and no class.

A landscape is a callable from points (n, k, *shape) to energies (n, k). Everything is batched over n paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advconn.runtime.forward_passes import gradients_enabled

Landscape = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Path:
    """n piecewise linear paths, each through the same number of knots (n, k, *shape), k >= 2."""

    knots: Tensor

    @property
    def start(self) -> Tensor:
        """First knots, (n, *shape)."""
        return self.knots[:, 0]

    @property
    def end(self) -> Tensor:
        """Last knots, (n, *shape)."""
        return self.knots[:, -1]

    def at(self, t: Tensor) -> Tensor:
        """Points (n, s, *shape) at positions t (s,) in [0, 1]; each segment takes an equal share of t."""
        segments = self.knots.shape[1] - 1
        place = t.clamp(0, 1) * segments
        left = place.floor().clamp(max=segments - 1).long()
        weight = (place - left).view(1, -1, *[1] * (self.knots.ndim - 2))
        return torch.lerp(self.knots[:, left], self.knots[:, left + 1], weight)

    def length(self) -> Tensor:
        """Euclidean length of every path, (n,)."""
        return self.knots.diff(dim=1).flatten(2).norm(dim=2).sum(1)

    def spaced(self, knots: int) -> Path:
        """The same paths through so many knots, evenly spaced along their length; both ends are kept."""
        n, k = self.knots.shape[:2]
        lengths = self.knots.diff(dim=1).flatten(2).norm(dim=2)
        reached = torch.cat([lengths.new_zeros(n, 1), lengths.cumsum(1)], 1)
        wanted = reached[:, -1:] * torch.linspace(0, 1, knots, device=lengths.device, dtype=lengths.dtype)
        left = (torch.searchsorted(reached, wanted.contiguous(), right=True) - 1).clamp(0, k - 2)
        part = (wanted - reached.gather(1, left)) / lengths.gather(1, left).clamp_min(1e-30)
        rows = torch.arange(n, device=lengths.device, dtype=torch.int64)[:, None]
        weight = part.clamp(0, 1).view(n, knots, *[1] * (self.knots.ndim - 2))
        out = torch.lerp(self.knots[rows, left], self.knots[rows, left + 1], weight)
        out[:, 0], out[:, -1] = self.start, self.end
        return Path(out)

    def reversed(self) -> Path:
        """The same paths walked from the other end."""
        return Path(self.knots.flip(1))


@dataclass(frozen=True)
class Profile:
    """Energies (n, s) met at positions t (s,), rising from 0 to 1, of n paths.

    After Vrabel et al. (ICLR 2025, section 4.2): the barrier of a path is the largest energy on it, its gap what that
    exceeds the larger end by.
    """

    t: Tensor
    energies: Tensor

    @property
    def barrier(self) -> Tensor:
        """Largest energy of every path, (n,)."""
        return self.energies.amax(1)

    @property
    def place(self) -> Tensor:
        """Position in [0, 1] of the largest energy, (n,)."""
        return self.t[self.energies.argmax(1)]

    @property
    def gap(self) -> Tensor:
        """Largest energy minus that of the larger end, (n,), never negative."""
        return self.barrier - torch.maximum(self.energies[:, 0], self.energies[:, -1])

    @property
    def area(self) -> Tensor:
        """Integral of the energy over t by the trapezoidal rule, (n,)."""
        return torch.trapezoid(self.energies, self.t, dim=1)


def straight(start: Tensor, end: Tensor) -> Path:
    """Straight paths from start (n, *shape) to end (n, *shape).

    Example:
        >>> import torch
        >>> from advconn import straight
        >>> path = straight(torch.zeros(1, 2), torch.ones(1, 2))
        >>> path.at(torch.tensor([0.0, 0.5, 1.0])).tolist()
        [[[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]]
    """
    return Path(torch.stack([start, end], 1))


def path_positions(samples: int, like: Tensor) -> Tensor:
    """`samples` >= 2 evenly spaced positions, both ends included, on the device and in the dtype of `like`."""
    return torch.linspace(0, 1, samples, device=like.device, dtype=like.dtype)


LARGEST = 2**26  # values of points laid out at once


def profile(path: Path, landscape: Landscape, samples: int = 17) -> Profile:
    """Energies met on every path; memory does not grow with the number of paths.

    Args:
        path: n paths.
        landscape: energies (n, k) of points (n, k, *shape).
        samples: evenly spaced positions on every path, both ends included.

    Example:
        >>> import torch
        >>> from advconn import profile, straight
        >>> path = straight(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
        >>> found = profile(path, lambda points: 1 - points[:, :, 0].square(), samples=5)
        >>> found.barrier.item(), found.place.item()
        (1.0, 0.5)
    """
    t = path_positions(samples, path.knots)
    together = max(1, LARGEST // (samples * path.knots[0, 0].numel())) if len(path.knots) else 1
    if len(path.knots) <= together:
        return Profile(t, landscape(path.at(t)))
    parts = torch.arange(len(path.knots), device=path.knots.device, dtype=torch.int64).split(together)
    return Profile(t, torch.cat([at_rows(landscape, Path(path.knots[rows]).at(t), rows) for rows in parts]))


def at_rows(landscape: Landscape, points: Tensor, rows: Tensor) -> Tensor:
    """Energies (n, k) of points that belong to some rows of a landscape.

    Args:
        landscape: energies (n, k) of points (n, k, *shape).
        points: (n, k, *shape).
        rows: (n,) the row of each.
    """
    return of_rows(landscape, rows)(points)


def of_rows(landscape: Landscape, rows: Tensor) -> Landscape:
    """The landscape of these rows (n,).

    A landscape whose energy differs from row to row has a method `rows(index)` that gives it.
    """
    pick = getattr(landscape, "rows", None)
    return pick(rows) if pick else landscape


def energy_and_gradient(landscape: Landscape, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (n,) and their gradients (n, *shape) at points; no other gradient is made.

    Args:
        landscape: energies (n, k) of points (n, k, *shape).
        points: (n, *shape).
        rows: (n,) the row of the landscape that each belongs to.
    """
    with gradients_enabled():
        leaf = points.detach().clone().unsqueeze(1).requires_grad_()
        energy = at_rows(landscape, leaf, rows)
        (gradient,) = torch.autograd.grad(energy.sum(), leaf)
    return energy[:, 0].detach(), gradient[:, 0]
