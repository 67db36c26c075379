"""Work spread over processes or a cluster."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from advconn.errors import DataError
from advconn.runtime.cache import DiskCache
from advconn.runtime.progress import Progress, ignore_progress


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

    def map(
        self, stage: str, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], keys: Sequence[Any]
    ) -> list[Any]:
        """`work(*call)` for every call, in order, kept.

        Args:
            stage: told to `progress`.
            work: a function of a module, which can be sent.
            calls: its arguments.
            keys: of each call all that its result depends on; anything that joblib can hash.
        """
        out = []
        tasks = ((self.store, work, call, key) for call, key in zip(calls, keys, strict=True))
        for result in self.spread(_kept, tasks):
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

    def kept(self, work: Callable[..., Any], key: Any) -> bool:
        """Whether `map` would not do a call of this key anew."""
        return self.store.has(work.__name__, key)

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


def _kept(store: DiskCache, work: Callable[..., Any], call: tuple[Any, ...], key: Any) -> Any:
    return store.get(work.__name__, key, lambda: work(*call))


def _threaded(threads: int, work: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    import torch

    torch.set_num_threads(threads)
    return work(*call)
