"""Stages: a few copies first, more for the images still in doubt, own and rival paths with bypass last.

An image leaves at the first stage that clears it. The score is ordered by the stage reached and then by that stage's
own score, so a cascade is one function of the image, and is calibrated as one: split-conformal validity does not depend
on how many stages there are, nor on where images leave. What depends on it is missed attacks: see `exits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.cascade.early_exit import stage_threshold
from advconn.errors import DataError
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import Trace, columns_of, concat_traces
from advconn.runtime.forward_passes import ONE_PRECISION, batch_limit, count_passes, tf32_disabled

BLOCK = 256  # images that go through the stages together
LARGEST = 2**23  # values of those images
UNSURE = 0.1  # log-odds: TF32 moves them by up to .2 at the first stage and .1 at the others, by .00003 in the middle
FLAT = -1e6  # log-odds of an image of one colour
GATED = ("companion.margin", "companion.mirror")  # what the gate looks at: log-odds at the image, and how they move


@dataclass(frozen=True)
class Stage:
    """What a stage walks beside what those before it did.

    Attributes:
        copies: names of copies; None for all that are left.
        halves: names of those read half-way; None for all that are left.
        paths: own and rival paths to the nearest references, and bypass of the barrier on the own one, where the
            classifier gives gradients.
        pixels: the query's own pixels, from here on, and with paths distances to references, for images of one channel:
            of colour photographs they say how bright and how sharp these are, not whether they were attacked.
        share: of clean images that go on from here to the next stage, in (0, 1]; more if fewer would miss too many
            attacks.
    """

    copies: tuple[str, ...] | None = None
    halves: tuple[str, ...] | None = ()
    paths: bool = False
    share: float = 1.0
    pixels: bool = False


STAGES: tuple[Stage, ...] = (
    Stage(("flip+down1", "zoom92", "right1"), share=0.22, pixels=True),
    Stage(("aside1b", "noise2", "blur4", "strong+down1"), share=0.09),
    Stage(None, None, share=0.06),
    Stage((), (), paths=True),
)  # as benchmarks/research/stages.py found
NEAR: dict[str, Any] = {"per_class": 1, "nearest": True, "levels": 2, "steps": 4}  # at most 5 + 2 x 5 gradients


def stage_extractors(
    connectivity: Connectivity, stages: Sequence[Stage] | None, bypass: bool | None = None
) -> tuple[Connectivity, ...]:
    """The feature extractor of each stage, which includes the earlier stages; without stages `connectivity` itself.

    A stage that brings nothing new, for want of references or of its copies in `connectivity`, is left out.

    Args:
        connectivity: the whole walk.
        stages: in order, or None.
        bypass: whether barriers are bypassed; unless told they are where the classifier gives gradients.

    Raises:
        DataError: no stage, or a share out of range.
    """
    return (
        (connectivity,) if stages is None else tuple(planned for planned, _ in _planned(connectivity, stages, bypass))
    )


def continue_rates(connectivity: Connectivity, stages: Sequence[Stage] | None) -> tuple[float, ...]:
    """The shares of clean images that go on from each stage of `stage_extractors` but the last."""
    return () if stages is None else tuple(share for _, share in _planned(connectivity, stages, None))[:-1]


def _planned(
    connectivity: Connectivity, stages: Sequence[Stage], bypass: bool | None
) -> list[tuple[Connectivity, float]]:
    """The feature extractor of each stage, and the share of clean images that continue after it."""
    if not stages:
        raise DataError("stages: expected one stage or more, or None for the whole walk at once")
    paths = connectivity.references is not None and {"own", "rival"} & set(connectivity.active_families)
    copies: list[str] = []
    halves: list[str] = []
    second = ("companion",) * ("companion" in connectivity.active_families)
    families: tuple[str, ...] = ("query", "self", "grain", *second)
    options: dict[str, Any] = {}
    out: list[tuple[Connectivity, float]] = []
    for stage in stages:
        if not 0 < stage.share <= 1:
            raise DataError(f"stages: a share lies in (0, 1], got {stage.share:g}")
        if stage.pixels and connectivity.classifier.channels == 1 and "pixels" not in families:
            families = (*families, "pixels")
        before = (len(copies), len(halves), families)
        copies += _more(stage.copies, connectivity.copies, copies)
        halves += [name for name in _more(stage.halves, connectivity.halves, halves) if name in copies]
        if stage.paths and paths:
            bend = ("complexity",) * (connectivity.classifier.differentiable if bypass is None else bypass)
            near = ("near",) * ("pixels" in families)
            families, options = (*families, "own", "rival", *near, *bend), NEAR
        if (len(copies), len(halves), families) == before:
            continue
        settings = connectivity.get_params(deep=False) | options
        settings |= {"copies": tuple(copies), "halves": tuple(halves), "families": families}
        out.append((Connectivity(**settings), stage.share))
    if not out:
        raise DataError("stages: none of their copies is among the connectivity's")
    return out


def _more(wanted: Sequence[str] | None, available: Sequence[str], had: list[str]) -> list[str]:
    if wanted is None:
        return [name for name in available if name not in had]
    return [name for name in wanted if name in available and name not in had]


@dataclass(frozen=True)
class CascadeOutput:
    """What a cascade found for n images.

    Attributes:
        scores: (n, stages) log-odds of each stage, NaN where an image had left, infinite where a feature is not finite.
        features: (n, d) of the last stage's columns, NaN where not walked.
        query: (n, k) logits.
        stage: (n,) that an image left at, from 1.
        traces: for each stage the rows that went through it, and their trace.
        forwards: (n,) forward passes spent on each image; in the last stage, where they differ, their mean.
        gradients: (n,) gradients spent on each image, counted likewise.
        flat: (n,) whether an image is of one colour: nothing is hidden in it, and its log-odds are FLAT.
    """

    scores: np.ndarray
    features: np.ndarray
    query: Tensor
    stage: np.ndarray
    traces: tuple[tuple[np.ndarray, Trace], ...]
    forwards: np.ndarray
    gradients: np.ndarray
    flat: np.ndarray


@dataclass(frozen=True)
class Cascade:
    """Stages that were fitted.

    Attributes:
        connectivities: what each stage walks.
        names: of each stage's columns.
        heads: a fitted scikit-learn classifier for each stage.
        exits: of all stages but the last, the largest score that leaves.
        gate: with a companion, what is taken off its log-odds against the predicted class, to be held against a head's:
            the larger of both counts at every stage, so that an image must convince the companion too, whatever else it
            shows.
    """

    connectivities: tuple[Connectivity, ...]
    names: tuple[tuple[str, ...], ...]
    heads: tuple[Any, ...]
    exits: tuple[float, ...]
    gate: float | None = None

    def walk(
        self, images: Tensor, *, full: bool = False, most: int | None = None, thresholds: Sequence[float] = ()
    ) -> CascadeOutput:
        """Send images through the stages.

        A GPU convolves in TF32, unless torch is told otherwise: an image whose score at a stage is within UNSURE of
        where it would leave, or be flagged at one of `thresholds`, is walked there again in float32, so that its
        verdict is a CPU's.

        Args:
            images: (n, c, h, w).
            full: every stage for every image, for what it shows; where an image left and its score stay the same.
            most: go no farther than this stage, from 1; None for the last.
            thresholds: scores above which an image is flagged, where they are known.
        """
        count = len(self.connectivities) if most is None else most
        n, live = len(images), torch.arange(len(images), dtype=torch.int64, device="cpu")
        scores = np.full((n, len(self.connectivities)), np.nan)
        features = np.full((n, len(self.names[-1])), np.nan)
        left, spent = np.zeros(n, int), np.zeros((2, n))
        traces: list[tuple[np.ndarray, Trace]] = []
        start: Trace | None = None
        values = images.flatten(2)
        flat = (values.amax(2) == values.amin(2)).all(1).cpu().numpy()
        for k in range(count):
            rows = live.numpy()
            with count_passes() as cost:
                trace, columns, odds = self._at_stage(k, images[live.to(images.device)], start, thresholds)
            scores[rows, k] = np.where(flat[rows] & np.isfinite(odds), FLAT, odds)
            spent[:, rows] += np.array([[cost.forwards], [cost.gradients]]) / len(rows)
            features[rows[:, None], self.places[k]] = columns
            traces.append((rows, trace if full else replace(trace, detour=None)))  # whose paths are large
            done = np.isinf(scores[rows, k]) if k + 1 < count else np.ones(len(rows), bool)
            if k + 1 < count:
                done |= scores[rows, k] <= self.exits[k]
            left[rows[done & (left[rows] == 0)]] = k + 1
            stay = torch.from_numpy(np.ones(len(rows), bool) if full else ~done).nonzero()[:, 0]
            live, start = live[stay], trace.rows(stay.to(trace.query.device))
            if not len(live):
                break
        return CascadeOutput(scores, features, traces[0][1].query, left, tuple(traces), spent[0], spent[1], flat)

    def _at_stage(
        self, k: int, images: Tensor, start: Trace | None, thresholds: Sequence[float]
    ) -> tuple[Trace, np.ndarray, np.ndarray]:
        """The trace of images at stage k, from 0, their columns and log-odds; in float32 where those decide."""
        on_a_gpu = self.connectivities[k].classifier.device.type == "cuda"
        with ONE_PRECISION if on_a_gpu else nullcontext():  # no other thread may set torch's flag meanwhile
            trace = run_extractor(self.connectivities[k], images, start)
            columns = columns_of(trace)
            scores = self.scored(k, columns)
            near = self._near(k, scores, thresholds) & (on_a_gpu and torch.backends.cudnn.allow_tf32)
            if near.any():
                with tf32_disabled():
                    again = run_extractor(self.connectivities[k], images[torch.from_numpy(near).to(images.device)])
                columns[near] = columns_of(again)
                scores[near] = self.scored(k, columns[near])
        return trace, columns, scores

    def _near(self, k: int, scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
        """Which log-odds (n,) of stage k, from 0, are next to where it is decided of an image."""
        cuts = [self.exits[k]] if k < len(self.exits) else []
        cuts += [limit for t in thresholds for limit in [stage_threshold(self.exits, t, k)] if limit is not None]
        with np.errstate(invalid="ignore"):  # both may be infinite
            return (np.abs(scores[:, None] - np.array(cuts)) < UNSURE).any(1)

    def scored(self, k: int, columns: np.ndarray) -> np.ndarray:
        """Log-odds (n,) of stage k, from 0, on its columns (n, d): the larger of the head's and the companion's."""
        odds = head_log_odds(self.heads[k], columns)
        return odds if self.gate is None else np.maximum(odds, companion_log_odds(self.names[k], columns) - self.gate)

    @cached_property
    def places(self) -> tuple[np.ndarray, ...]:
        """Where each stage's columns stand among the last one's."""
        positions = {name: i for i, name in enumerate(self.names[-1])}
        return tuple(np.array([positions[name] for name in names]) for names in self.names)

    def blocks(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images in the numbers that go through together: memory does not grow with all of them."""
        return images.split(self.block(images[:1].numel()))

    def block(self, values: int) -> int:
        """How many images of so many values go through together."""
        return batch_limit(self.connectivities[0].classifier.device, BLOCK, LARGEST, values)


