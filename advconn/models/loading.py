"""Classifiers by name: a factory in a file or module, timm, torchvision, a Hugging Face folder, ONNX, an endpoint.

Nothing is downloaded. 'timm:', 'torchvision:' and 'advconn:' name an architecture only: no code is run that the name
brings along, and shapes are compared with the weights' before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from advconn.errors import ModelError
from advconn.models import architectures
from advconn.models.classifier import Classifier
from advconn.models.state_dict import State, find_mismatch, load_into, read_weights, strip_prefix
from advconn.models.user_code import build_from_factory

ARCHITECTURES = ("advconn", "timm", "torchvision")
SPEC = (
    "file.py:factory, package.module:factory, timm:NAME, torchvision:NAME, hf:FOLDER, onnx:FILE or "
    "http://HOST/v2/models/NAME"
)
Note = Callable[[str], None]
T = TypeVar("T")


def load(
    spec: str,
    weights: Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    device: str | None = None,
    note: Note = lambda text: None,
    **options: Any,
) -> Classifier:
    """The classifier that a specification names, with the weights of a file.

    Args:
        spec: see SPEC.
        weights: a state dict, see weights.read_weights.
        size: used where neither the module nor its library says one.
        device: where it is to run.
        note: told what a user should know: whose constants are taken, for example.
        options: to Classifier; they win over what the library says.

    Raises:
        ModelError: no such model, a factory that fails, weights that do not fit.
    """
    if spec.startswith(("http://", "https://")):
        return _served(spec, weights, options | ({} if size is None else {"size": size}))
    origin, _, name = spec.rpartition(":") if not spec.startswith(("hf:", "onnx:")) else spec.partition(":")
    if not origin or not name:
        raise ModelError(f"{spec!r} names no model: expected {SPEC}")
    sized = {"size": size} if size is not None else {}
    if origin == "onnx":
        _no_weights(origin, weights)
        return Classifier.from_onnx(name, **(sized | options))
    if origin == "hf":
        _no_weights(origin, weights)
        module, settings = architectures.hugging_face(Path(name))
        settings = _resized(settings, size)
        return Classifier(module.eval(), device=device, name=spec, **(settings | options))
    state = read_weights(weights, note) if weights is not None else None
    if origin in ARCHITECTURES:
        if state is None:
            raise ModelError(f"{spec} names an architecture only: give its weights with --weights FILE")
        told = (lambda text: None) if "mean" in options else note
        module, settings, state = _architecture(origin, name, state, size, told)
        classifier = Classifier(module.eval(), device=device, name=spec, **({"size": size} | settings | options))
        classifier.state = state
        return classifier
    made = build_from_factory(origin, name)
    if isinstance(made, Classifier):
        return _as_given(made, spec, state, device, options)
    if state is not None:
        load_into(made, state, spec)
    return _any_channels(made.eval() if state is not None else made, {"size": size} | options, device, spec)


def _no_weights(origin: str, weights: Path | None) -> None:
    if weights is not None:
        raise ModelError(f"{origin}: brings its own weights: leave --weights out")


def _resized(settings: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """What a library knows of its images, at another input size: the resize before the crop keeps its share."""
    own = settings.get("size")
    if size is None or own is None or tuple(size) == tuple(own):
        return settings
    scaled = {"resize": int(settings["resize"] * min(size) / min(own))} if settings.get("resize") else {}
    return settings | {"size": tuple(size)} | scaled


def _served(spec: str, weights: Path | None, options: dict[str, Any]) -> Classifier:
    _no_weights("an endpoint", weights)
    match = re.fullmatch(r"(https?://[^/]+.*?)/v2/models/([^/]+)(?:/versions/([^/]+))?/?", spec)
    if match is None:
        raise ModelError(f"{spec}: expected an address such as http://localhost:8080/v2/models/NAME")
    url, model, version = match.groups()
    return Classifier.from_endpoint(url, unquote(model), version=unquote(version or ""), **options)


def _as_given(
    made: Classifier, spec: str, state: State | None, device: str | None, options: dict[str, Any]
) -> Classifier:
    """A Classifier that a factory returned: it knows its own size, channels and names."""
    if state is not None:
        raise ModelError(f"{spec} returned a Classifier, which has its weights already: leave --weights out")
    own = vars(made.preprocessing) | {"class_names": made.class_names}
    for name, wanted in options.items():
        have = own.get(name)
        wanted = tuple(wanted) if isinstance(wanted, list) else wanted
        if wanted is not None and have is not None and have != wanted:
            raise ModelError(f"{spec} returned a Classifier with {name} {have}; asked for was {wanted}")
    made.name = made.name or spec
    return made if device is None else made.to(device)


def _any_channels(module: nn.Module, options: dict[str, Any], device: str | None, spec: str) -> Classifier:
    """A factory's module with the number of channels it takes: what its first convolution says, three, or one."""
    if options.get("channels") is not None:
        return Classifier(module, device=device, name=spec, **options)
    rest = {k: v for k, v in options.items() if k != "channels"}
    first = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    error: ModelError | None = None
    for channels in dict.fromkeys([first, 3, 1] if first in (1, 3) else [3, 1, first]):
        try:
            return Classifier(module, device=device, name=spec, channels=channels, **rest)
        except ModelError as caught:
            if "does not take images" not in str(caught) and "values for" not in str(caught):
                raise
            error = error or caught
    raise error or ModelError(f"{spec}: takes no images")


def parse_architecture_spec(spec: str) -> tuple[str, str] | None:
    """(library, name) if the specification names an architecture that a bundle may rebuild, else None."""
    origin, _, name = spec.rpartition(":")
    return (origin, name) if origin in ARCHITECTURES else None


def _architecture(
    origin: str, name: str, state: State, size: tuple[int, int] | None, note: Note
) -> tuple[nn.Module, dict[str, Any], State]:
    """The module with its weights, what its library knows of its images, and the weights under its own names.

    It is first built without memory (torch's meta device), and only once the shapes agree for real.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise ModelError(f"{name!r} is no {origin} architecture")
    build, settings = architectures.BUILDERS[origin](name, state, size, note)
    settings = _resized(settings, size)
    state = strip_prefix(state, _weightless(lambda: build(2).state_dict()))
    heads = _weightless(lambda: architectures.heads_of(build))
    head = next((h for h in reversed(heads) if h in state and state[h].ndim), None)
    if head is None or not state[head].shape[0]:
        raise ModelError(f"the weights do not fit {origin}:{name}: {(heads or ['a last layer'])[-1]} is missing")
    classes = int(state[head].shape[0])
    wrong = find_mismatch(state, _weightless(lambda: build(classes).state_dict()))
    if wrong:
        raise ModelError(f"the weights do not fit {origin}:{name}: {wrong}")
    with _plainly("cpu"):
        module = build(classes)
    load_into(module, state, f"{origin}:{name}")
    return module, settings, state


class _Numbers(TorchFunctionMode):
    """Small tensors that architectures read numbers off stay in memory, also where parameters take none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func in (torch.arange, torch.linspace, torch.tensor, torch.logspace) and given.get("device") is None:
            given["device"] = "cpu"
        return func(*args, **given)


def _weightless(make: Callable[[], T]) -> T:
    """What `make` builds, without memory for its parameters."""
    with _plainly("meta"):
        try:
            with _Numbers():
                return make()
        except RuntimeError:  # it mixes those tensors with its parameters, and so reads nothing off them
            return make()


@contextmanager
def _plainly(device: str) -> Iterator[None]:
    """Build in float32 on a device, whatever the process's defaults are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
