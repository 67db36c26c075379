"""What users give as images, labels and kinds: paths, bytes, PIL pictures, arrays, tensors; as tensors."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from advconn.data.axis_order import layout
from advconn.data.collection import Collection, read_picture
from advconn.data.decoding import decode_variants, resize_and_crop, resize_array, to_chw
from advconn.data.preprocessing import Preprocessing
from advconn.errors import DataError, FitError


def as_tensor(images: Any) -> Tensor:
    """Images given as a tensor or as an array of any strides and byte order, as a tensor.

    Raises:
        DataError: anything else.
    """
    if isinstance(images, Tensor):
        return images
    array = to_native_array(images)
    if array.dtype != np.uint8 and (array.dtype.kind != "f" or array.dtype.itemsize > 8):
        raise DataError(f"expected images as uint8 or as floats in [0, 1], got {array.dtype}")
    return torch.from_numpy(array)


def require_image_tensor(images: Tensor) -> None:
    """Refuse a tensor that holds no images as bytes or as floats, one after the other in memory.

    Raises:
        DataError: sparse, nested, quantised or without memory; or of another type of number.
    """
    odd = images.layout != torch.strided or images.is_nested or images.is_quantized or images.device.type == "meta"
    if odd:
        raise DataError(f"expected an ordinary tensor of images, got {images.layout} on {images.device}: make it dense")
    if images.dtype != torch.uint8 and (not images.is_floating_point() or images.element_size() == 1):
        raise DataError(f"expected images as uint8 or as floats in [0, 1], got {images.dtype}")


def to_native_array(values: Any) -> np.ndarray:
    """As an array that torch takes: contiguous, writable, in this machine's byte order."""
    array = np.asarray(values)
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return plain if plain.flags.writeable else plain.copy()


def as_labels(labels: Any, count: int, *, least: int = 0) -> Tensor:
    """True classes (n,) from a tensor, array or list of integers, whole floats, (n, 1) or one-hot rows.

    Args:
        labels: as users give them.
        count: how many there must be.
        least: the smallest that is taken; -1 takes unknown ones too.

    Raises:
        DataError: another number of them, or none of these.
    """
    try:
        values = labels.detach().cpu() if isinstance(labels, Tensor) else torch.from_numpy(to_native_array(labels))
    except (TypeError, ValueError) as error:
        raise DataError(f"labels: expected {count} integers, got {type(labels).__name__}: {error}") from error
    given = tuple(values.shape)
    if values.ndim == 2 and values.shape[1] > 1 and bool(((values == 0) | (values == 1)).all()):
        values = values.to(torch.float64).argmax(1) if bool((values.sum(1) == 1).all()) else values
    values = values.flatten() if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (count,) or bool((values != values.to(torch.int64)).any()) or bool((values < least).any()):
        raise DataError(f"{given} labels for {count} images: expected one class index an image")
    return values.to(torch.int64)


def select_labels(labels: Any, rows: np.ndarray) -> Tensor | None:
    """Of labels as `as_labels` takes them those where `rows` (n,) is true; None of none, or where one is -1."""
    chosen = None if labels is None else as_labels(labels, len(rows), least=-1)[torch.from_numpy(rows)]
    return None if chosen is None or bool((chosen < 0).any()) else chosen


def parse_y(y: Any, count: int) -> np.ndarray:
    """Which images are clean (0) and which attacked (1, or a number for each kind of attack), (n,); None: all clean.

    Raises:
        FitError: another number of them, words, or one class alone.
    """
    kinds = np.zeros(count, int) if y is None else _numbered(np.asarray(y))
    if kinds.shape != (count,) or kinds.min(initial=0) < 0:
        raise FitError(f"y must be {count} values: 0 (clean), 1 (attacked) or more (other kinds of attack)")
    if y is not None and len(np.unique(kinds)) == 1:
        raise FitError("with y, give clean (0) and attacked (1) images; without y, clean ones alone")
    return kinds


def _numbered(y: np.ndarray) -> np.ndarray:
    try:
        return y.astype(int)
    except (TypeError, ValueError):
        raise FitError("y: expected 0 (clean) and 1 (attacked); of words, y == 'attacked' gives them") from None


def image_hashes(images: Tensor) -> np.ndarray:
    """A number (n,) for every image (n, c, h, w), uint8 or in [0, 1], that is the same for the same bytes alone."""
    digests = (hashlib.blake2b(p.tobytes(), digest_size=8).digest() for p in as_bytes(images).contiguous().numpy())
    return np.frombuffer(b"".join(digests), np.uint64)


def as_bytes(images: Tensor) -> Tensor:
    """Images (n, c, h, w), uint8 or in [0, 1], as uint8 on the CPU."""
    return (images if images.dtype == torch.uint8 else (images * 255).round().byte()).cpu()


def read_all(given: Any, preprocessing: Preprocessing, channels: int | None = None, reading: str = "plain") -> Tensor:
    """Images (n, c, h, w) from a path, a file's bytes or file object, a PIL picture, an array or tensor, or a sequence.

    An array of one image may be (h, w), (h, w, c) or (c, h, w), of several (n, h, w, c) or (n, c, h, w).

    Args:
        given: any of these.
        preprocessing: of the classifier.
        channels: of the images, where not those of `preprocessing`; accepted for one version.
        reading: of files, see decoding.decode_variants.

    Raises:
        DataError: anything else, or what cannot be read.
    """
    if channels is not None:
        preprocessing = replace(preprocessing, channels=channels)
    channels = preprocessing.channels
    if isinstance(given, (list, tuple)):
        parts = [read_all(item, preprocessing, reading=reading) for item in given]
        if not parts:
            return torch.zeros((0, channels, *(preprocessing.size or (0, 0))), dtype=torch.uint8, device="cpu")
        kinds = {p.dtype for p in parts}
        return torch.cat([p.to(torch.float32) / 255 if len(kinds) > 1 and p.dtype == torch.uint8 else p for p in parts])
    if isinstance(given, (str, os.PathLike)):
        collection = Collection(Path(given), channels, reading=reading)
        if collection.failed:
            raise collection.failed[0]
        batches = list(collection.batches(preprocessing))
        several = next((b.items[i].name for b in batches for i, way in enumerate(b.readings) if " as " in way), None)
        if several is not None:
            raise DataError(f"{several}: several formats open it, with other pixels each: save it anew")
        return torch.cat([b.images for b in batches])
    if isinstance(given, (bytes, bytearray, memoryview)) or hasattr(given, "read"):
        if hasattr(given, "seek") and hasattr(given, "seekable") and given.seekable():
            given.seek(0)
        data = given.read() if hasattr(given, "read") else bytes(given)
        if not isinstance(data, bytes):
            raise DataError(f"a file object gave {type(data).__name__}; expected bytes: open it with 'rb'")
        return read_picture(data, "the picture", preprocessing, reading).images
    if isinstance(given, Image.Image):
        ((_, made),) = decode_variants(given, "the picture", channels, reading)
        return torch.from_numpy(to_chw(resize_and_crop(made, preprocessing, "the picture"), channels))[None]
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"expected images as uint8 or as floats in [0, 1], got {array.dtype}")
    images = layout(array.shape, channels, "the array").images(array)
    plain = [np.ascontiguousarray(image, dtype=np.uint8 if image.dtype == np.uint8 else np.float32) for image in images]
    return torch.from_numpy(np.stack([resize_array(image, preprocessing, "the array") for image in plain]))
