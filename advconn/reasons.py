"""Why, in words: what an image's copies and paths showed beside a typical clean image's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advconn.cascade.cascade import Cascade
from advconn.judgement import Judgement
from advconn.models.classifier import Classifier
from advconn.paths.bypass import DELTA

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
class Typical:
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


def reason(typical: Typical, judgement: Judgement, i: int) -> str:
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


def _loudest(typical: Typical, judgement: Judgement, i: int, label: str) -> list[str]:
    """What raises the score most, but for the votes and the barrier."""
    by_group = typical.effects(judgement, np.array([i]), {prefixes: prefixes for prefixes in _GROUPS})
    effects = {prefixes: float(values[0]) for prefixes, values in by_group.items()}
    for prefixes in sorted(effects, key=lambda p: -effects[p]):
        name, text = _GROUPS[prefixes]
        value = dict(zip(typical.cascade.names[-1], judgement.features[i], strict=True)).get(name, np.nan)
        if effects[prefixes] > 0 and np.isfinite(value):
            return ["but " + text.format(value, typical.value(name), label=label)]
    return []


def _barrier(typical: Typical, judgement: Judgement, i: int, label: str) -> list[str]:
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
