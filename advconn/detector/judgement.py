"""What a detector says of images, and what their paths showed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from advconn.cascade.cascade import Cascade, CascadeOutput
from advconn.cascade.early_exit import cascade_score
from advconn.detector.calibration import Calibration
from advconn.detector.doubt import certainty
from advconn.features.path_features import Trace
from advconn.runtime.forward_passes import PassCount


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a detector says of n images.

    Attributes:
        logits: (n, k) of the classifier.
        score: (n,) higher = more adversarial.
        p_value: (n,) in (0, 1].
        adversarial: (n,) whether it is flagged.
        stage: (n,) that each image left at, from 1.
        votes: for each image the classes that its copies are given, one a copy walked.
        consensus: (n,) the class that most copies are given; of equally many the one with the larger mean probability.
        barrier: (n,) cross-entropy barrier on the path to the nearest reference of the predicted class (the mean over
            several references); NaN where that stage was not reached.
        secondary_barriers: (n, levels) how many barriers stand after each level of bypass; NaN likewise.
        bends: (n,) points moved to go round them; NaN likewise.
        features: (n, d) of the last stage's columns, NaN where not walked.
        forwards: (n,) forward passes spent on each image, see cascade.CascadeOutput.
        gradients: (n,) gradients spent on each image.
        total_cost: of all images together.
        errors: (n,) None, or why an image could not be judged: the classifier gives NaN for it or for a copy of it.
            Such an image is flagged, with an infinite score and the smallest p-value there is.
        traces: (n,) of each image the deepest trace, and its row in it.
        flat: (n,) whether an image is of one colour, and so not flagged.
        certainty: (n,) in [0, 1] of the classifier, see doubt.certainty.
        doubtful: (n,) whether the classifier is more often wrong than right on clean images that it is as certain of;
            None where the detector has no such cut: it was
            calibrated without labels, or on few images in doubt. It changes no other field.
    """

    logits: Tensor
    score: np.ndarray
    p_value: np.ndarray
    adversarial: np.ndarray
    stage: np.ndarray
    votes: tuple[np.ndarray, ...] = field(repr=False)
    consensus: np.ndarray
    barrier: np.ndarray
    secondary_barriers: np.ndarray
    bends: np.ndarray
    features: np.ndarray = field(repr=False)
    forwards: np.ndarray
    gradients: np.ndarray
    total_cost: PassCount
    errors: tuple[str | None, ...] = ()
    traces: tuple[tuple[Trace, int], ...] = field(default=(), repr=False)
    flat: np.ndarray = field(default_factory=lambda: np.zeros(0, bool), repr=False)
    certainty: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    doubtful: np.ndarray | None = None

    @property
    def predicted(self) -> np.ndarray:
        """The class (n,) that each image is given."""
        return np.asarray(self.logits.argmax(1).cpu().numpy())


def judgement_of(
    cascade: Cascade,
    calibration: Calibration,
    found: Sequence[CascadeOutput],
    cost: PassCount,
    most: int | None,
    groups: np.ndarray | None = None,
    doubt: float | None = None,
) -> Judgement:
    """The judgement of images that went through a cascade in blocks.

    Args:
        cascade: what they went through.
        calibration: which gives p-values and thresholds.
        found: what each block showed, in order.
        cost: of all blocks together.
        most: no image went farther than this stage; None for the last.
        groups: (n,) of the images, where the calibration has groups.
        doubt: the largest certainty of an image in doubt, or None.
    """
    logits = torch.cat([block.query for block in found])
    scores, features = (np.concatenate([getattr(b, name) for b in found]) for name in ("scores", "features"))
    score, stage = cascade_score(scores, cascade.exits, most)
    predicted = logits.argmax(1).cpu().numpy()
    traces = tuple(trace for block in found for trace in _deepest(block))
    votes, consensus = _votes(traces, predicted)
    names = list(cascade.names[-1])
    levels = sorted((n for n in names if n.startswith("complexity.barriers.")), key=lambda n: int(n.split(".")[-1]))

    def column(*wanted: str) -> np.ndarray:
        missing = np.full(len(score), np.nan)
        return np.stack([features[:, names.index(n)] if n in names else missing for n in wanted], 1)

    own = torch.isfinite(logits).all(1).cpu().numpy()
    errors = tuple(
        None if np.isfinite(s) else "the classifier gives NaN for it" + " when it is changed a little" * bool(alone)
        for s, alone in zip(score, own, strict=True)
    )
    certain = np.concatenate([certainty(block.traces[0][1]) for block in found])
    return Judgement(
        logits=logits,
        score=score,
        p_value=calibration.p_value(score, predicted, groups),
        adversarial=score > calibration.thresholds(predicted, groups),
        stage=stage,
        votes=votes,
        consensus=consensus,
        barrier=column("own.barrier.mean")[:, 0],
        secondary_barriers=column(*levels[1:]) if levels else np.full((len(score), 0), np.nan),
        bends=column("complexity.bends.mean")[:, 0],
        features=features,
        forwards=np.concatenate([block.forwards for block in found]),
        gradients=np.concatenate([block.gradients for block in found]),
        total_cost=cost,
        errors=errors,
        traces=traces,
        flat=np.concatenate([block.flat for block in found]),
        certainty=certain,
        doubtful=None if doubt is None else ~(certain > doubt),
    )


def _deepest(block: CascadeOutput) -> list[tuple[Trace, int]]:
    """For each image of a block the trace of the last stage it went through, and its row there."""
    out: list[tuple[Trace, int]] = [(block.traces[0][1], i) for i in range(len(block.stage))]
    for rows, trace in block.traces:
        for i, row in enumerate(rows):
            out[row] = (trace, i)
    return out


def _votes(traces: Sequence[tuple[Trace, int]], predicted: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The classes that each image's copies are given, and the one that most are."""
    votes, consensus, by_trace = [], predicted.copy(), {}
    for i, (trace, row) in enumerate(traces):
        if trace.copies is None:
            votes.append(predicted[:0])
            continue
        if id(trace) not in by_trace:
            shares = trace.copies.softmax(2)
            said = shares.argmax(2)
            count = torch.zeros_like(trace.query).scatter_add_(1, said, torch.ones_like(shares[:, :, 0]))
            by_trace[id(trace)] = (said.cpu().numpy(), (count + shares.mean(1) / 2).argmax(1).cpu().numpy())
        said_of, most = by_trace[id(trace)]
        votes.append(said_of[row])
        consensus[i] = most[row]
    return tuple(votes), consensus
