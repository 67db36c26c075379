"""Reference modes and label-preserving copies."""

import math

import pytest
import torch

from advconn import modes
from advconn.connectivity import COPIES
from advconn.errors import DataError
from advconn.modes import References, choose, synthesise


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


def ramp() -> torch.Tensor:
    """One image (1, 1, 8, 8) whose columns are 0, 1, ... 7 in tenths."""
    return (torch.arange(8.0) / 10).expand(1, 1, 8, 8).clone()


def test_copies_of_a_ramp_are_what_they_say():
    """Each against its value worked out on paper."""
    image = ramp()
    inner = (slice(None), slice(None), slice(1, 7), slice(1, 7))
    torch.testing.assert_close(modes.mean3(image)[inner], image[inner])
    torch.testing.assert_close(modes.median3(image)[inner], image[inner])
    assert torch.equal(modes.flip(image)[0, 0, 0], image[0, 0, 0].flip(0))
    assert modes.shift(0, 1)(image)[0, 0, 0].tolist() == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert modes.bits(1)(image)[0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    torch.testing.assert_close(modes.contrast(0.5)(image).mean(), image.mean())
    torch.testing.assert_close(modes.contrast(0.5)(image).std(), image.std() / 2)
    torch.testing.assert_close(modes.blur(0.5)(image)[..., 2:6], image[..., 2:6])
    tinted = torch.cat([image, image, image + 0.3], 1)
    torch.testing.assert_close(modes.saturation(0.0)(tinted), (image + 0.1).expand(1, 3, 8, 8))
    torch.testing.assert_close(modes.both(modes.flip, modes.shift(0, 1))(image), modes.shift(0, 1)(image.flip(3)))


def test_shear_moves_columns_by_their_distance_from_the_centre():
    """A diagonal step: rows as a ramp, so that the value read tells the place."""
    rows = ramp().transpose(2, 3)
    sheared = modes.shear(0.5)(rows)
    centres = torch.arange(8.0) - 3.5
    torch.testing.assert_close(sheared[0, 0, 4], rows[0, 0, 4] + 0.05 * centres)


def test_gaussian_blur_spreads_a_point_as_its_weights_say():
    """Neighbour over centre is exp(-1 / 2 sigma^2)."""
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    out = modes.blur(0.7)(point)[0, 0]
    assert float(out[4, 5] / out[4, 4]) == pytest.approx(math.exp(-1 / (2 * 0.49)), rel=1e-5)
    assert float(out.sum()) == pytest.approx(1)


def test_the_median_removes_a_single_hot_pixel():
    """Which the mean only spreads."""
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 0.9
    assert float(modes.median3(image).max()) == 0
    assert float(modes.mean3(image).max()) == pytest.approx(0.1)


def test_a_turn_there_and_back_and_a_flip_twice_are_close_to_nothing():
    """Rotation undoes itself up to interpolation, a flip exactly."""
    smooth = torch.nn.functional.interpolate(torch.rand(1, 1, 4, 4), 32, mode="bicubic").clamp(0, 1)
    turned = modes.rotate(-6)(modes.rotate(6)(smooth))
    assert float((turned - smooth)[..., 6:-6, 6:-6].abs().max()) < 0.03
    assert torch.equal(modes.flip(modes.flip(smooth)), smooth)


@pytest.mark.parametrize("name", COPIES)
def test_every_copy_keeps_shape_and_range_and_knows_no_batch(name):
    """A copy of an image does not depend on its neighbours, nor on the size of the batch."""
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    copies = COPIES[name](images)
    assert copies.shape == images.shape
    assert 0 <= float(copies.min()) <= float(copies.max()) <= 1
    torch.testing.assert_close(COPIES[name](images[2:3]), copies[2:3])
    assert float((copies - images).abs().max()) > 1e-3
