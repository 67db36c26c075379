"""Minimum-energy paths: a band of pivots between two points, relaxed for all pairs in one batch.

string   every pivot goes down its slope and the pivots are re-spaced evenly each step: the simplified string method (E,
         Ren & Vanden-Eijnden, J. Chem. Phys. 126, 164103 (2007))
neb      nudged elastic band: only the part of the slope across the path acts, springs act along it, with the improved
         tangent of Henkelman & Jónsson (J. Chem. Phys. 113, 9978 (2000), equations 8 to 12); the highest pivot may
         climb to the saddle (J. Chem. Phys. 113, 9901 (2000))

Steps are Adam's with one second moment a pivot, not one a coordinate: the direction stays that of the force, so that a
path at rest is a true minimum-energy path and turning the space changes nothing. The highest point is read off a dense
scan between pivots: off the pivots alone a barrier is under-reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from advconn.errors import PathError
from advconn.paths.path import Landscape, Path, at_rows, energy_and_gradient, of_rows, profile

METHODS = ("string", "neb")
MEMORY, SPREAD = 0.8, 0.95  # Adam's two decay rates


@dataclass(frozen=True)
class Band:
    """Relaxed paths of n pairs.

    Attributes:
        path: n paths through pivots + 2 knots.
        barrier: (n,) largest energy of a dense scan of the path.
        place: (n,) its position, in [0, 1].
        length_ratio: (n,) length over that of the straight line between the ends.
        stopped: (n,) whether the path had grown to the longest length allowed and was left as it was.
        gradients: (n,) number of gradients spent on every pair.
    """

    path: Path
    barrier: Tensor
    place: Tensor
    length_ratio: Tensor
    stopped: Tensor
    gradients: Tensor


def relax_band(
    landscape: Landscape,
    path: Path,
    *,
    method: str = "string",
    pivots: int = 9,
    steps: int = 200,
    rate: float = 0.1,
    ceiling: Tensor | None = None,
    target: Tensor | None = None,
    spring: float = 0.3,
    climb: bool = False,
    longest: float = 3.0,
    check: int = 10,
    samples: int = 8,
) -> Band:
    """Relax bands that start on `path` (straight, or through any knots) and keep their ends.

    Of all scans of a pair the path with the lowest barrier is kept; with `climb`, the last.

    Args:
        landscape: energies (n, k) of points (n, k, *shape). One that differs from row to row has a method `rows(index)`
            that gives the landscape of those rows.
        path: where the n bands start.
        method: 'string' or 'neb', see the top of this module.
        pivots: movable points between the ends, 1 or more.
        steps: at most so many; each takes `pivots` gradients a pair, fewer once pivots rest.
        rate: length of the first step, in spacings of the pivots; it falls to nothing along a cosine.
        ceiling: energies (n,); a pair is done when a dense scan finds nothing above its ceiling.
        target: energies (n,); a pivot at or under its target rests, which keeps a band on flat ground from drifting.
        spring: stiffness, in slopes a spacing; of 'neb'.
        climb: whether the highest pivot climbs to the saddle; of 'neb'.
        longest: a pair stops once its path is longer than so many times the straight line.
        check: a scan, and removal of pairs that are done, every so many steps.
        samples: points of every segment's scan.

    Raises:
        PathError: a method or a number that makes no sense.

    Example:
        >>> import torch
        >>> from advconn.paths.elastic_band import relax_band
        >>> from advconn.paths import profile, straight
        >>> def hill(points):
        ...     return torch.exp(-points.square().sum(2))
        >>> line = straight(torch.tensor([[-2.0, 0.1]]), torch.tensor([[2.0, 0.1]]))
        >>> profile(line, hill).barrier
        tensor([0.9900])
        >>> relax_band(hill, line).barrier < 0.1
        tensor([True])
    """
    if method not in METHODS:
        raise PathError(f"no method {method!r}: expected one of {', '.join(METHODS)}")
    if pivots < 1 or steps < 0 or samples < 1 or (climb and method != "neb"):
        raise PathError("a band needs pivots and samples, and only 'neb' climbs")
    knots = path.spaced(pivots + 2).knots
    n = len(knots)
    chord = (path.end - path.start).flatten(1).norm(dim=1).clamp_min(1e-12)
    spacing = chord / (pivots + 1)
    best, barrier = knots.clone(), torch.full_like(chord, torch.inf)
    place, stopped = torch.zeros_like(chord), torch.zeros(n, dtype=torch.bool, device=knots.device)
    gradients = torch.zeros_like(chord)
    live = torch.arange(n, device=knots.device, dtype=torch.int64)
    floor = torch.full_like(chord, -torch.inf) if target is None else target
    ends = at_rows(landscape, torch.stack([path.start, path.end], 1), live) if method == "neb" else None
    descent = _Descent(torch.zeros_like(knots[:, 1:-1]), knots.new_zeros(n, pivots))
    for step in range(steps + 1):
        if step % check == 0 or step == steps:
            scan = profile(Path(knots[live]), of_rows(landscape, live), (pivots + 1) * samples + 1)
            better = (scan.barrier < barrier[live]) | climb
            rows = live[better]
            barrier[rows], place[rows], best[rows] = scan.barrier[better], scan.place[better], knots[rows]
            stopped[live] = Path(knots[live]).length() > longest * chord[live]
            done = stopped[live] if ceiling is None else stopped[live] | (barrier[live] <= ceiling[live])
            live = live[~done]
        if step == steps or not len(live):
            break
        energies, slopes, used = _slopes(landscape, knots[live, 1:-1], live, floor[live])
        gradients[live] += used
        if ends is not None:
            energies = torch.cat([ends[live, :1], energies, ends[live, 1:]], 1)
            slopes = _nudged(knots[live], energies, slopes, spring, climb)
        fade = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        knots[live, 1:-1] -= descent.move(live, slopes, fade * spacing[live], step)
        if method == "string":
            knots[live] = Path(knots[live]).spaced(pivots + 2).knots
    best_path = Path(best)
    return Band(best_path, barrier, place, best_path.length() / chord, stopped, gradients)


@dataclass(frozen=True)
class _Descent:
    """Adam's two moments: speed (n, k, *shape) of every coordinate, and one mean square (n, k) for all of a pivot's."""

    speed: Tensor
    square: Tensor

    def move(self, live: Tensor, slopes: Tensor, size: Tensor, step: int) -> Tensor:
        """Moves (m, k, *shape) of about `size` (m,) down the slopes of the rows `live` (m,)."""
        self.speed[live] = MEMORY * self.speed[live] + (1 - MEMORY) * slopes
        self.square[live] = SPREAD * self.square[live] + (1 - SPREAD) * slopes.flatten(2).square().sum(2)
        first, second = 1 - MEMORY ** (step + 1), 1 - SPREAD ** (step + 1)
        rate = size[:, None] / ((self.square[live] / second).sqrt().clamp_min(1e-12) * first)
        return rate.view(*rate.shape, *[1] * (slopes.ndim - 2)) * self.speed[live]


def _slopes(landscape: Landscape, points: Tensor, rows: Tensor, floor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energies (n, k) of pivots (n, k, *shape), slopes at those above their floor (n,), and how many those are (n,)."""
    n, k = points.shape[:2]
    if bool(floor.isinf().all()):
        flat = rows.repeat_interleave(k)
        energy, slopes = energy_and_gradient(landscape, points.flatten(0, 1), flat)
        return energy.view(n, k), slopes.view_as(points), torch.full_like(floor, k)
    with torch.no_grad():
        energies = at_rows(landscape, points, rows)
    slopes, moving = torch.zeros_like(points), energies > floor[:, None]
    row, column = moving.nonzero(as_tuple=True)
    if len(row):
        slopes[row, column] = energy_and_gradient(landscape, points[row, column], rows[row])[1]
    return energies, slopes, moving.sum(1).to(floor)


