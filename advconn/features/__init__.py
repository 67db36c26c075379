"""What is read of an image: how it is connected to its copies, to references and to rivals, and its noise and pixels.

It imports the ground, data, models and paths, and knows neither attacks nor heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.features.connectivity import Connectivity
    from advconn.features.path_features import FEATURES, Trace
    from advconn.features.references import References, choose, synthesise
    from advconn.features.transforms import COPIES

__all__ = ["COPIES", "FEATURES", "Connectivity", "References", "Trace", "choose", "synthesise"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "COPIES": "transforms",
        "Connectivity": "connectivity",
        "FEATURES": "path_features",
        "References": "references",
        "Trace": "path_features",
        "choose": "references",
        "synthesise": "references",
    },
)
