"""One picture: from a file's bytes to pixels, in the two ways that it can be read, and to a classifier's size.

What is judged is what a plain `Image.open(f).convert("RGB")` gives. Pillow asks its formats in an order that depends on
the file's name and on what the process did before: a file that several formats open is judged as each of them reads it.
"""

from __future__ import annotations

import io
import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advconn.data import sandbox
from advconn.data.formats import FORMATS, HEAD, UNREAD, looks_unread, registered
from advconn.data.hidden_pictures import has_much_metadata, hidden_pictures
from advconn.data.preprocessing import Preprocessing
from advconn.errors import DataError, first_line

SMALLEST = 8
LARGEST = 2**26  # pixels: 67 million
LARGEST_FILE = 2**28  # bytes
LARGEST_ANIMATION = 2**27  # pixels of all its frames
MOST_FRAMES = 10_000
MOST_PAGES = 32  # of a TIFF that are looked at to tell whether it is a still picture
MOST_SCANS = 200  # of a progressive JPEG; each costs time, and cameras write about ten
READINGS = ("plain", "upright", "both")
# What is decoded in this process: it takes no more than a few seconds, whatever it holds. All else goes to a worker.
NEAR_BYTES, NEAR_PIXELS, NEAR_SCANS = 2**24, 2**22, 20
NEAR_METADATA = 2**18  # bytes of profiles, texts and EXIF data, which unpack to a thousand times as much
_NEAR = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MODES = {1: "L", 3: "RGB"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class View:
    """A picture (c, h, w) uint8 at the classifier's size, read in one way ('plain' or 'upright').

    given: the (width, height) that it was brought to this size from.
    """

    reading: str
    pixels: np.ndarray
    given: tuple[int, int]


@dataclass(frozen=True)
class Wanted:
    """How the pictures of a file are wanted.

    Attributes:
        preprocessing: of the classifier, of 1 or 3 channels.
        reading: see `decode_variants`.
        frames: of several the 'first', or those from a number to another of so many in all; None refuses several.
        formats: that are taken.
    """

    preprocessing: Preprocessing
    reading: str
    frames: str | tuple[int, int, int] | None = None
    formats: tuple[str, ...] = FORMATS


class _Far(Exception):
    """A file is no matter for this process: a worker decodes it."""


def views(
    data: bytes,
    name: str,
    preprocessing: Preprocessing,
    reading: str,
    frames: str | tuple[int, int, int] | None = None,
    formats: Sequence[str] = FORMATS,
) -> tuple[list[list[View] | DataError], int]:
    """The pictures in a file's bytes at the classifier's size, frame by frame, and how many others it holds.

    Others are what some readers show and Image.open does not: further pages, layers, previews, sizes of an icon.

    Args:
        data: of the file.
        name: what error messages name.
        preprocessing: of the classifier, of 1 or 3 channels.
        reading: see `decode_variants`.
        frames: of several the 'first', or those from a number to another of so many in all; None refuses several.
        formats: that are taken.

    Raises:
        DataError: no image, damaged, too small or large, or of several frames where `frames` is None.
    """
    wanted = Wanted(preprocessing, reading, frames, tuple(formats))
    near = views_near(data, name, wanted)
    return views_far(data, name, wanted) if near is None else near


def views_near(data: bytes, name: str, wanted: Wanted) -> tuple[list[list[View] | DataError], int] | None:
    """The same, of a file that is sure to take little; None of any other.

    Args:
        data: of the file.
        name: what error messages name.
        wanted: which pictures, and how.
    """
    found = _near("decode", data, name, wanted)
    return None if found is None else _views(*found)


def views_far(data: bytes, name: str, wanted: Wanted) -> tuple[list[list[View] | DataError], int]:
    """The same from a worker, which may take 10 s.

    Args:
        data: of the file.
        name: what error messages name.
        wanted: which pictures, and how.
    """
    return _views(*_far("decode", data, name, wanted))


def _views(found: Any, arrays: list[np.ndarray]) -> tuple[list[list[View] | DataError], int]:
    (frames, others), rest = found, iter(arrays)
    return [
        DataError(ways) if isinstance(ways, str) else [View(way, next(rest), tuple(size)) for way, size in ways]
        for ways in frames
    ], others


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of the picture in a file's bytes.

    Raises:
        DataError: no image, too small or large.
    """
    return tuple(_described(data, name)[0])


def frames_of(data: bytes, name: str) -> int:
    """How many pictures of a file's bytes are judged where all are.

    Raises:
        DataError: no image, or too many.
    """
    return int(_described(data, name)[1])


def _described(data: bytes, name: str) -> Any:
    return (_near("describe", data, name) or _far("describe", data, name))[0]


def _near(work: str, data: bytes, name: str, *more: Any) -> tuple[Any, list[np.ndarray]] | None:
    """What a function of this module gives for a file, where that is sure to take little."""
    if _is_near(data):
        with suppress(_Far):
            return globals()[work](data, name, *more, near=True)
    return None


def _far(work: str, data: bytes, name: str, *more: Any) -> tuple[Any, list[np.ndarray]]:
    """The same from a worker."""
    try:
        return sandbox.call(f"{__name__}:{work}", data, name, *more)
    except sandbox.Limited as error:
        raise DataError(f"{name}: {error}") from error


def _is_near(data: bytes) -> bool:
    """Whether a file begins as one of the formats that C code decodes, and is small."""
    if len(data) > NEAR_BYTES:
        return False
    if has_much_metadata(data, NEAR_METADATA):
        return False
    if data.startswith(b"\xff\xd8\xff"):
        return data.count(b"\xff\xda") <= NEAR_SCANS
    if data.startswith(b"BM"):
        return data[30:34] in (b"\0\0\0\0", b"\3\0\0\0")  # run lengths are decoded in Python
    return data.startswith((b"\x89PNG\r\n", b"GIF8")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def decode(data: bytes, name: str, wanted: Wanted, *, near: bool = False) -> tuple[Any, list[np.ndarray]]:
    """What `views` gives, as text and numbers beside arrays: of each frame its views, or an error's text.

    Args:
        data: of the file.
        name: what error messages name.
        wanted: which pictures, and how.
        near: leave a file that may take long to a worker.
    """
    frames = wanted.frames
    with _refusing(name), _identified(data, name, wanted.formats, near) as images:
        if len(images) > 1 and isinstance(frames, tuple) and frames != (0, 1, 1):
            raise DataError(f"{name}: several formats open it, so that readers differ on its frames: save it anew")
        found, others = _frame_views(images[0], data, name, wanted, near)
        for image in images[1:]:
            again, more = _frame_views(image, data, name, wanted, near)
            if isinstance(found[0], str) or isinstance(again[0], str):
                raise DataError(f"{name}: several formats open it, and not all can read it: save it anew")
            found[0] += [replace(view, reading=f"{view.reading} as {image.format}") for view in again[0]]
            others += more
        apart = [ways if isinstance(ways, str) else _distinct(ways) for ways in found]
    told = [ways if isinstance(ways, str) else [(way.reading, way.given) for way in ways] for ways in apart]
    return (told, others), [way.pixels for ways in apart if not isinstance(ways, str) for way in ways]


def _frame_views(
    image: Image.Image, data: bytes, name: str, wanted: Wanted, near: bool
) -> tuple[list[list[View] | str], int]:
    """Of each frame of an opened picture its views, or an error's text; and how many other pictures there are."""
    frames, channels = wanted.frames, wanted.preprocessing.channels
    total = frames[2] if isinstance(frames, tuple) else 0
    pages = _pages(image, max(MOST_PAGES, total + 1))
    if isinstance(frames, tuple) and len(pages) != total:
        raise DataError(f"{name}: was changed while it was read, or has {len(pages)} frames where {total} were counted")
    if frames is None and not _still(image, pages):
        raise DataError(
            f"{name}: animated, {_counted(pages)} frames; expected a still image: give --frames first or --frames all"
        )
    first, end = (0, 1) if isinstance(frames, str) or frames is None else frames[:2]
    if near and end > 1:  # later frames may be of any size
        raise _Far
    others = 0 if first else hidden_pictures(image, data) + (len(pages) - 1) * (not isinstance(frames, tuple))
    out: list[list[View] | str] = []
    for i in range(first, end):
        try:
            with _refusing(name):
                if i:
                    image.seek(i)
                    _check_size(image, name)
                    others += hidden_pictures(image, data) if image.format == "TIFF" else 0
                _require_one_map(image)
                image.load()
                ways = decode_variants(image, name, channels, wanted.reading)
                fit = ((way, made.size, resize_and_crop(made, wanted.preprocessing, name)) for way, made in ways)
                out.append([View(way, to_chw(made, channels), given) for way, given, made in fit])
        except DataError as error:
            out.append(str(error))
    return out, others


def _distinct(ways: Sequence[View]) -> list[View]:
    """Views of one frame, without those that show the same pixels as another."""
    out: list[View] = []
    for way in ways:
        if out and way.pixels.shape != out[0].pixels.shape:
            raise DataError(
                "its readings differ in size, and the classifier's input size is not known: give --size HxW"
            )
        if not any(np.array_equal(way.pixels, other.pixels) for other in out):
            out.append(way)
    return out


def describe(data: bytes, name: str, *, near: bool = False) -> tuple[Any, list[np.ndarray]]:
    """(width, height) of a file's picture, and how many are judged where all are.

    Args:
        data: of the file.
        name: what error messages name.
        near: see `decode`.
    """
    with _refusing(name), _identified(data, name, FORMATS, near) as images:
        image = images[0]
        size, count = image.size, len(_pages(image, MOST_FRAMES + 1))
        if count > MOST_FRAMES or count * size[0] * size[1] > LARGEST_ANIMATION:
            raise DataError(
                f"{name}: {_counted(range(count))} frames of {size[0]} x {size[1]} are too many: extract some"
            )
        return (size, count if len(images) == 1 else 1), []


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever Pillow makes of a damaged file, as one line."""
    try:
        yield
    except (DataError, _Far):
        raise
    except Exception as error:  # Pillow's decoders raise many types
        raise DataError(f"{name}: cannot be read as an image: {first_line(error, 160)}") from error


@contextmanager
def _identified(data: bytes, name: str, formats: Sequence[str], near: bool) -> Iterator[list[Image.Image]]:
    """The picture in a file's bytes, opened by every format that can open it: one, but of a file made to be several."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MOST_SCANS:
        raise DataError(f"{name}: a JPEG of more than {MOST_SCANS} scans; expected an ordinary one: save it anew")
    found, fault = _claims(data)
    if not found:
        if fault is not None:
            raise fault
        if looks_unread(name, data[:HEAD]):
            raise DataError(f"{name}: {UNREAD}")
        raise DataError(f"{name}: {'not an image' if data else 'an empty file'}; expected PNG, JPEG, WebP, ...")
    images = [image for image in found if not isinstance(image, str)]
    for kind in (image if isinstance(image, str) else str(image.format) for image in found):
        if kind not in formats or len(images) < len(found):
            how = f"can also be opened as {kind}, which" if len(found) > 1 else kind
            raise DataError(f"{name}: {how} is not supported; expected PNG, JPEG, WebP, ...: convert it")
    for image in images:
        _check_size(image, name)
        if near and (str(image.format) not in _NEAR or image.size[0] * image.size[1] > NEAR_PIXELS):
            raise _Far
    with ExitStack() as stack:
        yield [stack.enter_context(image) for image in images]


def _claims(data: bytes) -> tuple[list[Image.Image | str], Exception | None]:
    """What every format of Pillow's makes of a file that would open it, and the first fault that is no refusal.

    Of a format that is left out its mark is enough, where it has one: its name stands for the picture.
    """
    found: list[Image.Image | str] = []
    fault: Exception | None = None
    for kind in registered():
        factory, accept = Image.OPEN[kind]
        try:
            taken = accept(data[:16]) if accept else True
            if taken:
                tried = taken is True and (kind in FORMATS or accept is None)
                found.append(factory(io.BytesIO(data), "") if tried else kind)
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # how a format says that a file is none of its own
        except Exception as error:  # a damaged file
            fault = fault or error
    return found, fault


def content(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        DataError: no regular file, too large, or not to be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: no regular file; expected an image")
        if status.st_size > LARGEST_FILE:
            raise DataError(f"{path}: {status.st_size / 1e6:.0f} MB; expected {LARGEST_FILE / 1e6:.0f} or fewer")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from error


def can_open(data: bytes) -> bool:
    """Whether some format opens a file's bytes."""
    try:
        size_of(data, "x")
        return True
    except DataError as error:
        return "too small" in str(error) or "megapixels" in str(error)


def _pages(image: Image.Image, most: int) -> Sequence[Any]:
    """A picture's frames, of a TIFF the sizes of its pages, up to so many."""
    if image.format == "PSD":  # whose frames are its layers
        return (image.size,)
    if image.format != "TIFF":
        return range(int(getattr(image, "n_frames", 1)))
    sizes = [image.size]
    with suppress(EOFError):
        while len(sizes) < most:  # n_frames looks at every page, and each time at all before it
            image.seek(len(sizes))
            sizes.append(image.size)
    image.seek(0)
    return sizes


def _still(image: Image.Image, pages: Sequence[Any]) -> bool:
    """Whether a file is one picture: the others are previews that a camera adds (MPO), or smaller ones (TIFF)."""
    if image.format == "TIFF":
        w, h = image.size
        return len(pages) < MOST_PAGES and all(page[0] < w and page[1] < h for page in pages[1:])
    return len(pages) == 1 or image.format == "MPO"


def _counted(pages: Sequence[Any]) -> str:
    """How many there are, as text."""
    return f"{len(pages)} or more" if len(pages) in (MOST_PAGES, MOST_FRAMES + 1) else str(len(pages))


def _require_one_map(image: Image.Image) -> None:
    """Refuse raw pixels in one tile that is smaller than the picture: Pillow maps a file's path past it, not its bytes.

    Raises:
        ValueError: such a tile.
    """
    tiles = getattr(image, "tile", [])
    if len(tiles) == 1 and tiles[0][0] == "raw" and tuple(tiles[0][1]) != (0, 0, *image.size):
        raise ValueError("its one strip or tile is smaller than the picture, which readers fill differently")


def _check_size(image: Image.Image, name: str) -> None:
    w, h = image.size
    if min(w, h) < SMALLEST:
        raise DataError(f"{name}: {w} x {h} pixels is too small to judge; expected {SMALLEST} or more a side")
    if w * h > LARGEST:
        raise DataError(f"{name}: {w * h / 1e6:.0f} megapixels; expected {LARGEST / 1e6:.0f} or fewer: resize it first")


def decode_variants(image: Image.Image, name: str, channels: int, reading: str) -> Iterator[tuple[str, Image.Image]]:
    """A picture with 1 or 3 channels in the ways that it is read, each when it is asked for.

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
    both = reading == "both" and (wide or clear or turn is not None)
    for way in ("plain", "upright") if both else ("plain",) if reading == "both" else (reading,):
        with _refusing(name):
            made = image.convert(_MODES[channels]) if way == "plain" else _upright(image, name, channels, turn)
        yield way, made


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How its EXIF tag turns a picture upright. One that cannot be read turns nothing, as with other readers."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block makes Pillow raise many types
        return None


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


def resize_and_crop(image: Image.Image, preprocessing: Preprocessing, name: str) -> Image.Image:
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


def to_chw(image: Image.Image, channels: int) -> np.ndarray:
    """A picture as an array (channels, h, w) uint8."""
    return np.ascontiguousarray(np.asarray(image).reshape(image.size[1], image.size[0], channels).transpose(2, 0, 1))


def resize_array(array: np.ndarray, preprocessing: Preprocessing, name: str) -> np.ndarray:
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
    if len(array) not in _MODES:  # each band by itself: Pillow would take a fourth for transparency
        alone = [
            replace(preprocessing, mean=None if preprocessing.mean is None else (m,))
            for m in preprocessing.mean or [0.0] * len(array)
        ]
        return np.concatenate([resize_array(band[None], how, name) for band, how in zip(array, alone, strict=True)])
    made = Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))
    return to_chw(resize_and_crop(made, preprocessing, name), len(array))
