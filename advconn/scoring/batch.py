"""Images of collections judged a step at a time: what is written at once, gone on from, and sent to other processes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advconn.data.collection import Batch, Collection, Item, ReadFailure
from advconn.data.prefetch import prefetch
from advconn.data.preprocessing import Preprocessing
from advconn.detector.detector import Detector
from advconn.errors import DataError
from advconn.runtime.parallel import Runner
from advconn.scoring.records import Failure, Result, score_batch

Place = tuple[int, int]  # which collection, and which of its images
Mark = tuple[int, ...]
NOWHERE: Place = (-1, 0)


@dataclass(frozen=True)
class ScoredImage:
    """What is said of an image, where it stands, whether it came at another size, and the mark of its file."""

    place: Place
    result: Result
    resized: bool = False
    mark: Mark = ()


@dataclass(frozen=True)
class Step:
    """Images of a collection that are judged together, of which the first stands at `place`; or why there are none."""

    where: Collection | DataError
    place: Place
    items: tuple[Item, ...]


class BatchScorer:
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
        classifier = detector.classifier
        self.look = classifier.preprocessing
        h, w = classifier.preprocessing.size or (32, 32)
        self.size = detector.cascade_.block(classifier.channels * h * w)

    def planned(self) -> Iterator[list[tuple[Place, Mark, str]]]:
        """Of each step the place, the mark and the name of every image."""
        for step in self._steps():
            number, first = step.place
            yield [((number, first + i), mark_of(item), item.name) for i, item in enumerate(step.items)]

    def run(self, after: int = 0) -> Iterator[list[ScoredImage]]:
        """What each step said; the first `after` are left out."""
        marks: deque[list[Mark]] = deque()  # taken before a file is read: one that changes meanwhile differs from it

        def steps() -> Iterator[Step]:
            for step in itertools.islice(self._steps(), after, None):
                marks.append([mark_of(item) for item in step.items])
                yield step

        if self.runner.alone:
            read = prefetch((step, _parts(step, self.look)) for step in steps())
            found: Iterator[list[ScoredImage]] = (
                judge_step(self.detector, step, parts, self.full) for step, parts in read
            )
        else:
            found = self.runner.spread(_step, ((self.detector, step, self.look, self.full) for step in steps()))
        for said in found:
            yield [replace(each, mark=mark) for each, mark in zip(said, marks.popleft(), strict=True)]

    def _steps(self) -> Iterator[Step]:
        for path, error in self.refused:
            yield _failure(path, error)
        for number, collection in enumerate(self.collections):
            try:
                collection.suits(self.look)
            except DataError as error:
                yield _failure(str(collection.path), error)
                continue
            lean = collection if self.runner.alone else collection.without_items()
            for first in range(0, len(collection.items), self.size):
                items = collection.items[first : first + self.size]
                if not self.runner.alone:  # other processes may stand in another folder
                    items = tuple(replace(item, path=item.path.absolute()) for item in items)
                yield Step(lean, (number, first), items)
        for hidden in (hidden for collection in self.collections for hidden in collection.failed):
            yield _failure(hidden.name or str(hidden).partition(": ")[0], hidden)


def mark_of(item: Item) -> Mark:
    """Size and time of an image's file, by which one that was replaced is told; nothing where there is none."""
    try:
        status = item.path.stat()
    except (OSError, ValueError):
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _failure(name: str, error: DataError) -> Step:
    return Step(error, NOWHERE, (Item(name, Path(name)),))


def _parts(step: Step, preprocessing: Preprocessing) -> list[Batch | ReadFailure]:
    if isinstance(step.where, DataError):
        return [ReadFailure(step.items[0], step.where)]
    return step.where.some(step.items, preprocessing)


def _step(detector: Detector, step: Step, preprocessing: Preprocessing, full: bool) -> list[ScoredImage]:
    return judge_step(detector, step, _parts(step, preprocessing), full)


def judge_step(detector: Detector, step: Step, parts: Sequence[Batch | ReadFailure], full: bool) -> list[ScoredImage]:
    """What a detector says of the images of a step, in their order.

    Args:
        detector: a fitted one.
        step: the images' names, files and places.
        parts: what was read of them.
        full: walk every stage.
    """
    places: dict[Any, deque[Place]] = {}
    for i, item in enumerate(step.items):  # a file may be named twice
        places.setdefault(item, deque()).append((step.place[0], step.place[1] + i))
    out = []
    for part in parts:
        if isinstance(part, ReadFailure):
            place = places[part.item].popleft()
            out.append(ScoredImage(place, Failure(part.item.name, str(part.error))))
            continue
        resized = part.resized
        for result, rows in score_batch(detector, part, full):
            place = places[part.items[rows[0]]].popleft()
            out.append(ScoredImage(place, result, any(resized[i] for i in rows)))
    return sorted(out, key=lambda said: said.place)
