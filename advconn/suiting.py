"""Attacks and benign conditions that suit a classifier, and about how long a fit with them takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from advconn.attacks.attack import parse_all
from advconn.attacks.strength import shared
from advconn.cascade.augmentation import features_of
from advconn.cascade.cascade import connectivities_of
from advconn.data.conditions import CONDITIONS, usable
from advconn.data.inputs import as_bytes
from advconn.detector import GROUPED, Detector
from advconn.models.classifier import Classifier
from advconn.parallel import silent

HARMLESS = 0.8  # share of predictions that a benign condition must leave as they are
EVADING = 1300  # gradients that go into what is made of an image to evade the heads: turns x sizes x steps x stops
TRIED = 12_000  # forwards, of which a gradient counts as three, that trying the finished detector takes
FOR_REFERENCES = 0.2  # share of the images among which references are chosen


def harmless(
    classifier: Classifier, images: Tensor, names: Sequence[str], note: Callable[[str], None], seed: int = 0
) -> tuple[str, ...]:
    """Those of the benign conditions under which four of five of at most 256 images keep their predicted class.

    Args:
        classifier: what is shown them.
        images: clean ones (n, c, h, w).
        names: of the conditions.
        note: told which are left out.
        seed: of what the conditions draw.
    """
    few = as_bytes(images[:256])
    wanted = usable(names, classifier.channels)
    before = classifier.predict(few)
    kept = {n: float((classifier.predict(CONDITIONS[n](few, seed)) == before).float().mean()) for n in wanted}
    lost = [f"{name} ({share:.0%})" for name, share in kept.items() if share < HARMLESS]
    if lost:
        note(f"no harmless changes for this classifier, which keeps few of its predictions: {', '.join(lost)}")
    return tuple(name for name, share in kept.items() if share >= HARMLESS)


def estimate(detector: Detector, count: int) -> float:
    """About how many seconds a fit on so many images takes on this machine."""
    classifier = detector.connectivity.classifier
    train = round((1 - detector.calibrate) * count * (1 - FOR_REFERENCES))
    tried = min(detector.per_attack, shared(train, len(detector.attacks)))
    held = detector.calibrate * count * (1 - FOR_REFERENCES) * len(detector.conditions)
    quick = detector.pretrained is not None
    grouped = min(train, GROUPED) * len(detector.conditions) * (detector.confidence is None)
    walks, gradients = (2 - quick) * train + (held + grouped) / 4, 0.0  # benign ones too; calibration leaves early
    forwards = float(TRIED)
    attacks = parse_all(detector.attacks) if detector.refine or not quick else ()
    tried = min(tried, -(-detector.refine // len(attacks))) if quick and attacks else tried
    for attack in attacks:
        steps = attack.settings.get("steps", attack.settings.get("n_queries", attack.settings.get("tries", 1)))
        walks += tried
        forwards += 0 if attack.needs_gradient else tried * steps / 2
        gradients += tried * steps * (10 if attack.name == "autoattack" else 1) if attack.needs_gradient else 0
    gradients += detector.evasive * EVADING
    probe = torch.rand(8, classifier.channels, *(classifier.preprocessing.size or (32, 32)), dtype=torch.float32,
                       device="cpu").to(classifier.device)  # fmt: skip
    forward_time = _seconds(lambda: classifier.logits(probe)) / len(probe)
    stages = connectivities_of(detector.connectivity, detector.stages)
    walk_time = _seconds(lambda: features_of(stages, probe, "", silent)) / len(probe)
    return walk_time * walks * 1.6 + forward_time * (forwards + 4 * gradients)  # own and rival paths are walked too


def _seconds(call: Callable[[], Any]) -> float:
    call()
    started = perf_counter()
    call()
    return perf_counter() - started
