"""What a detector costs: passes and milliseconds an image, beside the classifier alone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from advconn.benchmark.attack_sources import NamedAttack
from advconn.benchmark.feature_tables import FeatureTable
from advconn.benchmark.fitted_detector import FittedDetector
from advconn.benchmark.result_types import CostRow
from advconn.benchmark.splits import BenchmarkData


def cost_rows(detector: FittedDetector, attacks: Sequence[NamedAttack], bare: float) -> list[CostRow]:
    """What clean images cost, and those of the attack that cost most; bare: milliseconds of one plain forward.

    Args:
        detector: with the cost of its columns.
        attacks: those tested.
        bare: milliseconds that the classifier alone takes for one image.
    """
    clean = _expense(detector, "clean", detector.measured.clean("test"), bare)
    attacked = [
        _expense(detector, attack.name, detector.measured.attacked("test", attack.name), bare)
        for attack in attacks
        if len(detector.measured.attacked("test", attack.name).values)
    ]
    return [clean, *sorted(attacked, key=lambda e: -(e.forwards + 3 * e.gradients))[:1]]


def _expense(detector: FittedDetector, images: str, columns: FeatureTable, bare: float) -> CostRow:
    n = len(columns.values)
    spent = detector.candidate.spent(columns.values)
    forwards, gradients, took = columns.forwards / n, columns.gradients / n, 1000 * columns.seconds / n
    largest = forwards + 3 * gradients if spent is None else float((spent[:, 0] + 3 * spent[:, 1]).max())
    return CostRow(detector.name, images, forwards, gradients, took, took / bare, largest)


def bare_milliseconds(bench: BenchmarkData) -> float:
    """Of one image in a batch that the classifier is given alone."""
    images = bench.classifier.check(bench.part("test")[:64])
    bench.classifier.logits(images)
    started = time.perf_counter()
    bench.classifier.logits(images)
    return 1000 * (time.perf_counter() - started) / len(images)
