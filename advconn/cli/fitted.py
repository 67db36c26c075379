"""What advconn fit says of the detector that it made."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from advconn.cli.common import note, promised
from advconn.errors import AdvconnError

if TYPE_CHECKING:
    from torch import Tensor

    from advconn.detector import Detector

CHECKED, CHECK = 40, 60.0  # images that one attack is tried on after a quick fit, and seconds that it may take


def say_fitted(detector: Detector, out: Path) -> None:
    """What was fitted, on what, and where the threshold is."""
    fitted, calibration = detector.fitted_, detector.calibration_
    for name, (tried, hits) in fitted.attacks.items():
        low = "   (it rarely changes a prediction of this classifier)" if tried and hits < 0.5 * tried else ""
        click.echo(f"  {name:<32} succeeded on {hits} of {tried}{low}")
    if fitted.missed is not None:
        worst = ", ".join(f"{n} of {of} {name}" for name, (n, of) in fitted.missed.by_attack.items() if n)
        click.echo(
            f"  attacked images that leave early though the whole walk catches them: {fitted.missed.count} of "
            f"{fitted.missed.of}, at most {fitted.missed.at_most:.1%} with 95 % confidence"
            + f" ({worst})"
            * bool(worst)
        )
    hits = sum(n for _, n in fitted.attacks.values())
    if fitted.pretrained:
        made_of = f"standardised by {fitted.train} clean images" + f" and moved by {hits} attacked ones" * (hits > 0)
    else:
        made_of = f"fitted on {fitted.train} clean images and their attacked copies"
    click.echo(
        f"{out}: {made_of}, calibrated on {fitted.calibrate} others ({', '.join(calibration.conditions)}): score above "
        f"{calibration.threshold:.3f} is flagged ({promised(calibration)})"
    )
    beside = detector.connectivity.companion
    if beside is not None and beside.state is None:
        note("the folder does not hold the companion, whose architecture has no name: give --companion with it again")


def say_caught(detector: Detector, images: Tensor, truth: Tensor | None) -> None:
    """How a quick fit, which made no attack, does on one; where that is cheap."""
    from advconn.recalibration import tried_on

    order = None
    with suppress(AdvconnError):  # the detector is there, whatever an attack meets
        order = tried_on(detector, images, truth, most=CHECKED, seconds=CHECK)
    if order is None:
        note("how well it catches attacks on this classifier tells advconn benchmark, on other images")
        return
    better = ": --refine 100 or --full may catch more" if order.caught < 0.8 else ""
    note(
        f"it catches {order.caught:.0%} of {order.count} images attacked by {order.attack} (AUROC "
        f"{order.auroc:.3f}){better}; advconn benchmark tells more, on other images"
    )
