"""Images behind a path: a picture, a folder of any depth, or an array file, read a batch at a time, at one size."""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advconn import arrays
from advconn.arrays import Archive
from advconn.errors import DataError
from advconn.files import files_under, kind_of, writing
from advconn.layout import layout
from advconn.pictures import SUFFIXES, fitted, is_picture, opened, pixels_of, readings, sized
from advconn.pictures import picture as picture  # of the public name
from advconn.preprocessing import Preprocessing

JUNK = {"thumbs.db", "desktop.ini", ".ds_store"}  # known to lie in folders of images, and to be none
LONGEST_NAME = 200  # bytes of a file's name that is written


@dataclass(frozen=True)
class Item:
    """One image of a collection: its name, where it is, its row in which array, and its label where one is known."""

    name: str
    path: Path
    row: int | None = None
    label: str | None = None
    array: str = ""


@dataclass(frozen=True)
class Batch:
    """Images (m, c, h, w) at the classifier's size, uint8 or float32 in [0, 1].

    Of each row its item, the (width, height) it came with, and how it was read: 'plain', 'upright', or 'array'. An item
    that is read in two ways has two rows, one after the other.
    """

    items: tuple[Item, ...]
    images: Tensor
    given: tuple[tuple[int, int], ...]
    readings: tuple[str, ...]

    @property
    def resized(self) -> tuple[bool, ...]:
        """Whether each came at another size."""
        return tuple(size != (self.images.shape[3], self.images.shape[2]) for size in self.given)


class Collection:
    """All images behind a path, read only when they are asked for.

    `skipped` names files in a folder that are no images; `failed` holds what a folder could not show.

    Args:
        path: a picture, a folder or an array file.
        reading: how pictures are read, see pictures.readings.
        frames: of animations, 'first' or 'all'; None refuses them.

    Raises:
        DataError: nothing there, or no image.
    """

    def __init__(self, path: Path | str, *, reading: str = "upright", frames: str | None = None) -> None:
        self.path, self.reading, self.frames = Path(path), reading, frames
        self._archives: dict[str, Archive] = {}
        self.skipped: list[str] = []
        self.failed: list[DataError] = []
        kind = kind_of(self.path)
        if stat.S_ISDIR(kind):
            self.items = self._folder()
        elif not stat.S_ISREG(kind):
            raise DataError(f"{self.path}: no regular file or folder; expected images")
        elif self.path.suffix.lower() in arrays.SUFFIXES:
            first = Archive(self.path)
            names = first.names
            self._archives = {n: Archive(self.path, n) if i else first for i, n in enumerate(names)}
            self.items = tuple(
                Item(f"{self.path}{f'[{name}]' * (len(names) > 1)}[{i}]", self.path, i, _label(archive, i), name)
                for name, archive in self._archives.items()
                for i in range(len(archive))
            )
        else:
            self.items = (Item(str(self.path), self.path),)

    def __len__(self) -> int:
        return len(self.items)

    def _folder(self) -> tuple[Item, ...]:
        """Every image in the folder and under it; the name of the first folder is the label, as ImageFolder has it."""
        items = []
        for path in files_under(self.path, self.failed.append):
            parts = path.relative_to(self.path).parts
            if path.suffix.lower() in SUFFIXES or is_picture(path):
                if path.name.startswith("._") and not is_picture(path):
                    continue  # what a Mac keeps beside a file
                items.append(Item(str(path), path, label=parts[0] if len(parts) > 1 else None))
            elif path.name.lower() not in JUNK and not path.name.startswith("._"):
                self.skipped.append(str(path))
        if not items:
            if self.failed:
                raise self.failed[0]
            raise DataError(f"{self.path}: no images in this folder or under it")
        return tuple(items)

    def sample(self, limit: int | None, seed: int = 0) -> Collection:
        """At most `limit` of the images, picked at random."""
        chosen = copy.copy(self)
        if limit is not None and limit < len(self.items):
            kept = np.random.default_rng(seed).permutation(len(self.items))[:limit]
            chosen.items = tuple(self.items[i] for i in sorted(kept))
        return chosen

    def size(self) -> tuple[int, int]:
        """(height, width) of the images.

        Raises:
            DataError: they differ in the first hundred, or none can be read.
        """
        if self._archives:
            return next(iter(self._archives.values())).size()
        found: dict[tuple[int, int], str] = {}
        error: DataError | None = None
        for item in self.items[:100]:
            try:
                for image in opened(item.path, "first"):
                    found.setdefault(image.size[::-1], item.name)
            except DataError as caught:
                error = error or caught
        if not found:
            raise error or DataError(f"{self.path}: no images")
        if len(found) > 1:
            (h, w), (h2, w2) = list(found)[:2]
            raise DataError(
                f"{self.path}: images of several sizes ({w} x {h} and {w2} x {h2}), and the classifier states no input "
                "size: give it with --size HxW"
            )
        return next(iter(found))

    def read(self, items: Sequence[Item], preprocessing: Preprocessing, channels: int) -> Batch:
        """These images, at the classifier's size; each is brought to it as soon as it is read."""
        rows = [row for item in items for row in self._rows(item, preprocessing, channels)]
        if len({row[1].shape for row in rows}) > 1:
            raise DataError(
                f"{self.path}: images of several sizes, and the classifier's input size is not known: give --size HxW"
            )
        images = torch.from_numpy(np.stack([row[1] for row in rows]))
        return Batch(tuple(r[0] for r in rows), images, tuple(r[2] for r in rows), tuple(r[3] for r in rows))

    def _suits(self, preprocessing: Preprocessing, channels: int) -> None:
        """Refuse an array as a whole where none of its images can be used."""
        for archive in self._archives.values():
            axes = layout(archive.shape, channels, str(self.path)).axes
            sides = [archive.shape[axes.index(side)] for side in "hw"]
            sized(np.broadcast_to(archive.dtype.type(0), (1, *sides)), preprocessing, str(self.path))

    def _rows(
        self, item: Item, preprocessing: Preprocessing, channels: int
    ) -> Iterator[tuple[Item, np.ndarray, tuple[int, int], str]]:
        if item.row is not None:
            array = self._archives[item.array].read(item.row, channels)
            yield item, sized(array, preprocessing, item.name), (array.shape[2], array.shape[1]), "array"
            return
        for frame, image in enumerate(opened(item.path, self.frames)):
            named = replace(item, name=f"{item.name}[frame {frame}]") if self.frames == "all" and frame else item
            ways: dict[str, tuple[np.ndarray, tuple[int, int]]] = {}
            for way, made in readings(image, item.name, channels, self.reading).items():
                ways[way] = pixels_of(fitted(made, preprocessing, item.name), channels), made.size
            if len(ways) == 2 and np.array_equal(ways["plain"][0], ways["upright"][0]):
                del ways["upright"]
            for way, (pixels, size) in ways.items():
                yield named, pixels, size, way

    def batches(
        self,
        preprocessing: Preprocessing,
        channels: int,
        batch_size: int = 64,
        bad: Callable[[Item, DataError], None] | None = None,
    ) -> Iterator[Batch]:
        """The images in order, at most `batch_size` at a time.

        An image that cannot be read raises, or, where `bad` is given, is told to it and left out.
        """
        try:
            self._suits(preprocessing, channels)
        except DataError as error:
            if bad is None:
                raise
            bad(Item(str(self.path), self.path), error)
            return
        for i in range(0, len(self.items), batch_size):
            items = self.items[i : i + batch_size]
            try:
                yield self.read(items, preprocessing, channels)
                continue
            except DataError as error:
                if bad is None:
                    raise
                if len(items) == 1:
                    bad(items[0], error)
                    continue
            for item in items:
                try:
                    yield self.read([item], preprocessing, channels)
                except DataError as error:
                    bad(item, error)


