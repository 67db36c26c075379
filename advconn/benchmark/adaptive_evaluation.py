"""The attack that knows the detector, run on every candidate that can be followed, and what its success claims."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.adaptive import WAYS, Score, evade
from advconn.attacks.attack import SuccessfulAttacks
from advconn.benchmark.feature_tables import FeatureTable
from advconn.benchmark.fitted_detector import FittedDetector
from advconn.benchmark.planted_examples import ENOUGH, plant
from advconn.benchmark.result_types import AdaptiveRow
from advconn.benchmark.splits import BenchmarkData
from advconn.detector.calibration import Calibration
from advconn.metrics import clopper_pearson

CHUNK = 16
STRICT, LOOSE = 0.05, 0.5  # false-alarm rates of SR@5 and SR@50
BEST = "best of all"
PLANTED_NEAR = 16  # images near which others are planted, to see whether the attack finds those
IMITATED = 500  # images on which a head without a gradient is imitated
# Best robust accuracy published for CIFAR-10, Linf 8/255 (RobustBench, 2024), and about the best clean accuracy of such
# networks; between the two radii a straight line is drawn.
ROBUST, CLEAN, RADIUS = 0.737, 0.95, 8.0
KNOWN = (3, 32, 32)  # images that this is told of, of ten classes


@dataclass(frozen=True)
class AdaptiveBudget:
    """How hard the attack tries: images, largest changes (in [0, 1]), steps, restarts of each way."""

    limit: int = 32
    eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    steps: int = 50
    restarts: int = 2


def evade_images(
    images: np.ndarray, labels: np.ndarray, eps: float, way: str, steps: int, restarts: int, seed: int,
    aimed: tuple[FittedDetector, Score, float],
) -> np.ndarray:  # fmt: skip
    """By how much images that an attacker made of these exceed their threshold at STRICT and at LOOSE, (n, 2).

    inf where they keep their class.

    Args:
        images: clean ones (n, c, h, w), uint8 or in [0, 1].
        labels: true classes (n,).
        eps: largest change of every value (Linf), in [0, 1].
        way: one of attacks.adaptive.WAYS.
        steps: from one start, at most.
        restarts: random starts.
        seed: of the starts.
        aimed: the detector, the differentiable score that the attack follows, and the score that it aims under.
    """
    detector, score, aim = aimed
    model = detector.candidate.classifier
    checked = model.check(torch.from_numpy(images))
    truth = torch.from_numpy(labels)
    evaded = evade(
        model, score, checked, truth, aim, eps=eps, way=way, steps=steps, restarts=restarts, seed=seed,
        batch_size=CHUNK,
    )  # fmt: skip
    made = model.check(evaded.images)
    fooled = (model.logits(made).argmax(1).cpu() != truth).numpy()
    return np.where(fooled[:, None], _margins(detector, made), np.inf)


def _calibrations(detector: FittedDetector) -> list[Calibration]:
    """A detector's at STRICT and at LOOSE."""
    return [detector.calibration.at(fpr=rate, confidence=None) for rate in (STRICT, LOOSE)]


def _margins(detector: FittedDetector, images: Tensor) -> np.ndarray:
    """By how much checked images exceed their threshold at STRICT and at LOOSE, (n, 2)."""
    columns = FeatureTable(detector.candidate.measure(images))
    return np.stack([detector.margins(columns, calibration) for calibration in _calibrations(detector)], 1)


def evasion_rows(
    bench: BenchmarkData,
    frozen: Sequence[FittedDetector],
    taught: Mapping[str, SuccessfulAttacks],
    effort: AdaptiveBudget,
) -> list[AdaptiveRow]:
    """Every candidate that can be followed, at every largest change, in every way.

    Args:
        bench: whose test images are attacked, those that are classified right.
        frozen: fitted candidates; one that is not differentiable is passed over.
        taught: the training images that the mixture attacked, by attack; a head that has no gradient is imitated on
            these and on clean ones.
        effort: how many images are attacked, and how hard.
    """
    rows = bench.parts.test[torch.from_numpy(bench.right("test"))][: effort.limit]
    sample = _sample(bench.part("train"), *(hits.images for hits in taught.values()))
    out: list[AdaptiveRow] = []
    for detector in frozen:
        if detector.candidate.differentiable:
            out += _of(bench, detector, rows, sample, effort)
    return out


