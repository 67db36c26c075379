"""Values made by a thread before they are asked for: files are read while the network is busy."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
WAIT = 0.1  # seconds after which the thread looks whether anybody still asks


def prefetch(values: Iterable[T], count: int = 2) -> Iterator[T]:
    """The same values in the same order, of which up to `count` are ready before they are asked for.

    What `values` raises is raised here, in its turn. The thread ends with the last value, or when nobody asks any more.
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(count)
    gone = threading.Event()

    def put(value: Any, error: BaseException | None = None) -> None:
        while not gone.is_set():
            with suppress(queue.Full):
                ready.put((value, error), timeout=WAIT)
                return

    def work() -> None:
        try:
            for value in values:
                put(value)
                if gone.is_set():
                    return
            put(_END)
        except BaseException as error:  # raised again where the values are asked for
            put(_END, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is _END:
                return
            yield value
    finally:
        gone.set()
