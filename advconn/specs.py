"""Numbers in the name of an attack, as people write them: 10, 0.5 or 8/255."""

from __future__ import annotations

import math
from fractions import Fraction

from advconn.errors import AttackError
from advconn.kinds import INTEGERS


def read(name: str, key: str, text: str) -> float:
    """The value of an attack's parameter.

    Args:
        name: of the attack.
        key: of the parameter.
        text: a number or a fraction.

    Raises:
        AttackError: no number, or one that the parameter cannot have.
    """
    value = _number(text)
    if value < 0 or (key in INTEGERS and value < 1):
        raise AttackError(f"{name}: {key} must be positive, got {text}")
    if key in INTEGERS and value % 1:
        raise AttackError(f"{name}: {key} must be a whole number, got {text}")
    if key == "eps" and name != "pgd-l2" and value > 1:
        raise AttackError(f"{name}: eps is at most 1 for images in [0, 1], got {text} (8/255, perhaps?)")
    return value


def written(key: str, value: float) -> str:
    """The value of a parameter as it is read again; sizes in 255ths."""
    return fraction(value) if key in ("eps", "alpha") else f"{value:g}"


def fraction(value: float) -> str:
    """A size as people write it: so many 255ths where it is a whole number of them."""
    whole = value * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-9 and value < 1 else f"{value:.4g}"


def _number(text: str) -> float:
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, ZeroDivisionError):
        raise AttackError(f"not a number: {text!r} (expected such as 10, 0.5 or 8/255)") from None
