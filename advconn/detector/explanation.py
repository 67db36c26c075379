"""What an image's copies and paths showed, as values and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from advconn.cascade.cascade import Cascade
from advconn.detector.judgement import Judgement
from advconn.features.path_features import Trace
from advconn.models.classifier import Classifier
from advconn.paths.bypass import DELTA
from advconn.paths.path import Path, profile, straight
from advconn.paths.plots import to_ascii, to_display

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_GROUPS = {  # what is told of columns whose names start with these, and the one whose value is told
    ("self.move.",): ("self.move.mean", "its copies move the logits by {0:.2g} (clean: {1:.2g})"),
    ("self.rise.", "self.lean.", "self.fall", "self.climb", "self.share", "self.divergence.", "self.back."): (
        "self.rise.mean",
        "at its copies the margin of {label} shifts by {0:+.2g} (clean: {1:+.2g})",
    ),
    ("self.half.", "self.bulge."): (
        "self.half.mean3",
        "half-way to a smoothed copy its margin has shifted by {0:+.2g} (clean: {1:+.2g})",
    ),
    ("query.energy", "self.energy."): (
        "query.energy",
        "the logits are of strength {0:.3g} (log-sum-exp; clean: {1:.3g})",
    ),
    ("query.margin", "query.gap", "query.entropy", "self.entropy"): (
        "query.gap",
        "its class leads by {0:.2g} over the next (clean: {1:.2g})",
    ),
    ("companion.",): ("companion.loss", "its companion's cross-entropy for {label} is {0:.2g} (clean: {1:.2g})"),
    ("rival.",): (
        "rival.tips.mean",
        "on the line to the next classes it tips after {0:.0%} of the way (clean: {1:.0%})",
    ),
}


@dataclass(frozen=True)
class CleanBaseline:
    """What a verdict is compared with: a cascade, and a typical clean image's features (d,) at its last stage."""

    cascade: Cascade
    features: np.ndarray

    @property
    def classifier(self) -> Classifier:
        """The classifier that is guarded."""
        return self.cascade.connectivities[0].classifier

    def value(self, name: str) -> float:
        """A typical clean image's feature; NaN where it is not measured."""
        names = self.cascade.names[-1]
        return float(self.features[names.index(name)]) if name in names else float("nan")

    def effects(
        self, judgement: Judgement, rows: np.ndarray, groups: Mapping[Any, tuple[str, ...]]
    ) -> dict[Any, np.ndarray]:
        """By how much these images' log-odds (n,) fall if a group's columns are a typical clean image's.

        By the head of the last stage that each went through; 0 where a feature is not finite.

        Args:
            judgement: of several images.
            rows: theirs (n,) in it.
            groups: by any name, what the names of a group's columns start with.
        """
        out = {group: np.zeros(len(rows)) for group in groups}
        left = np.ones(len(rows), bool)
        for k in reversed(range(len(self.cascade.heads))):
            places, names = self.cascade.places[k], self.cascade.names[k]
            columns, typical = judgement.features[rows][:, places], self.features[places]
            here = left & np.isfinite(columns).all(1)
            left &= ~here
            if here.any():
                before = self.cascade.scored(k, columns[here])
                for group, prefixes in groups.items():
                    changed = np.where([name.startswith(prefixes) for name in names], typical, columns[here])
                    out[group][here] = before - self.cascade.scored(k, changed)
        return out


def reason_of(typical: CleanBaseline, judgement: Judgement, i: int) -> str:
    """What image i showed, in words.

    What its copies say, what else weighs most, and, if paths were walked, the barrier to its class and the way round.

    Args:
        typical: what it is compared with.
        judgement: of several images.
        i: its row there.
    """
    error = judgement.errors[i] if judgement.errors else None
    if error is not None:
        return error
    if judgement.flat[i]:
        return "a picture of one colour: nothing can be hidden in it"
    predicted, consensus = int(judgement.predicted[i]), int(judgement.consensus[i])
    label, other = typical.classifier.label_names([predicted, consensus])
    votes = judgement.votes[i]
    same = consensus == predicted and bool(judgement.adversarial[i])
    parts = []
    if len(votes):
        said = int((votes == consensus).sum())
        parts.append(f"{said} of {len(votes)} copies say {other}" + " too" * same)
    if same:
        parts += _loudest(typical, judgement, i, label)
    parts += _barrier(typical, judgement, i, label)
    if parts and consensus != predicted and not judgement.adversarial[i]:
        parts.append("not unusual enough to flag")
    return "; ".join(parts) or "the classifier's answer alone"


