"""How images are brought to a classifier: size, crop, mean and std, from whatever people keep them in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advconn.errors import ModelError

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROPS = ("center", "squash", "cover", "border")


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier's images are made.

    Attributes:
        size: (h, w) in pixels; None for any.
        resize: pixels of the shorter side before the crop; min(size) unless told.
        interpolation: one of INTERPOLATIONS.
        mean: per channel, subtracted from images in [0, 1].
        std: per channel, divided by afterwards.
        crop: 'center' (of the image whose shorter side is `resize`; where `size` is no square the image is stretched to
            it), 'squash' (stretched to `resize`, then cropped), 'cover' (as 'center', also for a `size` that is no
            square) or 'border' (its longer side is brought to `resize`, what is missing is filled with `mean`).
        channels: of the images: 3, 1 for grey, or any number for arrays.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: str = "center"
    channels: int = 3


def preprocessing_of(
    size: Any, resize: Any, interpolation: Any, mean: Any, std: Any, crop: str, channels: int
) -> Preprocessing:
    """What was given, as plain values that a bundle can hold.

    Args:
        size: (h, w) or one side in pixels, or None.
        resize: pixels of the shorter side before the crop, or None.
        interpolation: one of INTERPOLATIONS, or an object with such a `value`.
        mean: per channel, or None.
        std: per channel, or None.
        crop: one of CROPS.
        channels: of the images.

    Raises:
        ModelError: mean without std, one value too many, no side, an interpolation or a crop that nobody knows.
    """
    if (mean is None) != (std is None):
        raise ModelError("mean and std go together: give both, or neither if the module normalises by itself")
    pair = {"mean": mean, "std": std}
    plain: dict[str, tuple[float, ...] | None] = {"mean": None, "std": None}
    for label, values in pair.items():
        if values is not None:
            numbers = tuple(float(v) for v in ([values] if isinstance(values, (int, float)) else list(values)))
            if len(numbers) != channels:
                raise ModelError(f"{label} has {len(numbers)} values for {channels} channels")
            if not all(map(math.isfinite, numbers)) or (label == "std" and min(numbers) <= 0):
                raise ModelError(f"{label} {numbers}: expected finite numbers{', above 0' * (label == 'std')}")
            plain[label] = numbers
    sides = None if size is None else to_height_width(size)
    method = str(getattr(interpolation, "value", interpolation)).lower()
    if method.partition("-")[0] not in INTERPOLATIONS:
        raise ModelError(f"interpolation {interpolation!r}: expected one of {', '.join(INTERPOLATIONS)}")
    if crop not in CROPS:
        raise ModelError(f"crop {crop!r}: expected one of {', '.join(CROPS)}")
    return Preprocessing(
        sides,
        None if resize is None else positive_int("resize", resize),
        method,
        plain["mean"],
        plain["std"],
        crop,
        channels,
    )


def to_height_width(size: Any) -> tuple[int, int]:
    """(height, width) from a pair or one side, in any kind of sequence.

    Raises:
        ModelError: not one or two whole numbers above 0.
    """
    given = list(size) if isinstance(size, Sequence) or hasattr(size, "tolist") else [size, size]
    if len(given) not in (1, 2):
        raise ModelError(f"size {tuple(given)}: expected (height, width) or one side")
    return positive_int("size", given[0]), positive_int("size", given[-1])


def positive_int(name: str, value: Any) -> int:
    """A whole number above 0.

    Raises:
        ModelError: another value; the message names it by `name`.
    """
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or number != value:
        raise ModelError(f"{name} {value!r}: expected a whole number above 0")
    return number


def parse_class_names(given: Sequence[str] | Mapping[Any, str] | None, classes: int) -> tuple[str, ...] | None:
    """Class names in the order of the classes, from a sequence or a dict from index to name."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        byindex = {int(k): v for k, v in given.items() if str(k).lstrip("-").isdecimal()}
        if set(byindex) != set(range(len(given))):
            raise ModelError("class_names as a dict must go from every index 0, 1, 2, ... to a name")
        given = [byindex[i] for i in range(len(given))]
    if isinstance(given, str) or len(given) != classes:
        description = "a text" if isinstance(given, str) else f"{len(given)} class names"
        raise ModelError(f"the model has {classes} classes, but {description} were given")
    return tuple(map(str, given))
