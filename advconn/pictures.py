"""One picture: from a file to pixels, in the two ways that it can be read, and to a classifier's size."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from advconn.errors import DataError, line_of
from advconn.preprocessing import Preprocessing

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pnm", ".jp2", ".j2k", ".apng", ".mpo", ".tga", ".ico", ".dib",
}  # fmt: skip
# What Pillow may decode: all that it can but PostScript and WMF, which start other programs, IPTC, which opens whatever
# it holds, and stubs. Those without a mark at their start are taken by their suffix only.
MARKED = (
    "PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "ICO", "CUR", "ICNS", "DDS",
    "SGI", "SUN", "QOI", "PSD", "FITS", "FLI", "BLP", "FTEX", "XPM",
)  # fmt: skip
FORMATS = (*MARKED, "TGA", "PCX", "DCX", "XBM", "MSP", "SPIDER", "IM", "PCD", "PIXAR", "GBR", "XVTHUMB", "MCIDAS")
SMALLEST = 8
LARGEST = 2**25  # pixels: 33 million
LARGEST_FILE = 2**28  # bytes
LARGEST_ANIMATION = 2**27  # pixels of all its frames
MOST_SCANS = 200  # of a progressive JPEG; each costs time, and cameras write about ten
READINGS = ("plain", "upright", "both")
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION, _KIND = 0x0112, 254
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever Pillow makes of a damaged file, as one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"{name}: cannot be read as an image: {line_of(error, 160)}") from error


def opened(path: Path, frames: str | None = None) -> Iterator[Image.Image]:
    """The picture in a file, or of an animation the first frame (`frames` 'first') or every one ('all').

    Raises:
        DataError: no regular file, no image, damaged, too small or large, animated where `frames` is None.
    """
    with _refusing(str(path)):
        data = _content(path)
        if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MOST_SCANS:
            raise DataError(f"{path}: a JPEG of more than {MOST_SCANS} scans; expected an ordinary one: save it anew")
        try:
            image = Image.open(io.BytesIO(data), formats=formats())
        except UnidentifiedImageError:
            kind = "not an image" if data else "an empty file"
            raise DataError(f"{path}: {kind}; expected PNG, JPEG, WebP, ...") from None
        with image:
            _check_size(image, str(path))
            count = _frames(image)
            if count > 1 and frames is None:
                raise DataError(
                    f"{path}: animated, {count} frames; expected a still image: give --frames first or --frames all"
                )
            count = count if frames == "all" else 1
            if count * image.size[0] * image.size[1] > LARGEST_ANIMATION:
                raise DataError(
                    f"{path}: {count} frames of {image.size[0]} x {image.size[1]} are too many: extract some"
                )
            for i in range(count):
                image.seek(i)
                _check_size(image, str(path))
                image.load()
                yield image.copy()


def _content(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: no regular file; expected an image")
        if status.st_size > LARGEST_FILE:
            raise DataError(f"{path}: {status.st_size / 1e6:.0f} MB; expected {LARGEST_FILE / 1e6:.0f} or fewer")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or line_of(error)}") from error


@lru_cache(maxsize=2)
def formats(wanted: tuple[str, ...] = FORMATS) -> tuple[str, ...]:
    """Those of the formats that this Pillow can decode."""
    Image.init()
    return tuple(name for name in wanted if name in Image.OPEN)


def is_picture(path: Path) -> bool:
    """Whether a file holds an image, by its first bytes."""
    try:
        with path.open("rb") as stream, Image.open(stream, formats=formats(MARKED)):
            return True
    except Exception:  # no image, or one that cannot even be opened
        return False


def _frames(image: Image.Image) -> int:
    """Frames to choose from: a camera's preview (MPO) and a TIFF's thumbnails are none."""
    count = int(getattr(image, "n_frames", 1))
    if count == 1 or image.format == "MPO":
        return 1
    if image.format == "TIFF":
        return _pages(image, count)
    return count


def _pages(image: Image.Image, count: int) -> int:
    """Pages of a TIFF up to the first that is a smaller copy of another."""
    size = image.size
    for i in range(1, count):
        image.seek(i)
        reduced = int(getattr(image, "tag_v2", {}).get(_KIND, 0)) & 1
        if reduced or (image.size[0] < size[0] and image.size[1] < size[1]):
            count = i
            break
    image.seek(0)
    return count


def _check_size(image: Image.Image, name: str) -> None:
    w, h = image.size
    if min(w, h) < SMALLEST:
        raise DataError(f"{name}: {w} x {h} pixels is too small to judge; expected {SMALLEST} or more a side")
    if w * h > LARGEST:
        raise DataError(f"{name}: {w * h / 1e6:.0f} megapixels; expected {LARGEST / 1e6:.0f} or fewer: resize it first")


def readings(image: Image.Image, name: str, channels: int, reading: str) -> dict[str, Image.Image]:
    """A picture with 1 or 3 channels, by how it is read.

    'plain' is what most loaders hand to a classifier, `Image.open(f).convert("RGB")`: no turn, transparency ignored, 16
    bits cut off. 'upright' is what a person sees: turned by its EXIF tag, transparency on white, 16 bits scaled to 8.

    Args:
        image: as opened.
        name: what error messages name.
        channels: 1 or 3.
        reading: 'plain', 'upright', or 'both', which gives 'plain' alone where nothing can make the two differ.
    """
    if channels not in _MODES:
        raise DataError(f"{name}: the model takes {channels} channels; images from files have 1 or 3")
    _check_size(image, name)
    if image.mode == "F" or (image.mode == "I" and not _sixteen(image)):
        raise DataError(f"{name}: {image.mode} pixels; expected 8 or 16 bits a channel")
    wide = image.mode.startswith("I")
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    turn = _turn(image)
    asked = ("plain", "upright") if reading == "both" and (wide or clear or turn) else (reading,)
    if reading == "both" and len(asked) == 1:
        asked = ("plain",)
    with _refusing(name):
        return {
            kind: image.convert(_MODES[channels]) if kind == "plain" else _upright(image, name, channels, turn)
            for kind in asked
        }


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How its EXIF tag turns a picture upright. One that cannot be read turns nothing, as with other readers."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block makes Pillow raise many types
        return None


def picture(path: Path, channels: int = 3, reading: str = "upright") -> Image.Image:
    """The still picture in a file, read in one way.

    Args:
        path: of the file.
        channels: 1 or 3.
        reading: 'plain' or 'upright', see `readings`.

    Raises:
        DataError: see `opened` and `readings`.
    """
    (image,) = opened(path)
    (still,) = readings(image, str(path), channels, reading).values()
    return still


def _sixteen(image: Image.Image) -> bool:
    low, high = image.getextrema()
    return low >= 0 and high <= 65535  # type: ignore[operator]


def _upright(image: Image.Image, name: str, channels: int, turn: Image.Transpose | None) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.max(initial=0) < 4096:
            raise DataError(
                f"{name}: 16 bits a pixel, and none above {values.max(initial=0)}: a picture of 12 bits or fewer? Save "
                "it with 8 bits, or give --reading plain"
            )
        scale = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)
        image = Image.fromarray(scale[values])
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image.convert("RGBA"))
        image = white
    image = image.convert(_MODES[channels])
    return image if turn is None else image.transpose(turn)


def fitted(image: Image.Image, preprocessing: Preprocessing, name: str) -> Image.Image:
    """An image of exactly the input size as it is; another resized and cropped as the classifier's library does it.

    To the pixel as torchvision ('center', 'squash') and timm ('border') do it, but by Pillow, which they call too.

    Args:
        image: as read.
        preprocessing: of the classifier.
        name: what error messages name.
    """
    size = preprocessing.size
    if size is None or image.size == (size[1], size[0]):
        return image
    short = preprocessing.resize or min(size)
    w, h = image.size
    if short * max(w, h) / min(w, h) > 8192:
        raise DataError(f"{name}: {w} x {h} is too elongated for a classifier of {size[0]} x {size[1]}")
    method = Image.Resampling[preprocessing.interpolation.partition("-")[0].upper()]
    resized = image.resize(_target(image.size, size, short, preprocessing.crop), method)
    if preprocessing.crop == "border":
        return _centred(resized, size, preprocessing.mean)
    left, top = round((resized.size[0] - size[1]) / 2), round((resized.size[1] - size[0]) / 2)
    return resized.crop((left, top, left + size[1], top + size[0]))


def _target(given: tuple[int, int], size: tuple[int, int], short: int, crop: str) -> tuple[int, int]:
    """(width, height) before the crop."""
    w, h = given
    tall = short * size[0] // min(size), short * size[1] // min(size)  # as (height, width)
    if crop == "border":
        ratio = max(h / tall[0], w / tall[1])
        return round(w / ratio), round(h / ratio)
    if crop == "cover":
        ratio = min(h / tall[0], w / tall[1])
        return round(w / ratio), round(h / ratio)
    if crop == "squash" or size[0] != size[1]:
        return tall[1], tall[0]
    return (short, short * h // w) if w <= h else (short * w // h, short)


def _centred(image: Image.Image, size: tuple[int, int], mean: tuple[float, ...] | None) -> Image.Image:
    """In the middle of a picture of this size that is filled with the mean."""
    fill = [round(255 * v) for v in mean or (0.0,) * len(image.getbands())]
    out = Image.new(image.mode, (size[1], size[0]), fill[0] if len(fill) == 1 else tuple(fill))
    room = [side - own for side, own in zip((size[1], size[0]), image.size, strict=True)]
    out.paste(image, tuple(r // 2 if r >= 0 else -round(-r / 2) for r in room))  # type: ignore[arg-type]
    return out


def pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    """A picture as an array (channels, h, w) uint8."""
    return np.ascontiguousarray(np.asarray(image).reshape(image.size[1], image.size[0], channels).transpose(2, 0, 1))


def sized(array: np.ndarray, preprocessing: Preprocessing, name: str) -> np.ndarray:
    """An array at the classifier's size. Floats are never resized: that would round what they hold.

    Args:
        array: (c, h, w), uint8 or floats.
        preprocessing: of the classifier.
        name: what error messages name.
    """
    size = preprocessing.size
    if size is None or array.shape[1:] == tuple(size):
        return array
    if array.dtype != np.uint8:
        raise DataError(
            f"{name}: floats of {array.shape[2]} x {array.shape[1]} for a classifier of {size[1]} x {size[0]}: bring "
            "them to its size, or store bytes, which are resized here"
        )
    made = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    return pixels_of(fitted(made, preprocessing, name), len(array))
