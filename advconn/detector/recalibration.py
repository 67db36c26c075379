"""A new threshold for a fitted detector from new clean images, if its scores still mean something."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from advconn.data.input_conversion import as_labels, as_tensor, image_hashes
from advconn.detector.calibration import check_calibration_size
from advconn.detector.clean_images import drop_non_finite
from advconn.detector.detector import Detector
from advconn.detector.efficacy import Efficacy
from advconn.detector.fitting import warn, warn_weak_guarantee
from advconn.detector.trial_attack import MIN_ATTACKED, is_effective, measure_efficacy
from advconn.errors import FitError
from advconn.runtime.progress import Progress, ignore_progress

UNTOLD = "as before"
CHANCE = 0.7  # AUROC under which scores mean nothing, whatever they told before
ATTACKED = 40  # images, at most


def recalibrate(
    detector: Detector,
    images: Any,
    labels: Any = None,
    *,
    fpr: float | None = None,
    confidence: Any = UNTOLD,
    conditions: Sequence[str] | None = None,
    least: float = 0.9,
    note: Callable[[str], None] = warn,
    progress: Progress = ignore_progress,
) -> tuple[Detector, Efficacy]:
    """A detector with a threshold from new clean images, if its scores still mean something.

    One attack (PGD, or Square without gradients) is made on up to ATTACKED of the images: its AUROC against the clean
    ones must be `least` or more. Images that the detector was fitted on are left out.

    Args:
        detector: a fitted one.
        images: clean ones (n, c, h, w), uint8 or in [0, 1].
        labels: true classes (n,), or None.
        fpr: false-alarm rate asked for, in (0, 1); default: the detector's.
        confidence: of the guarantee, see Detector; default: the detector's.
        conditions: that the guarantee covers, see Detector; default: the detector's.
        least: AUROC, in [0, 1].
        note: told what a user should know (else these are warnings).
        progress: told (stage, done, total).

    Raises:
        FitError: too few images, or scores that no longer tell the attack from them.
    """
    classifier = detector.classifier
    images = as_tensor(images)
    truth = None if labels is None else as_labels(labels, len(images))
    fresh = torch.from_numpy(~np.isin(image_hashes(images), detector.fitted_.image_hashes))
    if not fresh.all():
        note(f"{int((~fresh).sum())} of {len(images)} images are left out: the detector was fitted on them")
    images, truth = images[fresh], None if truth is None else truth[fresh]
    images, truth, _ = drop_non_finite(classifier, images, truth, note)
    rate = detector.fpr if fpr is None else fpr
    check_calibration_size(len(images), rate)
    new = copy.copy(detector)
    new.fpr = rate
    if confidence is not UNTOLD:
        new.confidence = confidence
    if conditions is not None:
        new.conditions = tuple(conditions)
    new.calibrate_on(images, progress, truth)
    if confidence is not UNTOLD and confidence is not None:
        check_calibration_size(len(new.calibration_.scores), rate, confidence)
    warn_weak_guarantee(new, note)
    attack, hits = is_effective(new, images[:ATTACKED], None if truth is None else truth[:ATTACKED])
    if len(hits.images) < MIN_ATTACKED:
        raise FitError(
            f"{attack} changed {len(hits.images)} predictions of {hits.tried}: too few to see whether the scores still "
            f"hold (expected {MIN_ATTACKED} or more; give more images)"
        )
    order = measure_efficacy(new, attack, hits, progress)
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
    new.fitted_ = replace(new.fitted_, image_hashes=hashes, efficacy=order)
    new.figures_ = {}
    return new, order
