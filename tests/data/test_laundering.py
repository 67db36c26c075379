"""Ways of saving: what is said to survive is what the files show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from advconn.cli import main
from advconn.data.conditions import BENIGN, CONDITIONS, TRAINED_LAUNDERINGS
from advconn.data.laundering import LAUNDERINGS, parse_laundering
from advconn.errors import DataError

CAT = Path(__file__).parents[1] / "images" / "cat.png"
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)).astype(np.uint8))


@pytest.mark.parametrize("name", [*LAUNDERINGS, *TRAINED_LAUNDERINGS])
def test_a_way_of_saving_gives_images_of_the_same_kind(name):
    """Of the same size, changed, and the same each time; of no image none."""
    way = parse_laundering(name)
    out = way.change(IMAGES, 0)
    assert (out.shape, out.dtype) == (IMAGES.shape, torch.uint8)
    assert not torch.equal(out, IMAGES)
    assert torch.equal(out, way.change(IMAGES, 0))
    assert len(way.change(IMAGES[:0], 0)) == 0
    if name in CONDITIONS:
        assert torch.equal(out, CONDITIONS[name](IMAGES, 0))


def test_qualities_that_are_tested_are_not_trained_on():
    """Else a figure would tell how well a quality is known."""
    assert set(LAUNDERINGS) & set(BENIGN) == {"noise4"}  # noise loses no detail that a quality could
    assert set(TRAINED_LAUNDERINGS) < set(BENIGN)
    assert parse_laundering("jpeg33").quality == 33
    for name in ("jpeg0", "jpeg101", "jpeg", "png", "jpg75"):
        with pytest.raises(DataError, match="no way of saving"):
            parse_laundering(name)


@pytest.mark.parametrize(("way", "suffix"), [("jpeg75", ".jpg"), ("webp80", ".webp"), ("screenshot", ".png")])
def test_attack_writes_what_it_counts(way, suffix, tmp_path):
    """The files, the array and the count of survivors agree; what is scored is what the file shows."""
    images = np.stack([np.array(Image.open(CAT).convert("RGB").resize((32, 32)))] * 2)
    np.savez(tmp_path / "in.npz", images=images)
    line = ["attack", "--detector", "cifar10", "--attack", "pgd:eps=8/255,steps=5", "--data", str(tmp_path / "in.npz")]
    out = CliRunner().invoke(main, [*line, "--save-as", way, "--out", str(tmp_path / "out")])
    assert out.exit_code == 0, out.output
    files = sorted((tmp_path / "out").glob(f"*{suffix}"))
    with np.load(tmp_path / "out" / "images.npz") as held:
        shown = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
        assert np.array_equal(shown, held["images"])
        assert f"saved as {way}, {int(held['succeeded'].sum())} of these" in out.output
    refused = CliRunner().invoke(main, [*line, "--save-as", way, "--float", "--out", str(tmp_path / "no")])
    assert (refused.exit_code, (tmp_path / "no").exists()) == (2, False)
    refused = CliRunner().invoke(main, [*line, "--save-as", "jpg75", "--out", str(tmp_path / "no")])
    assert (refused.exit_code, "did you mean jpeg75" in refused.output) == (2, True)
