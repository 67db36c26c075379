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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.attacks import Hits
from advconn.errors import AttackError
from advconn.exits import cut
from advconn.features.families import table
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from advconn.parallel import Progress, silent
from advconn.scaling import COARSE, FINE, BoundedScaler
from advconn.stages import Cascade

Score = Callable[[Tensor], Tensor]
QUICK, STEPS = 2, 20  # stages that are followed, and steps, where many evasive images are made to learn from
WAYS = ("lagrangian", "selective", "orthogonal", "rejection")


@dataclass(frozen=True)
class Evaded:
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
    progress: Progress = silent,
    logits: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Evaded:
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
    return Evaded(torch.cat(lowest).double().numpy(), torch.cat(best))


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


def of_stages(cascade: Cascade, threshold: float, most: int | None = None) -> Score:
    """How far the nearest of the stages is from letting an image go, plus the threshold.

    Args:
        cascade: fitted stages.
        threshold: score above which an image is flagged.
        most: only so many of the first stages are looked at; None for all.

    Raises:
        AttackError: none of them has a head whose gradient can be followed.
    """
    followed = []
    for k, (connectivity, head) in enumerate(zip(cascade.connectivities[:most], cascade.heads[:most], strict=True)):
        odds, limit = linear_odds(head, connectivity.classifier.device), cut(cascade.exits, threshold, k)
        if odds is not None and limit not in (None, -np.inf) and "complexity" not in connectivity.active_families:
            followed.append((connectivity, odds, limit))
    if not followed:
        raise AttackError("no stage of this detector has a head whose gradient can be followed")

    def score(images: Tensor) -> Tensor:
        trace, over = None, []
        for connectivity, odds, limit in followed:
            trace = connectivity.trace(images, trace)
            log_odds = odds(table(trace)[0])
            if cascade.gate is not None and trace.companion is not None:
                log_odds = torch.maximum(
                    log_odds, margin(trace.companion, trace.predicted[:, None]).mean(1) - cascade.gate
                )
            over.append(log_odds - limit)
        return threshold + torch.stack(over).amin(0)

    return score


def evasive(
    cascade: Cascade, images: Tensor, labels: Tensor, eps: float, *, seed: int = 0, progress: Progress = silent
) -> Hits:
    """Misclassified images within `eps` of clean ones that leave the first stages as clean, or nearly.

    Where no image leaves so early, what is aimed at is that the first stages' heads hold it for clean.

    Made by the Lagrangian through the first stages alone, which is enough to leave: a fifth of the work.

    Args:
        cascade: fitted stages.
        images: clean ones (n, c, h, w).
        labels: true classes (n,); only images that get theirs are tried.
        eps: largest change of every value, in [0, 1].
        seed: of the random starts.
        progress: told (stage, done, total).

    Raises:
        AttackError: no head whose gradient can be followed.
        ModelError: a classifier that gives none.
    """
    classifier = cascade.connectivities[0].classifier
    checked = classifier.check(images)
    right = classifier.predict(checked) == labels
    x, y = checked[right.to(checked.device)], labels[right]
    if np.isneginf(cascade.exits[:QUICK]).all():  # none leaves there: aim at even odds
        cascade = replace(cascade, exits=(0.0,) * len(cascade.exits))
    if not len(x):
        return Hits(x[:0], torch.zeros(0, dtype=torch.int64, device="cpu"), 0)
    threshold = float(len(cascade.exits))  # over every exit: nothing but the exits of the first stages matters
    score = of_stages(cascade, threshold, QUICK)
    made = evade(
        classifier, score, x, y, threshold, eps=eps, way="lagrangian", steps=STEPS, restarts=1, seed=seed,
        batch_size=16 if x.device.type == "cpu" else 256,
        progress=progress,
    ).images  # fmt: skip
    wrong = classifier.predict(made) != y
    rows = torch.arange(len(images), dtype=torch.int64, device="cpu")[right][wrong]
    return Hits(made[wrong], rows, int(right.sum()))


def linear_odds(head: Any, device: torch.device) -> Score | None:
    """The log-odds of any attack as a function of columns (n, d), of a pipeline of scalers and a LogisticRegression.

    The gradient goes straight through the bound of a BoundedScaler's coarse columns, so that it points back from beyond
    it (Athalye et al. 2018). None for any other head.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if not isinstance(head, Pipeline):
        return None
    *scalers, model = (step for _, step in head.steps)
    followed = all(isinstance(scaler, (BoundedScaler, StandardScaler)) for scaler in scalers)
    if not followed or not isinstance(model, LogisticRegression):
        return None

    def on_device(*values: Any) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(v)).float().to(device) for v in values]

    scales: list[tuple[Tensor, Tensor, bool]] = []
    for scaler in scalers:
        bounded = isinstance(scaler, BoundedScaler)
        middle, spread = on_device(scaler.center_ if bounded else scaler.mean_, scaler.scale_)
        scales.append((middle, spread, bounded))
    weight, bias = on_device(model.coef_, model.intercept_)

    def odds(columns: Tensor) -> Tensor:
        for middle, spread, bounded in scales:
            columns = (columns - middle) / spread
            if bounded:
                beyond = (columns.clamp(-COARSE, COARSE) - columns).detach()
                columns = torch.cat([torch.tanh(columns / FINE), columns + beyond], 1)
        logits = columns @ weight.T + bias
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1:].logsumexp(1) - logits[:, 0]

    return odds
