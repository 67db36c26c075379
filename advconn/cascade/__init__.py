"""Heads over stages of features, which sure images leave early: what they learn from, how they are trained, which ship.

It imports the ground to attacks, and knows neither thresholds nor p-values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.cascade.cascade import Cascade, Stage
    from advconn.cascade.heads import default_head

__all__ = ["Cascade", "Stage", "default_head"]
__getattr__, __dir__ = attach(__name__, {"Cascade": "cascade", "Stage": "cascade", "default_head": "heads"})
