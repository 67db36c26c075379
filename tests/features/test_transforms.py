"""Copies of the query against values worked out on paper."""

import math

import pytest
import torch

from advconn.features import transforms
from advconn.features.transforms import COPIES


def ramp() -> torch.Tensor:
    """One image (1, 1, 8, 8) whose columns are 0, 1, ... 7 in tenths."""
    return (torch.arange(8.0) / 10).expand(1, 1, 8, 8).clone()


def test_copies_of_a_ramp_are_what_they_say():
    """Each against its value worked out on paper."""
    image = ramp()
    inner = (slice(None), slice(None), slice(1, 7), slice(1, 7))
    torch.testing.assert_close(transforms.mean3(image)[inner], image[inner])
    torch.testing.assert_close(transforms.median3(image)[inner], image[inner])
    assert torch.equal(transforms.flip(image)[0, 0, 0], image[0, 0, 0].flip(0))
    assert transforms.shift(0, 1)(image)[0, 0, 0].tolist() == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert transforms.bits(1)(image)[0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    torch.testing.assert_close(transforms.contrast(0.5)(image).mean(), image.mean())
    torch.testing.assert_close(transforms.contrast(0.5)(image).std(), image.std() / 2)
    torch.testing.assert_close(transforms.blur(0.5)(image)[..., 2:6], image[..., 2:6])
    tinted = torch.cat([image, image, image + 0.3], 1)
    torch.testing.assert_close(transforms.saturation(0.0)(tinted), (image + 0.1).expand(1, 3, 8, 8))
    torch.testing.assert_close(
        transforms.both(transforms.flip, transforms.shift(0, 1))(image), transforms.shift(0, 1)(image.flip(3))
    )


def test_shear_moves_columns_by_their_distance_from_the_centre():
    """A diagonal step: rows as a ramp, so that the value read tells the place."""
    rows = ramp().transpose(2, 3)
    sheared = transforms.shear(0.5)(rows)
    centres = torch.arange(8.0) - 3.5
    torch.testing.assert_close(sheared[0, 0, 4], rows[0, 0, 4] + 0.05 * centres)


def test_gaussian_blur_spreads_a_point_as_its_weights_say():
    """Neighbour over centre is exp(-1 / 2 sigma^2)."""
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    out = transforms.blur(0.7)(point)[0, 0]
    assert float(out[4, 5] / out[4, 4]) == pytest.approx(math.exp(-1 / (2 * 0.49)), rel=1e-5)
    assert float(out.sum()) == pytest.approx(1)


def test_the_median_removes_a_single_hot_pixel():
    """Which the mean only spreads."""
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 0.9
    assert float(transforms.median3(image).max()) == 0
    assert float(transforms.mean3(image).max()) == pytest.approx(0.1)


def test_a_turn_there_and_back_and_a_flip_twice_are_close_to_nothing():
    """Rotation undoes itself up to interpolation, a flip exactly."""
    coarse = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, 32, mode="bicubic").clamp(0, 1)
    turned = transforms.rotate(-6)(transforms.rotate(6)(smooth))
    assert float((turned - smooth)[..., 6:-6, 6:-6].abs().max()) < 0.03
    assert torch.equal(transforms.flip(transforms.flip(smooth)), smooth)


@pytest.mark.parametrize("name", COPIES)
def test_every_copy_keeps_shape_and_range_and_knows_no_batch(name):
    """A copy of an image does not depend on its neighbours, nor on the size of the batch."""
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = COPIES[name](images)
    assert made.shape == images.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    torch.testing.assert_close(COPIES[name](images[2:3]), made[2:3])
    assert float((made - images).abs().max()) > 1e-3
