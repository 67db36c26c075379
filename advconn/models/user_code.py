"""What a user's file or module names: a factory that gives a network, or a class of theirs."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from advconn.errors import ModelError, first_line
from advconn.models.classifier import Classifier


def build_from_factory(origin: str, name: str) -> nn.Module | Classifier:
    """What the factory of this name in a file or module gives, in evaluation mode.

    Args:
        origin: path of a Python file, or a module's name.
        name: of the factory, which takes no arguments.

    Raises:
        ModelError: no such factory, code that fails, or no network.
    """
    with _importable(origin):
        return _built(origin, name)


def _built(origin: str, name: str) -> nn.Module | Classifier:
    try:
        factory = getattr(_holder(origin), name, None)
        if not callable(factory) and not isinstance(factory, Classifier):
            raise ModelError(f"{origin} has no callable {name!r}")
        if isinstance(factory, (nn.Module, Classifier)):  # the network itself, or what is made of it
            module: Any = factory
        else:
            needed = _needed(factory)
            if needed:
                raise ModelError(f"{origin}:{name} takes {', '.join(needed)}; expected a function without arguments")
            module = factory()
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything, or leave
        raise ModelError(f"{origin}:{name} failed with {type(error).__name__}: {first_line(error)}") from error
    if isinstance(module, Classifier):
        return module
    if not isinstance(module, nn.Module) and type(module).__name__ != "ExportedProgram":
        way = ": return Classifier.from_callable(f, num_classes=, size=, channels=)" if callable(module) else ""
        way = ": return the module alone" if isinstance(module, (tuple, list)) else way
        raise ModelError(f"{origin}:{name} returned {type(module).__name__}; expected a torch.nn.Module{way}")
    if isinstance(module, nn.Module) and any(getattr(m, "training", False) for m in module.modules()):
        if _moves(module):
            raise ModelError(f"{origin}:{name} returned a model in training mode: call .eval() before returning it")
        if "eval" not in vars(module):
            module = module.eval()
    return module


def load_attribute(spec: str) -> Any:
    """What FILE.py:NAME names.

    Raises:
        ModelError: no such file or name, or code that fails.
    """
    origin, _, name = spec.rpartition(":")
    try:
        with _importable(origin):
            member = getattr(_holder(origin), name, None)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code, which may raise anything, or leave
        raise ModelError(f"{spec}: failed with {type(error).__name__}: {first_line(error)}") from error
    if not callable(member):
        raise ModelError(f"{origin} has no callable {name!r}")
    return member


def _needed(factory: Any) -> list[str]:
    """Names of the arguments that a call must give."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@contextmanager
def _importable(origin: str) -> Iterator[None]:
    """The current folder, and the file's own, can be imported from: before all else while a factory is made and called.

    Later they come last, so that a file of the user's hides no library's module that is imported then.
    """
    folders = [*([str(Path(origin).resolve().parent)] if origin.endswith(".py") else ()), str(Path.cwd())]
    new = [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    sys.path[:0] = new
    try:
        yield
    finally:
        for folder in new:
            sys.path.remove(folder)
            sys.path.append(folder)


def _holder(origin: str) -> Any:
    """The module that holds the factory."""
    if not origin.endswith(".py"):
        return importlib.import_module(origin)
    file = Path(origin)
    if not file.is_file():
        raise ModelError(f"{origin}: no such file")
    unique = f"advconn_user_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, origin)
    if spec is None or spec.loader is None:
        raise ModelError(f"{origin}: cannot be imported")
    holder = importlib.util.module_from_spec(spec)
    sys.modules[unique] = holder  # dataclasses look their module up
    try:
        spec.loader.exec_module(holder)
    except BaseException:
        del sys.modules[unique]
        raise
    return holder


def _moves(module: nn.Module) -> bool:
    """Whether training mode changes what the module answers."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    return any(isinstance(m, kinds) and m.training for m in module.modules())
