"""What a collection of images is made of: items, batches of them, and what cannot be read."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from advconn.errors import DataError


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
class Unread:
    """An image that cannot be read, and why."""

    item: Item
    error: DataError
