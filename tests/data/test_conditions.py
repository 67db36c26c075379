"""Benign conditions."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from advconn.data.conditions import BENIGN, CLEAN, CONDITIONS, MEASURED, PROMISED, USES, usable
from advconn.errors import DataError


@pytest.fixture(scope="module")
def images():
    """Colours with some texture, away from black and white: what noise adds is not cut off."""
    ramp = torch.linspace(60, 190, 32, dtype=torch.float64)
    red, green = ramp.expand(32, 32), ramp[:, None].expand(32, 32)
    texture = 20 * (torch.arange(32) // 2 % 2) * (torch.arange(32)[:, None] // 3 % 2)
    return (torch.stack([red, green, (red + green) / 2]) + texture).round().to(torch.uint8)[None].repeat(4, 1, 1, 1)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_gives_such_images_again(images, name):
    """Bytes of the same shape, colour and grey, none at all too; the same for the same seed; the image given stays."""
    for given in (images, images[:, :1].contiguous()):
        before = given.clone()
        out = CONDITIONS[name](given, 3)
        assert out.shape == given.shape
        assert out.dtype == torch.uint8
        assert torch.equal(given, before)
        assert torch.equal(out, CONDITIONS[name](given, 3))
        assert len(CONDITIONS[name](given[:0], 3)) == 0
        changed = not torch.equal(out, given)
        assert changed or name in (CLEAN, "palette64", "saturated")


@pytest.mark.parametrize(
    ("name", "sd"), [("noise2", 2), ("noise4", 4), ("noise8", 8), ("uniform8", 8 / 3**0.5), ("signs8", 8)]
)
def test_noise_is_as_strong_as_its_name_says(images, name, sd):
    """In steps of 1/255; every image has its own."""
    grain = CONDITIONS[name](images, 0).float() - images.float()
    assert float(grain.std()) == pytest.approx(sd, rel=0.06)
    assert not torch.equal(grain[0], grain[1])


def test_jpeg_is_pillows_own(images):
    """Quality 75, written and read."""
    buffer = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(CONDITIONS["jpeg75"](images, 0)[0].permute(1, 2, 0).numpy(), expected)


def test_light_on_paper():
    """115 % of 100 is 115; gamma 1.4 of a quarter of full light is .25^1.4."""
    grey = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert int(CONDITIONS["brighter"](grey, 0)[0, 0, 0, 0]) == 115
    quarter = torch.full((1, 3, 8, 8), 64, dtype=torch.uint8)
    assert int(CONDITIONS["gamma"](quarter, 0)[0, 0, 0, 0]) == round(255 * (64 / 255) ** 1.4)


def test_a_third_and_more_is_never_more_than_measured():
    """And no condition is in two uses."""
    assert sum(use == MEASURED for use in USES.values()) >= len(CONDITIONS) / 3
    assert not set(BENIGN) & set(PROMISED)


def test_what_can_be_done_to_images_of_any_channels():
    """Five channels are no picture: noise and resizing are left."""
    five = torch.randint(0, 256, (2, 5, 16, 16), dtype=torch.uint8)
    names = usable(CONDITIONS, 5)
    assert {CLEAN, "noise8", "resize"} <= set(names)
    assert not {"jpeg75", "palette64", "blur"} & set(names)
    for name in names:
        assert CONDITIONS[name](five, 0).shape == five.shape
    with pytest.raises(DataError, match="no condition 'fog'"):
        usable(("clean", "fog"), 3)
    with pytest.raises(DataError, match="5 channels"):
        CONDITIONS["jpeg75"](five, 0)
