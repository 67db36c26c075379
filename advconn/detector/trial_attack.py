"""Measure a detector on one attack: PGD, or Square for a classifier without gradients, at a strength that harms it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from torch import Tensor

from advconn.attacks.attack import Attack, SuccessfulAttacks, parse_all
from advconn.attacks.catalog import as_fraction
from advconn.cascade.attacked_copies import AttackAugmenter
from advconn.cascade.early_exit import cascade_score
from advconn.data.conditions import CLEAN
from advconn.detector.detector import Detector
from advconn.detector.efficacy import Efficacy
from advconn.features.connectivity import Connectivity
from advconn.metrics import auroc
from advconn.models.classifier import Classifier
from advconn.runtime.progress import Progress, ignore_progress

MAX_ATTACKED = 40  # images
MAX_PRICED = 24  # images that the price of a condition is measured on
MIN_ATTACKED = 10  # successfully attacked images: fewer say nothing
SUCCESS = 0.9  # share of predictions that the attack must change; else a stronger one is tried
STRENGTHS = (8 / 255, 16 / 255, 32 / 255, 64 / 255, 0.5)  # largest change of a value
FORWARDS = {True: 250, False: 1200}  # an image, for the attack and the verdict: with gradients, or without


@dataclass(frozen=True)
class Trial:
    """Images to attack, and how long that may take.

    Attributes:
        images: clean ones (n, c, h, w), uint8 or in [0, 1], in no other use.
        truth: their classes (n,), or None: the predictions stand in.
        seconds: that the attack and the verdicts may take.
        seed: of the attack.
    """

    images: Tensor
    truth: Tensor | None
    seconds: float
    seed: int = 0

    def measure(self, detector: Detector, progress: Progress = ignore_progress) -> Efficacy | None:
        """How well a detector catches the attack; None where too few images can be attacked in the time.

        Args:
            detector: a fitted one.
            progress: told (stage, done, total).
        """
        classifier = detector.classifier
        count = min(len(self.images), MAX_ATTACKED, self._affordable(classifier))
        if count < MIN_ATTACKED:
            return None
        truth = None if self.truth is None else self.truth[:count]
        attack, hits = is_effective(detector, self.images[:count], truth, self.seed)
        if len(hits.rows) < MIN_ATTACKED:
            return None
        found = measure_efficacy(detector, attack, hits, progress)
        if len(detector.calibration_.conditions) == 1:
            return found
        if classifier.differentiable:
            near = Attack.parse(f"pgd-stop:eps={as_fraction(attack.settings['eps'])},steps=20")
            few = None if truth is None else truth[:MAX_PRICED]
            hits = AttackAugmenter((Connectivity(classifier),), per_attack=MAX_PRICED, seed=self.seed).attacked(
                self.images[: min(count, MAX_PRICED)], few, near, seed=self.seed
            )
        return (
            replace(found, prices=condition_prices(detector, hits.images)) if len(hits.rows) >= MIN_ATTACKED else found
        )

    def _affordable(self, classifier: Classifier) -> int:
        """How many images can be attacked and judged in the time."""
        few = classifier.check(self.images[:8])
        if not len(few):
            return 0
        classifier.logits(few)
        started = perf_counter()
        classifier.logits(few)
        forward = (perf_counter() - started) / len(few)
        return int(self.seconds / (forward * FORWARDS[classifier.differentiable]))


def is_effective(
    detector: Detector, images: Tensor, truth: Tensor | None, seed: int = 0
) -> tuple[Attack, SuccessfulAttacks]:
    """An attack that changes nearly all predictions, and the images that it made.

    The first attack of its kind that the detector was fitted on, if there is one; else the weakest of STRENGTHS that
    changes SUCCESS of the predictions.

    Args:
        detector: whose classifier is attacked.
        images: clean ones (n, c, h, w).
        truth: their classes (n,), or None: the predictions stand in.
        seed: of the attack.
    """
    classifier = detector.classifier
    name, steps = ("pgd", "steps=10") if classifier.differentiable else ("square", "n_queries=300")
    fitted = [a for a in parse_all(list(detector.attacks)) if a.name == name] if detector.fitted_.attacks else []
    attacks = fitted[:1] or [Attack.parse(f"{name}:eps={as_fraction(eps)},{steps}") for eps in STRENGTHS]
    maker = AttackAugmenter((Connectivity(classifier),), per_attack=len(images), seed=seed)
    for attack in attacks:
        hits = maker.attacked(images, truth, attack, seed=seed)
        if len(hits.rows) >= SUCCESS * hits.tried:
            break
    return attack, hits


def measure_efficacy(
    detector: Detector, attack: Attack, hits: SuccessfulAttacks, progress: Progress = ignore_progress
) -> Efficacy:
    """How well a detector tells attacked images from the clean ones that it was calibrated on.

    Args:
        detector: a fitted one.
        attack: which made the images.
        hits: the images.
        progress: told (stage, done, total).
    """
    clean = cascade_score(detector.clean_[CLEAN], detector.cascade_.exits)[0]
    judgement = detector.judge(hits.images)
    progress("score", len(hits.images), len(hits.images))
    caught = float(judgement.adversarial.mean())
    return Efficacy(str(attack), len(hits.images), auroc(clean[np.isfinite(clean)], judgement.score), caught)


def condition_prices(detector: Detector, attacked: Tensor) -> dict[str, float]:
    """What share more of attacked images the detector would flag without each condition of its guarantee.

    Args:
        detector: a fitted one.
        attacked: images (n, c, h, w).
    """
    judgement, calibration = detector.judge(attacked), detector.calibration_
    groups = detector.group_of(judgement)
    out = {}
    for name in (name for name in calibration.conditions if name != CLEAN):
        others = calibration.at(conditions=tuple(other for other in calibration.conditions if other != name))
        flagged = judgement.score > others.thresholds(judgement.predicted, groups)
        out[name] = round(max(0.0, float(flagged.mean() - judgement.adversarial.mean())), 4)
    return out
