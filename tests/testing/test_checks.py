"""The checks tell the first breach of the contract, and let what keeps it pass."""

import numpy as np
import pytest
import torch

from advconn.benchmark import Candidate
from advconn.errors import AttackError
from advconn.testing import check_attack, check_detector


class Noise:
    """Random signs, of a seed."""

    name = "noise"

    def run(self, classifier, images, labels, *, seed):
        generator = torch.Generator().manual_seed(seed)
        signs = torch.rand(images.shape, generator=generator) * 2 - 1
        return (images + 0.3 * signs).clamp(0, 1)


class Unseeded(Noise):
    def run(self, classifier, images, labels, *, seed):
        return (images + 0.3 * torch.rand_like(images)).clamp(0, 1)


class InPlace(Noise):
    def run(self, classifier, images, labels, *, seed):
        return images.mul_(0.5)


class Wrong(Noise):
    def run(self, classifier, images, labels, *, seed):
        return images * 255


class Training(Noise):
    def run(self, classifier, images, labels, *, seed):
        with torch.no_grad():
            next(iter(classifier.network.parameters())).add_(1.0)
        return images


def test_an_attack_that_keeps_the_contract_passes():
    """Its share of successes comes back; a specification is taken too."""
    assert 0 <= check_attack(Noise()) <= 1
    assert check_attack("pgd:eps=0.2") > 0.5


@pytest.mark.parametrize(
    ("attack", "said"),
    [(Unseeded, "other images for the same seed"), (InPlace, "changes the images"), (Wrong, "divide bytes by 255"),
     (Training, "changes the classifier")],
)  # fmt: skip
def test_a_breach_of_an_attack_is_named(attack, said):
    """The first one, in one line."""
    with pytest.raises(AttackError, match=said):
        check_attack(attack())


class Spread(Candidate):
    """How far apart the logits are."""

    name = "spread"

    def measure(self, images):
        return -self.classifier.logits(images).std(1, keepdim=True).cpu().double().numpy()


class Drawn(Spread):
    def measure(self, images):
        return np.random.default_rng().random((len(images), 1))


class Flat(Spread):
    def measure(self, images):
        return super().measure(images)[:, 0]


class Joint(Spread):
    def measure(self, images):
        columns = super().measure(images)
        return columns - columns.mean()


class Nameless(Spread):
    name = ""


class Scoreless(Spread):
    def score(self, columns):
        return columns


def test_a_detector_that_keeps_the_contract_passes():
    """Also one that learns nothing."""
    check_detector(Spread)


@pytest.mark.parametrize(
    ("detector", "said"),
    [(Drawn, "other columns the second time"), (Flat, r"expected finite columns \(24, d\)"),
     (Joint, "depend on the rest of its batch"), (Nameless, "class attribute `name`"), (Scoreless, "24 finite numbers"),
     (Noise, "expected a subclass")],
)  # fmt: skip
def test_a_breach_of_a_detector_is_named(detector, said):
    """The first one, in one line."""
    with pytest.raises(AttackError, match=said):
        check_detector(detector)