def companion_log_odds(names: Sequence[str], columns: np.ndarray) -> np.ndarray:
    """The companion's log-odds (n,) against the predicted class, the mean of those at the image and at its mirror."""
    margin, mirror = (columns[:, list(names).index(name)] for name in GATED)
    return np.asarray(margin + mirror / 2)


def run_extractor(connectivity: Connectivity, images: Tensor, start: Trace | None = None) -> Trace:
    """The trace of images, walked a few at a time.

    Args:
        connectivity: what is walked.
        images: (n, c, h, w).
        start: a trace of the same images to go on from, or None.
    """
    return concat_traces(list(connectivity.traces(images, start)))


def head_log_odds(head: Any, columns: np.ndarray) -> np.ndarray:
    """Log-odds (n,) of a head on columns (n, d); infinite where one of them is not finite: a gate fails closed."""
    sound = np.isfinite(columns).all(1)
    out = np.full(len(columns), np.inf)
    if sound.any():
        out[sound] = log_odds(head, columns[sound])
    return np.where(np.isnan(out), np.inf, out)


def log_odds(head: Any, features: np.ndarray) -> np.ndarray:
    """Log-odds (n,) of any attack against clean, from a scikit-learn classifier whose first class is clean.

    Of several attacks the probabilities are added up: the score is logsumexp over the attacks minus clean.
    """
    if hasattr(head, "decision_function"):
        values = np.asarray(head.decision_function(features), dtype=np.float64)
        if values.ndim == 1:
            return values
    else:
        values = np.log(np.asarray(head.predict_proba(features), dtype=np.float64).clip(1e-12))
    return np.asarray(np.logaddexp.reduce(values[:, 1:], axis=1) - values[:, 0])
