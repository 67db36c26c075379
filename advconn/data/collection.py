"""Images behind a path: a picture, a folder of any depth, or an array file, read a batch at a time, at one size."""

from __future__ import annotations

import bisect
import copy
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.data import arrays
from advconn.data.arrays import Archive
from advconn.data.containers import Packed, is_packed, open_packed
from advconn.data.decoding import View, can_open, content, frames_of, resize_array, size_of, views
from advconn.data.formats import HEAD, UNREAD, is_left_behind, is_named_picture, looks_like_picture, looks_unread
from advconn.data.prefetch import prefetch
from advconn.data.preprocessing import Preprocessing
from advconn.errors import DataError
from advconn.files import files_under, stat_mode


@dataclass(frozen=True)
class Item:
    """One image of a collection: its name, where it is, its row in which array, and its label where one is known.

    frame: its number in a file of so many `frames`.
    """

    name: str
    path: Path
    row: int | None = None
    label: str | None = None
    array: str = ""
    frame: int = 0
    frames: int = 1


class Items(Sequence[Item]):
    """Images by their number, each described when it is asked for: of a million little more than the names is held."""

    def __init__(self, *parts: tuple[int, Callable[[int], Item]]) -> None:
        """parts: how many images, and what describes each of them by its number among these."""
        self.parts = parts
        self._ends = list(itertools.accumulate(count for count, _ in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        i = index + len(self) if index < 0 else index
        if not 0 <= i < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self._ends, i)
        count, describe = self.parts[part]
        return describe(i - self._ends[part] + count)

    def __add__(self, other: Items) -> Items:
        return Items(*self.parts, *other.parts)


@dataclass(frozen=True)
class Batch:
    """Images (m, c, h, w) at the classifier's size, uint8 or float32 in [0, 1].

    Of each row its item, the (width, height) it came with, how it was read ('plain', 'upright', or 'array'), and how
    many other pictures its file holds that are not judged. An item that is read in two ways has two rows, one after
    the other.
    """

    items: tuple[Item, ...]
    images: Tensor
    given: tuple[tuple[int, int], ...]
    readings: tuple[str, ...]
    others: tuple[int, ...]

    @property
    def resized(self) -> tuple[bool, ...]:
        """Whether each came at another size."""
        return tuple(size != (self.images.shape[3], self.images.shape[2]) for size in self.given)


@dataclass(frozen=True)
class ReadFailure:
    """An image that cannot be read, and why."""

    item: Item
    error: DataError


SPLITS = re.compile(
    r"(train|training|trn|val|valid|validation|dev|test|testing|tst|eval|holdout)([ _-]?(set|data|split))?[ _-]?\d*"
)
DECODERS = 8  # threads that files are decoded by


@dataclass(frozen=True)
class Row:
    """A picture of an item: its pixels, the size it came with, how it was read, and other pictures in its file."""

    item: Item
    pixels: np.ndarray
    given: tuple[int, int]
    reading: str
    others: int = 0


class Collection:
    """All images behind a path, read only when they are asked for.

    `skipped` names files in a folder that are no images, `other_arrays` arrays of an archive that could be images and
    are not judged, and `failed` holds what a folder could not show.

    Args:
        path: a picture, a folder or an array file.
        channels: of the classifier's images: they decide how an array is laid out, and so how many images it holds.
            None for a classifier that is not known yet.
        reading: how pictures are read, see decoding.decode_variants.
        frames: of animations, 'first' or 'all'; None refuses them.

    Raises:
        DataError: nothing there, no image, or an array that holds none of so many channels.
    """

    def __init__(
        self, path: Path | str, channels: int | None = None, *, reading: str = "upright", frames: str | None = None
    ) -> None:
        self.path, self.channels, self.reading, self.frames = Path(path), channels, reading, frames
        self._archives: dict[str, Archive] = {}
        self._packed: Packed | None = None
        self.skipped: list[str] = []
        self.other_arrays: list[str] = []
        self.failed: list[DataError] = []
        kind = stat_mode(self.path)
        if stat.S_ISDIR(kind):
            self.items = self._folder()
        elif not stat.S_ISREG(kind):
            raise DataError(f"{self.path}: no regular file or folder; expected images")
        elif self.path.suffix.lower() in arrays.SUFFIXES:
            self.items = self._arrays()
        elif is_packed(self.path):
            self.items = self._unpacked()
        else:
            self.items = self._files(partial(_picture, None, [str(self.path)], 0), 1)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def arrays(self) -> list[str]:
        """Those of the skipped files that are array files."""
        return [name for name in self.skipped if Path(name).suffix.lower() in arrays.SUFFIXES]

    def _arrays(self) -> Items:
        """Every image in every array of images of an archive."""
        first = Archive(self.path, self.channels)
        self.other_arrays = [f"{self.path}[{name}]" for name in first.others]
        self._archives = {n: Archive(self.path, self.channels, n) if i else first for i, n in enumerate(first.names)}
        called = {n: f"{self.path}{f'[{n}]' * (len(first.names) > 1)}" for n in first.names}
        return Items(*((len(a), partial(_row, self.path, called[n], a, n)) for n, a in self._archives.items()))

    def _unpacked(self) -> Items:
        """Every picture in a zip or tar archive, or in a table."""
        held = self._packed = open_packed(self.path)
        self.skipped = [f"{self.path}[{name}]" for name in held.skipped]
        self.failed = [DataError(f"{self.path}[{name}]: {why}", f"{self.path}[{name}]") for name, why in held.failed]
        return self._files(partial(_member, held), len(held.names))

    def _content(self, item: Item) -> bytes:
        return content(item.path) if self._packed is None else self._packed.content(item.row or 0)

    def _folder(self) -> Items:
        """Every image in the folder and under it."""
        names = []
        for path in files_under(self.path, self.failed.append):
            head = b"" if is_named_picture(path.name) else _head(path)
            left = is_left_behind(path.name, head) and not _opens(path)
            if looks_unread(path.name, head):
                self.failed.append(DataError(f"{path}: {UNREAD}", str(path)))
            elif left:
                continue
            elif looks_like_picture(path.name, head):
                names.append(str(path.relative_to(self.path)))
            elif is_packed(path):
                self.failed.append(
                    DataError(f"{path}: an archive inside a folder is not opened: name it itself", str(path))
                )
            else:
                self.skipped.append(str(path))
        if not names:
            if self.failed:
                raise self.failed[0]
            hint = "; arrays are read where they are named themselves" * bool(self.arrays)
            raise DataError(f"{self.path}: no images in this folder or under it{hint}")
        above = _splits_above(names)
        return self._files(partial(_picture, self.path, names, above), len(names))

    def _files(self, describe: Callable[[int], Item], count: int) -> Items:
        """Files of pictures, each of which may have several frames that are judged; `describe` tells of each."""
        if self.frames != "all":
            return Items((count, describe))
        counts = []
        for item in map(describe, range(count)):
            try:
                counts.append(frames_of(self._content(item), item.name))
            except DataError as error:
                counts.append(0)
                self.failed.append(error)
        if not sum(counts):
            raise self.failed[0]
        ends = list(itertools.accumulate(counts))
        return Items((ends[-1], partial(_frame, describe, ends)))

    def for_channels(self, channels: int) -> Collection:
        """The same images as a classifier of so many channels takes them.

        Raises:
            DataError: an array that holds none of so many channels.
        """
        if not self._archives or self.channels == channels:
            return self
        return Collection(self.path, channels, reading=self.reading, frames=self.frames)

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
            return next(iter(self._archives.values())).size
        sizes: dict[tuple[int, int], str] = {}
        error: DataError | None = None
        for item in self.items[:100]:
            try:
                sizes.setdefault(size_of(self._content(item), item.name)[::-1], item.name)
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

    def read(self, items: Sequence[Item], preprocessing: Preprocessing) -> Batch:
        """These images, at the classifier's size.

        Args:
            items: some of the collection's.
            preprocessing: the classifier's.

        Raises:
            DataError: one cannot be read, or they are of several sizes.
        """
        results = self._tried(items, preprocessing)
        error = next((rows for rows in results if isinstance(rows, DataError)), None)
        if error is not None:
            raise error
        rows = [row for some in results if not isinstance(some, DataError) for row in some]
        if len({row.pixels.shape for row in rows}) > 1:
            raise DataError(
                f"{self.path}: images of several sizes, and the classifier's input size is not known: give --size HxW"
            )
        return _batch(rows)

    def _tried(self, items: Sequence[Item], preprocessing: Preprocessing) -> list[list[Row] | DataError]:
        """The rows of each item, or why it has none. Files are decoded side by side, archives from start to end."""
        if self._archives:
            return [self._array_row(item, preprocessing) for item in items]
        runs = _runs(items)
        decode = partial(self._decoded, preprocessing=preprocessing)
        found = (map if len(runs) == 1 else _decoders().map)(decode, runs)
        return [rows for some in found for rows in some]

    def suits(self, preprocessing: Preprocessing) -> None:
        """Refuse an array as a whole where none of its images can be used.

        Raises:
            DataError: as told.
        """
        for archive in self._archives.values():
            resize_array(np.broadcast_to(archive.dtype.type(0), (1, *archive.size)), preprocessing, str(self.path))

    def _array_row(self, item: Item, preprocessing: Preprocessing) -> list[Row] | DataError:
        try:
            array = self._archives[item.array].read(item.row or 0)
            return [Row(item, resize_array(array, preprocessing, item.name), (array.shape[2], array.shape[1]), "array")]
        except DataError as error:
            return error

    def _decoded(self, run: Sequence[Item], preprocessing: Preprocessing) -> list[list[Row] | DataError]:
        """The rows of items that are frames of one file, one after the other."""
        first, name = run[0], run[0].name if len(run) == 1 else str(run[0].path)
        several = (first.frame, first.frame + len(run), first.frames)
        frames = several if self.frames == "all" else self.frames
        try:
            found, others = views(self._content(first), name, preprocessing, self.reading, frames)
        except DataError as error:
            return [error] * len(run)
        return [
            ways
            if isinstance(ways, DataError)
            else [Row(item, w.pixels, w.given, w.reading, others * (item is first)) for w in ways]
            for item, ways in zip(run, found, strict=True)
        ]

    def batches(
        self,
        preprocessing: Preprocessing,
        channels: int | None = None,
        batch_size: int = 64,
        bad: Callable[[Item, DataError], None] | None = None,
    ) -> Iterator[Batch]:
        """The images in order.

        Args:
            preprocessing: the classifier's.
            channels: of the images, where not those of `preprocessing`; accepted for one version.
            batch_size: images at a time, at most.
            bad: told of an image that cannot be read, which is left out then; without it that raises DataError.
        """
        if channels is not None:
            preprocessing = replace(preprocessing, channels=channels)
        suited = self.for_channels(preprocessing.channels)
        for parts in prefetch(suited._parts(preprocessing, batch_size)):
            for part in parts:
                if isinstance(part, Batch):
                    yield part
                elif bad is None:
                    raise part.error
                else:
                    bad(part.item, part.error)

    def _parts(self, preprocessing: Preprocessing, batch_size: int) -> Iterator[list[Batch | ReadFailure]]:
        try:
            self.suits(preprocessing)
        except DataError as error:
            yield [ReadFailure(Item(str(self.path), self.path), error)]
            return
        for i in range(0, len(self.items), batch_size):
            yield self.some(self.items[i : i + batch_size], preprocessing)

    def some(self, items: Sequence[Item], preprocessing: Preprocessing) -> list[Batch | ReadFailure]:
        """These images as one batch, or as one of each size, and what cannot be read.

        Args:
            items: some of the collection's.
            preprocessing: the classifier's.
        """
        pairs = list(zip(items, self._tried(items, preprocessing), strict=True))
        rows = (row for _, some in pairs if not isinstance(some, DataError) for row in some)
        parts: list[Batch | ReadFailure] = [
            ReadFailure(item, some) for item, some in pairs if isinstance(some, DataError)
        ]
        return parts + [_batch(list(alike)) for _, alike in itertools.groupby(rows, lambda row: row.pixels.shape)]

    def without_items(self) -> Collection:
        """The same to read from, for another process: without the names of its images."""
        lean = copy.copy(self)
        lean.items, lean.skipped, lean.other_arrays, lean.failed = Items(), [], [], []
        return lean


def merge_collections(collections: Sequence[Collection]) -> list[Collection]:
    """The same images in the same order, with neighbours that are files or folders as one, so that batches are full."""
    out: list[Collection] = []
    for collection in collections:
        alone = (collection._archives, collection._packed, *((out[-1]._archives, out[-1]._packed) if out else ()))
        if out and not any(alone):
            last = out[-1] = copy.copy(out[-1])
            last.items += collection.items
            last.skipped, last.failed = last.skipped + collection.skipped, last.failed + collection.failed
        else:
            out.append(collection)
    return out


def read_picture(data: bytes, name: str, preprocessing: Preprocessing, reading: str) -> Batch:
    """The picture in a file's bytes, in one row or in two.

    Args:
        data: of the file.
        name: of the image.
        preprocessing: of the classifier.
        reading: see decoding.decode_variants.

    Raises:
        DataError: it cannot be read.
    """
    return batch_of(views(data, name, preprocessing, reading), name)


def batch_of(found: tuple[list[list[View] | DataError], int], name: str) -> Batch:
    """What decoding.views gives for a still picture, as a batch of one or two rows.

    Raises:
        DataError: it could not be read.
    """
    (ways,), others = found
    if isinstance(ways, DataError):
        raise ways
    item = Item(name, Path(name))
    return _batch([Row(item, way.pixels, way.given, way.reading, others) for way in ways])


def merge_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of images of one size as one, whose items are told apart also where they have the same name."""
    items = [replace(item, row=i) for i, batch in enumerate(batches) for item in batch.items]
    return Batch(
        tuple(items),
        torch.cat([batch.images for batch in batches]),
        tuple(given for batch in batches for given in batch.given),
        tuple(reading for batch in batches for reading in batch.readings),
        tuple(others for batch in batches for others in batch.others),
    )


def _batch(rows: Sequence[Row]) -> Batch:
    """Rows of one size together."""
    return Batch(
        tuple(row.item for row in rows),
        torch.from_numpy(np.stack([row.pixels for row in rows])),
        tuple(row.given for row in rows),
        tuple(row.reading for row in rows),
        tuple(row.others for row in rows),
    )


def _runs(items: Sequence[Item]) -> list[list[Item]]:
    """Items in groups of frames of one file that follow one another."""
    runs: list[list[Item]] = []
    for item in items:
        before = runs[-1][-1] if runs else None
        if before and item.frame and (item.path, item.row, item.frame - 1) == (before.path, before.row, before.frame):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _opens(path: Path) -> bool:
    """Whether some format opens a file; one that cannot be read is none that a system left."""
    try:
        return can_open(content(path))
    except DataError:
        return True


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read, which is told when it is judged."""
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""


@lru_cache(maxsize=1)
def _decoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1), "advconn-decoder")


