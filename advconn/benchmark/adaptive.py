"""Attacks that know the detector: they look for images that are misclassified and not flagged (Bryniarski et al. 2021).

Linf, through the real features: every copy and path is differentiated (rounding to fewer bits straight through), and
the head too where it is linear. Three ways to follow two aims at once:

lagrangian   the sum of both losses, with a weight that moves to where the aim that is not reached gets more
selective    the classifier's gradient while the prediction holds, else the detector's
orthogonal   the same, each without its part along the other, so that a step for one aim does not undo the other
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.benchmark.baselines import Baseline, Energy, LogitsOnly, MaxSoftmax, Squeezing, logits_columns
from advconn.benchmark.ours import Shipped
from advconn.benchmark.protocol import Bench, Frozen, key_of
from advconn.classifier import Classifier, margin
from advconn.detector import Detector, default_head
from advconn.errors import AttackError
from advconn.features import table
from advconn.metrics import share_interval
from advconn.progress import Progress, silent
from advconn.stages import Cascade, cut, scored

WAYS = ("lagrangian", "selective", "orthogonal")
FOLLOWED = ("energy", "logits-only", "feature-squeezing", "flip-shift", "max-softmax")  # baselines it is run on too
CHUNK = 16
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evasion:
    """For n images: the lowest score (n,) met while misclassified (inf if never), at which image (n, c, h, w)."""

    score: np.ndarray
    images: Tensor


def differentiable(detector: Detector, columns: np.ndarray | None = None, threshold: float | None = None) -> Score:
    """The detector's score as a differentiable function of images (n, c, h, w) in [0, 1].

    Of several stages it is under `threshold` (the detector's own unless told) exactly where a stage of copies clears
    the image, and nothing else of it is the detector's score: the attacker goes for the stage that is nearest to
    letting the image go. The last stage, whose bypass has no gradient, is not followed, but judges in the end.

    A pipeline of StandardScaler and LogisticRegression is followed exactly. For any other head a logistic regression is
    fitted to its verdicts on `columns` (n, d), of clean and attacked images, and followed instead: its even odds stand
    where the detector's threshold does, and nothing else of it is the detector's score.

    Raises:
        AttackError: another head, and no columns to imitate it on, or none of them flagged, or all.
    """
    if len(detector.cascade_.walks) > 1:
        return _of_stages(detector.cascade_, detector.calibration_.threshold if threshold is None else threshold)
    walk = detector.connectivity
    odds = linear_odds(detector.head_, walk.classifier.device)
    if odds is None:
        if columns is None:
            raise AttackError("this head has no gradient: give columns on which a linear one can imitate it")
        at = detector.calibration_.threshold
        flagged = scored(detector.head_, columns) > at
        if flagged.all() or not flagged.any():
            raise AttackError("this head has no gradient, and its verdicts on the columns are all alike")
        imitated = linear_odds(default_head().fit(columns, flagged.astype(int)), walk.classifier.device)
        if imitated is None:
            raise AttackError("the default head is not linear")
        return lambda images: imitated(table(walk.trace(images))[0]) + at
    follow = odds
    return lambda images: follow(table(walk.trace(images))[0])


def _of_stages(cascade: Cascade, threshold: float) -> Score:
    """How far the nearest stage is from letting an image go, plus the threshold."""
    followed = []
    for k, (walk, head) in enumerate(zip(cascade.walks, cascade.heads, strict=True)):
        odds, at = linear_odds(head, walk.classifier.device), cut(cascade.exits, threshold, k)
        if odds is not None and at is not None and "complexity" not in walk.walked:
            followed.append((walk, odds, at))
    if not followed:
        raise AttackError("no stage of this detector has a head whose gradient can be followed")

    def score(images: Tensor) -> Tensor:
        trace, over = None, []
        for walk, odds, at in followed:
            trace = walk.trace(images, trace)
            over.append(odds(table(trace)[0]) - at)
        return threshold + torch.stack(over).amin(0)

    return score


def smooth_score(baseline: Baseline) -> Callable[[Tensor], Tensor]:
    """A baseline's score as a differentiable function of images: of those that read the logits or squeezed copies.

    Raises:
        AttackError: it has no gradient.
    """
    classifier = baseline.classifier
    if isinstance(baseline, MaxSoftmax):
        return lambda images: _own_margin(classifier.logits(images))
    if isinstance(baseline, Energy):
        return lambda images: (classifier.logits(images).logsumexp(1) - baseline.middle).abs()
    if isinstance(baseline, LogitsOnly):
        odds = linear_odds(baseline.head, classifier.device)
        if odds is not None:
            return lambda images: odds(logits_columns(classifier.logits(images)))
    if isinstance(baseline, Squeezing):
        return lambda images: baseline.distances(images)[:, 0]
    raise AttackError(f"{baseline.name} has no gradient to follow")


def _own_margin(logits: Tensor) -> Tensor:
    return margin(logits, logits.argmax(1))


def linear_odds(head: Any, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """The log-odds of any attack as a function of columns (n, d), of a StandardScaler and a LogisticRegression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if not isinstance(head, Pipeline) or len(head) != 2:
        return None
    scaler, model = head[0], head[1]
    if not isinstance(scaler, StandardScaler) or not isinstance(model, LogisticRegression):
        return None
    values = (scaler.mean_, scaler.scale_, model.coef_, model.intercept_)
    middle, spread, weight, bias = (torch.from_numpy(v).float().to(device) for v in values)

    def odds(columns: Tensor) -> Tensor:
        found = (columns - middle) / spread @ weight.T + bias
        return found[:, 0] if found.shape[1] == 1 else found[:, 1:].logsumexp(1) - found[:, 0]

    return odds


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
) -> Evasion:
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
    return Evasion(torch.cat(lowest).double().numpy(), torch.cat(best))


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
            (against,) = torch.autograd.grad(loss.sum(), leaf)
            (towards,) = torch.autograd.grad(-odds.sum(), leaf)
        odds, fooled = odds.detach(), logits.detach().argmax(1) != labels[live]
        better = fooled & (odds < lowest[live])
        lowest[live[better]] = odds[better]
        best[live[better]] = leaf.detach()[better]
        stale[live] = torch.where(better, 0, stale[live] + 1)
        going = (lowest[live] > threshold) & (stale[live] < patience + steps * lowest[live].isinf())
        if step == steps or not bool(going.any()):
            break
        size = eps * (0.25 - 0.225 * step / steps)
        heading, weight[live] = _heading(way, against, towards, fooled, odds > threshold, weight[live])
        moved = leaf.detach() + size * heading.sign()
        centre = origin[live]
        point[live] = moved.clamp(centre - eps, centre + eps).clamp(0, 1)
        live = live[going]
    return lowest, best