def planted_found(
    images: np.ndarray, eps: float, ways: tuple[str, ...], steps: int, restarts: int, seed: int,
    aimed: tuple[FittedDetector, Score, float],
) -> tuple[int, dict[str, np.ndarray]]:  # fmt: skip
    """Near how many of checked images (n, c, h, w) others were planted, m, and which (m,) each way finds.

    Args:
        images: clean ones (n, c, h, w), uint8 or in [0, 1].
        eps: largest change of every value (Linf), in [0, 1].
        ways: some of attacks.adaptive.WAYS.
        steps: from one start, at most.
        restarts: random starts.
        seed: of the planted images and of the starts.
        aimed: the detector, the differentiable score that the attack follows, and the score that it aims under.
    """
    detector, score, aim = aimed
    model = detector.candidate.classifier

    def accepts(points: Tensor) -> np.ndarray:
        return np.asarray((_margins(detector, points) <= 0).all(1))

    planted = plant(model, accepts, model.check(torch.from_numpy(images)), eps, seed=seed)
    if planted is None:
        return 0, {way: np.zeros(0, bool) for way in ways}
    reached = {}
    for way in ways:
        made = evade(
            model, score, planted.images, planted.labels, aim, eps=eps, way=way, steps=steps, restarts=restarts,
            seed=seed, batch_size=CHUNK, logits=planted.logits,
        )  # fmt: skip
        points = made.images.to(planted.images)
        reached[way] = planted.reached(points) & accepts(points)
    return len(planted.images), reached


def _of(
    bench: BenchmarkData, detector: FittedDetector, rows: Tensor, sample: Tensor, effort: AdaptiveBudget
) -> list[AdaptiveRow]:
    thresholds = [c.every_threshold for c in _calibrations(detector)]
    aim = min(min(some) for some in thresholds)
    score = detector.candidate.follow(aim, sample)
    key = f"{detector.candidate.key()} {thresholds!r} {hashlib.sha256(sample.numpy().tobytes()).hexdigest()}"
    tries = [(size, way, chunk) for size in effort.eps for way in WAYS for chunk in rows.split(CHUNK)]
    calls = [
        (bench.images[c].numpy(), bench.labels[c].numpy(), size, way, effort.steps, effort.restarts, bench.seed,
         (detector, score, aim))
        for size, way, c in tries
    ]  # fmt: skip
    made = bench.runner.map(f"evade {detector.name}", evade_images, calls, [(*call[:-1], key) for call in calls])
    by_way: dict[tuple[float, str], list[np.ndarray]] = {}
    for (size, way, _), scores in zip(tries, made, strict=True):
        by_way.setdefault((size, way), []).append(scores)
    some = bench.images[rows[:PLANTED_NEAR]].numpy()
    checks = [
        (some, size, WAYS, effort.steps, effort.restarts, bench.seed, (detector, score, aim)) for size in effort.eps
    ]
    keys = [(*check[:-1], key) for check in checks]
    planted = dict(
        zip(effort.eps, bench.runner.map(f"plant {detector.name}", planted_found, checks, keys), strict=True)
    )
    out = []
    for size in effort.eps:
        count, hit = planted[size]
        hit = hit | {BEST: np.logical_or.reduce(list(hit.values()))}
        done = {way: np.concatenate(by_way[size, way]) for way in WAYS}
        done[BEST] = np.min(list(done.values()), axis=0)
        out += [
            _evasion(detector.name, size, way, lowest, (count, int(hit[way].sum())), bench)
            for way, lowest in done.items()
        ]
    return out


def _evasion(
    name: str, eps: float, way: str, lowest: np.ndarray, planted: tuple[int, int], bench: BenchmarkData
) -> AdaptiveRow:
    """From the lowest margins (n, 2) of images that are misclassified (inf: of none), at STRICT and LOOSE.

    planted: how many were planted, and how many of these the way finds.
    """
    evaded, loosely = (lowest <= 0).T
    low, high = clopper_pearson(evaded)
    strict = float(evaded.mean())
    claim = claimed_robustness(strict, bench.accuracy)
    published = tuple(bench.images.shape[1:]) == KNOWN and bench.classifier.num_classes == 10
    return AdaptiveRow(
        detector=name,
        way=way,
        eps=255 * eps,
        success=float(np.isfinite(lowest[:, 0]).mean()),
        n_attacked=len(lowest),
        sr5=strict,
        sr5_low=low,
        sr5_high=high,
        sr50=float(loosely.mean()),
        claimed=claim,
        credible=is_credible(claim, 255 * eps / 2) if published else None,
        planted=planted[0],
        planted_found=planted[1],
        too_weak=planted[1] < ENOUGH * planted[0] if planted[0] else None,
    )


def claimed_robustness(evaded: float, accuracy: float) -> float:
    """Robust accuracy at half the largest change that a detector claims of its classifier.

    A detector and classifier that let a share `evaded` of attacked images by, at the false-alarm rate STRICT, make a
    robust classifier (Tramèr, ICML 2022, theorem 4). evaded: of images that are classified right.
    """
    clean = accuracy if math.isfinite(accuracy) else 1.0
    return max(0.0, clean * (1 - STRICT - evaded))


def is_credible(robust: float, radius: float) -> bool:
    """Whether a claimed robust accuracy at a radius, in steps of 1/255, is no more than the best that is published."""
    return robust <= max(ROBUST, CLEAN - (CLEAN - ROBUST) * radius / RADIUS)


def _sample(*parts: Tensor) -> Tensor:
    """At most IMITATED of several sets of images (n, c, h, w) as one, floats in [0, 1], taken evenly."""
    whole = torch.cat([part.float() / 255 if part.dtype == torch.uint8 else part for part in parts])
    return whole[:: max(1, len(whole) // IMITATED)]
