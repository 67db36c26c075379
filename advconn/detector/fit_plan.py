"""What a fit decides before it begins: whose heads, which images for what, which attacks and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from advconn.cascade.cascade import Stage

LISTS = ("attacks", "benign", "conditions")


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """What `fit` does with a classifier and its images. `detector.fitted_.plan` and the card keep it.

    A later calibration, which the card tells too, changes nothing of it.

    Attributes:
        pretrained: whether pretrained heads are scaled instead of new ones being trained.
        refine: number of images that are attacked to adapt pretrained heads; 0 for none.
        stages: of the cascade, in order; None computes all features at once.
        images: how many images are in each use: `references` (chosen or synthesised), `trial` (the test of the
            finished detector), `train` and `calibrate`.
        held_out: share, in (0, 1), of the images left after references and trial that is used for calibration.
        attacks: specifications of the attacks used for training; empty if there are none.
        per_attack: images that each of them is run on, at most.
        evasive: images from which adaptive attacks on the new heads are made in each turn; 0 for none.
        benign: conditions under which heads are trained on changed copies of clean images too; of pretrained heads,
            those that they were trained under.
        conditions: conditions under which the false-alarm rate is guaranteed.
        fpr: the false-alarm rate, in (0, 1).
        confidence: of the guarantee, in (0, 1); None guarantees it on average.
    """

    pretrained: bool
    refine: int
    stages: tuple[Stage, ...] | None
    images: Mapping[str, int]
    held_out: float
    attacks: tuple[str, ...]
    per_attack: int
    evasive: int
    benign: tuple[str, ...]
    conditions: tuple[str, ...]
    fpr: float
    confidence: float | None

    def __str__(self) -> str:
        """The plan in one line."""
        count = self.images
        if self.pretrained:
            heads = f"pretrained heads, scaled by {count['train']} images"
            heads += f" and adapted to {self.refine} attacked ones" * (self.refine > 0)
        else:
            heads = (
                f"new heads, trained on {count['train']} images and copies of them under {len(self.attacks)} attacks"
            )
        sure = "on average" if self.confidence is None else f"with {self.confidence:.0%} confidence"
        return (
            f"plan: {heads}; {count['calibrate']} images calibrate a false-alarm rate of {self.fpr:g} {sure}, under "
            f"{len(self.conditions)} conditions; {count['trial']} test the detector, "
            f"{count['references']} are references"
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without the stages."""
        plain = {name: value for name, value in vars(self).items() if name != "stages"}
        plain |= {name: [str(entry) for entry in plain[name]] for name in LISTS}
        return plain | {"images": dict(self.images)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], stages: tuple[Stage, ...] | None) -> FitPlan:
        """What `to_dict` gave, with the stages."""
        return cls(**dict(values) | {name: tuple(values[name]) for name in LISTS}, stages=stages)
