"""The log-odds margin against a class, and landscapes of it."""

from __future__ import annotations

import torch
from torch import Tensor

from advconn.runtime.forward_passes import Forward


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


def margin_of_loss(delta: Tensor | float) -> Tensor:
    """Margin at which the cross-entropy is `delta`: ln(e^delta - 1), the inverse of softplus."""
    value = delta if isinstance(delta, Tensor) else torch.tensor(delta, dtype=torch.float32, device="cpu")
    return value + torch.log(-torch.expm1(-value))


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
