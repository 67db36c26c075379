"""A new threshold for a fitted detector from new clean images, if its scores still mean something."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from advconn.attacks import Attack, Hits, parse_all
from advconn.calibration import CLEAN, enough
from advconn.detector import Detector
from advconn.errors import FitError
from advconn.exits import ordered
from advconn.fitting import tell_promise, warn
from advconn.given import as_labels, as_tensor, image_hashes
from advconn.kinds import BLACK_BOX, MIXTURE
from advconn.making import Maker
from advconn.preparing import sound
from advconn.progress import Progress, silent
from advconn.suiting import mixture_for

UNTOLD = "as before"
CHANCE = 0.7  # AUROC under which scores mean nothing, whatever they told before
# Forwards an image, at most: search for an attack's strength, the attack and the verdict; with gradients, or without.
DEAR = {True: 600, False: 4000}
LEAST = 10  # attacked images that tell whether scores still hold


@dataclass(frozen=True)
class Order:
    """How well scores tell an attack from clean images.

    Attributes:
        attack: its specification.
        auroc: in [0, 1].
        count: number of attacked images.
        caught: share of these that are flagged.
    """

    attack: str
    auroc: float
    count: int
    caught: float


def recalibrated(
    detector: Detector,
    images: Any,
    labels: Any = None,
    *,
    fpr: float | None = None,
    confidence: Any = UNTOLD,
    conditions: Sequence[str] | None = None,
    least: float = 0.9,
    note: Callable[[str], None] = warn,
    progress: Progress = silent,
) -> tuple[Detector, Order]:
    """A detector with a threshold from new clean images, if its scores still mean something.

    One attack (PGD, or Square without gradients) is made on up to 100 of the images: its AUROC against the clean ones
    must be `least` or more. Images that the detector was fitted on are left out.

    Args:
        detector: a fitted one.
        images: clean ones (n, c, h, w), uint8 or in [0, 1].
        labels: true classes (n,), or None.
        fpr: false-alarm rate asked for, in (0, 1); the detector's own unless told.
        confidence: of the promise, see Detector; the detector's own unless told.
        conditions: that the promise holds under, see Detector; the detector's own unless told.
        least: AUROC, in [0, 1].
        note: told what a user should know (else these are warnings).
        progress: told (stage, done, total).

    Raises:
        FitError: too few images, or scores that no longer tell the attack from them.
    """
    classifier = detector.connectivity.classifier
    images = as_tensor(images)
    truth = None if labels is None else as_labels(labels, len(images))
    fresh = torch.from_numpy(~np.isin(image_hashes(images), detector.fitted_.image_hashes))
    if not fresh.all():
        note(f"{int((~fresh).sum())} of {len(images)} images are left out: the detector was fitted on them")
    images, truth = images[fresh], None if truth is None else truth[fresh]
    images, truth, _ = sound(classifier, images, truth, note)
    rate = detector.fpr if fpr is None else fpr
    enough(len(images), rate)
    new = copy.copy(detector)
    new.fpr = rate
    if confidence is not UNTOLD:
        new.confidence = confidence
    if conditions is not None:
        new.conditions = tuple(conditions)
    new.calibrate_on(images, progress)
    if confidence is not UNTOLD and confidence is not None:
        enough(len(new.calibration_.scores), rate, confidence)
    tell_promise(new, note)
    attack, hits = _attacked(new, images, truth, 100)
    if len(hits.images) < LEAST:
        raise FitError(
            f"{attack} changed {len(hits.images)} predictions of {hits.tried}: too few to see whether the scores still "
            f"hold (expected {LEAST} or more; give more images)"
        )
    order = _order(new, attack, hits, progress)
    quick = detector.fitted_.pretrained and not detector.refine  # nothing is known of how well it told attacks before
    if order.auroc < (min(least, CHANCE) if quick else least):
        raise FitError(
            f"the scores no longer tell {attack} from clean images (AUROC {order.auroc:.3f} on {order.count}, expected "
            f"{least:g} or more): fit a new detector"
        )
    if order.auroc < least:
        note(
            f"the scores tell {attack} from clean images with an AUROC of {order.auroc:.2f} alone: a full fit (--full) "
            "may tell it better"
        )
    hashes = np.union1d(detector.fitted_.image_hashes, image_hashes(images))
    new.fitted_ = replace(new.fitted_, image_hashes=hashes)
    new.figures_ = {}
    return new, order


def tried_on(
    detector: Detector, images: torch.Tensor, truth: torch.Tensor | None, *, most: int, seconds: float
) -> Order | None:
    """How well a detector tells one attack, made on images (n, c, h, w); None where that takes too long or changes few.

    Args:
        detector: a fitted one.
        images: clean ones (n, c, h, w), uint8 or in [0, 1].
        truth: their classes (n,), or None.
        most: images attacked.
        seconds: that it may take.
    """
    classifier = detector.connectivity.classifier
    few = classifier.check(images[:8])
    classifier.logits(few)
    started = perf_counter()
    classifier.logits(few)
    forward = (perf_counter() - started) / len(few)
    if forward * DEAR[classifier.differentiable] * min(most, len(images)) > seconds:
        return None
    attack, hits = _attacked(detector, images, truth, most)
    return _order(detector, attack, hits, silent) if len(hits.images) >= LEAST else None


def _attacked(detector: Detector, images: torch.Tensor, truth: torch.Tensor | None, most: int) -> tuple[Attack, Hits]:
    attack = _attack_for(detector, images, truth)
    maker = Maker((detector.connectivity,), per_attack=most, seed=detector.seed)
    return attack, maker.attacked(images, truth, attack, seed=0)


def _order(detector: Detector, attack: Attack, hits: Hits, progress: Progress) -> Order:
    clean = ordered(detector.clean_[CLEAN], detector.cascade_.exits)[0]
    scores = detector.scores(hits.images, progress)
    caught = float((scores > detector.calibration_.threshold).mean())
    return Order(str(attack), _auroc(clean, scores), len(hits.images), caught)


def _attack_for(detector: Detector, images: torch.Tensor, truth: torch.Tensor | None) -> Attack:
    """PGD (Square without gradients) of the mixture fitted on; after a quick fit at the strength that suits."""
    classifier = detector.connectivity.classifier
    usual, name = (MIXTURE[0], "pgd") if classifier.differentiable else (BLACK_BOX[0], "square")
    mixture = detector.attacks if detector.fitted_.attacks else ()  # a quick fit attacked nothing
    attacks = [a for a in parse_all(mixture) if a.name == name]
    if not attacks:
        labels = classifier.predict(images[:256]) if truth is None else truth[:256]
        chosen = mixture_for(classifier, images[:256], labels, None, lambda text: None, detector.seed)
        suits = [a for a in parse_all(chosen) if a.name == name]  # of the first twice as strong as it need be
        attacks = suits[1:] if usual not in chosen else []
    return attacks[0] if attacks else Attack.parse(usual)


def _auroc(clean: np.ndarray, attacked: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    scores = np.concatenate([clean, attacked])
    ranks = np.unique(scores, return_inverse=True)[1]  # infinite scores are the highest
    return float(roc_auc_score(np.repeat([0, 1], [len(clean), len(attacked)]), ranks))
