"""Images from files: an image, a folder, or an .npz, read a batch at a time and brought to a classifier's input."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from advconn.classifier import Preprocessing
from advconn.errors import DataError
from advconn.files import writing

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SMALLEST = 8
LARGEST = 2**25  # pixels: 33 million
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Item:
    """One image of a collection: its name, where it is, its row in an .npz, and its label where one is known."""

    name: str
    path: Path
    row: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class Batch:
    """Images (n, c, h, w) uint8 at the classifier's size, their items, and whether each came at another size."""

    items: tuple[Item, ...]
    images: Tensor
    resized: tuple[bool, ...]


class Archive:
    """The images of an .npz: `images` uint8 (n, h, w, c) or (n, h, w), optional `labels` (n,)."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as data:
                if "images" not in data:
                    raise DataError(f"{path}: no array 'images' (found: {', '.join(data.files) or 'nothing'})")
                self.images, labels = data["images"], data.get("labels")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: not a readable .npz of arrays: {_line(error)}") from error
        if self.images.dtype != np.uint8:
            bad = ", with NaN in it" if self.images.dtype.kind == "f" and np.isnan(self.images).any() else ""
            raise DataError(f"{path}: images are {self.images.dtype}{bad}; expected uint8, n x H x W x C")
        if self.images.ndim == 3:
            self.images = self.images[..., None]
        if self.images.ndim != 4 or self.images.shape[3] not in (1, 3):
            raise DataError(f"{path}: images have shape {self.images.shape}; expected n x H x W x C with C 1 or 3")
        if not len(self.images):
            raise DataError(f"{path}: holds no images")
        if labels is not None and (labels.shape != self.images.shape[:1] or labels.dtype.kind not in "iu"):
            raise DataError(f"{path}: labels are {labels.dtype} {labels.shape}; expected {len(self.images)} integers")
        self.labels = labels


class Collection:
    """All images behind a path, read only when they are asked for.

    Raises:
        DataError: nothing there, or no image.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._archive: Archive | None = None
        if not self.path.exists():
            raise DataError(f"{self.path}: no such file or folder")
        if self.path.is_dir():
            self.items = _folder(self.path)
        elif self.path.suffix.lower() == ".npz":
            self._archive = Archive(self.path)
            labels = self._archive.labels
            self.items = tuple(
                Item(f"{self.path}[{i}]", self.path, i, None if labels is None else str(labels[i]))
                for i in range(len(self._archive.images))
            )
        else:
            self.items = (Item(str(self.path), self.path),)

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, limit: int | None, seed: int = 0) -> Collection:
        """At most `limit` of the images, picked at random."""
        if limit is not None and limit < len(self.items):
            kept = np.random.default_rng(seed).permutation(len(self.items))[:limit]
            self.items = tuple(self.items[i] for i in sorted(kept))
        return self

    def size(self) -> tuple[int, int]:
        """(height, width) of the first image."""
        return self._picture(self.items[0], 3).size[::-1]

    def _picture(self, item: Item, channels: int) -> Image.Image:
        if item.row is None:
            return picture(item.path, channels)
        array = self._archive.images[item.row] if self._archive is not None else np.zeros((1, 1, 1), np.uint8)
        return _checked(Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array), item.name, channels)

    def read(self, items: Sequence[Item], preprocessing: Preprocessing, channels: int) -> Batch:
        """These images, at the classifier's size."""
        pictures = [self._picture(item, channels) for item in items]
        fitted = [_fit(p, preprocessing, item.name) for p, item in zip(pictures, items, strict=True)]
        arrays = [np.asarray(p).reshape(p.size[1], p.size[0], channels) for p in fitted]
        if len({a.shape for a in arrays}) > 1:
            raise DataError(f"{self.path}: images of several sizes, and the classifier's input size is not known")
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return Batch(tuple(items), images, tuple(a.size != b.size for a, b in zip(pictures, fitted, strict=True)))

    def batches(
        self,
        preprocessing: Preprocessing,
        channels: int,
        batch_size: int = 64,
        bad: Callable[[DataError], None] | None = None,
    ) -> Iterator[Batch]:
        """The images in order, at most `batch_size` at a time.

        An image that cannot be read raises, or, where `bad` is given, is told to it and left out.
        """
        for i in range(0, len(self.items), batch_size):
            items = self.items[i : i + batch_size]
            try:
                yield self.read(items, preprocessing, channels)
                continue
            except DataError as error:
                if bad is None:
                    raise
                if len(items) == 1:
                    bad(error)
                    continue
            yield from self._singly(items, preprocessing, channels, bad)

    def _singly(
        self, items: Sequence[Item], preprocessing: Preprocessing, channels: int, bad: Callable[[DataError], None]
    ) -> Iterator[Batch]:
        for item in items:
            try:
                yield self.read([item], preprocessing, channels)
            except DataError as error:
                bad(error)


