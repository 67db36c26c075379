"""From frozen candidates to the rows of a report."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks
from advconn.benchmark.attack_sources import NamedAttack, SavedAttack
from advconn.benchmark.feature_tables import FeatureTable
from advconn.benchmark.fitted_detector import FittedDetector
from advconn.benchmark.result_types import CostRow, ErrorExample, FalsePositiveRow, LeaveOneOutRow, Row
from advconn.benchmark.splits import BenchmarkData
from advconn.detector.calibration import Calibration, min_calibration_size
from advconn.metrics import auroc, auroc_bootstrap_interval, clopper_pearson, mcnemar_p_value, mean_share

COUNT = 4  # false alarms shown, and missed images of each attack


def missed_examples(
    bench: BenchmarkData,
    detector: FittedDetector,
    attacks: Sequence[NamedAttack],
    tested: Mapping[str, SuccessfulAttacks],
) -> list[ErrorExample]:
    """Attacked images under the threshold, the lowest scores first, at most twice COUNT of them.

    Args:
        bench: whose images were attacked.
        detector: whose scores are looked at.
        attacks: those tested.
        tested: what each made of the test part, by its name.
    """
    lowest: list[tuple[float, str, int]] = []
    for attack in attacks:
        scores = detector.score(detector.measured.attacked("test", attack.name)) - detector.calibration.threshold
        lowest += [(float(scores[i]), attack.name, int(i)) for i in np.argsort(scores)[:COUNT] if scores[i] <= 0]
    out = []
    for score, name, i in sorted(lowest)[: 2 * COUNT]:
        row = int(tested[name].rows[i])
        image = (tested[name].images[i] * 255).round().byte()
        out.append(_shown(bench, detector, name, score, image, bench.images[row], int(bench.labels[row])))
    return out


def false_alarm_examples(bench: BenchmarkData, detector: FittedDetector) -> list[ErrorExample]:
    """Clean images over the threshold, the highest scores first."""
    scores = detector.score(detector.measured.clean("test")) - detector.calibration.threshold
    out = []
    for i in np.argsort(-scores)[:COUNT]:
        if scores[i] > 0:
            row = int(bench.parts.test[int(i)])
            truth = int(bench.labels[row]) if bench.labelled else None
            out.append(_shown(bench, detector, "clean", float(scores[i]), bench.images[row], None, truth))
    return out


def _shown(
    bench: BenchmarkData,
    detector: FittedDetector,
    what: str,
    score: float,
    image: Tensor,
    original: Tensor | None,
    truth: int | None,
) -> ErrorExample:
    predicted = int(bench.classifier.predict(image[None])[0])
    classes = [predicted] if truth is None or truth == predicted else [predicted, truth]
    checked = bench.classifier.check(image[None])[0]
    paths = detector.candidate.profile(checked) if torch.isfinite(checked).all() else {}
    before = None if original is None else original.numpy()
    return ErrorExample(what, score, image.numpy(), before, tuple(bench.classifier.label_names(classes)), paths)


LEAST = 10  # clean images of a predicted class that a rate is told of


def row(
    detector: FittedDetector,
    attack: NamedAttack | SavedAttack,
    hits: SuccessfulAttacks,
    bench: BenchmarkData,
    in_training: bool,
    beside: FittedDetector | None = None,
) -> Row:
    """A detector against an attack on the test part.

    Args:
        detector: with its columns of clean and attacked test images.
        attack: what made the attacked ones.
        hits: what it made of the test part.
        bench: whose labels are the truth.
        in_training: whether attacks of its family were trained on.
        beside: the detector that it is compared with on the same attacked images.
    """
    clean, attacked = detector.measured.clean("test"), detector.measured.attacked("test", attack.name)
    before, after = detector.score(clean), detector.score(attacked)
    low, high = auroc_bootstrap_interval(before, after, seed=bench.seed)
    caught = after > detector.calibration.threshold
    tpr_low, tpr_high = clopper_pearson(caught)
    consensus = detector.candidate.consensus(attacked.values)
    restored = consensus == bench.labels[hits.rows].numpy() if consensus is not None else np.zeros(0)
    n = len(before)
    ours = None if beside is None else beside.flags(beside.measured.attacked("test", attack.name))
    return Row(
        detector=detector.name,
        attack=attack.attack if isinstance(attack, SavedAttack) else attack.name,
        saved_as=attack.saved_as if isinstance(attack, SavedAttack) else "",
        family=attack.family,
        in_training=in_training,
        auroc=auroc(before, after),
        auroc_low=low,
        auroc_high=high,
        tpr=mean_share(caught),
        tpr_low=tpr_low,
        tpr_high=tpr_high,
        tpr_at_1=_share_above(after, detector.calibration, 0.01),
        tpr_at_01=_share_above(after, detector.calibration, 0.001),
        mcnemar_p=math.nan if ours is None or not len(after) else mcnemar_p_value(ours, caught),
        fpr=mean_share(before > detector.calibration.threshold),
        success=len(hits.rows) / hits.tried if hits.tried else math.nan,
        n_clean=n,
        n_attacked=len(after),
        restored=mean_share(restored),
        forwards=clean.forwards / n,
        gradients=clean.gradients / n,
        milliseconds=1000 * clean.seconds / n,
    )


def _share_above(scores: np.ndarray, calibration: Calibration, fpr: float) -> float:
    """The share of scores above a calibration's threshold at another rate; nan where it has too few images."""
    if len(calibration.scores) < min_calibration_size(fpr, calibration.confidence):
        return math.nan
    return mean_share(scores > calibration.at(fpr=fpr).threshold)


