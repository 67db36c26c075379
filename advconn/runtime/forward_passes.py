"""How networks are run: what every pass costs, batches, gradient modes, and float32 on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import RLock

import torch
from torch import Tensor

from advconn.errors import ModelError

ON_A_GPU = 32  # times as many images go together there
ONE_PRECISION = RLock()  # held while torch's flag for TF32, which is one for all threads, must not change


@dataclass
class PassCount:
    """Forward passes and input gradients spent, counted in images."""

    forwards: int = 0
    gradients: int = 0


_cost: ContextVar[PassCount | None] = ContextVar("advconn_cost", default=None)


@contextmanager
def count_passes() -> Iterator[PassCount]:
    """Count what every classifier spends inside the block, in this thread. Blocks nest: the outer one counts all."""
    outer, cost = _cost.get(), PassCount()
    token = _cost.set(cost)
    try:
        yield cost
    finally:
        _cost.reset(token)
        if outer is not None:
            outer.forwards += cost.forwards
            outer.gradients += cost.gradients


Forward = Callable[[Tensor], Tensor]


def batch_limit(device: torch.device, most: int, largest: int, values: int) -> int:
    """How many images go together: so many, and so many values in all; on a GPU ON_A_GPU times as many of both.

    Args:
        device: where they go.
        most: images.
        largest: values of all these images.
        values: of one image.
    """
    times = ON_A_GPU if device.type == "cuda" else 1
    return max(1, min(times * most, times * largest // max(values, 1)))


def batched_forward(forward: Forward, points: Tensor, batch_size: int) -> Tensor:
    """What `forward` gives for points, counted, at most `batch_size` at once.

    Differentiable, and then in one batch, where the points ask for a gradient.

    Args:
        forward: from points to an answer with one row each.
        points: (m, ...).
        batch_size: points at once.

    Raises:
        ModelError: a gradient was asked for, and `forward` gives none.
    """
    wanted = points.requires_grad and torch.is_grad_enabled()
    cost = _cost.get()
    if cost is not None:
        if wanted:
            cost.gradients += len(points)
        else:
            cost.forwards += len(points)
    if wanted:
        answer = forward(points)
        if not answer.requires_grad:
            raise ModelError("the model gives no gradient: its forward is detached, or runs under torch.no_grad()")
        return answer
    with torch.inference_mode(False), torch.no_grad():  # constants a module makes now must serve a gradient later
        points = points.clone() if points.is_inference() else points
        chunks = points.split(batch_size)
        out = [padded_forward(forward, c, batch_size) if c.is_cuda else forward(c) for c in chunks]
        return out[0] if len(out) == 1 else torch.cat(out)


def padded_forward(forward: Forward, points: Tensor, batch_size: int) -> Tensor:
    """What `forward` gives for points, padded to a power of two: one compiled graph serves many m.

    Args:
        forward: from points to an answer with one row each.
        points: (m, ...).
        batch_size: the largest number that is padded to.
    """
    m = len(points)
    size = min(batch_size, 1 << (m - 1).bit_length()) if m else 0
    if size <= m:
        return forward(points)
    return forward(torch.cat([points, points[-1:].expand(size - m, *points.shape[1:])]))[:m]


@contextmanager
def gradients_enabled() -> Iterator[None]:
    """Gradients, whatever mode the caller is in: tensors made in inference mode never give one."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def tf32_disabled() -> Iterator[None]:
    """Convolutions of a GPU in float32, and not in TF32, for one thread at a time: torch has one flag for all."""
    with ONE_PRECISION:
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = allowed
