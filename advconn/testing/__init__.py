"""Checks of an attack or a detector of your own, before a benchmark takes hours over it.

It imports benchmark and bundle, and knows neither commands nor servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.testing.checks import check_attack, check_detector

__all__ = ["check_attack", "check_detector"]

__getattr__, __dir__ = attach(__name__, {"check_attack": "checks", "check_detector": "checks"})
