"""What anyone's object depends on, for a cache: everything plain that its class or its maker set, and its code."""

from __future__ import annotations

import hashlib
import inspect
import sys
from typing import Any

PLAIN = (bool, int, float, str, bytes, type(None))


def parameters(made: Any) -> dict[str, Any]:
    """Public plain values of an object and of its classes, by name."""
    values: dict[str, Any] = {}
    for kind in reversed(type(made).__mro__):
        values |= {k: v for k, v in vars(kind).items() if not k.startswith("_") and _plain(v)}
    return values | {k: v for k, v in vars(made).items() if not k.startswith("_") and _plain(v)}


def code(made: Any) -> str:
    """A digest of the files that an object's classes stand in; where there is none, one that no other object has."""
    digest = hashlib.sha256()
    for kind in type(made).__mro__[:-1]:
        try:
            text = inspect.getsource(sys.modules.get(kind.__module__) or kind)
        except (OSError, TypeError):
            text = f"{kind!r} {id(kind)}"
        digest.update(text.encode())
    return digest.hexdigest()


def _plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(_plain, value)))
