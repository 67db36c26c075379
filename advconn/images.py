"""Images behind a path: a picture, a folder of any depth, or an array file, read a batch at a time, at one size."""

from __future__ import annotations

import copy
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from advconn import arrays
from advconn.ahead import ahead
from advconn.arrays import Archive
from advconn.errors import DataError
from advconn.files import files_under, kind_of
from advconn.items import Batch, Item, Items, Unread
from advconn.layout import layout
from advconn.pictures import SUFFIXES, fitted, is_picture, opened, pixels_of, readings, sized
from advconn.preprocessing import Preprocessing

Row = tuple[Item, np.ndarray, tuple[int, int], str]  # an image, its pixels, the size it came with, how it was read
DECODERS = 8  # threads that files are decoded by
JUNK = {"thumbs.db", "desktop.ini", ".ds_store"}  # known to lie in folders of images, and to be none


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
            called = {n: f"{self.path}{f'[{n}]' * (len(names) > 1)}" for n in names}
            self.items = Items(
                *((len(a), partial(_row, self.path, called[n], a, n)) for n, a in self._archives.items())
            )
        else:
            self.items = Items((1, partial(_picture, None, [str(self.path)])))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def arrays(self) -> list[str]:
        """Those of the skipped files that are array files."""
        return [name for name in self.skipped if Path(name).suffix.lower() in arrays.SUFFIXES]

    def _folder(self) -> Items:
        """Every image in the folder and under it."""
        names = []
        for path in files_under(self.path, self.failed.append):
            if path.suffix.lower() in SUFFIXES or is_picture(path):
                if path.name.startswith("._") and not is_picture(path):
                    continue  # what a Mac keeps beside a file
                names.append(str(path.relative_to(self.path)))
            elif path.name.lower() not in JUNK and not path.name.startswith("._"):
                self.skipped.append(str(path))
        if not names:
            if self.failed:
                raise self.failed[0]
            hint = "; arrays are read where they are named themselves" * bool(self.arrays)
            raise DataError(f"{self.path}: no images in this folder or under it{hint}")
        return Items((len(names), partial(_picture, self.path, names)))

    def sample(self, limit: int | None, seed: int = 0) -> Collection:
        """At most `limit` of the images, picked at random."""
        chosen = copy.copy(self)
        if limit is not None and limit < len(self.items):
            kept = np.random.default_rng(seed).permutation(len(self.items))[:limit]
            few = [self.items[i] for i in sorted(kept)]
            chosen.items = Items((len(few), few.__getitem__))
        return chosen

    def size(self) -> tuple[int, int]:
        """(height, width) of the images.

        Raises:
            DataError: they differ in the first hundred, or none can be read.
        """
        if self._archives:
            return next(iter(self._archives.values())).size()
        sizes: dict[tuple[int, int], str] = {}
        error: DataError | None = None
        for item in self.items[:100]:
            try:
                for image in opened(item.path, "first"):
                    sizes.setdefault(image.size[::-1], item.name)
            except DataError as caught:
                error = error or caught
        if not sizes:
            raise error or DataError(f"{self.path}: no images")
        if len(sizes) > 1:
            (h, w), (h2, w2) = list(sizes)[:2]
            raise DataError(
                f"{self.path}: images of several sizes ({w} x {h} and {w2} x {h2}), and the classifier states no input "
                "size: give it with --size HxW"
            )
        return next(iter(sizes))

    def read(self, items: Sequence[Item], preprocessing: Preprocessing, channels: int) -> Batch:
        """These images, at the classifier's size.

        Args:
            items: some of the collection's.
            preprocessing: the classifier's.
            channels: that it takes.

        Raises:
            DataError: one cannot be read, or they are of several sizes.
        """
        results = self._tried(items, preprocessing, channels)
        error = next((rows for rows in results if isinstance(rows, DataError)), None)
        if error is not None:
            raise error
        rows = [row for some in results if not isinstance(some, DataError) for row in some]
        if len({row[1].shape for row in rows}) > 1:
            raise DataError(
                f"{self.path}: images of several sizes, and the classifier's input size is not known: give --size HxW"
            )
        return _batch(rows)

    def _tried(self, items: Sequence[Item], preprocessing: Preprocessing, channels: int) -> list[list[Row] | DataError]:
        """The rows of each item, or why it has none. Files are decoded side by side, archives from start to end."""

        def rows(item: Item) -> list[Row] | DataError:
            try:
                return list(self._rows(item, preprocessing, channels))
            except DataError as error:
                return error

        return list((map if self._archives or len(items) == 1 else _decoders().map)(rows, items))

    def suits(self, preprocessing: Preprocessing, channels: int) -> None:
        """Refuse an array as a whole where none of its images can be used.

        Raises:
            DataError: as told.
        """
        for archive in self._archives.values():
            axes = layout(archive.shape, channels, str(self.path)).axes
            sides = [archive.shape[axes.index(side)] for side in "hw"]
            sized(np.broadcast_to(archive.dtype.type(0), (1, *sides)), preprocessing, str(self.path))

    def _rows(self, item: Item, preprocessing: Preprocessing, channels: int) -> Iterator[Row]:
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
        """The images in order.

        Args:
            preprocessing: the classifier's.
            channels: that it takes.
            batch_size: images at a time, at most.
            bad: told of an image that cannot be read, which is left out then; without it that raises DataError.
        """
        for parts in ahead(self._parts(preprocessing, channels, batch_size)):
            for part in parts:
                if isinstance(part, Batch):
                    yield part
                elif bad is None:
                    raise part.error
                else:
                    bad(part.item, part.error)

    def _parts(self, preprocessing: Preprocessing, channels: int, batch_size: int) -> Iterator[list[Batch | Unread]]:
        try:
            self.suits(preprocessing, channels)
        except DataError as error:
            yield [Unread(Item(str(self.path), self.path), error)]
            return
        for i in range(0, len(self.items), batch_size):
            yield self.some(self.items[i : i + batch_size], preprocessing, channels)

    def some(self, items: Sequence[Item], preprocessing: Preprocessing, channels: int) -> list[Batch | Unread]:
        """These images as one batch, or as one of each size, and what cannot be read.

        Args:
            items: some of the collection's.
            preprocessing: the classifier's.
            channels: that it takes.
        """
        pairs = list(zip(items, self._tried(items, preprocessing, channels), strict=True))
        rows = (row for _, some in pairs if not isinstance(some, DataError) for row in some)
        parts: list[Batch | Unread] = [Unread(item, some) for item, some in pairs if isinstance(some, DataError)]
        return parts + [_batch(list(alike)) for _, alike in itertools.groupby(rows, lambda row: row[1].shape)]

    def without_items(self) -> Collection:
        """The same to read from, for another process: without the names of its images."""
        lean = copy.copy(self)
        lean.items, lean.skipped, lean.failed = Items(), [], []
        return lean


