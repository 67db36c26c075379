"""State dicts from files, under whatever key and prefix they were saved. Nothing is unpickled freely."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advconn.errors import ModelError, first_line
from advconn.files import refuse_bytearrays

State = dict[str, Tensor]
# Where training scripts put the weights in what they save; of several the first is taken.
KEYS = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "weights", "params",
    "model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model",
)  # fmt: skip


def read_weights(path: Path, note: Callable[[str], None] = lambda text: None) -> State:
    """A state dict from .safetensors, or from a torch file read with weights_only=True.

    Beside the weights a file may hold numbers, texts, NumPy scalars and an argparse.Namespace.

    Raises:
        ModelError: no such file, not readable, no tensors, or a whole model, whose loading would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        refuse_bytearrays(path)
        with torch.serialization.safe_globals(_harmless()):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and header errors come in many types: all mean the file is unusable
        raise ModelError(f"{path}: not readable weights: {_reason(path, error)}") from error
    return _state(held, path, note)


def _harmless() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "bool")]
    return [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _reason(path: Path, error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text or "constants.pkl" in text or "torch.jit.load" in text:
        return (
            "it is a TorchScript program: load it in a factory, torch.jit.load(FILE), and give --model file.py:factory"
        )
    whole = re.search(r"GLOBAL ([\w.]+)", text)
    if whole:
        return (
            f"it holds a {whole.group(1)}, and loading that would run code: save the state dict alone, "
            "torch.save(model.state_dict(), FILE)"
        )
    if "Weights only load failed" in text:
        return "it holds more than weights: save the state dict alone, torch.save(model.state_dict(), FILE)"
    return first_line(error, 120)


def _state(held: Any, path: Path, note: Callable[[str], None]) -> State:
    state = held
    if isinstance(held, Mapping) and not _tensors(held):
        there = [key for key in KEYS if isinstance(held.get(key), Mapping) and _tensors(held[key])]
        if not there:
            names = ", ".join(map(str, list(held)[:6])) or "nothing"
            raise ModelError(f"{path}: expected a state dict of tensors, or one under {KEYS[0]!r}; found {names}")
        if len(there) > 1:
            note(f"{path} holds weights under {', '.join(there)}: {there[0]} is taken")
        state = held[there[0]]
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"{path}: holds {type(held).__name__}; expected a state dict of tensors")
    if not all(isinstance(name, str) for name in state):
        raise ModelError(f"{path}: its entries have no names; expected a state dict of tensors")
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _tensors(values: Mapping[Any, Any]) -> bool:
    """Whether this is a state dict: tensors, beside which quantised or lazy layers may keep other things."""
    return bool(values) and sum(isinstance(v, Tensor) for v in values.values()) > len(values) / 2


def strip_prefix(state: State, expected: Iterable[str]) -> State:
    """The entries under the names expected, whatever prefix they all have (module., model., _orig_mod., a trainer's).

    Unchanged where no prefix gives every name.
    """
    names = list(expected)
    wanted_names = set(names)
    if not names or wanted_names <= set(state):
        return state
    last = names[-1]
    prefixes = dict.fromkeys(k[: -len(last)] for k in state if k.endswith(f".{last}"))
    for prefix in prefixes:
        if all(prefix + name in state for name in names):
            return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    return state


def find_mismatch(state: State, expected: Mapping[str, Tensor]) -> str | None:
    """What does not fit between a state dict and a module's own, in one line; None where all does."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        return f"{missing[0]} is missing ({len(missing)} of {len(expected)} are)"
    extra = [name for name in state if name not in expected]
    if extra:
        return f"{extra[0]} is not the model's ({len(extra)} entries are not)"
    for name, value in expected.items():
        if name in state and state[name].shape != value.shape:
            return f"{name} has shape {tuple(state[name].shape)}, the model's has {tuple(value.shape)}"
    return None


def load_into(module: nn.Module, state: State, spec: str) -> None:
    """Load a state dict into a module.

    Args:
        module: what is filled.
        state: tensors by name, under any common prefix.
        spec: what error messages name.

    Raises:
        ModelError: it does not fit.
    """
    own = module.state_dict()
    entries = strip_prefix(state, own)
    wrong = find_mismatch(entries, {k: v for k, v in own.items() if isinstance(v, Tensor)})
    if wrong:
        raise ModelError(f"the weights do not fit {spec}: {wrong}")
    try:
        module.load_state_dict(entries)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit {spec}: {first_line(error, 160)}") from error
