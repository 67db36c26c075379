"""Anyone's network to logits: modules, functions, files and served models behind one Classifier.

It imports the ground and data, and knows neither attacks nor detectors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advconn.models.classifier import Classifier
    from advconn.models.loading import load

_WHERE = {"Classifier": "classifier", "load": "loading"}
__all__ = ["Classifier", "load"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'advconn.models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"advconn.models.{_WHERE[name]}"), name)
