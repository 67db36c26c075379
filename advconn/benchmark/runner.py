"""Work spread over processes or a cluster, kept so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from advconn.progress import Progress, silent
from advconn.store import Store


@dataclass
class Runner:
    """Spreads pure functions over jobs, keeps what they give, and tells how far it is.

    jobs: processes; backend: joblib's 'loky', which shares this machine's cores among so many, or a registered one such
    as 'ray' and 'dask', whose workers take one core each, all of them where jobs is 1. folder: where results are kept
    (None: nowhere).
    """

    jobs: int = 1
    backend: str = "loky"
    folder: str | None = None
    progress: Progress = silent
    note: Callable[[str], None] = lambda text: None
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.folder, self.note)

    def map(self, stage: str, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], ignored: str) -> list[Any]:
        """`work(*call)` for every call, in order; `ignored` names the argument that is not part of a result's key."""
        store = self.store
        if self.jobs == 1 and self.backend == "loky":
            return self._told(stage, (_kept(store, work, call, ignored) for call in calls), len(calls))
        from joblib import Parallel, delayed, parallel_config

        near = self.backend == "loky"
        threads = max(1, (os.cpu_count() or 1) // self.jobs) if near else 1
        with parallel_config(backend=self.backend, n_jobs=self.jobs if near or self.jobs > 1 else -1):
            pool = Parallel(return_as="list" if self.backend == "ray" else "generator")
            tasks = (delayed(_threaded)(threads, store, work, call, ignored) for call in calls)
            return self._told(stage, pool(tasks), len(calls))

    def kept(self, work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> bool:
        """Whether `map` would not do this call anew."""
        return self.store.has(work.__name__, _key(work, call, ignored))

    def _told(self, stage: str, found: Iterable[Any], total: int) -> list[Any]:
        out = []
        for result in found:
            out.append(result)
            self.progress(stage, len(out), total)
        return out


def _key(work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> dict[str, Any]:
    bound = inspect.signature(work).bind(*call).arguments
    return {name: value for name, value in bound.items() if name != ignored}


def _kept(store: Store, work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> Any:
    return store.get(work.__name__, _key(work, call, ignored), lambda: work(*call))


def _threaded(threads: int, store: Store, work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> Any:
    torch.set_num_threads(threads)
    return _kept(store, work, call, ignored)
