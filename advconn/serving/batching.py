"""Requests that arrive together are judged together: a bounded queue, and threads that judge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor

from advconn.errors import AdvconnError, Unanswered
from advconn.runtime.trace_context import trace_headers, traced

Verdicts = dict[str, Any]
T = TypeVar("T")


class QueueFull(AdvconnError):
    """So many images wait that no more are taken."""


@dataclass(eq=False)
class _Waiting:
    images: Tensor
    future: asyncio.Future[Verdicts] = field(repr=False)
    trace: Mapping[str, str] = field(default_factory=trace_headers)


class Batcher:
    """Judges what waits, at most `batch` images at once, `wait` seconds after the first of them came or sooner.

    Args:
        judge: images (n, c, h, w) to outputs by name, each with a row an image.
        batch: images judged at once; a request of more is judged by itself.
        wait: seconds.
        most: images that may wait.
        told: called with the number of images and the seconds that each batch took.
        threads: that judge side by side: more than one where a classifier upstream is waited for.
    """

    def __init__(
        self,
        judge: Callable[[Tensor], Verdicts],
        *,
        batch: int = 32,
        wait: float = 0.005,
        most: int = 512,
        told: Callable[[int, float], None] = lambda count, seconds: None,
        threads: int = 1,
    ) -> None:
        self.judge, self.batch, self.wait, self.most, self.told = judge, batch, wait, most, told
        self.waiting = 0
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="advconn-judge")
        self._turns = asyncio.Semaphore(threads)
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._open = False

    async def start(self) -> None:
        """Begin to judge."""
        self._open, self._task = True, asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Take no more, judge what waits, and end."""
        self._open = False
        await self._queue.put(None)
        if self._task is not None:
            await self._task
        await asyncio.gather(*self._tasks)
        self._pool.shutdown()

    async def ask(self, images: Tensor) -> Verdicts:
        """What is said of images (n, c, h, w).

        Raises:
            QueueFull: too many wait, or no more are taken. AdvconnError: they could not be judged.
        """
        mine = _Waiting(images, asyncio.get_running_loop().create_future())
        with self._waits(len(images)):
            await self._queue.put(mine)
            return await mine.future

    async def run(self, work: Callable[[], T], count: int) -> T:
        """What `work` gives, in a thread that judges; `count`: the images that it is about.

        Raises:
            QueueFull: too many wait, or no more are taken.
        """
        with self._waits(count):
            return await asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, work)

    @contextmanager
    def _waits(self, count: int) -> Iterator[None]:
        if not self._open:
            raise QueueFull("the server is stopping")
        if self.waiting + count > max(self.most, count):
            raise QueueFull(f"{self.waiting} images wait already: try again later")
        self.waiting += count
        try:
            yield
        finally:
            self.waiting -= count

    async def _work(self) -> None:
        kept: _Waiting | None = None
        while True:
            first = kept or await self._queue.get()
            if first is None:
                return
            await self._turns.acquire()  # before others are gathered: as many as come meanwhile go together
            together, kept = await self._gather(first)
            task = asyncio.create_task(self._judge(together))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._turns.release()

    async def _gather(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None]:
        """What is judged with the first: others of its size and kind, as long as they fit and come in time."""
        together, count = [first], len(first.images)
        until = asyncio.get_running_loop().time() + self.wait
        while count < self.batch:
            left = until - asyncio.get_running_loop().time()
            try:
                other = (
                    await asyncio.wait_for(self._queue.get(), max(left, 0)) if left > 0 else self._queue.get_nowait()
                )
            except (TimeoutError, asyncio.QueueEmpty):
                break
            if other is None:
                await self._queue.put(None)
                break
            alike = other.images.shape[1:] == first.images.shape[1:] and other.images.dtype == first.images.dtype
            if not alike or count + len(other.images) > self.batch:
                return together, other
            together.append(other)
            count += len(other.images)
        return together, None

    def _together(self, live: list[_Waiting]) -> Verdicts:
        """Verdicts of several requests; what they ask upstream belongs to the trace of the first."""
        with traced(live[0].trace):
            return self.judge(torch.cat([request.images for request in live]))

    async def _judge(self, together: list[_Waiting]) -> None:
        live = [request for request in together if not request.future.cancelled()]
        if not live:
            return
        started = perf_counter()
        loop = asyncio.get_running_loop()
        try:
            verdicts = await loop.run_in_executor(self._pool, self._together, live)
        except Exception as error:  # whoever asked is told, and whoever asks next is served
            together_failed = isinstance(error, Unanswered) or not isinstance(error, AdvconnError)
            if len(live) > 1 and not together_failed:  # the fault of one must not be that of all
                for request in live:
                    await self._judge([request])
                return
            for request in live:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        self.told(sum(len(request.images) for request in live), perf_counter() - started)
        start = 0
        for request in live:
            rows = slice(start, start + len(request.images))
            start = rows.stop
            if not request.future.done():
                request.future.set_result({name: values[rows] for name, values in verdicts.items()})
