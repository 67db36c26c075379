"""Anyone's network to logits: modules, functions, files and served models behind one Classifier.

It imports the ground and data, and knows neither attacks nor detectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.models.classifier import Classifier
    from advconn.models.loading import load

__all__ = ["Classifier", "load"]
__getattr__, __dir__ = attach(__name__, {"Classifier": "classifier", "load": "loading"})
