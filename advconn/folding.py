"""Batch norms folded into the convolutions before them, found by watching a forward: no code of a user's is traced."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def folded(
    module: nn.Module, ask: Callable[[nn.Module], Tensor], layout: torch.memory_format = torch.channels_last
) -> nn.Module | None:
    """A copy in which every batch norm that only ever follows one convolution is part of it; None if it cannot be.

    Args:
        module: in evaluation mode.
        ask: gives the logits of some images; they must stay the same (to a thousandth of the largest).
        layout: of its weights in memory.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    try:
        plain, pairs = ask(module), _pairs(module, ask)
        if not pairs:
            return None
        made = copy.deepcopy(module)
        parts = dict(made.named_modules())
        for conv, norm in pairs:
            made.set_submodule(conv, fuse_conv_bn_eval(parts[conv], parts[norm]))
            made.set_submodule(norm, nn.Identity())
        for parameter in made.parameters():
            parameter.requires_grad_(False)
        made = made.to(memory_format=layout).eval()
        tolerance = 1e-3 * float(plain.abs().max().clamp_min(1))
        return made if torch.allclose(plain, ask(made), atol=tolerance, rtol=0) else None
    except Exception:  # whatever a user's module does when it is copied or watched
        return None


def _pairs(module: nn.Module, ask: Callable[[nn.Module], Tensor]) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their outputs; each is called once in a forward."""
    names = {part: name for name, part in module.named_modules() if type(part) in (nn.Conv2d, nn.BatchNorm2d)}
    calls: list[tuple[nn.Module, Any, Any]] = []
    handles = [part.register_forward_hook(lambda p, given, out: calls.append((p, given[0], out))) for part in names]
    try:
        ask(module)
    finally:
        for handle in handles:
            handle.remove()
    called = [part for part, _, _ in calls]
    pairs = []
    for norm, given, _ in calls:
        if type(norm) is nn.BatchNorm2d and called.count(norm) == 1:
            conv = next((p for p, _, out in calls if out is given and type(p) is nn.Conv2d), None)
            if conv is not None and called.count(conv) == 1:
                pairs.append((names[conv], names[norm]))
    return pairs