def labels(items: Sequence[Item], class_names: Sequence[str] | None, num_classes: int) -> Tensor | None:
    """True labels (n,) where every item's is a class index or a known class name, else None."""
    names = {name: i for i, name in enumerate(class_names or ())}
    found = []
    for item in items:
        if item.label is None:
            return None
        index = names.get(item.label, int(item.label) if item.label.isdecimal() else -1)
        if not 0 <= index < num_classes:
            return None
        found.append(index)
    return torch.tensor(found)


def _folder(path: Path) -> tuple[Item, ...]:
    def images(folder: Path) -> list[Path]:
        return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())

    items = [Item(str(p), p) for p in images(path)]
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        items += [Item(str(p), p, label=folder.name) for p in images(folder)]
    if not items:
        raise DataError(f"{path}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return tuple(items)


def picture(path: Path, channels: int = 3) -> Image.Image:
    """One still image from a file, upright, with this many channels; transparency is laid on white.

    Raises:
        DataError: no image, damaged, animated, smaller than 8 pixels a side or larger than 33 megapixels.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview behind the picture
                raise DataError(f"{path}: animated, {frames} frames; expected a still image: extract a frame")
            _check_size(image, str(path))
            image.load()
            return _checked(ImageOps.exif_transpose(image), str(path), channels)
    except UnidentifiedImageError:
        kind = "not an image" if path.stat().st_size else "an empty file"
        raise DataError(f"{path}: {kind}; expected PNG, JPEG, WebP, ...") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise DataError(f"{path}: cannot be read as an image: {_line(error)}") from error


def _check_size(image: Image.Image, name: str) -> None:
    w, h = image.size
    if min(w, h) < SMALLEST:
        raise DataError(f"{name}: {w} x {h} pixels is too small to judge; expected {SMALLEST} or more a side")
    if w * h > LARGEST:
        raise DataError(f"{name}: {w * h / 1e6:.0f} megapixels; expected {LARGEST / 1e6:.0f} or fewer: resize it first")


def _checked(image: Image.Image, name: str, channels: int) -> Image.Image:
    _check_size(image, name)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" or values.max(initial=0) > 65535 or values.min(initial=0) < 0:
            raise DataError(f"{name}: {image.mode} pixels; expected 8 or 16 bits a channel")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    if channels not in _MODES:
        raise DataError(f"{name}: the model takes {channels} channels; images from files have 1 or 3")
    return image.convert(_MODES[channels])


def _fit(image: Image.Image, preprocessing: Preprocessing, name: str) -> Image.Image:
    """An image of exactly the input size as it is; another resized and cropped as torchvision's transforms do it.

    By Pillow, which they call too: importing torchvision takes longer than judging an image.
    """
    size = preprocessing.size
    if size is None or image.size == (size[1], size[0]):
        return image
    short = preprocessing.resize or min(size)
    w, h = image.size
    if short * max(w, h) / min(w, h) > 8192:
        raise DataError(f"{name}: {w} x {h} is too elongated for a classifier of {size[0]} x {size[1]}")
    target = (size[1], size[0])
    if size[0] == size[1]:
        target = (short, short * h // w) if w <= h else (short * w // h, short)
    resized = image.resize(target, Image.Resampling[preprocessing.interpolation.partition("-")[0].upper()])
    left, top = round((target[0] - size[1]) / 2), round((target[1] - size[0]) / 2)
    return resized.crop((left, top, left + size[1], top + size[0]))


def save(images: Tensor, labels: Tensor, names: Sequence[str], folder: Path) -> None:
    """Write images (n, c, h, w) in [0, 1] as lossless PNG files and as images.npz, the folder appearing only whole."""
    array = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    with writing(folder) as partial:
        for picture_, name in zip(array, names, strict=True):
            Image.fromarray(picture_.squeeze(-1) if picture_.shape[2] == 1 else picture_).save(partial / f"{name}.png")
        np.savez_compressed(partial / "images.npz", images=array, labels=labels.cpu().numpy())


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
