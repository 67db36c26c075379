"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Report nothing.

    Args:
        stage: name of the work.
        done: how much of it is done.
        total: how much there is in all.
    """