def joined(collections: Sequence[Collection]) -> list[Collection]:
    """The same images in the same order, with neighbours that are files or folders as one, so that batches are full."""
    out: list[Collection] = []
    for collection in collections:
        if out and not out[-1]._archives and not collection._archives:
            last = out[-1] = copy.copy(out[-1])
            last.items += collection.items
            last.skipped, last.failed = last.skipped + collection.skipped, last.failed + collection.failed
        else:
            out.append(collection)
    return out


def _batch(rows: Sequence[Row]) -> Batch:
    """Rows of one size together."""
    images = torch.from_numpy(np.stack([row[1] for row in rows]))
    return Batch(tuple(r[0] for r in rows), images, tuple(r[2] for r in rows), tuple(r[3] for r in rows))


@lru_cache(maxsize=1)
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1), "advconn-decoder")


def _picture(root: Path | None, names: Sequence[str], i: int) -> Item:
    """A file; the name of the first folder under the root is its label, as ImageFolder has it."""
    if root is None:
        return Item(names[i], Path(names[i]))
    path, (first, *more) = root / names[i], Path(names[i]).parts
    return Item(str(path), path, label=first if more else None)


def _row(path: Path, called: str, archive: Archive, array: str, i: int) -> Item:
    return Item(f"{called}[{i}]", path, i, _label(archive, i), array)


def _label(archive: Archive, row: int) -> str | None:
    return None if archive.labels is None else str(archive.labels[row])
