"""Images from whatever they are given as: a path, a file's bytes, a PIL picture, an array, or a sequence of these."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advconn.errors import DataError
from advconn.images import Collection, read_picture
from advconn.layout import layout
from advconn.pictures import fitted, pixels_of, readings, sized
from advconn.preprocessing import Preprocessing


def read_all(given: Any, preprocessing: Preprocessing, channels: int, reading: str = "plain") -> Tensor:
    """Images (n, c, h, w) from a path, a file's bytes or file object, a PIL picture, an array or tensor, or a sequence.

    An array of one image may be (h, w), (h, w, c) or (c, h, w), of several (n, h, w, c) or (n, c, h, w).

    Args:
        given: any of these.
        preprocessing: of the classifier.
        channels: of the images.
        reading: of files, see pictures.readings.

    Raises:
        DataError: anything else, or what cannot be read.
    """
    if isinstance(given, (list, tuple)):
        parts = [read_all(item, preprocessing, channels, reading) for item in given]
        if not parts:
            return torch.zeros((0, channels, *(preprocessing.size or (0, 0))), dtype=torch.uint8, device="cpu")
        kinds = {p.dtype for p in parts}
        return torch.cat([p.to(torch.float32) / 255 if len(kinds) > 1 and p.dtype == torch.uint8 else p for p in parts])
    if isinstance(given, (str, os.PathLike)):
        collection = Collection(Path(given), channels, reading=reading)
        if collection.failed:
            raise collection.failed[0]
        return torch.cat([b.images for b in collection.batches(preprocessing)])
    if isinstance(given, (bytes, bytearray, memoryview)) or hasattr(given, "read"):
        if hasattr(given, "seek") and hasattr(given, "seekable") and given.seekable():
            given.seek(0)
        data = given.read() if hasattr(given, "read") else bytes(given)
        if not isinstance(data, bytes):
            raise DataError(f"a file object gave {type(data).__name__}; expected bytes: open it with 'rb'")
        return read_picture(data, "the picture", preprocessing, channels, reading).images
    if isinstance(given, Image.Image):
        ((_, made),) = readings(given, "the picture", channels, reading)
        return torch.from_numpy(pixels_of(fitted(made, preprocessing, "the picture"), channels))[None]
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"expected images as uint8 or as floats in [0, 1], got {array.dtype}")
    images = layout(array.shape, channels, "the array").images(array)
    plain = [np.ascontiguousarray(image, dtype=np.uint8 if image.dtype == np.uint8 else np.float32) for image in images]
    return torch.from_numpy(np.stack([sized(image, preprocessing, "the array") for image in plain]))
