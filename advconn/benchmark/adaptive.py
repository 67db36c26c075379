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

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.benchmark.following import Score
from advconn.classifier import Classifier, margin
from advconn.errors import AttackError
from advconn.progress import Progress, silent

WAYS = ("lagrangian", "selective", "orthogonal", "rejection")


@dataclass(frozen=True)
class Evaded:
    """For n images: the lowest score (n,) met while misclassified (inf if never), at which image (n, c, h, w)."""

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
    progress: Progress = silent,
) -> Evaded:
    """Look for images within `eps` (Linf) that are given another class than `labels` and score low.

    Every image goes on until it is misclassified with a score under the threshold, or nothing got better for
    `patience` steps, or after `steps`; then again from another random start. The step size falls from eps / 4 to
    eps / 40.

    Args:
        images: (n, c, h, w), checked. labels: (n,) true classes.
        score: differentiable, higher = more adversarial; `differentiable(detector)`.
        threshold: score above which an image is flagged: what the attack aims under.
        way: one of WAYS.
    """
    if way not in WAYS:
        raise AttackError(f"no way {way!r}: expected one of {', '.join(WAYS)}")
    lowest, best, done = [], [], 0
    for i, (x, y) in enumerate(zip(images.split(batch_size), labels.split(batch_size), strict=True)):
        low = torch.full((len(x),), torch.inf, device=x.device, dtype=torch.float32)
        kept = x.clone()
        for restart in range(restarts):
            generator = torch.Generator(device="cpu").manual_seed(seed * 10_007 + i * 101 + restart)
            found, where = _run(classifier, score, x, y.to(x.device), threshold, eps, way, steps, patience, generator)
            better = found < low
            low = torch.where(better, found, low)
            kept[better] = where[better]
        lowest.append(low.cpu())
        best.append(kept.cpu())
        done += len(x)
        progress(f"evade {way} {eps * 255:g}/255", done, len(images))
    return Evaded(torch.cat(lowest).double().numpy(), torch.cat(best))


def _run(
    classifier: Classifier,
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
            logits = classifier.logits(leaf)
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
