"""The log-odds margin, landscapes of it, and what every pass through a network costs."""

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
class Cost:
    """Forward passes and input gradients spent, counted in images."""

    forwards: int = 0
    gradients: int = 0


_cost: ContextVar[Cost | None] = ContextVar("advconn_cost", default=None)


@contextmanager
def counting() -> Iterator[Cost]:
    """Count what every classifier spends inside the block, in this thread. Blocks nest: the outer one counts all."""
    outer, cost = _cost.get(), Cost()
    token = _cost.set(cost)
    try:
        yield cost
    finally:
        _cost.reset(token)
        if outer is not None:
            outer.forwards += cost.forwards
            outer.gradients += cost.gradients


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds margin against a class: logsumexp of the other logits minus the class's own; negative where it wins.

    logits (..., k), labels of a shape that broadcasts to (...). softplus(margin) is the cross-entropy exactly.
    """
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    return logits.scatter(-1, index, -torch.inf).logsumexp(-1) - own


LEAD = 5.0  # of the predicted class over the next, of a typical clean image at the temperature of its classifier


def temperature_of(logits: Tensor) -> float:
    """What logits (n, k) of clean images are to be divided by, so that their median lead over the next class is LEAD.

    It is 1 where the median lead is nothing, or not finite.
    """
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    lead = float((first - second).median()) if len(logits) else 0.0
    return lead / LEAD if 0 < lead < float("inf") else 1.0


def margin_at(delta: Tensor | float) -> Tensor:
    """Margin at which the cross-entropy is `delta`: ln(e^delta - 1), the inverse of softplus."""
    value = delta if isinstance(delta, Tensor) else torch.tensor(delta, dtype=torch.float32, device="cpu")
    return value + torch.log(-torch.expm1(-value))


Forward = Callable[[Tensor], Tensor]


class MarginLandscape:
    """The margin against one class for each row, as paths walk it: points (n, s, *shape) to energies (n, s).

    `logits` maps points (m, *shape) to logits (m, k).
    """

    def __init__(self, logits: Forward, labels: Tensor) -> None:
        self._logits, self._labels = logits, labels

    def __call__(self, points: Tensor) -> Tensor:
        """Margins (n, s) at points (n, s, *shape)."""
        n, s = points.shape[:2]
        logits = self._logits(points.flatten(0, 1))
        return margin(logits.view(n, s, logits.shape[1]), self._labels[:, None])

    def rows(self, index: Tensor) -> MarginLandscape:
        """The landscape of these rows."""
        return MarginLandscape(self._logits, self._labels[index])


def at_once(device: torch.device, most: int, largest: int, values: int) -> int:
    """How many images go together: so many, and so many values in all; on a GPU ON_A_GPU times as many of both.

    Args:
        device: where they go.
        most: images.
        largest: values of all these images.
        values: of one image.
    """
    times = ON_A_GPU if device.type == "cuda" else 1
    return max(1, min(times * most, times * largest // max(values, 1)))


def in_batches(forward: Forward, points: Tensor, batch_size: int) -> Tensor:
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
        out = [few_sizes(forward, c, batch_size) if c.is_cuda else forward(c) for c in chunks]
        return out[0] if len(out) == 1 else torch.cat(out)


def few_sizes(forward: Forward, points: Tensor, batch_size: int) -> Tensor:
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
def with_gradients() -> Iterator[None]:
    """Gradients, whatever mode the caller is in: tensors made in inference mode never give one."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def in_float32() -> Iterator[None]:
    """Convolutions of a GPU in float32, and not in TF32, for one thread at a time: torch has one flag for all."""
    with ONE_PRECISION:
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = allowed
