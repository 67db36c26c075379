"""Attacks by name: their catalogue, how they are made, how strong they must be, and attackers who know the detector.

It imports the ground, data and models, and knows neither heads nor detectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.attacks.attack import Attack, is_misclassified, parse_all, round_to_bytes
    from advconn.attacks.catalog import KINDS

__all__ = ["KINDS", "Attack", "is_misclassified", "parse_all", "round_to_bytes"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Attack": "attack",
        "KINDS": "catalog",
        "is_misclassified": "attack",
        "parse_all": "attack",
        "round_to_bytes": "attack",
    },
)
