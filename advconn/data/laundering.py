"""Laundering: what happens to an attacked image when it is saved or sent on, which may hide it from a detector.

An attacker needs to know nothing for it. Names are those of benign conditions, and of files of any quality.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from advconn.data.conditions import CONDITIONS, Condition, saved_as
from advconn.errors import DataError, expected_one_of

LAUNDERINGS = ("jpeg90", "jpeg75", "jpeg50", "webp80", "resize", "screenshot", "phone", "noise4")  # that are tested
_QUALITY = re.compile(r"(jpeg|webp)([1-9]\d?|100)")
_FILES = {"jpeg": ("JPEG", ".jpg"), "webp": ("WEBP", ".webp")}


@dataclass(frozen=True)
class Laundering:
    """A way of saving.

    Attributes:
        change: what it does to images (n, c, h, w) uint8.
        kind: Pillow's name of the file's format.
        suffix: of the file's name.
        quality: of the file, from 1 to 100; None where it loses nothing.
    """

    change: Condition
    kind: str = "PNG"
    suffix: str = ".png"
    quality: int | None = None


def parse_laundering(name: str) -> Laundering:
    """A way of saving by its name: one of LAUNDERINGS, or 'jpegQ' or 'webpQ' with a quality Q from 1 to 100.

    Raises:
        DataError: another name.
    """
    found = _QUALITY.fullmatch(name)
    if found is not None:
        kind, suffix = _FILES[found[1]]
        return Laundering(saved_as(kind, int(found[2])), kind, suffix, int(found[2]))
    if name not in LAUNDERINGS:
        raise DataError(f"no way of saving named {name!r}: {expected_one_of(name, LAUNDERINGS)}")
    return Laundering(CONDITIONS[name])
