"""A detector that is weak is not handed over in silence: remedies are tried, and what stays weak is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from advconn.detector.detector import Detector
from advconn.detector.trial_attack import Trial
from advconn.errors import AttackError, FitError
from advconn.runtime.progress import Progress, ignore_progress

MAX_SECONDS = 900.0  # that one remedy is thought to take, at most


@dataclass(frozen=True)
class Remedy:
    """A dearer fit.

    Attributes:
        what: it does, after "to".
        seconds: about how long it takes here.
        fit: does it.
    """

    what: str
    seconds: Callable[[], float]
    fit: Callable[[], Detector]


def refine_until_effective(
    detector: Detector,
    trial: Trial,
    remedies: Sequence[Remedy],
    *,
    accept_weak: bool,
    note: Callable[[str], None],
    progress: Progress = ignore_progress,
) -> Detector:
    """The detector, or that of a remedy where it catches too little; its `fitted_.efficacy` holds what was measured.

    Args:
        detector: a fitted one.
        trial: what it is tried on.
        remedies: what is tried where it is weak, in order.
        accept_weak: return the best one even if it stays weak.
        note: told what is done, and why.
        progress: told (stage, done, total).

    Raises:
        FitError: it stays weak.
    """
    best = _measured(detector, trial, progress)
    for remedy in remedies:
        if best.fitted_.efficacy is None or not best.fitted_.efficacy.weak:
            return best
        seconds = remedy.seconds()
        said = f"the detector catches only {best.fitted_.efficacy}"
        if seconds > MAX_SECONDS:
            note(f"{said}; to {remedy.what} would take about {seconds / 60:.0f} min, so it is left to --full")
            continue
        note(f"{said}: trying to {remedy.what}, about {seconds:.0f} s")
        try:
            other = _measured(remedy.fit(), trial, progress)
        except (AttackError, FitError) as error:
            note(f"that failed: {error}")
            continue
        found = other.fitted_.efficacy
        if found is not None and found.caught > best.fitted_.efficacy.caught:
            best = other
            note(f"now it catches {found}")
        else:
            note("that caught no more, and is not kept")
    found = best.fitted_.efficacy
    if found is not None and found.weak and not accept_weak:
        raise FitError(
            f"the detector catches only {found}, so it would pass most attacked images, and is not kept. Use more "
            "images or train new heads (--full, quick=False); to keep it anyway, pass --accept-weak (accept_weak=True)"
        )
    return best


def _measured(detector: Detector, trial: Trial, progress: Progress) -> Detector:
    detector.fitted_ = replace(detector.fitted_, efficacy=trial.measure(detector, progress))
    return detector
