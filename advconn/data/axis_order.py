"""How the axes of an array hold images, told by the classifier's channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from advconn.errors import DataError


@dataclass(frozen=True)
class Layout:
    """How an array's axes are to be read: 'nhwc', 'nchw', 'nhw', 'hwc', 'chw' or 'hw'."""

    axes: str

    def images(self, array: np.ndarray) -> np.ndarray:
        """The same as (n, c, h, w)."""
        if "n" not in self.axes:
            array = array[None]
        if "c" not in self.axes:
            return array[:, None]
        return array.transpose(0, 3, 1, 2) if self.axes.endswith("hwc") else array


def layout(shape: tuple[int, ...], channels: int | None, name: str) -> Layout:
    """How an array holds images.

    Args:
        shape: of the array.
        channels: of the images; None for 1 or 3.
        name: what error messages name.

    Raises:
        DataError: it holds none, or in two ways.
    """
    counts = (1, 3) if channels is None else (channels,)
    fits = []
    if len(shape) == 4:
        fits = [axes for axes, axis in (("nhwc", 3), ("nchw", 1)) if shape[axis] in counts]
    elif len(shape) == 3:
        fits = [axes for axes, axis in (("hwc", 2), ("chw", 0)) if shape[axis] in counts and 1 not in shape]
        fits = fits or (["nhw"] if 1 in counts else [])
    elif len(shape) == 2 and 1 in counts:
        fits = ["hw"]
    if len(fits) > 1 and len(shape) == 4:  # (n, 3, 224, 3) is told by its sides: images are about as high as wide
        square = [a for a in fits if shape[a.index("h")] == shape[a.index("w")]]
        fits = square if len(square) == 1 else fits
    if len(fits) == 1:
        return Layout(fits[0])
    if not fits and channels is not None and len(shape) == 4 and {1, 3} & {shape[1], shape[3]}:
        own = shape[1] if shape[1] in (1, 3) else shape[3]
        raise DataError(f"{name}: images of {own} channels (shape {shape}); the classifier takes {channels}")
    wanted = "1 or 3" if channels is None else str(channels)
    said = f"can be read as {' and as '.join(fits)}" if fits else "is neither n x H x W x C nor n x C x H x W"
    raise DataError(f"{name}: the shape {shape} {said} with C {wanted}: store it as n x H x W x C")