def leave_one_out_rows(detector: FittedDetector, family: str, attack: NamedAttack) -> LeaveOneOutRow:
    """A detector that was fitted without a family, against an attack of it.

    Args:
        detector: fitted without the family.
        family: the one left out.
        attack: one of that family.
    """
    before, after = (
        detector.score(detector.measured.clean("test")),
        detector.score(detector.measured.attacked("test", attack.name)),
    )
    caught = mean_share(after > detector.calibration.threshold)
    return LeaveOneOutRow(family, detector.name, attack.name, auroc(before, after), caught, len(after))


def false_positive_rows(detector: FittedDetector, bench: BenchmarkData) -> list[FalsePositiveRow]:
    """Clean test images flagged: as they are and under each condition, right and wrong, and by predicted class."""
    right = bench.right("test")
    flags = detector.flags(detector.measured.clean("test"))
    predicted = bench.predicted[bench.parts.test].numpy()
    out = _halves(detector.name, "clean", flags, right)
    for k in np.unique(predicted):
        mine = flags[predicted == k]
        if len(mine) >= LEAST:
            out.append(_alarm(detector.name, "clean", f"predicted {bench.classifier.label_names([int(k)])[0]}", mine))
    for name in detector.measured.conditions:
        flagged = detector.flags(detector.measured.condition(name))
        out += _halves(detector.name, name, flagged, right[: len(flagged)])
    return out


def _halves(detector: str, condition: str, flags: np.ndarray, right: np.ndarray) -> list[FalsePositiveRow]:
    """All of them, and where some of them were classified wrong as they are, both halves."""
    out = [_alarm(detector, condition, "all", flags)]
    if not right.all():
        out += [_alarm(detector, condition, "right", flags[right]), _alarm(detector, condition, "wrong", flags[~right])]
    return out


def _alarm(detector: str, condition: str, images: str, flags: np.ndarray) -> FalsePositiveRow:
    low, high = clopper_pearson(flags)
    return FalsePositiveRow(detector, condition, images, len(flags), mean_share(flags), low, high)


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


def scores(detector: FittedDetector, attacks: Sequence[NamedAttack]) -> Mapping[str, np.ndarray]:
    """Scores less the threshold of clean test images and of every attack's."""
    threshold = detector.calibration.threshold
    out = {"clean": detector.score(detector.measured.clean("test")) - threshold}
    for attack in attacks:
        out[attack.name] = detector.score(detector.measured.attacked("test", attack.name)) - threshold
    return out
