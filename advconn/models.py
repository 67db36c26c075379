"""Classifiers by name: 'file.py:factory', 'package.module:factory', 'timm:NAME', 'torchvision:NAME', 'advconn:compact'.

The last three only ever name an architecture: nothing is downloaded and no code is run that the name brings along.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advconn.classifier import Classifier
from advconn.errors import ModelError

ARCHITECTURES = ("advconn", "timm", "torchvision")


def load(
    spec: str,
    weights: Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    **options: Any,
) -> Classifier:
    """The classifier that a specification names, with the weights of a file.

    `size` is used where neither the module nor its library says one. `options` go to Classifier and win over what the
    library says.

    Raises:
        ModelError: no such model, a factory that fails, weights that do not fit.
    """
    origin, _, name = spec.rpartition(":")
    if not origin or not name:
        raise ModelError(
            f"{spec!r} names no model: expected file.py:factory, package.module:factory, timm:NAME or torchvision:NAME"
        )
    state = read_weights(weights) if weights is not None else None
    if origin in ARCHITECTURES:
        if state is None:
            raise ModelError(f"{spec} names an architecture only: give its weights with --weights FILE")
        module, known = _architecture(origin, name, state)
    else:
        module, known = _factory(origin, name), {}
    if state is not None:
        _fill(module, state, spec)
    known = {"size": size, "channels": _channels(module)} | known | options
    classifier = Classifier(module.eval(), device=device, name=spec, **known)
    classifier.state = state if origin in ARCHITECTURES else None
    return classifier


def architecture(spec: str) -> tuple[str, str] | None:
    """(library, name) if the specification names an architecture that a bundle may rebuild, else None."""
    origin, _, name = spec.rpartition(":")
    return (origin, name) if origin in ARCHITECTURES else None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .safetensors, or from a torch file read with weights_only=True."""
    if not path.is_file():
        raise ModelError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling and header errors come in many types: all mean the file is unusable
        raise ModelError(f"{path}: not readable weights: {_line(error)}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"{path}: holds {type(state).__name__}; expected a state dict of tensors")
    return state


def _fill(module: nn.Module, state: dict[str, torch.Tensor], spec: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).split("\n")[1:] if line.strip()]
        raise ModelError(f"the weights do not fit {spec}: {(lines or [_line(error)])[0][:160]}") from error


def _architecture(origin: str, name: str, state: dict[str, torch.Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise ModelError(f"{name!r} is no {origin} architecture")
    last = [v for v in state.values() if v.ndim == 2] or [v for v in state.values() if v.ndim >= 1]
    classes = int(last[-1].shape[0]) if last else 0
    if origin == "advconn":
        from advconn.nets import compact

        if name != "compact":
            raise ModelError(f"{name!r} is no advconn architecture: expected compact")
        names = ["stem.weight", *(f"stage{i}.widen.weight" for i in range(1, len(state)))]
        widths = [state[k].shape[0] for k in names if k in state]
        channels = next((v.shape[1] for k, v in state.items() if k == "stem.weight"), 3)
        return compact(classes, int(channels), tuple(map(int, widths))), {}
    return _timm(name, classes) if origin == "timm" else _torchvision(name, classes)


def _timm(name: str, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    try:
        import timm
    except ImportError:
        raise ModelError("timm models need timm: pip install 'advconn[timm]'") from None
    if name not in timm.list_models(name):
        raise ModelError(f"timm has no model {name!r}")
    module = timm.create_model(name, pretrained=False, num_classes=classes)
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(module)
    side = config["input_size"][1:]
    return module, {
        "size": tuple(side),
        "mean": config["mean"],
        "std": config["std"],
        "channels": config["input_size"][0],
        "resize": round(min(side) / config["crop_pct"]),
        "interpolation": config["interpolation"],
    }


def _torchvision(name: str, classes: int) -> tuple[nn.Module, dict[str, Any]]:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ModelError(f"torchvision has no classification model {name!r}")
    extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    module = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
    weights = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    side = weights.crop_size[0]
    return module, {
        "size": (side, side),
        "mean": weights.mean,
        "std": weights.std,
        "resize": weights.resize_size[0],
        "interpolation": weights.interpolation.value,
    }


def _factory(origin: str, name: str) -> nn.Module:
    try:
        if origin.endswith(".py"):
            spec = importlib.util.spec_from_file_location("advconn_user_model", origin)
            if spec is None or spec.loader is None or not Path(origin).is_file():
                raise ModelError(f"{origin}: no such file")
            holder = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(holder)
        else:
            holder = importlib.import_module(origin)
        factory = getattr(holder, name, None)
        if not callable(factory):
            raise ModelError(f"{origin} has no callable {name!r}")
        module = factory()
    except ModelError:
        raise
    except Exception as error:  # the user's own code, which may raise anything
        raise ModelError(f"{origin}:{name} failed with {type(error).__name__}: {_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{origin}:{name} returned {type(module).__name__}; expected a torch.nn.Module")
    if any(m.training for m in module.modules()) and _moves(module):
        raise ModelError(f"{origin}:{name} returned a model in training mode: call .eval() before returning it")
    return module


def _moves(module: nn.Module) -> bool:
    """Whether training mode changes what the module answers."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(m, kinds) and m.training for m in module.modules())


def _channels(module: nn.Module) -> int:
    return next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
