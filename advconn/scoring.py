"""Images of collections judged a step at a time: what is written at once, gone on from, and sent to other processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advconn.ahead import ahead
from advconn.detector import Detector
from advconn.errors import DataError
from advconn.images import Collection
from advconn.items import Batch, Item, Unread
from advconn.report import records
from advconn.runner import Runner

Place = tuple[int, int]  # which collection, and which of its images
NOWHERE: Place = (-1, 0)


@dataclass(frozen=True)
class Said:
    """The record of an image, where it stands, and whether it came at another size."""

    place: Place
    record: dict[str, Any]
    resized: bool = False


class Steps:
    """All images of collections, in order, in steps of so many that go through the detector together.

    What could not be opened is a step of its own before them, and what a folder could not show one after them.

    Args:
        refused: paths that could not be opened, and why.
        full: walk every stage for every image.
        runner: where the steps are done; in this process the next images are read while those before are judged.
    """

    def __init__(
        self,
        detector: Detector,
        collections: Sequence[Collection],
        refused: Sequence[tuple[str, DataError]] = (),
        *,
        full: bool = False,
        runner: Runner | None = None,
    ) -> None:
        self.detector, self.collections, self.refused, self.full = detector, collections, refused, full
        self.runner = Runner() if runner is None else runner.carrying(detector)
        classifier = detector.connectivity.classifier
        self.look = classifier.preprocessing, classifier.channels
        h, w = classifier.preprocessing.size or (32, 32)
        self.size = detector.cascade_.block(classifier.channels * h * w)

    def run(self, after: int = 0) -> Iterator[list[Said]]:
        """What each step said; the first `after` are left out."""
        steps = (step for i, step in enumerate(self._steps()) if i >= after)
        if not self.runner.alone:
            calls = ((self.detector, *step, self.look, self.full) for step in steps)
            yield from self.runner.spread(_step, calls)
            return
        for place, items, parts in ahead(
            (start, items, _parts(where, items, self.look)) for where, start, items in steps
        ):
            yield judged(self.detector, place, items, parts, self.full)

    def _steps(self) -> Iterator[tuple[Collection | DataError, Place, tuple[Item, ...]]]:
        for path, error in self.refused:
            yield _failure(path, error)
        for number, collection in enumerate(self.collections):
            try:
                collection.suits(*self.look)
            except DataError as error:
                yield _failure(str(collection.path), error)
                continue
            lean = collection if self.runner.alone else collection.without_items()
            for first in range(0, len(collection.items), self.size):
                items = collection.items[first : first + self.size]
                if not self.runner.alone:  # other processes may stand in another folder
                    items = tuple(replace(item, path=item.path.absolute()) for item in items)
                yield lean, (number, first), items
        for hidden in (hidden for collection in self.collections for hidden in collection.failed):
            yield _failure(str(hidden).partition(": ")[0], hidden)


def _failure(name: str, error: DataError) -> tuple[DataError, Place, tuple[Item]]:
    return error, NOWHERE, (Item(name, Path(name)),)


def _parts(where: Collection | DataError, items: Sequence[Item], settings: tuple[Any, int]) -> list[Batch | Unread]:
    return [Unread(items[0], where)] if isinstance(where, DataError) else where.some(items, *settings)


def _step(
    detector: Detector,
    where: Collection | DataError,
    place: Place,
    items: Sequence[Item],
    settings: tuple[Any, int],
    full: bool,
) -> list[Said]:
    return judged(detector, place, items, _parts(where, items, settings), full)


def judged(
    detector: Detector, place: Place, items: Sequence[Item], parts: Sequence[Batch | Unread], full: bool
) -> list[Said]:
    """What a detector says of the images of a step.

    Args:
        detector: a fitted one.
        place: of the first item.
        items: the images' names and files.
        parts: what was read of them.
        full: walk every stage.
    """
    places = {(item.path, item.row, item.array): (place[0], place[1] + i) for i, item in enumerate(items)}

    def where(item: Item) -> Place:
        return places[item.path, item.row, item.array]

    out = []
    for part in parts:
        if isinstance(part, Unread):
            out.append(Said(where(part.item), {"image": part.item.name, "error": str(part.error)}))
            continue
        resized = part.resized
        for record, rows in records(detector, part, full):
            if "error" in record:
                record = {"image": record["image"], "error": f"{record['image']}: {record['error']}"}
            out.append(Said(where(part.items[rows[0]]), record, any(resized[i] for i in rows)))
    return sorted(out, key=lambda said: said.place)
