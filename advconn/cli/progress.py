"""How far long work is: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import click

from advconn.parallel import Progress

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
