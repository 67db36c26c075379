"""What commands print: notes, errors, tables, promises, and how far long work is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from advconn.errors import printable
from advconn.runtime.progress import Progress

if TYPE_CHECKING:
    from advconn.detector.calibration import Calibration
    from advconn.detector.detector import Detector


SHOWN_AFTER = 2.0  # seconds
EVERY = 10.0
ENOUGH_SHARE = 0.05  # of the phases, done before a time is told by them


@contextmanager
def progress_bar(expected: float | None = None, phases: Sequence[str] = ()) -> Iterator[Progress]:
    """Report on stderr: a bar that appears after two seconds, or without a terminal a line every ten.

    Args:
        expected: seconds that the whole is thought to take.
        phases: names of the stages to come, in order, as far as they are known; by what is done of them the time is
            told anew.
    """
    stream = sys.stderr
    if stream is not None and stream.isatty():
        with _bars() as report:
            yield report
    else:
        yield _Lines(expected, phases)


class _Lines:
    def __init__(self, expected: float | None, phases: Sequence[str]) -> None:
        self.started = self.last = monotonic()
        self.expected, self.phases = expected, tuple(phases)
        self.seen: dict[str, tuple[int, int]] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.seen[stage] = done, total
        now = monotonic()
        if now - self.last < EVERY:
            return
        self.last, passed = now, now - self.started
        share = self._share()
        about = self.expected if share is None else passed / share
        whole = f" of about {format_duration(max(about, passed))}" if about else ""
        phase = f" (phase {self.phases.index(stage) + 1} of {len(self.phases)})" if stage in self.phases else ""
        click.echo(f"{format_duration(passed)}{whole}: {stage}, {done} of {total}{phase}", err=True)

    def _share(self) -> float | None:
        """How much of the phases is done; None where too little is to say."""
        done = sum(self.seen[name][0] for name in self.phases if name in self.seen)
        largest = max((self.seen[name][1] for name in self.phases if name in self.seen), default=0)
        total = sum(self.seen[name][1] if name in self.seen else largest for name in self.phases)
        return done / total if total and done > ENOUGH_SHARE * total else None


def format_duration(seconds: float) -> str:
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
    click.echo(f"advconn: {printable(' '.join(message.split()))}", err=True)


_NOTES: ContextVar[Callable[[str], None] | None] = ContextVar("advconn_notes", default=None)


@contextmanager
def notes_written_by(write: Callable[[str], None]) -> Iterator[None]:
    """Hand notes to `write`, such as a server's log, in place of stderr."""
    before = _NOTES.set(write)
    try:
        yield
    finally:
        _NOTES.reset(before)


def note(message: str) -> None:
    """What the user should know, on stderr."""
    text, write = printable(" ".join(message.split())), _NOTES.get()
    if write is None:
        click.echo(f"note: {text}", err=True)
    else:
        write(text)


def format_guarantee(calibration: Calibration) -> str:
    """The false-alarm rate, and how sure it is."""
    sure = "on average" if calibration.confidence is None else f"with {calibration.confidence:.0%} confidence"
    return f"false-alarm rate {calibration.fpr:g} {sure}"


def print_table(table: Any, width: int) -> None:
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
        f"flagged: p-value at most {calibration.level:.3g} ({format_guarantee(calibration)}, for images like the "
        f"{len(calibration.scores)} calibration images, under {', '.join(calibration.conditions)}{own})"
    )
