"""Attacks that know the detector: they look for images that are misclassified and not flagged (Bryniarski et al. 2021).

Linf, through the real features: every copy and path is differentiated (rounding to fewer bits straight through), and
the head too where it is linear. Four ways to follow two aims at once:

lagrangian   the sum of both losses, with a weight that moves to where the aim that is not reached gets more
selective    the classifier's gradient while the prediction holds, else the detector's
orthogonal   the same, each without its part along the other, so that a step for one aim does not undo the other
rejection    one aim once the prediction is wrong: the log-probability that it is and is accepted, where rejection is an
             event of its own with the score over the threshold as log-odds (a rejection-aware loss, as Palumbo et al.
             2024 use one)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.errors import AttackError
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from advconn.runtime.progress import Progress, ignore_progress

Score = Callable[[Tensor], Tensor]
WAYS = ("lagrangian", "selective", "orthogonal", "rejection")


@dataclass(frozen=True)
class AdaptiveResult:
    """What was found for n images.

    Attributes:
        score: (n,) the lowest met while misclassified; infinite if never.
        images: (n, c, h, w) in [0, 1] where it was met.
    """

    score: np.ndarray
    images: Tensor


def evade(
    classifier: Classifier,
    score: Score,
    images: Tensor,
    labels: Tensor,
    threshold: float,
    *,
    eps: float,
    way: str = "orthogonal",
    steps: int = 50,
    restarts: int = 2,
    patience: int = 20,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = ignore_progress,
    logits: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> AdaptiveResult:
    """Look for images within `eps` (Linf) that are given another class than `labels` and score low.

    Every image goes on until it is misclassified with a score under the threshold, or nothing got better for `patience`
    steps, or after `steps`; then again from another random start. The step size falls from eps / 4 to eps / 40.

    Args:
        classifier: what is to be misled.
        score: of images, differentiable, higher = more adversarial; `differentiable(detector)`.
        images: (n, c, h, w), checked.
        labels: true classes (n,).
        threshold: score above which an image is flagged: what the attack aims under.
        eps: largest change of every value, in [0, 1].
        way: one of WAYS, see the top of this module.
        steps: from one start, at most.
        restarts: random starts.
        patience: steps without progress, once misclassified.
        seed: of the starts.
        batch_size: images at once.
        progress: told (stage, done, total).
        logits: what stands in for the classifier: of points (m, c, h, w) made from the images in rows (m,), (m, k).

    Raises:
        AttackError: no such way.
    """
    if way not in WAYS:
        raise AttackError(f"no way {way!r}: expected one of {', '.join(WAYS)}")
    ask = (lambda points, rows: classifier.logits(points)) if logits is None else logits
    lowest, best, done = [], [], 0
    for i, (x, y) in enumerate(zip(images.split(batch_size), labels.split(batch_size), strict=True)):
        low = torch.full((len(x),), torch.inf, device=x.device, dtype=torch.float32)
        kept = x.clone()
        for restart in range(restarts):
            generator = torch.Generator(device="cpu").manual_seed(seed * 10_007 + i * 101 + restart)
            here = partial(_offset, ask, done)
            scores, where = _run(here, score, x, y.to(x.device), threshold, eps, way, steps, patience, generator)
            better = scores < low
            low = torch.where(better, scores, low)
            kept[better] = where[better]
        lowest.append(low.cpu())
        best.append(kept.cpu())
        done += len(x)
        progress(f"evade {way} {eps * 255:g}/255", done, len(images))
    return AdaptiveResult(torch.cat(lowest).double().numpy(), torch.cat(best))


def _offset(ask: Callable[[Tensor, Tensor], Tensor], start: int, points: Tensor, rows: Tensor) -> Tensor:
    """Of rows that are counted from `start` on."""
    return ask(points, rows + start)


def _run(
    ask: Callable[[Tensor, Tensor], Tensor],
    score: Score,
    origin: Tensor,
    labels: Tensor,
    threshold: float,
    eps: float,
    way: str,
    steps: int,
    patience: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One restart of one batch: lowest scores (n,) while misclassified, and the images."""
    noise = torch.rand(origin.shape, generator=generator, dtype=torch.float32, device="cpu").to(origin)
    point = (origin + eps * (2 * noise - 1)).clamp(0, 1)
    lowest = torch.full((len(origin),), torch.inf, device=origin.device, dtype=torch.float32)
    best, stale = point.clone(), torch.zeros(len(origin), device=origin.device, dtype=torch.float32)
    weight = torch.ones(len(origin), device=origin.device, dtype=torch.float32)
    live = torch.arange(len(origin), device=origin.device, dtype=torch.int64)
    for step in range(steps + 1):
        leaf = point[live].clone().requires_grad_()
        with torch.enable_grad():
            logits = ask(leaf, live)
            loss = margin(logits, labels[live])
            odds = score(leaf)
            fooled = logits.detach().argmax(1) != labels[live]
            both = torch.where(fooled, F.logsigmoid(loss) + F.logsigmoid(threshold - odds), loss)
            aims = (both,) if way == "rejection" else (loss, -odds)
            slopes = [torch.autograd.grad(aim.sum(), leaf)[0] for aim in aims]
        odds = odds.detach()
        better = fooled & (odds < lowest[live])
        lowest[live[better]] = odds[better]
        best[live[better]] = leaf.detach()[better]
        stale[live] = torch.where(better, 0, stale[live] + 1)
        going = (lowest[live] > threshold) & (stale[live] < patience + steps * lowest[live].isinf())
        if step == steps or not bool(going.any()):
            break
        size = eps * (0.25 - 0.225 * step / steps)
        heading, weight[live] = _heading(way, slopes, fooled, odds > threshold, weight[live])
        moved = leaf.detach() + size * heading.sign()
        centre = origin[live]
        point[live] = moved.clamp(centre - eps, centre + eps).clamp(0, 1)
        live = live[going]
    return lowest, best


def _heading(way: str, slopes: list[Tensor], fooled: Tensor, flagged: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Direction (n, c, h, w) to go in, and the weight (n,) of the detector in the Lagrangian after this step.

    slopes: of the one aim, or of the classifier's and the detector's.
    """
    if way == "rejection":
        return slopes[0], weight
    a, b = map(_unit, slopes)
    choose = fooled[:, None, None, None]
    if way == "selective":
        return torch.where(choose, b, a), weight
    if way == "orthogonal":
        along = (a * b).flatten(1).sum(1)[:, None, None, None]
        apart = (1 - along.abs()) > 0.01  # where both run along one line nothing is left: follow the one aim plainly
        return torch.where(choose, b - apart * along * a, a - apart * along * b), weight
    weight = torch.where(~fooled, weight / 1.3, torch.where(flagged, weight * 1.3, weight)).clamp(1e-3, 1e3)
    return a + weight[:, None, None, None] * b, weight


def _unit(values: Tensor) -> Tensor:
    norm = values.flatten(1).norm(dim=1).clamp_min(1e-12)
    return values / norm[:, None, None, None]
