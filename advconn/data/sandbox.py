"""Work that may take for ever or fill the memory, done by a process of its own that has limits and can be ended.

What C code decodes cannot be interrupted from inside, and holds the interpreter's lock: a picture that was made to be
slow would stop everything else. A worker imports no torch, answers with numbers and text alone (nothing of its answer
is unpickled), and is kept for the next call.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any, cast

import numpy as np

from advconn.errors import DataError, first_line

SECONDS = 10.0  # that one call may take
BYTES = 3 * 2**29  # of memory that one call may take: 1.5 GiB
WORKERS = max(2, min(8, os.cpu_count() or 1))  # as many as files are decoded side by side
_LENGTH = struct.Struct("<Q")
_END = 2**64 - 1  # stands for a length where a call is complete
_IDLE: list[_Worker] = []
_LOCK = threading.Lock()
_TURNS = threading.BoundedSemaphore(WORKERS)
_OWNER = os.getpid()


class Limited(DataError):
    """A call took longer, or more memory, than it may."""


def call(work: str, *args: Any, seconds: float = SECONDS) -> tuple[Any, list[np.ndarray]]:
    """What a function of advconn's gives when a worker calls it.

    Args:
        work: "module:function", its module in full; it returns what JSON can hold, and a list of arrays.
        args: its arguments, which are pickled.
        seconds: that it may take.

    Raises:
        Limited: as told. DataError: it raised one.
    """
    with _TURNS:
        worker = _taken()
        try:
            answer = worker.ask((work, args), seconds)
        except BaseException:
            worker.end()
            raise
        with _LOCK:
            _IDLE.append(worker)
    if "error" in answer[0]:
        raise DataError(answer[0]["error"])
    return answer[0]["value"], answer[1]


def _taken() -> _Worker:
    """A worker that waits, or a new one; a forked child does not use its parent's."""
    global _OWNER
    with _LOCK:
        if os.getpid() != _OWNER:
            _IDLE.clear()
            _OWNER = os.getpid()
        while _IDLE:
            worker = _IDLE.pop()
            if worker.process.poll() is None:
                return worker
    return _Worker()


@atexit.register
def _end() -> None:
    """No worker outlives the process that started it."""
    with _LOCK:
        while os.getpid() == _OWNER and _IDLE:
            _IDLE.pop().end()


class _Worker:
    """A process that answers one call after the other."""

    def __init__(self) -> None:
        path = [os.path.abspath(p) for p in sys.path]
        code = f"import sys; sys.path[:] = {path!r}; from advconn.data.sandbox import answer_calls; answer_calls()"
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DataError(f"a process to decode in cannot be started: {first_line(error)}") from error
        self.calls, self.answers = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)

    def ask(self, asked: Any, seconds: float) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What the worker answers; it is ended where that takes too long."""
        late = threading.Event()

        def stop() -> None:
            late.set()
            self.process.kill()

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            apart: list[pickle.PickleBuffer] = []  # large bytes are sent as they lie in memory
            data = pickle.dumps(_apart(asked), protocol=5, buffer_callback=apart.append)
            for part in (memoryview(data), *(buffer.raw() for buffer in apart)):
                self.calls.write(_LENGTH.pack(part.nbytes))
                self.calls.write(part)
            self.calls.write(_LENGTH.pack(_END))
            self.calls.flush()
            return _received(self.answers)
        except (OSError, EOFError, ValueError) as error:
            if late.is_set():
                raise Limited(
                    f"takes more than {seconds:g} s to decode; expected an ordinary one: save it anew"
                ) from error
            raise Limited("needs too much memory to decode, or is damaged") from error
        finally:
            timer.cancel()

    def end(self) -> None:
        """Now."""
        self.process.kill()
        for stream in (self.calls, self.answers):
            with suppress(OSError, ValueError):
                stream.close()
        self.process.wait()


def _apart(asked: tuple[str, tuple[Any, ...]]) -> tuple[str, tuple[Any, ...]]:
    work, args = asked
    return work, tuple(pickle.PickleBuffer(arg) if isinstance(arg, bytes) else arg for arg in args)


def _received(stream: IO[bytes]) -> tuple[dict[str, Any], list[np.ndarray]]:
    head = json.loads(_exactly(stream, _LENGTH.unpack(_exactly(stream, _LENGTH.size))[0]))
    arrays = []
    for kind, shape in head["arrays"]:
        dtype = np.dtype(kind)
        data = _exactly(stream, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
        arrays.append(np.frombuffer(bytearray(data), dtype).reshape(shape))
    return head, arrays


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError("the answer ends too early")
    return data


def answer_calls() -> None:
    """What a worker does until nobody asks any more."""
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit()
    while (call := _asked(asked)) is not None:
        work, args = call
        arrays: list[np.ndarray] = []
        try:
            module, _, name = work.partition(":")
            value, arrays = getattr(importlib.import_module(module), name)(*args)
            head: dict[str, Any] = {"value": value}
        except MemoryError:
            head = {"error": "needs too much memory to decode; expected an ordinary one"}
        except Exception as error:  # the caller sees one line
            head = {"error": str(error) if isinstance(error, DataError) else first_line(error)}
        arrays = [np.ascontiguousarray(array) for array in arrays]
        head["arrays"] = [(array.dtype.str, array.shape) for array in arrays]
        text = json.dumps(head).encode()
        answers.write(_LENGTH.pack(len(text)) + text)
        for array in arrays:
            answers.write(array.data)
        answers.flush()


def _asked(stream: IO[bytes]) -> tuple[str, tuple[Any, ...]] | None:
    """A call, or None where nobody asks any more."""
    parts: list[bytes] = []
    while len(length := stream.read(_LENGTH.size)) == _LENGTH.size:
        size = _LENGTH.unpack(length)[0]
        if size == _END:
            work, args = pickle.loads(parts[0], buffers=parts[1:])  # of the process that started this one
            return work, args
        parts.append(_exactly(stream, size))
    return None


def _limit() -> None:
    """Bound this process's memory, where the system can: what it has now, and BYTES."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, now + BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
