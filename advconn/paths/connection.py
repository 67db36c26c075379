"""Pairs of images connected in a space: the straight path, and one found round its barrier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.errors import PathError
from advconn.models.margin import margin_of_loss
from advconn.paths.bypass import DELTA, SLACK, bypass
from advconn.paths.elastic_band import relax_band
from advconn.paths.path import Path, Profile, profile, straight
from advconn.paths.space import Space

METHODS = ("line", "bypass", "band")
SCAN = 129  # points of a path that decide whether it is connected
OUTCOMES = ("line", "curve", "none")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """n pairs, walked from their first images to their second ones.

    Attributes:
        space: where the paths live.
        method: one of METHODS.
        labels: classes (n,) whose cross-entropies are the energies.
        line: cross-entropies along the straight paths.
        curve: those along the paths that `method` found; the straight ones where these have no barrier.
        path: the n paths found, through k knots in the space.
        ceiling: (n,) cross-entropy above which a barrier stands.
        barriers: (n, levels + 1) barriers at every level of bypass; None of other methods.
        gradients: (n,) number of gradients spent on every pair.
    """

    space: Space
    method: str
    labels: Tensor
    line: Profile
    curve: Profile
    path: Path
    ceiling: Tensor
    barriers: Tensor | None
    gradients: Tensor

    @property
    def outcome(self) -> list[str]:
        """For every pair one of OUTCOMES: nothing stands on the line, nothing on the path found, or neither."""
        on_line, on_curve = self.line.barrier <= self.ceiling, self.curve.barrier <= self.ceiling
        return ["line" if a else "curve" if b else "none" for a, b in zip(on_line, on_curve, strict=True)]

    @property
    def length_ratio(self) -> Tensor:
        """(n,) length of the path found over that of the straight one."""
        chord = (self.path.end - self.path.start).flatten(1).norm(dim=1)
        return self.path.length() / chord.clamp_min(1e-12)


def connect(
    space: Space,
    start: Tensor,
    end: Tensor,
    labels: Tensor,
    *,
    method: str = "band",
    delta: float = DELTA,
    levels: int = 3,
    pivots: int = 9,
    steps: int = 20,
    rate: float = 0.1,
    samples: int = SCAN,
) -> Connection:
    """Connect pairs of images so that they stay in their classes.

    A barrier stands where the cross-entropy exceeds the larger of `delta` and the larger end's by `delta`: two images
    that the classifier is unsure of are connected at their own height. Only where one stands on the line is anything
    searched for. Points are not kept within [0, 1].

    Args:
        space: where the paths live.
        start: first images (n, c, h, w), checked.
        end: second images (n, c, h, w), checked.
        labels: classes (n,) to stay in.
        method: 'line' (search nothing), 'bypass' (of every barrier; Vrabel et al. 2025), or 'band' (a string of pivots;
            Gu & Borovykh 2023), which needs fewer gradients (benchmarks/research/hard_pairs.py).
        delta: a cross-entropy, more than 0; how it sets a barrier is told above.
        levels: of bypass.
        pivots: of the band.
        steps: of every bypass, or of the band.
        rate: of the band's first step, in spacings of its pivots.
        samples: points of every path that are looked at in the end.

    Raises:
        PathError: no such method, or images and labels of different number.
    """
    if method not in METHODS:
        raise PathError(f"no method {method!r}: expected one of {', '.join(METHODS)}")
    if not len(start) == len(end) == len(labels):
        raise PathError(f"{len(start)} first images, {len(end)} second ones, {len(labels)} classes: expected as many")
    landscape = space.landscape(labels)
    path = straight(space.points(start), space.points(end))
    line = losses(path, landscape, samples)
    ends = torch.maximum(line.energies[:, 0], line.energies[:, -1])
    ceiling = torch.where(ends <= delta, torch.full_like(ends, delta), ends + delta)
    margins = margin_of_loss(ceiling.double()).to(ceiling.dtype)
    gradients = torch.zeros_like(ceiling)
    barriers = torch.zeros(len(labels), levels + 1, dtype=torch.long, device=labels.device)
    hard = (line.barrier > ceiling).nonzero()[:, 0]
    energies = line.energies
    if method != "line" and len(hard):
        rest, target = landscape.rows(hard), margins[hard] - SLACK
        if method == "bypass":
            pair = path.start[hard], path.end[hard]
            detour = bypass(rest, *pair, margins[hard], target=target, levels=levels, steps=steps, samples=samples)
            curve, gradients[hard], barriers[hard] = detour.path, detour.gradients, detour.barriers
        else:
            lines = Path(path.knots[hard])
            band = relax_band(
                rest, lines, pivots=pivots, steps=steps, rate=rate, ceiling=margins[hard], target=target, check=5
            )
            curve, gradients[hard] = band.path, band.gradients
        knots = path.spaced(curve.knots.shape[1]).knots
        knots[hard] = curve.knots
        path, energies = Path(knots), line.energies.index_copy(0, hard, losses(curve, rest, samples).energies)
    path_losses = Profile(line.t, energies)
    return Connection(
        space=space,
        method=method,
        labels=labels,
        line=line,
        curve=path_losses,
        path=path,
        ceiling=ceiling,
        barriers=barriers if method == "bypass" else None,
        gradients=gradients,
    )


def losses(path: Path, landscape: Callable[[Tensor], Tensor], samples: int) -> Profile:
    """Cross-entropies along every path.

    Args:
        path: n paths.
        landscape: margins (n, k) of points (n, k, *shape).
        samples: evenly spaced positions on every path, both ends included.
    """
    margins = profile(path, landscape, samples)
    return Profile(margins.t, F.softplus(margins.energies))
