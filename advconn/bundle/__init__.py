"""A detector as a folder, and back; the detectors that ship.

It imports everything below it. Nothing in a folder is unpickled, and what a folder holds is checked against its card.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.bundle.card_schema import CARD, FORMAT, HEAD, TENSORS, WEIGHTS
    from advconn.bundle.loading import load, read_card
    from advconn.bundle.saving import save
    from advconn.bundle.shipped import default, folder_of

__all__ = ["CARD", "FORMAT", "HEAD", "TENSORS", "WEIGHTS", "default", "folder_of", "load", "read_card", "save"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "CARD": "card_schema",
        "FORMAT": "card_schema",
        "HEAD": "card_schema",
        "TENSORS": "card_schema",
        "WEIGHTS": "card_schema",
        "default": "shipped",
        "folder_of": "shipped",
        "load": "loading",
        "read_card": "loading",
        "save": "saving",
    },
)
