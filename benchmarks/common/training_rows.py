"""Rows of features that the CIFAR-10 detector is fitted on."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks
from advconn.attacks.catalog import MIXTURE
from advconn.cascade.attacked_copies import still_misclassified
from advconn.cascade.cascade import stage_extractors
from advconn.cascade.training import TrainingSet
from advconn.cascade.training import training_set_of as taught_rows
from advconn.data.conditions import BENIGN, CONDITIONS
from advconn.detector.detector import Detector
from benchmarks.common.cifar10 import Part, tables, taught, whole
from benchmarks.common.families import hits_of
from benchmarks.common.provenance import SEED

TRANSFERRED = {"transfer:eps=8/255 from plain": 250} | {  # and on how many images each is tried
    f"{spec} from {name}": 500
    for name in ("half18", "vit6")
    for spec in ("pgd:eps=8/255,steps=10", "mifgsm:eps=8/255,steps=10", "pgd:eps=6/255,steps=20")
}
FITTED_ON = (*MIXTURE, *TRANSFERRED)
MOST = 200  # successful copies of each attack, and as many of them under benign conditions
EVERY = 2  # one of so many clean images is fitted on under a benign condition too


def rows(cache: Path, nets: Path, detector: Detector, fit: Part, without: Container[str] = ()) -> TrainingSet:
    """Clean images, their attacked copies (but for the attacks left out), and clean ones under benign conditions."""
    connectivities, model = stage_extractors(detector.connectivity, detector.stages), detector.classifier

    def features(name: str, images: Tensor) -> tuple[np.ndarray, ...]:
        return tables(whole(cache, detector.connectivity, name, images), connectivities)

    n = len(fit.images)
    parts, kinds, groups, attacks = [features("fit", fit.images)], [np.zeros(n, int)], [np.arange(n)], {}
    for spec in [spec for spec in FITTED_ON if spec not in without]:
        hits = hits_of(cache, nets, "shipped", "fit", fit, spec, TRANSFERRED.get(spec) or taught(spec))
        attacks[spec] = (hits.tried, len(hits.rows))
        hits = SuccessfulAttacks(hits.images[:MOST], hits.rows[:MOST], hits.tried)
        changed, kept_rows = still_misclassified(model, hits.images, fit.labels[hits.rows], BENIGN, SEED)
        parts += [features(spec, hits.images), features(f"{spec}, changed", changed)]
        kinds.append(np.full(len(hits.rows) + len(changed), len(attacks)))
        groups += [hits.rows.numpy(), hits.rows[kept_rows].numpy()]
    learned = taught_rows(stacked(parts), np.concatenate(kinds), np.concatenate(groups), attacks=attacks)
    turns = [np.arange(n)[i * EVERY :: EVERY * len(BENIGN)] for i in range(len(BENIGN))]
    spoilt = [features(k, CONDITIONS[k](fit.images[rows], SEED)) for k, rows in zip(BENIGN, turns, strict=True)]
    return learned.with_corrupted(stacked(spoilt), np.concatenate(turns))


def stacked(parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Tables by stage of several sets of images as one of each stage."""
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
