"""From frozen candidates to the rows of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from advconn.attacks.attack import SuccessfulAttacks
from advconn.benchmark.attack_sources import NamedAttack, SavedAttack
from advconn.benchmark.feature_tables import FeatureTable
from advconn.benchmark.fitted_detector import FittedDetector
from advconn.benchmark.result_types import FalsePositiveRow, LeaveOneOutRow, Row
from advconn.benchmark.splits import BenchmarkData
from advconn.detector.calibration import min_calibration_size
from advconn.metrics import auroc, auroc_bootstrap_interval, clopper_pearson, mcnemar_p_value, mean_share

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
    caught = detector.flags(attacked)
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
        tpr_at_1=_share_above(detector, attacked, 0.01),
        tpr_at_01=_share_above(detector, attacked, 0.001),
        mcnemar_p=math.nan if ours is None or not len(after) else mcnemar_p_value(ours, caught),
        fpr=mean_share(detector.flags(clean)),
        success=len(hits.rows) / hits.tried if hits.tried else math.nan,
        n_clean=n,
        n_attacked=len(after),
        restored=mean_share(restored),
        forwards=clean.forwards / n,
        gradients=clean.gradients / n,
        milliseconds=1000 * clean.seconds / n,
    )


def _share_above(detector: FittedDetector, columns: FeatureTable, fpr: float) -> float:
    """The share of images flagged at another rate; nan where too few images were calibrated on for it."""
    calibration = detector.calibration
    if len(calibration.scores) < min_calibration_size(fpr, calibration.confidence):
        return math.nan
    return mean_share(detector.margins(columns, calibration.at(fpr=fpr)) > 0)


def leave_one_out_rows(detector: FittedDetector, family: str, attack: NamedAttack) -> LeaveOneOutRow:
    """A detector that was fitted without a family, against an attack of it.

    Args:
        detector: fitted without the family.
        family: the one left out.
        attack: one of that family.
    """
    attacked = detector.measured.attacked("test", attack.name)
    before, after = detector.score(detector.measured.clean("test")), detector.score(attacked)
    caught = mean_share(detector.flags(attacked))
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


def scores(detector: FittedDetector, attacks: Sequence[NamedAttack]) -> Mapping[str, np.ndarray]:
    """Scores less the threshold of clean test images and of every attack's."""
    tables = {"clean": detector.measured.clean("test")}
    tables |= {attack.name: detector.measured.attacked("test", attack.name) for attack in attacks}
    return {name: detector.margins(columns) for name, columns in tables.items()}