def _splits_above(names: Sequence[str]) -> int:
    """How many levels of folders are no classes but parts of a data set, such as train and val."""
    parts = [Path(name).parts[:-1] for name in names]
    firsts = {part[0].lower() if part else "" for part in parts}
    return int(all(map(SPLITS.fullmatch, firsts)) and any(len(part) > 1 for part in parts))


def _picture(root: Path | None, names: Sequence[str], above: int, i: int) -> Item:
    """A file; the name of its first folder under the root, or under so many levels, is its label (ImageFolder)."""
    if root is None:
        return Item(names[i], Path(names[i]))
    path, below = root / names[i], Path(names[i]).parts[above:-1]
    return Item(str(path), path, label=below[0] if below else None)


def _member(held: Packed, i: int) -> Item:
    """A picture of a packed file."""
    return Item(f"{held.path}[{held.names[i]}]", held.path, i, held.labels[i])


def _frame(describe: Callable[[int], Item], ends: Sequence[int], i: int) -> Item:
    """A frame of a file, by its number among those of all files; `ends`: how many frames there are up to each file."""
    number = bisect.bisect_right(ends, i)
    item, frame = describe(number), i - (ends[number - 1] if number else 0)
    count = ends[number] - (ends[number - 1] if number else 0)
    return replace(item, name=f"{item.name}[frame {frame}]" if frame else item.name, frame=frame, frames=count)


def _row(path: Path, called: str, archive: Archive, array: str, i: int) -> Item:
    return Item(f"{called}[{i}]", path, i, _label(archive, i), array)


def _label(archive: Archive, row: int) -> str | None:
    return None if archive.labels is None else str(archive.labels[row])