def _heading(
    way: str, against: Tensor, towards: Tensor, fooled: Tensor, flagged: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Direction (n, c, h, w) to go in, and the weight (n,) of the detector in the Lagrangian after this step."""
    a, b = _unit(against), _unit(towards)
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


def evade_images(
    images: np.ndarray, labels: np.ndarray, eps: float, way: str, steps: int, restarts: int, seed: int, key: str,
    known: tuple[Frozen, Score, float],
) -> np.ndarray:  # fmt: skip
    """Real scores (n,) of images (n, c, h, w) that an attacker made of these, inf where they keep their class.

    Args:
        key: what the detector depends on, for a cache. known: the detector, what is followed, the score aimed under.
    """
    one, score, aim = known
    model = one.baseline.classifier
    checked = model.check(torch.from_numpy(images))
    truth = torch.from_numpy(labels)
    found = evade(
        model, score, checked, truth, aim, eps=eps, way=way, steps=steps, restarts=restarts, seed=seed,
        batch_size=CHUNK,
    )  # fmt: skip
    fooled = (model.logits(model.check(found.images)).argmax(1).cpu() != truth).numpy()
    return np.where(fooled, one.score(one.baseline.measure(model.check(found.images))), np.inf)


def evasions(
    bench: Bench,
    fixed: dict[str, Frozen],
    detector: Detector,
    columns: np.ndarray,
    *,
    limit: int,
    eps: Sequence[float],
    steps: int,
    restarts: int,
) -> list[dict[str, Any]]:
    """The attack that knows the detector, on advconn and on the baselines that can be differentiated.

    columns: of clean and attacked training images, on which a head without a gradient is imitated.
    """
    rows = bench.parts.test[torch.from_numpy(bench.right("test"))][:limit]
    out: list[dict[str, Any]] = []
    for name in [Shipped.name, *(n for n in fixed if n in FOLLOWED)]:
        one = fixed[name]
        at, loose = (one.calibration.at(fpr=rate, confidence=None).threshold for rate in (0.05, 0.5))
        score: Score = (
            differentiable(detector, columns, min(at, loose)) if name == Shipped.name else smooth_score(one.baseline)
        )
        key = f"{key_of(one.baseline)} {at!r} {loose!r}"
        tries = [(size, way, chunk) for size in eps for way in WAYS for chunk in rows.split(CHUNK)]
        calls = [
            (bench.images[c].numpy(), bench.labels[c].numpy(), size, way, steps, restarts, bench.seed, key,
             (one, score, min(at, loose)))
            for size, way, c in tries
        ]  # fmt: skip
        made = bench.runner.map(f"evade {name}", evade_images, calls, "known")
        found: dict[tuple[float, str], list[np.ndarray]] = {}
        for (size, way, _), scores in zip(tries, made, strict=True):
            found.setdefault((size, way), []).append(scores)
        for size in eps:
            done = {way: np.concatenate(found[size, way]) for way in WAYS}
            done["best of all"] = np.min(list(done.values()), axis=0)
            out += [_evaded(name, size, way, lowest, at, loose) for way, lowest in done.items()]
    return out


def _evaded(name: str, eps: float, way: str, lowest: np.ndarray, at: float, loose: float) -> dict[str, Any]:
    """A row from the lowest scores (n,) of images that are misclassified (inf: of none)."""
    low, high = share_interval(lowest <= at)
    return {
        "detector": name,
        "attack": f"adaptive {way}, eps {eps * 255:g}/255",
        "way": way,
        "eps": f"{eps * 255:g}/255",
        "success": float(np.isfinite(lowest).mean()),
        "n_attacked": len(lowest),
        "sr5": float((lowest <= at).mean()),
        "sr5_low": low,
        "sr5_high": high,
        "sr50": float((lowest <= loose).mean()),
    }
