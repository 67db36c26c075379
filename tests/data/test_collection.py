"""Files to batches: what is read, what is refused, and how it is brought to size."""

import numpy as np
import pytest
import torch
from PIL import Image

from advconn.data.collection import Collection
from advconn.data.labels import labels
from advconn.data.preprocessing import Preprocessing
from advconn.errors import DataError
from advconn.scoring.writers import save_images

LOOK = Preprocessing(size=(32, 32))


def pixels(h=32, w=32, c=3, seed=0):
    shape = (h, w, c) if c > 1 else (h, w)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def read(path, look=LOOK, channels=3):
    collection = Collection(path, channels)
    return collection.read(collection.items, look)


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path):
    """Bit for bit."""
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    batch = read(tmp_path / "a.png")
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), pixels())
    assert batch.resized == (False,)


def test_another_size_is_resized_and_cropped(tmp_path):
    """A flat 64 x 48 picture stays flat, and it is said that it was resized."""
    Image.new("RGB", (64, 48), (10, 200, 30)).save(tmp_path / "a.png")
    batch = read(tmp_path / "a.png")
    assert batch.resized == (True,)
    assert batch.images.shape == (1, 3, 32, 32)
    assert batch.images.flatten(2).float().mean(2)[0].tolist() == [10, 200, 30]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "LA", "CMYK"])
def test_other_modes_are_brought_to_rgb(tmp_path, mode):
    """Grey, palette, 16 bits, transparency (laid on white): a correct picture comes out."""
    grey = np.full((32, 32), 100, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([grey, grey, grey, np.zeros_like(grey)]))
    else:
        image = Image.fromarray(grey).convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    image.save(tmp_path / f"a.{suffix}")
    seen = read(tmp_path / f"a.{suffix}").images.float()
    expected = {"RGBA": 255.0, "1": seen.mean().item()}.get(mode, 100.0)
    assert seen.shape == (1, 3, 32, 32)
    assert float((seen.mean() - expected).abs()) <= 1


def test_a_camera_held_sideways_is_turned_upright(tmp_path):
    """By the EXIF orientation."""
    image = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png").images[0].permute(1, 2, 0).numpy(), pixels()[::-1, ::-1])


def bad_files(folder):
    (folder / "text.png").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("L", (9000, 8000)).save(folder / "huge.png")
    Image.fromarray(pixels(200, 200)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:5000])
    frames = [Image.fromarray(pixels(seed=i)) for i in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((32, 32), np.float32)).save(folder / "float.tif")
    nan = np.full((2, 32, 32, 3), np.nan)
    np.savez(folder / "nan.npz", images=nan)
    np.savez(folder / "dtype.npz", images=np.zeros((2, 32, 32, 3), np.int32))
    np.savez(folder / "shape.npz", images=np.zeros((2, 32, 32, 5), np.uint8))
    np.savez(folder / "nothing.npz", images=np.zeros((0, 32, 32, 3), np.uint8))
    np.savez(folder / "other.npz", pictures=np.zeros((2, 32, 32, 3), np.uint8))
    np.savez(folder / "labels.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.zeros(3, int))
    np.savez(folder / "objects.npz", images=np.array([{}, {}], dtype=object))
    (folder / "text.npz").write_text("not an archive")
    (folder / "none").mkdir()


BAD = {
    "text.png": "not an image",
    "empty.png": "empty file",
    "tiny.png": "too small",
    "huge.png": "72 megapixels",
    "cut.png": "cannot be read",
    "moving.gif": "animated, 3 frames",
    "float.tif": "8 or 16 bits",
    "nan.npz": "NaN",
    "dtype.npz": "int32",
    "shape.npz": "C 3",
    "nothing.npz": "no images",
    "other.npz": "no array 'images'",
    "labels.npz": "expected 2 integers",
    "objects.npz": "not a readable",
    "text.npz": "not a readable",
    "none": "no images",
    "absent.png": "no such file",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, name):
    """That names the file and says what was expected."""
    bad_files(tmp_path)
    with pytest.raises(DataError, match=BAD[name]) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_folders_sub_folders_are_labels(tmp_path):
    """By class name or index; an unknown name leaves all without."""
    for folder in ("cat", "1"):
        (tmp_path / "known" / folder).mkdir(parents=True)
        Image.fromarray(pixels()).save(tmp_path / "known" / folder / "a.png")
    found = Collection(tmp_path / "known")
    assert labels(found.items, ["dog", "horse", "cat"], 3).tolist() == [1, 2]
    assert labels(found.items, None, 3) is None
    assert labels(found.items, ["dog", "cat"], 1) is None


def test_an_npz_keeps_its_labels_and_its_grey_images(tmp_path):
    """(n, h, w) is one channel."""
    np.savez(tmp_path / "a.npz", images=np.stack([pixels(c=1), pixels(c=1, seed=1)]), labels=np.array([3, 1]))
    batch = read(tmp_path / "a.npz", channels=1)
    assert batch.images.shape == (2, 1, 32, 32)
    assert np.array_equal(batch.images[1, 0].numpy(), pixels(c=1, seed=1))
    assert labels(batch.items, None, 10).tolist() == [3, 1]


def test_a_sample_is_seeded_and_batches_cover_everything(tmp_path):
    """Each image once, in order."""
    np.savez(tmp_path / "a.npz", images=np.stack([pixels(seed=i) for i in range(10)]))
    rows = [item.row for batch in Collection(tmp_path / "a.npz", 3).batches(LOOK, batch_size=4) for item in batch.items]
    assert rows == list(range(10))
    first, again = (Collection(tmp_path / "a.npz", 3).sample(4, 1) for _ in range(2))
    assert [i.row for i in first.items] == [i.row for i in again.items]
    assert len(first) == 4


def test_saved_images_come_back_bit_for_bit_and_nothing_half_written_stays(tmp_path):
    """As PNG and as .npz; a failure leaves no folder."""
    images = torch.from_numpy(np.stack([pixels(), pixels(seed=1)])).permute(0, 3, 1, 2).float() / 255
    save_images(images, torch.tensor([1, 2]), ["a", "b"], tmp_path / "out")
    assert torch.equal(read(tmp_path / "out" / "b.png").images[0], (images[1] * 255).round().byte())
    assert torch.equal(read(tmp_path / "out" / "images.npz").images, (images * 255).round().byte())
    with pytest.raises(ValueError, match="shorter"):
        save_images(images, torch.tensor([1, 2]), ["a"], tmp_path / "failed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(("width", "height"), [(40, 71), (71, 40), (64, 64), (33, 200)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_another_size_is_brought_to_the_input_as_torchvision_does_it(width, height, interpolation, tmp_path):
    """Resize of the shorter side, then a centre crop, to the pixel."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    look = Preprocessing(size=(28, 28), resize=36, interpolation=interpolation)
    (batch,) = Collection(tmp_path / "a.png", 3).batches(look)
    theirs = Compose([Resize(36, InterpolationMode(interpolation)), CenterCrop(28)])(Image.fromarray(pixels))
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), np.asarray(theirs))


def test_channels_that_callers_still_give_are_taken(tmp_path):
    """As before preprocessing held them."""
    from advconn.data.input_conversion import read_all

    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    (batch,) = Collection(tmp_path / "a.png").batches(LOOK, 1)
    assert batch.images.shape == (1, 1, 32, 32)
    assert read_all(tmp_path / "a.png", LOOK, 1).shape == (1, 1, 32, 32)
