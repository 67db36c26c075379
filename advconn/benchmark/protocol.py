"""The honest comparison: one split by image, one frozen threshold a detector, only successful attacks, cost beside it.

Everything dear is two functions, `attack_images` and `measure_images`, each a pure function of its inputs: what they
give is kept by joblib.Memory under the images' bytes, the weights' fingerprint and the settings.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks import Attack, round_to_bytes
from advconn.benchmark.baselines import Baseline
from advconn.benchmark.ours import Advconn, Shipped
from advconn.benchmark.runner import Runner
from advconn.calibration import Calibration, enough
from advconn.classifier import Classifier, counting
from advconn.errors import FitError
from advconn.metrics import auroc, interval, share, share_interval

CHUNK = 64
SHARES = {"train": 0.4, "calibrate": 0.3}  # of the images; the rest tests


@dataclass(frozen=True)
class Parts:
    """Rows of the images in each use; no row is in two."""

    train: Tensor
    calibrate: Tensor
    test: Tensor


def split(count: int, limit: int | None, fpr: float, seed: int) -> Parts:
    """Parts of `count` images; with a limit, at most a quarter more of each, and enough for the rate.

    Raises:
        FitError: too few images.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    first, second = round(SHARES["train"] * count), round((SHARES["train"] + SHARES["calibrate"]) * count)
    parts = order[:first], order[first:second], order[second:]
    enough(len(parts[1]), fpr)
    if limit is not None:
        most = max(5 * limit // 4, math.ceil(1 / fpr))
        parts = tuple(part[:most] for part in parts)  # type: ignore[assignment]
    if len(parts[2]) < 10:
        raise FitError(f"{count} images leave {len(parts[2])} to test on: give 100 or more")
    return Parts(*parts)


@dataclass(frozen=True)
class Hits:
    """Copies (n, c, h, w) by an attack that succeeded, their rows (n,), how many were tried; sizes of those changes."""

    images: Tensor
    rows: np.ndarray
    tried: int
    l2: float
    linf: float
    confidence: float

    @property
    def success(self) -> float:
        """Share of the images tried whose prediction changed."""
        return len(self.rows) / self.tried if self.tried else float("nan")


def attack_images(
    images: np.ndarray, labels: np.ndarray, spec: str, seed: int, fingerprint: str, classifier: Classifier
) -> np.ndarray:
    """Attacked copies in [0, 1] of uint8 images with labels, every second one on the grid of bytes."""
    clean = classifier.check(torch.from_numpy(images))
    out = Attack.parse(spec).run(classifier, clean, torch.from_numpy(labels).to(classifier.device), seed=seed)
    out[1::2] = round_to_bytes(out[1::2])
    return np.asarray(out.cpu().numpy())


@dataclass(frozen=True)
class Columns:
    """A detector's columns (n, d) of n images, and what they cost in all."""

    values: np.ndarray
    forwards: int = 0
    gradients: int = 0
    seconds: float = 0.0


def measure_images(images: np.ndarray, key: str, baseline: Baseline) -> Columns:
    """A detector's columns of images (uint8, or floats in [0, 1])."""
    checked = baseline.classifier.check(torch.from_numpy(images))
    started = time.perf_counter()
    with counting() as cost:
        values = baseline.measure(checked)
    return Columns(values, cost.forwards, cost.gradients, time.perf_counter() - started)


class Bench:
    """Images in their parts, attacks on them, and every detector measured on the same ones."""

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor | None,
        *,
        runner: Runner,
        limit: int | None = None,
        fpr: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.classifier, self.images, self.runner, self.fpr, self.seed = classifier, images, runner, fpr, seed
        self.parts = split(len(images), limit, fpr, seed)
        self.used = torch.cat([self.parts.train, self.parts.calibrate, self.parts.test])
        self.predicted = torch.full((len(images),), -1, dtype=torch.int64, device="cpu")
        for rows in self.used.split(256):
            self.predicted[rows] = classifier.logits(classifier.check(images[rows])).argmax(1).cpu()
        self.labelled = labels is not None
        self.labels = self.predicted if labels is None else labels

    @property
    def accuracy(self) -> float:
        """Of the classifier, on the images in use; nan where no labels are known."""
        if not self.labelled:
            return float("nan")
        return float((self.predicted[self.used] == self.labels[self.used]).float().mean())

    def part(self, name: str) -> Tensor:
        """Images of a part, uint8."""
        return self.images[getattr(self.parts, name)]

    def right(self, name: str) -> np.ndarray:
        """Which images of a part the classifier gets right."""
        rows = getattr(self.parts, name)
        return np.asarray((self.predicted[rows] == self.labels[rows]).numpy())

    def attack(self, name: str, specs: Sequence[str], limit: int | None) -> dict[str, Hits]:
        """Successful copies of at most `limit` images of a part that are classified right, by each attack."""
        rows = getattr(self.parts, name)
        rows = rows[torch.from_numpy(self.right(name))]
        if not len(rows):
            raise FitError(
                f"the classifier gives none of {len(self.right(name))} {name} images its label: there is nothing to "
                "attack; are the labels in the order of its classes?"
            )
        chosen: dict[str, Tensor] = {}
        calls: list[tuple[Any, ...]] = []
        for spec in specs:
            chosen[spec] = rows
            if limit is not None and limit < len(rows):
                turn = int(hashlib.sha256(spec.encode()).hexdigest()[:6], 16) if name == "train" else self.seed
                chosen[spec] = rows[torch.from_numpy(np.random.default_rng(turn).permutation(len(rows))[:limit])]
            for i, chunk in enumerate(chosen[spec].split(CHUNK)):
                images, labels = self.images[chunk].numpy(), self.labels[chunk].numpy()
                calls.append((images, labels, spec, self.seed + i, settled(self.classifier), self.classifier))
        made = self.runner.map(f"attack {name}", attack_images, calls, "classifier")
        out: dict[str, Hits] = {}
        for spec in specs:
            count = len(chosen[spec].split(CHUNK))
            out[spec] = self._hits(torch.from_numpy(np.concatenate(made[:count])), chosen[spec])
            made = made[count:]
        return out

    def _hits(self, made: Tensor, rows: Tensor) -> Hits:
        shares = torch.cat([self.classifier.logits(self.classifier.check(x)).softmax(1).cpu() for x in made.split(256)])
        hit = shares.argmax(1) != self.labels[rows]
        change = (made[hit] - self.images[rows[hit]].float() / 255).flatten(1)
        sizes = (
            change.norm(dim=1).mean(),
            change.abs().amax(1).mean() if len(change) else torch.tensor(torch.nan, dtype=torch.float32, device="cpu"),
        )
        l2, linf, sure = (float(v) for v in (*sizes, shares[hit].amax(1).mean()))
        return Hits(made[hit], rows[hit].numpy(), len(rows), l2, linf, sure)

    def measured(self, baseline: Baseline, sets: Mapping[str, Tensor]) -> bool:
        """Whether everything that `measure` asks of a detector is kept from an earlier run."""
        calls = _calls(baseline, key_of(baseline), sets)
        return all(self.runner.kept(measure_images, call, "baseline") for _, call in calls)

    def measure(self, baselines: Sequence[Baseline], sets: Mapping[str, Tensor]) -> dict[tuple[str, str], Columns]:
        """Columns of every detector on every set of images; those that measure the same are asked once."""
        keys = {baseline.name: key_of(baseline) for baseline in baselines}
        calls, where = [], []
        for key, baseline in {keys[b.name]: b for b in baselines}.items():
            for name, call in _calls(baseline, key, sets):
                calls.append(call)
                where.append((key, name))
        found: dict[tuple[str, str], list[Columns]] = {}
        for place, columns in zip(where, self.runner.map("measure", measure_images, calls, "baseline"), strict=True):
            found.setdefault(place, []).append(columns)
        whole = {place: _joined(parts) for place, parts in found.items()}
        return {(b, name): columns for b, key in keys.items() for (k, name), columns in whole.items() if k == key}


def _calls(baseline: Baseline, key: str, sets: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What `measure_images` is called with, and the set of images that each call belongs to."""
    for name, images in sets.items():
        for chunk in images.split(CHUNK):
            if len(chunk):
                yield name, (chunk.numpy(), key, baseline)


def _joined(parts: Sequence[Columns]) -> Columns:
    return Columns(
        np.concatenate([c.values for c in parts]),
        sum(c.forwards for c in parts),
        sum(c.gradients for c in parts),
        sum(c.seconds for c in parts),
    )


def settled(classifier: Classifier) -> str:
    """What every result depends on: weights, preprocessing, versions."""
    versions = [version(name) for name in ("advconn", "torch", "torchattacks")]
    return f"{classifier.fingerprint} {classifier.preprocessing} {versions}"


def key_of(baseline: Baseline) -> str:
    """What a detector's columns depend on besides the images."""
    name = baseline.name
    digest = hashlib.sha256(f"{name} {settled(baseline.classifier)}".encode())
    if isinstance(baseline, Advconn):
        walk = baseline.detector.connectivity
        settings = {
            k: v for k, v in walk.get_params(deep=False).items() if k not in {"classifier", "references", "batch_size"}
        }
        digest.update(str(sorted(settings.items())).encode())
        if walk.references is not None:
            digest.update(walk.references.images.cpu().numpy().tobytes())
        if isinstance(baseline, Shipped):
            cascade = baseline.detector.cascade_
            digest.update(f"{[(w.copies, w.halves, w.families) for w in cascade.walks]} {cascade.exits}".encode())
            for scores in baseline.detector.clean_.values():  # which say what the heads are
                digest.update(scores.tobytes())
    else:
        digest.update(baseline.clean.numpy().tobytes() + baseline.source.encode())
        digest.update((baseline.second.fingerprint if baseline.second is not None else "").encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Frozen:
    """A fitted detector with its threshold: it cannot change any more."""

    baseline: Baseline
    calibration: Calibration

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Scores (n,)."""
        return self.baseline.score(columns)

    def flags(self, columns: np.ndarray) -> np.ndarray:
        """Which are above the threshold."""
        return self.score(columns) > self.calibration.threshold


def freeze(
    baseline: Baseline, clean: np.ndarray, attacked: Sequence[np.ndarray], calibrate: np.ndarray, fpr: float
) -> Frozen:
    """Fit on the training part and set the threshold on the calibration part (a detector as given keeps its own)."""
    tables = [clean, *(a for a in attacked if len(a))]
    if len(tables) == 1:
        raise FitError("no attack of the mixture succeeded on the training part: there is nothing to learn from")
    kinds = np.repeat(np.arange(len(tables)), [len(t) for t in tables])
    baseline.fit(np.concatenate(tables), kinds)
    if isinstance(baseline, Shipped):
        return Frozen(baseline, baseline.detector.calibration_.at(fpr=fpr))
    return Frozen(baseline, Calibration(baseline.score(calibrate), fpr))


def row(frozen: Frozen, attack: str, hits: Hits, clean: Columns, attacked: Columns | None, seed: int) -> dict[str, Any]:
    """One line of the results: a detector against an attack."""
    before = frozen.score(clean.values)
    after = frozen.score(attacked.values) if attacked is not None else before[:0]
    low, high = interval(before, after, seed=seed)
    caught = after > frozen.calibration.threshold
    tpr_low, tpr_high = share_interval(caught)
    n = len(before)
    return {
        "detector": frozen.baseline.name,
        "attack": attack,
        "auroc": auroc(before, after),
        "auroc_low": low,
        "auroc_high": high,
        "tpr": share(caught),
        "tpr_low": tpr_low,
        "tpr_high": tpr_high,
        "fpr": share(before > frozen.calibration.threshold),
        "success": hits.success,
        "n_clean": n,
        "n_attacked": len(after),
        "forwards": clean.forwards / n,
        "gradients": clean.gradients / n,
        "milliseconds": 1000 * clean.seconds / n,
    }
