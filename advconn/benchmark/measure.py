"""What every candidate measures on every image, and what is fitted and frozen on that."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks
from advconn.benchmark.candidate import Candidate
from advconn.benchmark.splits import CHUNK, BenchmarkData
from advconn.detector.calibration import Calibration
from advconn.errors import FitError, wrap_user_errors
from advconn.inference import count_passes
from advconn.parallel import Runner


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


def measure_images(images: np.ndarray, key: str, candidate: Candidate) -> FeatureTable:
    """A candidate's columns of images (uint8, or floats in [0, 1]).

    Args:
        images: (n, c, h, w), uint8 or in [0, 1].
        key: the candidate's, for a cache.
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
    return all(runner.kept(measure_images, call, "candidate") for _, call in _calls(candidate, candidate.key(), sets))


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
        for where, call in _calls(candidate, key, sets):
            calls.append(call)
            places.append((key, where))
    by_key: dict[str, dict[ImageSetKey, list[FeatureTable]]] = {}
    for (key, where), columns in zip(places, runner.map("measure", measure_images, calls, "candidate"), strict=True):
        by_key.setdefault(key, {}).setdefault(where, []).append(columns)
    return {
        name: FeatureTables({where: _joined(parts) for where, parts in by_key[key].items()})
        for name, key in keys.items()
    }


def _calls(
    candidate: Candidate, key: str, sets: Mapping[ImageSetKey, Tensor]
) -> Iterator[tuple[ImageSetKey, tuple[np.ndarray, str, Candidate]]]:
    for where, images in sets.items():
        for chunk in images.split(CHUNK) if _is_asked(candidate, where.part) else ():
            if len(chunk):
                yield where, (chunk.numpy(), key, candidate)


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


def candidate_scores(candidate: Candidate, columns: np.ndarray) -> np.ndarray:
    """Scores (n,) of columns (n, d); of no image, none.

    Raises:
        FitError: the candidate fails, or gives other than one score an image.
    """
    if not len(columns):
        return np.zeros(0)
    with wrap_user_errors(f"{candidate.name}: score", FitError):
        scores = np.asarray(candidate.score(columns), np.float64)
    if scores.shape != (len(columns),):
        raise FitError(f"{candidate.name}: score gives {scores.shape}; expected ({len(columns)},)")
    return scores


@dataclass(frozen=True)
class FittedDetector:
    """A fitted candidate with its threshold, and what it measured: nothing of it changes any more."""

    candidate: Candidate
    calibration: Calibration
    measured: FeatureTables

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    def score(self, columns: FeatureTable) -> np.ndarray:
        """Scores (n,)."""
        return candidate_scores(self.candidate, columns.values)

    def flags(self, columns: FeatureTable) -> np.ndarray:
        """Which are above the threshold."""
        return self.score(columns) > self.calibration.threshold


def reference_rows(bench: BenchmarkData) -> Tensor:
    """Rows of the training part that a candidate which is fitted apart compares with; it is fitted on the others."""
    rows = bench.parts.train
    return rows[: len(rows) // 2]


def fit_and_threshold(
    candidate: Candidate,
    measured: FeatureTables,
    taught: Mapping[str, SuccessfulAttacks],
    bench: BenchmarkData,
    fpr: float,
    part: str = "train",
) -> FittedDetector:
    """Fit on the training part what has something to learn, and set the threshold on the calibration part.

    Args:
        candidate: stays as it is; a copy is fitted.
        measured: its columns of the images in all three parts.
        taught: the attacked training images that are fitted on, by attack.
        bench: whose training part the columns are of.
        fpr: false-alarm rate of the threshold, in (0, 1).
        part: of the attacked images: 'train', or 'alone' for those of an attack that is trained on alone.

    Raises:
        FitError: none of these attacks succeeded, or the candidate's own `fit` or `score` fails.
    """
    own = copy.copy(candidate)  # fitting one leaves the others as they are
    if own.fits:
        tables = _training(own, measured, taught, bench, part)
        with wrap_user_errors(f"{own.name}: fit", FitError):
            own.fit(np.concatenate(tables), np.repeat(np.arange(len(tables)), [len(t) for t in tables]))
    scores = candidate_scores(own, measured.clean("calibrate").values)
    return FittedDetector(own, own.calibrated(scores, fpr), measured)


def _training(
    candidate: Candidate,
    measured: FeatureTables,
    taught: Mapping[str, SuccessfulAttacks],
    bench: BenchmarkData,
    part: str,
) -> list[np.ndarray]:
    """A candidate's columns (n, d) of the clean training images, and of what each attack made of them."""
    apart = reference_rows(bench)

    def mine(columns: FeatureTable, rows: Tensor) -> np.ndarray:
        return columns.values[~torch.isin(rows, apart).numpy()] if candidate.apart else columns.values

    clean = mine(measured.clean("train"), bench.parts.train)
    tables = [mine(measured.attacked(part, name), hits.rows) for name, hits in taught.items() if len(hits.rows)]
    tables = [table for table in tables if len(table)]
    if not tables:
        raise FitError("no attack succeeded on the images to train on: there is nothing to learn from")
    return [clean, *tables]
