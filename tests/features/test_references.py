"""Reference modes and label-preserving copies."""

import pytest
import torch

from advconn.errors import DataError
from advconn.features import references as modes
from advconn.features.references import References, choose, synthesise


@pytest.fixture(scope="module")
def clean(classifier, digits):
    return classifier.check(digits[0][900:1300])


def test_chosen_references_are_confident_images_of_every_class(classifier, clean, digits):
    """Of each class, three given images that the network gets right, in the more confident half of the class."""
    labels = digits[1][900:1300]
    found = choose(classifier, clean, labels, per_class=3)
    assert found.labels.bincount().tolist() == [3] * 10
    where = [(clean == image).flatten(1).all(1).nonzero()[0, 0] for image in found.images]
    assert labels[torch.stack(where)].tolist() == found.labels.tolist()
    torch.testing.assert_close(found.logits, classifier.logits(found.images), atol=1e-4, rtol=1e-4)


def test_the_first_reference_is_the_most_confident_and_the_second_the_farthest_from_it(classifier, clean):
    """By hand, for one class."""
    logits = classifier.logits(clean)
    margin = modes.margin(logits, logits.argmax(1))
    rows = (logits.argmax(1) == 3).nonzero()[:, 0]
    rows = rows[margin[rows].argsort(stable=True)]
    best, half = rows[0], rows[: len(rows) // 2]
    far = half[(clean[half] - clean[best]).flatten(1).norm(dim=1).argmax()]
    found = choose(classifier, clean, per_class=2)
    assert torch.equal(found.images[found.labels == 3], clean[torch.stack([best, far])])


@pytest.mark.parametrize("fourier", [True, False])
def test_synthesised_references_reach_their_class(classifier, fourier):
    """Every class, in [0, 1] on the grid of bytes, with little loss, and the same for the same seed."""
    found = synthesise(classifier, 2, fourier=fourier, jitter=0, steps=200)
    assert found.labels.bincount().tolist() == [2] * 10
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    assert torch.equal((found.images * 255).round() / 255, found.images)
    assert float(modes.margin(found.logits, found.labels).max()) < -2
    again = synthesise(classifier, 2, fourier=fourier, jitter=0, steps=200)
    assert torch.equal(found.images, again.images)


def test_a_class_without_a_reference_is_told_not_replaced():
    """Asking for its references raises."""
    references = References(torch.zeros(2, 1, 8, 8), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    assert references.missing == [2]
    with pytest.raises(DataError, match="1 of 3 classes"):
        _ = references.by_class


def test_fewer_references_than_asked_are_repeated():
    """The table stays rectangular."""
    logits = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0]])
    assert References(torch.zeros(3, 1, 8, 8), logits).by_class.tolist() == [[0, 1], [2, 2]]


def test_classes_that_do_not_fit_in_one_batch_are_synthesised_in_several(classifier, monkeypatch):
    """Two at a time here; every class is reached all the same."""
    monkeypatch.setattr(modes, "LARGEST", 2 * 2 * 64)
    found = modes.synthesise(classifier, per_class=2)
    assert found.labels.tolist() == [c for c in range(10) for _ in range(2)]
