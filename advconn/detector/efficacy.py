"""How well a detector catches one attack on its classifier: what a fit measures, and what its card holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIN_CAUGHT = 0.5  # share of attacked images: a detector that catches less is weak


@dataclass(frozen=True)
class Efficacy:
    """How well a detector caught one attack, on images in no other use.

    Attributes:
        attack: its specification.
        count: number of successfully attacked images.
        auroc: of these against the clean images calibrated on, in [0, 1].
        caught: share of them that the detector flags, in [0, 1].
        prices: for each condition of the guarantee, what share more of a weak attack the detector would catch without
            it: of images that stand just beyond the decision boundary.
    """

    attack: str
    count: int
    auroc: float
    caught: float
    prices: Mapping[str, float] = field(default_factory=dict)

    @property
    def weak(self) -> bool:
        """Whether it catches less than half."""
        return self.caught < MIN_CAUGHT

    @property
    def warning(self) -> str:
        """What to say before a weak detector's verdicts; empty for one that is not weak."""
        return f"this detector is weak: it caught only {self}, so it calls most attacked images clean" * self.weak

    def __str__(self) -> str:
        return f"{self.caught:.0%} of {self.count} images attacked by {self.attack} (AUROC {self.auroc:.3f})"
