"""Going round a barrier: bypass of a segment's highest point in the hyperplane orthogonal to the segment.

Vrabel et al. (ICLR 2025, section 3 and 4.1) move the highest point B of a straight path to B', orthogonally to the
path, until the loss there is low; the segments A-B' and B'-C may have barriers of their own ("secondary barriers"),
which are bypassed in turn. Here every open segment of every pair is a row of one tensor; the step is Polyak's within
the hyperplane, z <- z - (V - target) g / |g|^2, and it is the *displacement* that is projected, so that B' stays in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advconn.paths.path import Landscape, Path, Profile, energy_and_gradient, of_rows, profile, straight

DELTA = 1e-3  # cross-entropy above which a barrier stands (Vrabel et al. 2025)
SLACK = 0.5  # how far under the ceiling a point is brought, so that rounding cannot leave it there
LONGEST_STEP = 0.1  # of the segment's length: the farthest that one step moves
LEAST_SLOPE = 1e-12  # squared slope under which a point is stuck


@dataclass(frozen=True)
class Detour:
    """Paths that go round the barriers of n straight ones.

    Attributes:
        path: n paths through 2^levels + 1 knots; a knot that was not needed lies on the line between its neighbours.
        barriers: (n, levels + 1) barriers above the ceiling on the straight path and after each level of bypass; the
            last column counts those that remain.
        bends: (n,) number of knots that were moved.
        displacement: (n,) largest |B' - B| over the length of its segment.
        length_ratio: (n,) length of the detour over that of the straight path, at least 1.
        residual: (n,) largest energy found on the final path.
        stuck: (n,) whether a step was asked for where the slope in the hyperplane vanishes.
        gradients: (n,) number of gradients spent on every pair.
    """

    path: Path
    barriers: Tensor
    bends: Tensor
    displacement: Tensor
    length_ratio: Tensor
    residual: Tensor
    stuck: Tensor
    gradients: Tensor

    @property
    def converged(self) -> Tensor:
        """(n,) no barrier above the ceiling remains."""
        return self.barriers[:, -1] == 0


@dataclass(frozen=True)
class BypassStep:
    """Where the bypass of n segments ended.

    Attributes:
        points: (n, *shape) the lowest points seen.
        displacement: (n,) how far each lies from where it started, over the length of its segment.
        stuck: (n,) whether the slope in the hyperplane vanished above the target.
        gradients: (n,) number of gradients spent.
    """

    points: Tensor
    displacement: Tensor
    stuck: Tensor
    gradients: Tensor


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.flatten(1) * b.flatten(1)).sum(1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def bypass_segment(
    landscape: Landscape, start: Tensor, end: Tensor, highest: Tensor, target: Tensor, rows: Tensor, steps: int
) -> BypassStep:
    """Move points orthogonally to their segments until their energy is at most `target`.

    The lowest point seen is returned. Rows that are done, or stuck (no slope in the hyperplane), leave the batch.

    Args:
        landscape: energies (n, k) of points (n, k, *shape).
        start: first ends (n, *shape) of the segments.
        end: second ends (n, *shape).
        highest: points (n, *shape) on the segments to start from.
        target: energies (n,) to get down to.
        rows: (n,) each segment's pair, which is its row of the landscape.
        steps: at most so many.
    """
    chord = end - start
    length = chord.flatten(1).norm(dim=1).clamp_min(1e-12)
    unit = chord / _column(length, chord)
    best, lowest = highest.clone(), torch.full_like(target, torch.inf)
    stuck = torch.zeros_like(target, dtype=torch.bool)
    gradients = torch.zeros_like(target)
    live = torch.arange(len(highest), device=highest.device, dtype=torch.int64)
    point = highest.clone()
    for step in range(steps + 1):
        if not len(live):
            break
        energy, steep = energy_and_gradient(landscape, point[live], rows[live])
        gradients[live] += 1
        better = energy < lowest[live]
        lowest[live] = torch.where(better, energy, lowest[live])
        best[live] = torch.where(_column(better, point), point[live], best[live])
        u = unit[live]
        steep = steep - _column(_dot(steep, u), u) * u
        square = _dot(steep, steep)
        above = energy > target[live]
        flat = square < LEAST_SLOPE
        stuck[live] |= above & flat
        going = above & ~flat
        if step == steps:
            break
        live, steep, square, energy = live[going], steep[going], square[going], energy[going]
        size = ((energy - target[live]) / square.sqrt()).clamp(max=LONGEST_STEP * length[live])
        moved = point[live] - _column(size / square.sqrt(), steep) * steep
        u, origin = unit[live], highest[live]
        shift = moved - origin
        point[live] = origin + shift - _column(_dot(shift, u), u) * u
    return BypassStep(best, (best - highest).flatten(1).norm(dim=1) / length, stuck, gradients)


def bypass(
    landscape: Landscape,
    start: Tensor,
    end: Tensor,
    ceiling: Tensor,
    *,
    target: Tensor | None = None,
    levels: int = 3,
    steps: int = 10,
    samples: int = 9,
    scan: Profile | None = None,
) -> Detour:
    """Go round every barrier above `ceiling` between start and end.

    Segments without a barrier are not touched. What still stands after `steps` steps, or after the last level, is
    reported as it is: `converged` is then False.

    Args:
        landscape: energies (n, k) of points (n, k, *shape).
        start: (n, *shape).
        end: (n, *shape).
        ceiling: energies (n,) above which a barrier stands.
        target: energies (n,) that a bypassed point is brought down to; `ceiling` unless told.
        levels: 1 bypasses the barrier on the line alone, 2 also those on the two segments that this makes, and so on.
        steps: at most so many for each barrier.
        samples: points of the straight line's scan; at every further level half as many, but no fewer than 9 (or than
            `samples`).
        scan: of the straight line, where it was made before.

    Example:
        >>> import torch
        >>> from advconn.paths.bypass import bypass
        >>> def hill(points):
        ...     return torch.exp(-points.square().sum(2))
        >>> start, end = torch.tensor([[-2.0, 0.1]]), torch.tensor([[2.0, 0.1]])
        >>> detour = bypass(hill, start, end, ceiling=torch.tensor([0.5]), target=torch.tensor([0.1]))
        >>> detour.converged, detour.bends
        (tensor([True]), tensor([1]))
    """
    n, width = len(start), 2**levels
    target = ceiling if target is None else target
    knots = straight(start, end).at(torch.linspace(0, 1, width + 1, device=start.device, dtype=start.dtype))
    bent = torch.zeros(n, width + 1, dtype=torch.bool, device=start.device)
    barriers = torch.zeros(n, levels + 1, dtype=torch.long, device=start.device)
    displacement, residual = torch.zeros_like(ceiling), torch.full_like(ceiling, -torch.inf)
    stuck, gradients = torch.zeros_like(bent[:, 0]), torch.zeros_like(ceiling)
    row = torch.arange(n, device=start.device, dtype=torch.int64)
    left = torch.zeros_like(row)
    for depth in range(levels + 1):
        span = width >> depth
        # A segment half as long is scanned at half as many points, but at 9 (or all, if fewer) at least.
        count = max(min(samples, 9), ((samples - 1) >> depth) + 1)
        path = straight(knots[row, left], knots[row, left + span])
        if depth or scan is None:
            scan = profile(path, of_rows(landscape, row), count)
        stands = scan.barrier > ceiling[row]
        low = row if depth == levels else row[~stands]
        residual.scatter_reduce_(0, low, scan.barrier if depth == levels else scan.barrier[~stands], "amax")
        barriers[:, depth] = torch.bincount(row[stands], minlength=n)
        if depth == levels or not bool(stands.any()):
            break
        row, left = row[stands], left[stands]
        a, c = path.start[stands], path.end[stands]
        where = scan.place[stands].clamp(1 / (count - 1), 1 - 1 / (count - 1))
        highest = torch.lerp(a, c, _column(where, a))
        moved = bypass_segment(landscape, a, c, highest, target[row], row, steps)
        _bend(knots, row, left, span, moved.points)
        bent[row, left + span // 2] = True
        displacement.scatter_reduce_(0, row, moved.displacement, "amax")
        gradients.index_add_(0, row, moved.gradients)
        stuck[row[moved.stuck]] = True
        row, left = row.repeat(2), torch.cat([left, left + span // 2])
    path = Path(knots)
    ratio = path.length() / (end - start).flatten(1).norm(dim=1).clamp_min(1e-12)
    return Detour(path, barriers, bent.sum(1), displacement, ratio, residual, stuck, gradients)


def _bend(knots: Tensor, row: Tensor, left: Tensor, span: int, middle: Tensor) -> None:
    """Set the middle knot of every segment, and lay the knots between on the two lines to it."""
    half = span // 2
    for begin, a, b in ((0, knots[row, left], middle), (half, middle, knots[row, left + span])):
        for i in range(1, half) if begin else range(1, half + 1):  # the first half sets the middle knot too
            knots[row, left + begin + i] = torch.lerp(a, b, i / half)