def joined(collections: Sequence[Collection]) -> list[Collection]:
    """The same images in the same order, with neighbours that are files or folders as one, so that batches are full."""
    out: list[Collection] = []
    for one in collections:
        if out and not out[-1]._archives and not one._archives:
            last = out[-1] = copy.copy(out[-1])
            last.items += one.items
            last.skipped, last.failed = last.skipped + one.skipped, last.failed + one.failed
        else:
            out.append(one)
    return out


def _label(archive: Archive, row: int) -> str | None:
    return None if archive.labels is None else str(archive.labels[row])


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
    return torch.tensor(found, dtype=torch.int64, device="cpu")


def save(images: Tensor, labels: Tensor, names: Sequence[str], folder: Path, *, floats: bool = False) -> None:
    """Write images (n, c, h, w) in [0, 1] as lossless PNG files and as images.npz, the folder appearing only whole.

    With `floats` the .npz holds them as they are, in float32, and no PNG is written: bytes would round them.
    """
    plain = images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    array = plain.astype(np.float32) if floats else (plain * 255).round().astype(np.uint8)
    with writing(folder) as partial:
        for pixels, name in zip(array, names, strict=True):
            if not floats:
                image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)
                image.save(partial / f"{_short(name)}.png")
        np.savez_compressed(partial / "images.npz", images=array, labels=labels.cpu().numpy())


def _short(name: str) -> str:
    """A name that every file system takes."""
    return os.fsencode(name)[:LONGEST_NAME].decode(errors="ignore")
