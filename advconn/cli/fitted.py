"""What advconn fit says of the detector that it made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advconn.cli.common import note, promised

if TYPE_CHECKING:
    from advconn.detector.detector import Detector

UNREMARKABLE = 0.8  # share of attacked images caught: under it, fit says what may catch more


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


def say_efficacy(detector: Detector) -> None:
    """How well the detector caught the attack that it was tried on."""
    found = detector.fitted_.efficacy
    if found is None:
        note("how well it catches attacks was not measured: run advconn benchmark on other images")
        return
    better = ": --refine 100 or --full may catch more" if found.caught < UNREMARKABLE else ""
    note(found.warning or f"it catches {found}{better}; advconn benchmark measures more attacks, on other images")