def _loudest(typical: CleanBaseline, judgement: Judgement, i: int, label: str) -> list[str]:
    """What raises the score most, but for the votes and the barrier."""
    by_group = typical.effects(judgement, np.array([i]), {prefixes: prefixes for prefixes in _GROUPS})
    effects = {prefixes: float(values[0]) for prefixes, values in by_group.items()}
    for prefixes in sorted(effects, key=lambda p: -effects[p]):
        name, text = _GROUPS[prefixes]
        value = dict(zip(typical.cascade.names[-1], judgement.features[i], strict=True)).get(name, np.nan)
        if effects[prefixes] > 0 and np.isfinite(value):
            return ["but " + text.format(value, typical.value(name), label=label)]
    return []


def _barrier(typical: CleanBaseline, judgement: Judgement, i: int, label: str) -> list[str]:
    height = float(judgement.barrier[i])
    if np.isnan(height):
        return []
    usual = f" (clean: {_short(typical.value('own.barrier.mean'))})"
    line = f"the line to an image of {label}"
    names = typical.cascade.names[-1]
    if height < DELTA:
        return [f"no barrier on {line}"]
    if "own.gap.mean" in names and judgement.features[i, names.index("own.gap.mean")] < DELTA:
        return [f"its cross-entropy as {label} is {_short(height)}{usual}, and no barrier stands on {line}"]
    told = [f"{line} has a barrier of {_short(height)}{usual}"]
    bends = float(judgement.bends[i])
    if bends > 0:
        stand = int(judgement.secondary_barriers[i, -1]) if judgement.secondary_barriers.shape[1] else 0
        told.append(f"{bends:.0f} bend{'s' * (bends != 1)} " + ("do not get round it" if stand else "to get round it"))
    return told


def _short(value: float) -> str:
    return f"{value:.2g}" if value >= DELTA else "0"


SCAN = 33  # points on a path that is drawn


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What one image showed.

    Attributes:
        prediction: name of the class that it is given.
        consensus: name of the class that most of its copies are given.
        flagged: whether it is judged adversarial.
        p_value: in (0, 1].
        stage: that it left at, from 1.
        reason: what its copies and paths showed, in words.
        votes: number of copies by the name of the class that they are given.
        barrier: largest cross-entropy on the line to the nearest reference, as read at `samples` points, or None.
        typical_barrier: that of a typical clean image, or None.
        secondary_barriers: how many stand after each level of bypass.
        bends: points moved to go round them, or None.
        place: positions (s,) in [0, 1] on the way to the reference.
        line: cross-entropy (s,) there on the straight path; None without a reference.
        detour: the same on the path round the barrier; None where none was gone round.
        typical_line: (m, 2) positions, and the cross-entropy of a typical clean image there.
        samples: positions that the detector reads on the line.
        image: (c, h, w) in [0, 1].
        reference: (c, h, w) in [0, 1], or None.
    """

    prediction: str
    consensus: str
    flagged: bool
    p_value: float
    stage: int
    reason: str
    votes: dict[str, int]
    barrier: float | None
    typical_barrier: float | None
    secondary_barriers: tuple[int, ...]
    bends: int | None
    place: np.ndarray
    line: np.ndarray | None
    detour: np.ndarray | None
    typical_line: np.ndarray
    samples: int
    image: Tensor
    reference: Tensor | None

    def figure(self, votes: bool = True) -> Figure:
        """The image, its copies' votes, and the cross-entropy on the way to a reference, as a matplotlib figure."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 2.8) if votes else (8, 2.6), layout="constrained")
        pictures = [self.image] if self.reference is None else [self.image, self.reference]
        shares = [1.0] * len(pictures) + [1.2] * votes + [2.0]
        axes = np.atleast_1d(figure.subplots(1, len(shares), width_ratios=shares))
        titles = (f"judged as {self.prediction}", f"reference: {self.prediction}")
        for ax, picture, title in zip(axes, pictures, titles, strict=False):
            ax.imshow(to_display(picture), cmap="gray", vmin=0, vmax=1)
            ax.set_axis_off()
            ax.set_title(to_ascii(title), fontsize=9)
        if votes:
            self._bars(axes[len(pictures)])
        self._curves(axes[-1])
        return figure

    def _bars(self, ax: Any) -> None:
        names = list(self.votes)[:6][::-1]
        colours = ["C0" if name == self.prediction else "C3" for name in names]
        ax.barh([to_ascii(name) for name in names], [self.votes[name] for name in names], color=colours)
        ax.set_title("its copies say", fontsize=9)
        ax.set_xlabel("copies", fontsize=8)
        ax.tick_params(labelsize=8)

    def _curves(self, ax: Any) -> None:
        ax.set_title("cross-entropy on the way to the reference", fontsize=9)
        ax.set_xlabel("place on the way (0: the image, 1: the reference)", fontsize=8)
        ax.set_ylabel("cross-entropy (nats)", fontsize=8)
        ax.tick_params(labelsize=8)
        if self.line is None:
            ax.text(0.5, 0.5, "no reference to walk to", ha="center", transform=ax.transAxes, fontsize=9)
            return
        ax.plot(self.place, self.line, color="C3", label="straight line, read at the dots")
        read = np.linspace(0, 1, self.samples)
        ax.plot(read, np.interp(read, self.place, self.line), "o", color="C3", ms=4)
        if self.detour is not None:
            ax.plot(self.place, self.detour, color="C0", label=f"after {self.bends} bends")
        if len(self.typical_line):
            ax.plot(*self.typical_line.T, color="0.5", ls="--", marker="o", ms=3, label="a typical clean image")
        ax.set_ylim(bottom=0)
        ax.legend(fontsize=8, framealpha=0.5)


