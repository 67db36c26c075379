"""Work spread over processes or a cluster, told as it goes, and kept so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import inspect
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from advconn.errors import DataError

Progress = Callable[[str, int, int], None]


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Report nothing.

    Args:
        stage: name of the work.
        done: how much of it is done.
        total: how much there is in all.
    """


def cache_folder(given: Path | None = None) -> Path | None:
    """Where finished work is kept: `given`, else ADVCONN_CACHE, else advconn in XDG_CACHE_HOME or ~/.cache.

    None where there is no home.
    """
    if given is not None:
        return given
    for name, below in (("ADVCONN_CACHE", ""), ("XDG_CACHE_HOME", "advconn")):
        if os.environ.get(name):
            return Path(os.environ[name]) / below
    try:
        return Path.home() / ".cache" / "advconn"
    except RuntimeError:
        return None


T = TypeVar("T")
_DIGEST = hashlib.sha256().digest_size


class DiskCache:
    """What functions gave, by what they were asked, in a folder (None: nothing is kept).

    An entry's key also holds a digest of advconn's own source, so that a change of the code is a change of the key.
    A folder that cannot be written is told once through `note` and not used.
    """

    def __init__(self, folder: Path | str | None, note: Callable[[str], None] = lambda text: None) -> None:
        self.folder: Path | None = None
        if folder is None:
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=folder)
            os.close(handle)
            os.unlink(name)
            self.folder = Path(folder)
        except OSError as error:
            note(f"{folder}: cannot write the cache folder ({error.strerror}); continuing without a cache")

    def path(self, kind: str, key: Any) -> Path | None:
        """Where the entry of a key lies."""
        from joblib import hash as digest

        return None if self.folder is None else self.folder / kind / f"{digest((key, source_digest()))}.kept"

    def has(self, kind: str, key: Any) -> bool:
        """Whether an undamaged entry is there."""
        return self._content(self.path(kind, key)) is not None

    def get(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        """The entry of a key, made now where it is not there.

        Args:
            kind: subfolder that it lies in.
            key: what it depends on; anything that joblib can hash.
            make: gives its value.
        """
        import joblib

        path = self.path(kind, key)
        content = self._content(path)
        if content is not None:
            with suppress(Exception):  # written by other versions of what is in it: made again
                kept: T = joblib.load(io.BytesIO(content))
                return kept
        value = make()
        if path is not None:
            buffer = io.BytesIO()
            joblib.dump(value, buffer)
            self._write(path, buffer.getvalue())
        return value

    def _content(self, path: Path | None) -> bytes | None:
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else None

    def _write(self, path: Path, content: bytes) -> None:
        with suppress(OSError):  # a full disk costs time, not the result
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(hashlib.sha256(content).digest() + content)
                os.replace(name, path)
            finally:
                Path(name).unlink(missing_ok=True)


@lru_cache(maxsize=1)
def source_digest() -> str:
    """A digest of advconn's own code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Runner:
    """Spreads pure functions over processes, keeps what they give, and tells how far it is.

    jobs: processes. backend: joblib's 'loky', which shares this machine's cores among so many, or a registered one such
    as 'ray' and 'dask', whose workers take one core each, all of them where jobs is 1. store: where results are kept.
    progress: told (stage, done, total).
    """

    jobs: int = 1
    backend: str = "loky"
    store: DiskCache = field(default_factory=lambda: DiskCache(None))
    progress: Progress = ignore_progress

    @property
    def alone(self) -> bool:
        """Whether all work is done in this process."""
        return self.jobs == 1 and self.backend == "loky"

    def map(self, stage: str, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], ignored: str) -> list[Any]:
        """`work(*call)` for every call, in order, kept.

        Args:
            stage: told to `progress`.
            work: a function of a module, which can be sent.
            calls: its arguments.
            ignored: the argument that is not part of a result's key.
        """
        out = []
        for result in self.spread(_kept, ((self.store, work, call, ignored) for call in calls)):
            out.append(result)
            self.progress(stage, len(out), len(calls))
        return out

    def spread(self, work: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """`work(*call)` for every call, in order, each when it is asked for; a few more are under way."""
        if self.alone:
            yield from (work(*call) for call in calls)
            return
        import torch
        from joblib import Parallel, delayed, parallel_config

        carry_user_code()
        near = self.backend == "loky"
        threads = max(1, torch.get_num_threads() // self.jobs) if near else 1
        with parallel_config(backend=self.backend, n_jobs=self.jobs if near or self.jobs > 1 else -1):
            tasks = (delayed(_threaded)(threads, work, call) for call in calls)
            if self.backend != "ray":
                yield from Parallel(return_as="generator", pre_dispatch="2 * n_jobs")(tasks)
                return
            pool = Parallel()  # whose backend gives whole lists alone
            several = 8 * (self.jobs if self.jobs > 1 else os.cpu_count() or 1)
            while some := list(itertools.islice(tasks, several)):
                yield from pool(some)

    def kept(self, work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> bool:
        """Whether `map` would not do this call anew.

        Args:
            work: see map.
            call: its arguments.
            ignored: see map.
        """
        return self.store.has(work.__name__, _key(work, call, ignored))

    def carrying(self, value: Any) -> Runner:
        """Itself, or where a value that the work needs cannot be sent to other processes, the same in this one."""
        if self.alone:
            return self
        try:
            carry_user_code().dumps(value)
            return self
        except Exception:  # a module with a lock, a session or a hook in it may raise anything
            return replace(self, jobs=1, backend="loky")


def carry_user_code() -> Any:
    """What joblib sends work by, told that modules from a user's file go along with it."""
    try:
        from joblib.externals import cloudpickle
    except ImportError:  # newer ones have it as a package beside them
        import cloudpickle
    for name, module in list(sys.modules.items()):
        if name.startswith("advconn_user_"):
            cloudpickle.register_pickle_by_value(module)
    return cloudpickle


@contextmanager
def cluster(backend: str, jobs: int) -> Iterator[None]:
    """What a backend runs on: the cluster that the environment names, or one on this machine.

    Ray's is named by RAY_ADDRESS, Dask's by DASK_SCHEDULER_ADDRESS or Dask's settings.

    Raises:
        DataError: its package is not installed.
    """
    try:
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif backend == "dask":
            import dask
            from distributed import Client

            here = {"processes": True, "threads_per_worker": 1, "dashboard_address": None}
            here |= {"n_workers": jobs} if jobs > 1 else {}
            with Client(**({} if dask.config.get("scheduler-address", None) else here)):
                yield
            return
    except ImportError:
        raise DataError(f"--backend {backend} needs its package: pip install 'advconn[{backend}]'") from None
    yield


def _key(work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> dict[str, Any]:
    bound = inspect.signature(work).bind(*call).arguments
    return {name: value for name, value in bound.items() if name != ignored}


def _kept(store: DiskCache, work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> Any:
    return store.get(work.__name__, _key(work, call, ignored), lambda: work(*call))


def _threaded(threads: int, work: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    import torch

    torch.set_num_threads(threads)
    return work(*call)
