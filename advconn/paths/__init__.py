"""Paths between images over any landscape: straight lines, bypasses of barriers, bands; in pixels or a latent space.

A landscape is a function from points (n, s, ...) to energies (n, s). This package imports the ground, data and models,
and knows neither attacks nor detectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.paths.bypass import Detour
    from advconn.paths.connection import Connection, connect
    from advconn.paths.decoder import Decoder
    from advconn.paths.elastic_band import Band, relax_band
    from advconn.paths.path import Path, Profile, profile, straight
    from advconn.paths.space import Space

__all__ = [
    "Band",
    "Connection",
    "Decoder",
    "Detour",
    "Path",
    "Profile",
    "Space",
    "connect",
    "profile",
    "relax_band",
    "straight",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Band": "elastic_band",
        "Connection": "connection",
        "Decoder": "decoder",
        "Detour": "bypass",
        "Path": "path",
        "Profile": "path",
        "Space": "space",
        "connect": "connection",
        "profile": "path",
        "relax_band": "elastic_band",
        "straight": "path",
    },
)