def _nudged(knots: Tensor, energies: Tensor, slopes: Tensor, spring: float, climb: bool) -> Tensor:
    """The force's opposite at every pivot: slope across the path, springs along it, the highest one turned round."""
    shape = [1] * (knots.ndim - 2)

    def wide(values: Tensor) -> Tensor:
        return values.view(*values.shape, *shape)

    after, before = knots[:, 2:] - knots[:, 1:-1], knots[:, 1:-1] - knots[:, :-2]
    here, ahead, behind = energies[:, 1:-1], energies[:, 2:], energies[:, :-2]
    rise, fall = (ahead - here).abs(), (behind - here).abs()
    most, least = torch.maximum(rise, fall), torch.minimum(rise, fall)
    up = ahead > behind
    mixed = after * wide(torch.where(up, most, least)) + before * wide(torch.where(up, least, most))
    tangent = torch.where(wide((ahead > here) & (here > behind)), after, mixed)
    tangent = torch.where(wide((ahead < here) & (here < behind)), before, tangent)
    tangent = tangent / wide(tangent.flatten(2).norm(dim=2).clamp_min(1e-12))
    along = wide((slopes * tangent).flatten(2).sum(2))
    pull = after.flatten(2).norm(dim=2) - before.flatten(2).norm(dim=2)
    spacing = (before.flatten(2).norm(dim=2).mean(1, keepdim=True)).clamp_min(1e-12)
    stiff = spring * slopes.flatten(2).norm(dim=2).amax(1, keepdim=True) / spacing
    out = slopes - along * tangent - wide(stiff * pull) * tangent
    if climb:
        top = here.argmax(1)
        rows = torch.arange(len(knots), device=knots.device, dtype=torch.int64)
        out[rows, top] = (slopes - 2 * along * tangent)[rows, top]
    return out
