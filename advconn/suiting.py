"""Attacks and benign conditions that suit a classifier, and about how long a fit with them takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from advconn.attacks import Attack, made_for, parse_all, succeeded
from advconn.data.conditions import CONDITIONS, usable
from advconn.data.inputs import as_bytes
from advconn.detector import GROUPED, Detector
from advconn.errors import AttackError
from advconn.kinds import BLACK_BOX, MIXTURE
from advconn.making import features_of
from advconn.models.classifier import Classifier
from advconn.parallel import silent
from advconn.specs import fraction
from advconn.stages import connectivities_of

HARMLESS = 0.8  # share of predictions that a benign condition must leave as they are
EACH = 7  # attacks of a mixture that an image is attacked by in a full fit
FEWEST = 40  # images that each attack is tried on all the same
EVADING = 1300  # gradients that go into what is made of an image to evade the heads: turns x sizes x steps x stops
TRIED = 12_000  # forwards, of which a gradient counts as three, that trying the finished detector takes
FOR_REFERENCES = 0.2  # share of the images among which references are chosen


def suited(classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0, most: int = 64) -> tuple[str, ...]:
    """A mixture at the strengths at which this classifier falls, found on some images that it gets right.

    The smallest Linf radius at which PGD of ten steps (Square of 300 queries, without a gradient) changes nine of ten
    predictions is looked for by factors of two between 1/255 and 1/2; the mixture spans half of it to twice it, and
    8/255 in any case, in the shapes of MIXTURE.

    Args:
        classifier: what is attacked.
        images: clean ones (n, c, h, w).
        labels: their classes (n,).
        seed: of the attacks.
        most: images that are attacked, at most.

    Raises:
        AttackError: the classifier gets none of the images right.
    """
    right = classifier.logits(classifier.check(images)).argmax(1) == labels.to(classifier.device)
    rows = right.nonzero()[:most, 0].cpu()
    if not len(rows):
        raise AttackError("the classifier gets none of the images right: there is nothing to attack")
    clean, truth = classifier.check(images[rows]), labels[rows].to(classifier.device)
    name = "pgd:steps=10" if classifier.differentiable else "square:n_queries=300"
    eps = 1 / 255
    while eps < 0.5:
        made = Attack.parse(f"{name},eps={eps}").run(classifier, clean, truth, seed=seed)
        if float(succeeded(classifier, made, truth).float().mean()) >= 0.9:
            break
        eps = min(2 * eps, 0.5)
    if not classifier.differentiable:
        specs = [
            f"{kind}:eps={fraction(min(factor * eps, 0.5 if kind == 'square' else 0.25))},{rest}"
            for kind, rest in (("square", "n_queries=500"), ("noise", "tries=20"))
            for factor in ((0.5, 1, 2) if kind == "square" else (2, 4))
        ]
        return tuple(dict.fromkeys(specs))
    strong = min(max(2 * eps, 8 / 255), 0.5)
    far = math.sqrt(clean[0].numel()) * eps / 2  # as long as an Linf step of half that size in every pixel
    shapes = [
        *(f"pgd:eps={fraction(e)},steps=10" for e in (strong, eps, eps / 2)),
        f"pgd:alpha={fraction(0.75 * strong)},eps={fraction(strong)},steps=2",
        *(f"pgd-l2:eps={f:.3g},steps=10" for f in (far, far / 4)),
        f"pgd-l2:alpha={far:.3g},eps={far:.3g},steps=1",
        *(f"pgd-stop:eps={fraction(e)},steps=20" for e in (strong, eps)),
        *(f"cw:kappa={k},lr={max(0.01, eps / 4):.2g},steps=100" for k in (0, 3)),
        *(f"fgsm:eps={fraction(e)}" for e in (strong, eps, eps / 2)),
        f"square:eps={fraction(strong)},n_queries=500",
        f"tifgsm:eps={fraction(strong)}",
        f"low-frequency:eps={fraction(min(2 * strong, 1.0))}",
        "pixle",
        f"noise:eps={fraction(min(2 * strong, 1.0))},tries=20",
        f"transfer:eps={fraction(strong)}",
    ]
    return made_for(classifier, dict.fromkeys(str(Attack.parse(spec)) for spec in shapes))


def mixture_for(
    classifier: Classifier, images: Tensor, labels: Tensor, surrogate: Classifier | None, note: Callable[[str], None],
    seed: int = 0,
) -> tuple[str, ...]:  # fmt: skip
    """The attacks to train on: MIXTURE where this classifier falls at its strengths, else one that suits it.

    Without a gradient: those that need none, and with a surrogate MIXTURE's made on it.

    Args:
        classifier: what is attacked.
        images: clean ones (n, c, h, w).
        labels: their classes (n,).
        surrogate: another network of the same classes, or None.
        note: told what was chosen, and why.
        seed: of the attacks.
    """
    if not classifier.differentiable:
        weak = falls(classifier, images, labels, Attack.parse(BLACK_BOX[0]), seed) < 0.5
        own = suited(classifier, images, labels, seed=seed) if weak else BLACK_BOX
        if surrogate is None:
            note("this classifier gives no gradient: only attacks that need none are trained on (square, noise)")
            return own
        note("this classifier gives no gradient: attacks that need one are made on the surrogate")
        mixture = mixture_for(surrogate, images, labels, None, note, seed)
        return (*own, *(spec for spec in mixture if not spec.startswith("square")))
    share = falls(classifier, images, labels, Attack.parse(MIXTURE[0]), seed)
    if share >= 0.9:
        return made_for(classifier, MIXTURE)
    mixture = suited(classifier, images, labels, seed=seed)
    note(
        f"{MIXTURE[0]} changes only {share:.0%} of its predictions: attacks are made at strengths that suit it, up to "
        f"{mixture[0]} (--attack sets others)"
    )
    return mixture


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


def shared(train: int, attacks: int) -> int:
    """How many of so many training images each attack is tried on: every image by about EACH attacks, FEWEST images."""
    return min(train, max(FEWEST, math.ceil(EACH * train / max(attacks, 1))))


def falls(
    classifier: Classifier, images: Tensor, labels: Tensor, attack: Attack, seed: int = 0, most: int = 64
) -> float:
    """Share of images that the classifier gets right whose prediction an attack changes; 1 if it gets none right.

    Args:
        classifier: what is attacked.
        images: clean ones (n, c, h, w).
        labels: their classes (n,).
        attack: by which.
        seed: of the attack.
        most: images that are attacked, at most.
    """
    few = images[: 4 * most]
    right = (classifier.predict(few) == labels[: 4 * most].cpu()).nonzero()[:most, 0]
    if not len(right):
        return 1.0
    clean, truth = classifier.check(few[right]), labels[right].to(classifier.device)
    return float(succeeded(classifier, attack.run(classifier, clean, truth, seed=seed), truth).float().mean())


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
