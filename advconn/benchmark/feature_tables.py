"""What every candidate measures on every image: its columns, kept and counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advconn.benchmark.candidate import Candidate
from advconn.benchmark.splits import CHUNK
from advconn.errors import FitError, wrap_user_errors
from advconn.runtime.forward_passes import count_passes
from advconn.runtime.parallel import Runner


@dataclass(frozen=True)
class ImageSetKey:
    """Which images: those of a part; of it, attacked ones, or clean ones under a condition.

    The part 'alone' is the training part, attacked by what is tested.
    """

    part: str
    attack: str = ""
    condition: str = ""


@dataclass(frozen=True)
class FeatureTable:
    """A candidate's columns (n, d) of n images, and what they cost in all."""

    values: np.ndarray
    forwards: int = 0
    gradients: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class FeatureTables:
    """A candidate's columns of every set of images."""

    columns: Mapping[ImageSetKey, FeatureTable]

    def clean(self, part: str) -> FeatureTable:
        """Of a part's clean images."""
        return self.columns[ImageSetKey(part)]

    def attacked(self, part: str, attack: str) -> FeatureTable:
        """Of those of a part that an attack succeeded on; of none, no rows."""
        none = FeatureTable(self.clean("calibrate").values[:0])
        return self.columns.get(ImageSetKey(part, attack), none)

    def condition(self, name: str) -> FeatureTable:
        """Of clean test images under a condition."""
        return self.columns[ImageSetKey("test", condition=name)]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that were measured under."""
        return tuple(where.condition for where in self.columns if where.condition)


def measure_images(images: np.ndarray, candidate: Candidate) -> FeatureTable:
    """A candidate's columns of images (uint8, or floats in [0, 1]).

    Args:
        images: (n, c, h, w), uint8 or in [0, 1].
        candidate: what measures them.

    Raises:
        FitError: `measure` fails, or gives NaN or other than one row an image.
    """
    checked = candidate.classifier.check(torch.from_numpy(images))
    started = time.perf_counter()
    with count_passes() as cost, wrap_user_errors(f"{candidate.name}: measure", FitError):
        values = np.asarray(candidate.measure(checked), np.float64)
    if values.ndim != 2 or len(values) != len(images):
        raise FitError(f"{candidate.name}: measure gives {values.shape}; expected ({len(images)}, d)")
    broken = int(np.isnan(values).any(1).sum())
    if broken:
        raise FitError(f"{candidate.name}: measure gives NaN for {broken} of {len(images)} images")
    return FeatureTable(values, cost.forwards, cost.gradients, time.perf_counter() - started)


def is_cached(candidate: Candidate, sets: Mapping[ImageSetKey, Tensor], runner: Runner) -> bool:
    """Whether everything that `measure` asks of a candidate is kept from an earlier run.

    Args:
        candidate: what would measure.
        sets: images (n, c, h, w) by what they are, uint8 or in [0, 1].
        runner: whose store is looked into.
    """
    key = candidate.key()
    return all(runner.kept(measure_images, (images, key)) for _, images in _chunks(candidate, sets))


def measure(
    candidates: Sequence[Candidate], sets: Mapping[ImageSetKey, Tensor], runner: Runner
) -> dict[str, FeatureTables]:
    """What each candidate measures, by its name; those that measure the same are asked once.

    Args:
        candidates: no two of one name.
        sets: images (n, c, h, w) by what they are, uint8 or in [0, 1]. A candidate that is not fitted measures none of
            the training part.
        runner: what spreads the work and keeps its results.
    """
    keys = {candidate.name: candidate.key() for candidate in candidates}
    calls, places = [], []
    for key, candidate in {keys[c.name]: c for c in candidates}.items():
        for where, images in _chunks(candidate, sets):
            calls.append((images, candidate))
            places.append((key, where))
    by_key: dict[str, dict[ImageSetKey, list[FeatureTable]]] = {}
    kept_by = [(images, key) for (images, _), (key, _) in zip(calls, places, strict=True)]
    for (key, where), columns in zip(places, runner.map("measure", measure_images, calls, kept_by), strict=True):
        by_key.setdefault(key, {}).setdefault(where, []).append(columns)
    return {
        name: FeatureTables({where: _joined(parts) for where, parts in by_key[key].items()})
        for name, key in keys.items()
    }


def _chunks(candidate: Candidate, sets: Mapping[ImageSetKey, Tensor]) -> Iterator[tuple[ImageSetKey, np.ndarray]]:
    for where, images in sets.items():
        for chunk in images.split(CHUNK) if _is_asked(candidate, where.part) else ():
            if len(chunk):
                yield where, chunk.numpy()


def _is_asked(candidate: Candidate, part: str) -> bool:
    """Whether a candidate measures images of a part: what has nothing to learn, none of those to train on."""
    return {"train": candidate.fits, "alone": candidate.learns}.get(part, True)


def _joined(parts: Sequence[FeatureTable]) -> FeatureTable:
    return FeatureTable(
        np.concatenate([c.values for c in parts]),
        sum(c.forwards for c in parts),
        sum(c.gradients for c in parts),
        sum(c.seconds for c in parts),
    )
