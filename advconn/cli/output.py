"""What commands print: notes, errors, tables, promises, and how far long work is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from advconn.errors import shown
from advconn.parallel import Progress

if TYPE_CHECKING:
    from advconn.detector.calibration import Calibration
    from advconn.detector.detector import Detector


SHOWN_AFTER = 2.0  # seconds
EVERY = 10.0


@contextmanager
def progress_bar(expected: float | None = None) -> Iterator[Progress]:
    """Report on stderr: a bar that appears after two seconds, or without a terminal a line every ten.

    `expected` is how many seconds the whole is thought to take.
    """
    stream = sys.stderr
    if stream is not None and stream.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines(expected)


class _Lines:
    def __init__(self, expected: float | None) -> None:
        self.started = self.last = monotonic()
        self.expected = expected

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = monotonic()
        if now - self.last < EVERY:
            return
        self.last, passed = now, now - self.started
        whole = f" of about {span(max(self.expected, passed))}" if self.expected else ""
        click.echo(f"{span(passed)}{whole}: {stage}, {done} of {total}", err=True)


def span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}
    started, visible = monotonic(), False

    def report(stage: str, done: int, total: int) -> None:
        nonlocal visible
        if not visible and monotonic() - started > SHOWN_AFTER:
            visible = True
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total, visible=done < total)

    try:
        yield report
    finally:
        if visible:
            bars.stop()


def print_error(message: str) -> None:
    """One line on stderr."""
    click.echo(f"advconn: {shown(' '.join(message.split()))}", err=True)


def note(message: str) -> None:
    """What the user should know, on stderr."""
    click.echo(f"note: {shown(' '.join(message.split()))}", err=True)


def promised(calibration: Calibration) -> str:
    """The false-alarm rate, and how sure it is."""
    sure = "on average" if calibration.confidence is None else f"with {calibration.confidence:.0%} confidence"
    return f"false-alarm rate {calibration.fpr:g} {sure}"


def put(table: Any, width: int) -> None:
    """A table on stdout, so wide where that is no terminal."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width)
    with console.capture() as text:  # rich would end the process with status 1 at a closed pipe
        console.print(table)
    click.echo(text.get(), nl=False)


def flagged_where(detector: Detector) -> str:
    """Which images are flagged, and what is promised of it."""
    calibration = detector.calibration_
    own = "; classes with enough images have a threshold of their own" if calibration.by_class else ""
    own += "; compared with pictures of like noise and sharpness" if calibration.by_group else ""
    efficacy = detector.fitted_.efficacy
    weak = f"{efficacy.warning}. " if efficacy is not None and efficacy.weak else ""
    return weak + (
        f"flagged: p-value at most {calibration.level:.3g} ({promised(calibration)}, for images like the "
        f"{len(calibration.scores)} calibrated on: {', '.join(calibration.conditions)}{own})"
    )
