"""Work spread over processes or a cluster, kept so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from advconn.progress import Progress, silent


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

    def map(self, stage: str, work: Callable[..., Any], calls: Sequence[tuple[Any, ...]], ignored: str) -> list[Any]:
        """`work(*call)` for every call, in order; `ignored` names the argument that is not part of a result's key."""
        from joblib import Memory, Parallel, delayed, parallel_config

        kept = Memory(self.folder, verbose=0).cache(work, ignore=[ignored]) if self.folder else work
        if self.jobs == 1 and self.backend == "loky":
            return self._told(stage, (kept(*call) for call in calls), len(calls))
        near = self.backend == "loky"
        threads = max(1, (os.cpu_count() or 1) // self.jobs) if near else 1
        with parallel_config(backend=self.backend, n_jobs=self.jobs if near or self.jobs > 1 else -1):
            pool = Parallel(return_as="list" if self.backend == "ray" else "generator")
            return self._told(stage, pool(delayed(_threaded)(threads, kept, call) for call in calls), len(calls))

    def kept(self, work: Callable[..., Any], call: tuple[Any, ...], ignored: str) -> bool:
        """Whether `map` would not do this call anew."""
        from joblib import Memory

        return self.folder is not None and bool(
            Memory(self.folder, verbose=0).cache(work, ignore=[ignored]).check_call_in_cache(*call)
        )

    def _told(self, stage: str, found: Iterable[Any], total: int) -> list[Any]:
        out = []
        for result in found:
            out.append(result)
            self.progress(stage, len(out), total)
        return out


def _threaded(threads: int, work: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    torch.set_num_threads(threads)
    return work(*call)
