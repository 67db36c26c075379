"""How strong an attack must be for a classifier to fall, and mixtures of attacks that suit it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from advconn.attacks.attack import Attack, compatible_attacks, is_misclassified
from advconn.attacks.catalog import BLACK_BOX, MIXTURE, as_fraction
from advconn.errors import AttackError
from advconn.models.classifier import Classifier

EACH = 7  # attacks of a mixture that an image is attacked by in a full fit
FEWEST = 40  # images that each attack is tried on all the same


def attacks_at_breaking_strength(
    classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0, most: int = 64
) -> tuple[str, ...]:
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
        if float(is_misclassified(classifier, made, truth).float().mean()) >= 0.9:
            break
        eps = min(2 * eps, 0.5)
    if not classifier.differentiable:
        specs = [
            f"{kind}:eps={as_fraction(min(factor * eps, 0.5 if kind == 'square' else 0.25))},{rest}"
            for kind, rest in (("square", "n_queries=500"), ("noise", "tries=20"))
            for factor in ((0.5, 1, 2) if kind == "square" else (2, 4))
        ]
        return tuple(dict.fromkeys(specs))
    strong = min(max(2 * eps, 8 / 255), 0.5)
    far = math.sqrt(clean[0].numel()) * eps / 2  # as long as an Linf step of half that size in every pixel
    shapes = [
        *(f"pgd:eps={as_fraction(e)},steps=10" for e in (strong, eps, eps / 2)),
        f"pgd:alpha={as_fraction(0.75 * strong)},eps={as_fraction(strong)},steps=2",
        *(f"pgd-l2:eps={f:.3g},steps=10" for f in (far, far / 4)),
        f"pgd-l2:alpha={far:.3g},eps={far:.3g},steps=1",
        *(f"pgd-stop:eps={as_fraction(e)},steps=20" for e in (strong, eps)),
        *(f"cw:kappa={k},lr={max(0.01, eps / 4):.2g},steps=100" for k in (0, 3)),
        *(f"fgsm:eps={as_fraction(e)}" for e in (strong, eps, eps / 2)),
        f"square:eps={as_fraction(strong)},n_queries=500",
        f"tifgsm:eps={as_fraction(strong)}",
        f"low-frequency:eps={as_fraction(min(2 * strong, 1.0))}",
        "pixle",
        f"noise:eps={as_fraction(min(2 * strong, 1.0))},tries=20",
        f"transfer:eps={as_fraction(strong)}",
        f"pgd-jpeg:eps={as_fraction(strong)},quality=60",
    ]
    return compatible_attacks(classifier, dict.fromkeys(str(Attack.parse(spec)) for spec in shapes))


def choose_mixture(
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
        weak = success_rate(classifier, images, labels, Attack.parse(BLACK_BOX[0]), seed) < 0.5
        own = attacks_at_breaking_strength(classifier, images, labels, seed=seed) if weak else BLACK_BOX
        if surrogate is None:
            note("this classifier gives no gradient: only attacks that need none are trained on (square, noise)")
            return own
        note("this classifier gives no gradient: attacks that need one are made on the surrogate")
        mixture = choose_mixture(surrogate, images, labels, None, note, seed)
        return (*own, *(spec for spec in mixture if not spec.startswith("square")))
    share = success_rate(classifier, images, labels, Attack.parse(MIXTURE[0]), seed)
    if share >= 0.9:
        return compatible_attacks(classifier, MIXTURE)
    mixture = attacks_at_breaking_strength(classifier, images, labels, seed=seed)
    note(
        f"{MIXTURE[0]} changes only {share:.0%} of its predictions: attacks are made at strengths that suit it, up to "
        f"{mixture[0]} (--attack sets others)"
    )
    return mixture


def images_per_attack(train: int, attacks: int) -> int:
    """How many of so many training images each attack is tried on: every image by about EACH attacks, FEWEST images."""
    return min(train, max(FEWEST, math.ceil(EACH * train / max(attacks, 1))))


def success_rate(
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
    return float(is_misclassified(classifier, attack.run(classifier, clean, truth, seed=seed), truth).float().mean())
