"""Pairs connected in pixel and latent space."""

import pytest
import torch
import torch.nn.functional as F

from advconn.errors import PathError
from advconn.paths.connection import connect
from advconn.paths.space import Space


@pytest.fixture(scope="module")
def pairs(classifier, digits):
    """Forty pairs of digits of a class, all classified right."""
    images, labels = classifier.check(digits[0][900:]), digits[1][900:]
    right = classifier.logits(images).argmax(1) == labels
    first, second = [], []
    for label in range(10):
        rows = (right & (labels == label)).nonzero()[:, 0][:8]
        first.append(rows[:4])
        second.append(rows[4:])
    a, b = torch.cat(first), torch.cat(second)
    return images[a], images[b], labels[a]


@pytest.mark.parametrize("method", ["bypass", "band"])
@pytest.mark.parametrize("layer", ["pixel", "stage1"])
def test_every_pair_is_connected(classifier, pairs, method, layer):
    """Gu & Borovykh: paths, straight or not, exist in all cases; the search never ends higher than the line."""
    found = connect(Space(classifier, layer), *pairs, method=method, delta=0.1)
    assert "none" not in found.outcome
    assert layer != "pixel" or {"line", "curve"} == set(found.outcome)
    straight = torch.tensor([o == "line" for o in found.outcome])
    torch.testing.assert_close(found.curve.barrier[straight], found.line.barrier[straight])
    assert bool((found.curve.barrier <= found.line.barrier + 1e-6).all())
    assert bool((found.gradients[straight] == 0).all())
    assert bool((found.length_ratio >= 1 - 1e-5).all())


def test_the_last_layer_needs_no_curve(classifier, pairs):
    """Logits are linear in it: every pair is connected by a line (Table 1: 25 of 25)."""
    assert set(connect(Space(classifier, "flat"), *pairs).outcome) == {"line"}


def test_energies_are_cross_entropies_of_the_class(classifier, pairs):
    """At the ends, those of the images; the height is delta where the ends lie under it."""
    a, b, labels = pairs
    found = connect(Space(classifier), a, b, labels, method="line", delta=0.5)
    torch.testing.assert_close(
        found.line.energies[:, 0], F.cross_entropy(classifier.logits(a), labels, reduction="none")
    )
    ends = torch.maximum(found.line.energies[:, 0], found.line.energies[:, -1])
    torch.testing.assert_close(found.ceiling, torch.where(ends <= 0.5, torch.full_like(ends, 0.5), ends + 0.5))
    assert set(found.outcome) <= {"line", "none"}


def test_what_makes_no_sense_is_refused(classifier, pairs):
    """A method that is none, images without a partner."""
    a, b, labels = pairs
    with pytest.raises(PathError, match="no method"):
        connect(Space(classifier), a, b, labels, method="walk")
    with pytest.raises(PathError, match="expected as many"):
        connect(Space(classifier), a, b[:3], labels)
