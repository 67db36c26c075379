"""The fingerprint of what was brought: equal for equal weights, whatever they are wrapped in."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPED = re.compile(r"^(?:(?:module|_orig_mod)\.)+")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's state, in hexadecimal.

    The prefixes of DataParallel ('module.') and torch.compile ('_orig_mod.') do not count. Quantised weights are read
    with their scales. A module that knows better what it is says so by an attribute `fingerprint`; a TorchScript module
    without a state (a frozen one) is told by its code and constants.
    """
    given = getattr(module, "fingerprint", None)
    if isinstance(given, str):
        return given
    state = module.state_dict()
    if not state and isinstance(module, torch.jit.ScriptModule):
        return _archive(module)
    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, value in sorted(_plain(state)):
            for part in _parts(name, value):
                digest.update(part)
    return digest.hexdigest()


def _plain(state: dict[str, Any]) -> list[tuple[str, Any]]:
    """The state's entries without the prefixes that every one of them has from a wrapper."""
    names = list(state)
    if all(_WRAPPED.match(name) for name in names):
        return [(_WRAPPED.sub("", name), value) for name, value in state.items()]
    return list(state.items())


def _parts(name: str, value: Any) -> Iterator[bytes]:
    if isinstance(value, (tuple, list)):  # the weight and bias of a quantised layer
        for i, inner in enumerate(value):
            yield from _parts(f"{name}.{i}", inner)
    elif isinstance(value, Tensor) and not name.endswith("num_batches_tracked"):
        yield f"{name}:{value.dtype}:{tuple(value.shape)}".encode()
        if value.is_quantized:
            yield _scales(value)
            value = value.int_repr()
        data = value.detach().cpu().contiguous().reshape(-1)
        yield data.view(torch.uint8).numpy().tobytes() if data.numel() else b""


def _scales(value: Tensor) -> bytes:
    if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return f"{value.q_scale()}:{value.q_zero_point()}".encode()
    scales, zeros = value.q_per_channel_scales(), value.q_per_channel_zero_points()
    return scales.double().numpy().tobytes() + zeros.double().numpy().tobytes()


def _archive(module: torch.jit.ScriptModule) -> str:
    """Of the code and constants that torch.jit.save would write; names that differ from run to run are left out."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    digest = hashlib.sha256()
    with zipfile.ZipFile(buffer) as archive:
        for name in sorted(archive.namelist()):
            content = archive.read(name)
            if name.endswith(".py"):
                digest.update(re.sub(rb"(___torch_mangle_\d+|__torch__[\w.]*)", b"", content))
            elif "/constants/" in name or "/data/" in name:
                digest.update(content)
    return digest.hexdigest()
