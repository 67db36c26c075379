"""What a benchmark finds: frozen values, each of one kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

USED, PUBLISHED = "used", "published"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A detector against an attack.

    family: of the attack; in_training: whether attacks of it were. auroc, tpr, fpr: with 95 % intervals (low, high);
    tpr and fpr at the frozen threshold. tpr_at_1, tpr_at_01: at thresholds of 1 and .1 % of the clean calibration
    images, nan where these are too few. mcnemar_p: of the hypothesis that advconn as given catches as many of these
    images. success: share of the attacked images whose prediction changed; only
    these, n_attacked, count. saved_as: how they were saved before they were judged (data.laundering), or nothing;
    success is then the share of the successful copies that still fool the classifier. setting: USED, trained on the
    mixture; or PUBLISHED, trained on this attack alone, as papers do. restored: share of them whose
    consensus is the true class, nan where there is none. forwards, gradients, milliseconds: of a clean image, on
    average.
    """

    detector: str
    attack: str
    saved_as: str = ""
    setting: str = USED
    family: str
    in_training: bool
    auroc: float
    auroc_low: float
    auroc_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    tpr_at_1: float = math.nan
    tpr_at_01: float = math.nan
    mcnemar_p: float = math.nan
    fpr: float
    success: float
    n_clean: int
    n_attacked: int
    restored: float
    forwards: float
    gradients: float
    milliseconds: float


@dataclass(frozen=True)
class LeaveOneOutRow:
    """A detector that was fitted without a family of attacks, against one of that family."""

    without: str
    detector: str
    attack: str
    auroc: float
    tpr: float
    n_attacked: int


@dataclass(frozen=True)
class FalsePositiveRow:
    """Clean images of a detector that are flagged, with a 95 % interval.

    condition: what was done to them. images: all, those classified right or wrong, or those of a predicted class.
    """

    detector: str
    condition: str
    images: str
    n: int
    fpr: float
    low: float
    high: float


@dataclass(frozen=True)
class CostRow:
    """What a detector costs an image: forwards, gradients, milliseconds, and that as times the bare network's.

    images: clean ones, or the attack whose images cost most. largest: forwards and three times the gradients of the
    dearest image.
    """

    detector: str
    images: str
    forwards: float
    gradients: float
    milliseconds: float
    times: float
    largest: float


@dataclass(frozen=True, kw_only=True)
class AdaptiveRow:
    """The attack that knows a detector, in one way or the best of all: who is misclassified and under the threshold.

    eps: largest change, in steps of 1/255. success: misclassified at all. sr5, sr50: and not flagged at thresholds of
    5 and 50 % false alarms. claimed: robust accuracy at eps / 2 that sr5 claims of the classifier (Tramèr 2022);
    credible: whether it is under the best that is published for CIFAR-10, None for other images. planted: near how many
    images others were planted that are accepted and of another class, and planted_found: by how many of them the
    attack comes upon one; too_weak: whether that is too few to believe what it fails at (Zimmermann et al. 2022), None
    where nothing could be planted.
    """

    detector: str
    way: str
    eps: float
    success: float
    n_attacked: int
    sr5: float
    sr5_low: float
    sr5_high: float
    sr50: float
    claimed: float
    credible: bool | None
    planted: int
    planted_found: int
    too_weak: bool | None


@dataclass(frozen=True, kw_only=True)
class AttackSize:
    """An attack: how many were tried and succeeded, mean L2 and mean largest change, and the classifier's confidence.

    l2: of pixels in [0, 1]. linf: in steps of 1/255. atlas: MITRE ATLAS's technique; empty of an attack that is not
    advconn's.
    """

    attack: str
    family: str
    atlas: str = ""
    in_mixture: bool
    tried: int
    succeeded: int
    success: float
    l2: float
    linf: float
    confidence: float


@dataclass(frozen=True)
class Control:
    """Barriers on straight paths by kind of pair, of the network as it is or untrained."""

    network: str
    pairs: str
    n: int
    median_barrier: float
    auroc: float
    auroc_low: float
    auroc_high: float


@dataclass(frozen=True)
class ErrorExample:
    """An image that the detector given gets wrong: what it is, by how much, both classes, its original, its paths."""

    what: str
    score: float
    image: np.ndarray
    original: np.ndarray | None
    classes: tuple[str, ...]
    paths: Mapping[str, list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was measured.

    settings: of the run, its data, machine and versions. saved, published: rows of attacked images that were
    saved, and of detectors trained on one attack alone, see Row.
    scores: each detector's, less its threshold, of clean test images and of every attack. split: rows of the images
    in each part. attacked: images of every attack that succeeded.
    """

    settings: Mapping[str, Any]
    rows: tuple[Row, ...]
    alarms: tuple[FalsePositiveRow, ...]
    attacks: tuple[AttackSize, ...]
    expenses: tuple[CostRow, ...]
    evasions: tuple[AdaptiveRow, ...]
    saved: tuple[Row, ...] = ()
    published: tuple[Row, ...] = ()
    left: tuple[LeaveOneOutRow, ...]
    controls: tuple[Control, ...]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    missed: tuple[ErrorExample, ...] = ()
    alarmed: tuple[ErrorExample, ...] = ()
    split: Mapping[str, np.ndarray] = field(default_factory=dict)
    attacked: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


OURS = "advconn"


def worst_auroc(rows: Iterable[Row]) -> Row | None:
    """The row with the smallest AUROC that is a number."""
    finite = [r for r in rows if math.isfinite(r.auroc)]
    return min(finite, key=lambda r: r.auroc, default=None)


def rank(rows: Sequence[Row]) -> list[str]:
    """Detectors, the one with the highest worst AUROC first."""
    low: dict[str, float] = {}
    for name in dict.fromkeys(r.detector for r in rows):
        row = worst_auroc(r for r in rows if r.detector == name)
        low[name] = 1.0 if row is None else row.auroc
    return sorted(low, key=lambda name: -low[name])


def best_baseline(rows: Sequence[Row], attack: str) -> str | None:
    """The detector that is not ours with the highest AUROC on an attack."""
    mine = [r for r in rows if r.attack == attack and not r.detector.startswith(OURS) and math.isfinite(r.auroc)]
    return max(mine, key=lambda r: r.auroc).detector if mine else None


def sentence(report: Report) -> str:
    """What was found, on what, on how many images."""
    first = rank(report.rows)[0]
    mine = [r for r in report.rows if r.detector == first]
    low = worst_auroc(mine)
    others = [n for n in rank(report.rows) if not n.startswith(OURS)]
    second = worst_auroc(r for r in report.rows if others and r.detector == others[0])
    if low is None:
        return f"No attack succeeded on any of {mine[0].n_clean} images of {report.settings['data']}."
    beside = f" (best baseline, {others[0]}: {second.auroc:.3f})" if second is not None and first != others[0] else ""
    return (
        f"{first} tells {len(mine)} attack{'s' * (len(mine) > 1)} from {low.n_clean} clean images of "
        f"{report.settings['data']} with an AUROC of {low.auroc:.3f} at worst, on {low.attack}{beside}; it catches "
        f"{low.tpr:.0%} of these and flags {low.fpr:.1%} of the clean images."
    )