def explain_image(typical: CleanBaseline, judgement: Judgement, i: int, image: Tensor) -> Explanation:
    """What an image showed that went through every stage.

    Args:
        typical: what it is compared with.
        judgement: of several images, made with full=True.
        i: its row there.
        image: the image (c, h, w) in [0, 1].
    """
    names = typical.classifier.label_names
    classes, counts = np.unique(judgement.votes[i], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    votes = dict(zip(names(classes[order].tolist()), counts[order].tolist(), strict=True))
    prediction, consensus = names([int(judgement.predicted[i]), int(judgement.consensus[i])])
    reference, line, detour = _drawn(typical, judgement.traces[i], image)
    has_barrier = not np.isnan(judgement.barrier[i])
    usual = typical.value("own.barrier.mean")
    return Explanation(
        prediction=prediction,
        consensus=consensus,
        flagged=bool(judgement.adversarial[i]),
        p_value=float(judgement.p_value[i]),
        stage=int(judgement.stage[i]),
        reason=reason_of(typical, judgement, i),
        votes=votes,
        barrier=float(judgement.barrier[i]) if has_barrier else None,
        typical_barrier=usual if has_barrier and np.isfinite(usual) else None,
        secondary_barriers=tuple(int(n) for n in judgement.secondary_barriers[i] if np.isfinite(n)),
        bends=int(judgement.bends[i]) if np.isfinite(judgement.bends[i]) else None,
        place=np.linspace(0, 1, SCAN),
        line=line,
        detour=detour,
        typical_line=_usual_line(typical),
        samples=typical.cascade.connectivities[-1].samples,
        image=image.cpu(),
        reference=reference,
    )


def _usual_line(typical: CleanBaseline) -> np.ndarray:
    """Positions and cross-entropy (m, 2) of a typical clean image, at its start and where its path is read."""
    samples = typical.cascade.connectivities[-1].samples
    rise = [0.0, *(typical.value(f"own.curve.{i}") for i in range(1, samples - 1))]
    margins = typical.value("own.margin") + np.array(rise)
    places, known = np.arange(samples - 1) / (samples - 1), np.isfinite(margins)
    return np.stack([places[known], np.logaddexp(0, margins[known])], 1)


def _drawn(
    typical: CleanBaseline, where: tuple[Trace, int], image: Tensor
) -> tuple[Tensor | None, np.ndarray | None, np.ndarray | None]:
    """The reference (c, h, w), and the cross-entropy (s,) on the straight line to it and on the way round."""
    trace, row = where
    connectivity = typical.cascade.connectivities[-1]
    if trace.own is None or connectivity.references is None:
        return None, None, None
    query = typical.classifier.check(image[None])
    label = trace.query[row : row + 1].argmax(1)
    nearest = int(connectivity.anchors(query, label[:, None], 1)[0, 0])
    reference = connectivity.references.images[nearest : nearest + 1].to(query)
    landscape = connectivity.landscape(label)
    line = F.softplus(profile(straight(query, reference), landscape, SCAN).energies)[0].cpu().numpy()
    detour = None
    if trace.detour is not None and trace.own.shape[1] == 1 and int(trace.detour.bends[row]):
        path = Path(trace.detour.path.knots[row : row + 1])
        detour = F.softplus(profile(path, landscape, SCAN).energies)[0].cpu().numpy()
    return reference[0].cpu(), line, detour
