"""Images in arrays: .npy, .npz, .pt and .pth, as attack tools write them. Nothing is unpickled, memory is bounded."""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from advconn.data import decoding
from advconn.data.axis_order import layout
from advconn.errors import DataError, first_line
from advconn.files import refuse_bytearrays, require_zip_alone

SUFFIXES = {".npy", ".npz", ".pt", ".pth"}
NAMES = (
    "images", "x_adv", "adv", "adv_complete", "adv_images", "images_adv", "adversarial", "x_test_adv", "x", "xs", "X",
    "x_test", "inputs", "data",
)  # fmt: skip
NUMBERED = re.compile(r"arr_\d+")  # of numpy.savez, where arrays have no names
LABELS = ("labels", "y", "targets", "label")
LARGEST = 2**30  # bytes of an array that is held in memory
LARGEST_FILE = 2**41  # bytes of one that is mapped, or streamed
LARGEST_IMAGE = 2**27  # bytes of one image
LARGEST_HEADER = 10_000
MOST_PARTS = 10**5  # of what a torch file holds that are looked at
LARGEST_LABELS = 2**26  # bytes
MOST_INFLATED = 1100  # bytes that a byte of deflate can stand for, and some


class Archive:
    """The images in an array file, read one at a time, and their labels (n,) where it holds some.

    `names` are those of all arrays of images in it, and `others` of those that could be such and are not judged; this
    is the one called `name`, or the first. `shape` and `dtype` are the array's own. An .npz member is streamed, so that
    rows are best asked for in order.

    Args:
        path: of the file.
        channels: of the classifier's images: they decide how many images an array holds, and how each is read. None
            where they are not known yet: no image is read then.
        name: of an array.

    Raises:
        DataError: no such array, objects, a wrong type, a layout that does not fit, a size that the file does not hold,
            too many bytes.
    """

    def __init__(self, path: Path, channels: int | None, name: str | None = None) -> None:
        self.path, self.channels, self.name, self.labels = path, channels, name, None
        with _refusing(path):
            opener = {".npz": _open_npz, ".npy": _open_npy}.get(path.suffix.lower(), _open_torch)
            self.source, labels, self.names, self.others = opener(path, name)
        self.shape, self.dtype = tuple(self.source.shape), self.source.dtype
        if self.dtype != np.uint8 and self.dtype.kind != "f":
            whole = self.dtype.kind in "iu" and self.dtype.itemsize == 8
            way = "uint8 (.astype('uint8') where all lie in 0..255)" if whole else "uint8"
            raise DataError(
                f"{path}: images are {self.dtype}; expected {way}, or floats in [0, 1]: values / the largest there is"
            )
        if len(self.shape) not in (2, 3, 4):
            raise DataError(f"{path}: images have shape {self.shape}; expected n x H x W x C with C 1 or 3")
        if 0 in self.shape:
            raise DataError(f"{path}: holds no images (shape {self.shape})")
        if channels is not None:
            self.layout = layout(self.shape, channels, str(path))
            self._refuse_sizes()
            self._refuse_scale()
        if labels is not None and (len(self.names) == 1 or len(labels) == len(self)):
            self.labels = _labels(labels, len(self), path)

    def __reduce__(self) -> Any:
        """It travels as its path; a process opens it once."""
        status = self.path.stat()
        return _opened, (self.path.absolute(), self.channels, self.name, status.st_mtime_ns, status.st_size)

    def __len__(self) -> int:
        return self.shape[0] if self.channels is None or "n" in self.layout.axes else 1

    def _refuse_sizes(self) -> None:
        h, w = self.size
        if math.prod(self.shape) * self.dtype.itemsize // len(self) > LARGEST_IMAGE:
            raise DataError(
                f"{self.path}: more than {LARGEST_IMAGE / 1e6:.0f} MB an image: store bytes, or resize them"
            )
        if min(h, w) < decoding.SMALLEST or h * w > decoding.LARGEST:
            raise DataError(
                f"{self.path}: images of {w} x {h}; expected {decoding.SMALLEST} or more a side, and "
                f"{decoding.LARGEST / 1e6:.0f} megapixels or fewer"
            )

    def _refuse_scale(self) -> None:
        """Refuse an array of floats whose first rows are all unusable: they come from another scale."""
        if self.dtype == np.uint8:
            return
        error: DataError | None = None
        for row in range(min(8, len(self))):
            try:
                self.read(row)
                return
            except DataError as caught:
                error = error or caught
        if error is not None:
            raise DataError(str(error).replace("[0]: ", ": ", 1))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images.

        Raises:
            DataError: the channels are not known, and without them the shape can be read in two ways.
        """
        axes = (layout(self.shape, None, str(self.path)) if self.channels is None else self.layout).axes
        return self.shape[axes.index("h")], self.shape[axes.index("w")]

    def read(self, row: int) -> np.ndarray:
        """One image (c, h, w): uint8, or float32 in [0, 1]."""
        several = "n" in self.layout.axes
        with _refusing(self.path):
            array = self.source.row(row) if several else self.source.whole()
        image = self.layout.images(array[None] if several else array)[0]
        if image.dtype == np.uint8:
            return np.ascontiguousarray(image)
        image = np.ascontiguousarray(image, dtype=np.float32)
        if not np.isfinite(image).all():
            raise DataError(f"{self.path}[{row}]: holds NaN or infinity; expected values in [0, 1]")
        if image.min() < -1e-4 or image.max() > 1 + 1e-4:
            low, high = float(image.min()), float(image.max())
            raise DataError(
                f"{self.path}[{row}]: floats in [{low:.3g}, {high:.3g}]; expected [0, 1]: divide by 255, or undo the "
                "normalisation"
            )
        return image.clip(0, 1)


@lru_cache(maxsize=8)
def _opened(path: Path, channels: int | None, name: str | None, *changed: int) -> Archive:
    return Archive(path, channels, name)


def _labels(given: np.ndarray, count: int, path: Path) -> np.ndarray | None:
    """Integers (n,) from (n,), (n, 1), whole floats or one-hot rows; None where they are none of these."""
    values = given
    if values.ndim == 2 and values.shape[0] == count and values.shape[1] > 1:
        hot = bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all())
        values = values.argmax(1) if hot else values
    values = values.reshape(-1)
    whole = values.dtype.kind in "iub" or (values.dtype.kind == "f" and bool((values == np.round(values)).all()))
    if len(values) != count or not whole:
        raise DataError(
            f"{path}: labels are {given.dtype} {given.shape}; expected {count} integers, or one-hot rows of 0 and 1"
        )
    return values.astype(np.int64)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever a damaged or hostile file makes NumPy, zipfile or torch raise, as one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zlib, lzma, struct, tokenize, memory, recursion: all mean the file is unusable
        kind = path.suffix.lower()
        raise DataError(f"{path}: not a readable {kind} of arrays: {first_line(error, 160)}") from error


class _Held:
    """An array in memory."""

    def __init__(self, array: Any) -> None:
        self.array, self.shape = array, array.shape
        self.dtype = np.dtype(array.dtype) if isinstance(array, np.ndarray) else _numpy(array[:0]).dtype

    def row(self, i: int) -> np.ndarray:
        return _numpy(self.array[i])

    def whole(self) -> np.ndarray:
        return _numpy(self.array)


class _Read:
    """An array in a .npy file, of which the rows asked for are read. Nothing is mapped: a file may shrink meanwhile."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], start: int) -> None:
        self.path, self.shape, self.dtype, self.start = path, shape, dtype, start

    def row(self, i: int) -> np.ndarray:
        return self._values(i * math.prod(self.shape[1:]), self.shape[1:])

    def whole(self) -> np.ndarray:
        return self._values(0, self.shape)

    def _values(self, first: int, shape: tuple[int, ...]) -> np.ndarray:
        count = math.prod(shape)
        values = np.fromfile(self.path, self.dtype, count, offset=self.start + first * self.dtype.itemsize)
        if len(values) != count:
            raise EOFError("the file became shorter while it was read")
        return _numpy(values.reshape(shape))


def _numpy(array: Any) -> np.ndarray:
    """As a NumPy array of this machine's byte order; half and bfloat16 tensors become float32."""
    if not isinstance(array, np.ndarray):
        tensor = array.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


class _Streamed:
    """An array inside a .npz, of which only the rows asked for are ever in memory."""

    def __init__(self, path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype[Any], start: int) -> None:
        self.path, self.member, self.shape, self.dtype, self.start = path, member, shape, dtype, start
        self.bytes = dtype.itemsize * math.prod(shape[1:])
        self._stream: Any = None
        self._next_row = 0

    def row(self, i: int) -> np.ndarray:
        """Row i; reading goes on where it stopped, or starts anew for an earlier row."""
        if self._stream is None or i < self._next_row:
            self._stream = zipfile.ZipFile(self.path).open(self.member)  # noqa: SIM115 - read on at the next row
            self._skip(self.start)
            self._next_row = 0
        self._skip((i - self._next_row) * self.bytes)
        self._next_row = i + 1
        data = self._stream.read(self.bytes)
        return _numpy(np.frombuffer(data, self.dtype).reshape(self.shape[1:]))

    def _skip(self, count: int) -> None:
        while count > 0:
            got = len(self._stream.read(min(count, 2**20)))
            if not got:
                raise EOFError("the array ends too early")
            count -= got

    def whole(self) -> np.ndarray:
        return np.stack([self.row(i) for i in range(self.shape[0])])


def _open_npz(path: Path, wanted: str | None) -> tuple[Any, np.ndarray | None, list[str], list[str]]:
    with zipfile.ZipFile(path) as archive:
        require_zip_alone(archive, path)
        headers: dict[str, Any] = {}
        files: list[str] = []
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("packed in another way than numpy.savez and savez_compressed do it")
            with archive.open(info) as stream:  # NumPy tells an array by its mark, whatever it is called
                marked = info.filename.endswith(".npy") or stream.read(6) == b"\x93NUMPY"
            if marked:
                with archive.open(info) as stream:
                    header = header_of(stream)
                if header[1] * math.prod(header[0]) + header[3] != info.file_size:
                    raise DataError(f"{path}: {info.filename} is not as large as its shape {header[0]} says")
                name = info.filename.removesuffix(".npy")
                if name in headers:
                    raise DataError(f"{path}: two arrays are called {name}, so that readers differ: save it anew")
                headers[name], members[name] = header, info
            else:
                files.append(info.filename)
        names, others = _chosen({k: (v[0], v[2]) for k, v in headers.items()}, path)
        others += files
        name = wanted or names[0]
        shape, _, dtype, start, fortran = headers[name]
        if wanted is None:
            for each in names:
                _refuse_short(archive, members[each], path)
        if fortran and len(shape) > 1:
            _bounded(math.prod(shape) * dtype.itemsize, LARGEST)
            source: Any = _Held(np.load(io.BytesIO(archive.read(members[name])), allow_pickle=False))
        else:
            source = _Streamed(path, members[name].filename, shape, dtype, start)
        labels = next((n for n in LABELS if n in headers), None)
        if labels is None:
            return source, None, names, others
        if math.prod(headers[labels][0]) * headers[labels][1] > LARGEST_LABELS:
            raise DataError(f"{path}: {labels} has shape {headers[labels][0]}; expected one number an image")
        return source, np.load(io.BytesIO(archive.read(members[labels])), allow_pickle=False), names, others


def _refuse_short(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a member that holds less than its archive's directory says, which is whatever the sender wrote."""
    member, size = info.filename, 0
    if info.file_size > MOST_INFLATED * max(1, info.compress_size):  # deflate cannot pack so tightly
        raise DataError(f"{path}: {member} is not as large as its shape says")
    with archive.open(info) as stream:
        while part := stream.read(2**20):
            size += len(part)
    if size != info.file_size:
        raise DataError(f"{path}: {member} is not as large as its shape says")


def header_of(stream: Any) -> tuple[tuple[int, ...], int, np.dtype[Any], int, bool]:
    """(shape, bytes an item, dtype, bytes before the data, Fortran order) of a .npy."""
    first = stream.read(8)
    if first[:6] != b"\x93NUMPY" or first[6] not in (1, 2, 3):
        raise ValueError("not a .npy array")
    width = 2 if first[6] == 1 else 4
    length = int.from_bytes(stream.read(width), "little")
    if length > LARGEST_HEADER:
        raise ValueError("a .npy header that is too long")
    about = ast.literal_eval(stream.read(length).decode("latin1"))
    dtype = np.dtype(about["descr"])
    shape = about["shape"]
    if dtype.hasobject or not isinstance(shape, tuple) or not all(type(v) is int and v >= 0 for v in shape):
        raise ValueError(f"an array of {dtype} with shape {shape}; expected numbers")
    _bounded(math.prod(shape) * dtype.itemsize, LARGEST_FILE)
    return shape, dtype.itemsize, dtype, 8 + width + length, bool(about["fortran_order"])


def _bounded(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"an array of {size / 1e9:.1f} GB; expected {most / 1e9:.1f} or fewer: split it")


def _open_npy(path: Path, wanted: str | None) -> tuple[Any, None, list[str], list[str]]:
    with path.open("rb") as stream:
        shape, item, dtype, start, fortran = header_of(stream)
    size = start + item * math.prod(shape)
    if path.stat().st_size < size:
        raise DataError(f"{path}: not as large as its shape {shape} says")
    if path.stat().st_size > size:
        raise DataError(f"{path}: holds more than its shape {shape} says, such as a second array: save them as .npz")
    if 0 in shape:
        raise DataError(f"{path}: holds no images (shape {shape})")
    if fortran and len(shape) > 1:
        _bounded(math.prod(shape) * item, LARGEST)
        return _Held(np.load(path, allow_pickle=False)), None, [""], []
    return _Read(path, shape, dtype, start), None, [""], []


def _open_torch(path: Path, wanted: str | None) -> tuple[Any, np.ndarray | None, list[str], list[str]]:
    import torch

    if path.stat().st_size > LARGEST:
        raise DataError(f"{path}: {path.stat().st_size / 1e9:.1f} GB; expected {LARGEST / 1e9:.1f} or fewer: split it")
    refuse_bytearrays(path)
    held = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(held, (tuple, list)) and all(isinstance(v, torch.Tensor) for v in held):
        pair = len(held) == 2 and held[1].ndim <= 2 < held[0].ndim
        if not pair and sum(v.numel() * v.element_size() for v in held) > LARGEST:
            raise DataError(f"{path}: tensors of more than {LARGEST / 1e9:.1f} GB: split it")
        held = dict(zip(("images", "labels"), held, strict=True)) if pair else torch.stack(tuple(held))
    entries = held if isinstance(held, Mapping) else {"images": held}
    arrays: dict[str, Any] = {str(k): v for k, v in entries.items() if isinstance(v, torch.Tensor)}
    names, others = _chosen(
        {k: (tuple(v.shape), _numpy(v[:0]).dtype if v.ndim else None) for k, v in arrays.items()}, path
    )
    others += [str(k) for k, v in entries.items() if not isinstance(v, torch.Tensor) and _may_hold_images(v)]
    name = wanted or names[0]
    if arrays[name].layout != torch.strided:
        raise DataError(f"{path}: {name} is {arrays[name].layout}; expected an ordinary tensor")
    if arrays[name].numel() * arrays[name].element_size() > LARGEST:
        raise DataError(f"{path}: an array of more than {LARGEST / 1e9:.1f} GB: split it")
    labels = next((arrays[n] for n in LABELS if n in arrays), None)
    return _Held(arrays[name]), None if labels is None else _numpy(labels), names, others


def _may_hold_images(value: Any) -> bool:
    """Whether a tensor or bytes that could be images lie inside, however deep; also where too much is to be seen."""
    import torch

    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        size = part.numel() if isinstance(part, torch.Tensor) else len(part) if isinstance(part, bytes) else 0
        if len(seen) > MOST_PARTS or size >= decoding.SMALLEST**2:
            return True
        if isinstance(part, (Mapping, tuple, list)):
            waiting += part.values() if isinstance(part, Mapping) else part
    return False


def _chosen(
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any] | None]], path: Path
) -> tuple[list[str], list[str]]:
    """The names of the arrays of images, and of others that could be images."""
    names = [name for name in NAMES if name in arrays] + [name for name in arrays if NUMBERED.fullmatch(name)]
    if not names:
        listing = ", ".join(f"{k} {v[0]}" for k, v in list(arrays.items())[:8]) or "nothing"
        raise DataError(f"{path}: no array 'images' nor another usual name ({', '.join(NAMES[1:])}); found: {listing}")
    names = [name for name in names if len(arrays[name][0]) > 1] or names
    count = arrays[names[0]][0][:1]
    labels = next((name for name in LABELS if name in arrays), None)
    others = [
        name
        for name, (shape, dtype) in arrays.items()
        if name not in names
        and _could_be_images(shape, dtype, count)
        and not (name == labels and len(shape) <= 2 and shape[:1] == count)  # which `_labels` looks at
    ]
    return names, others


def _could_be_images(shape: tuple[int, ...], dtype: np.dtype[Any] | None, count: tuple[int, ...]) -> bool:
    if dtype is not None and (dtype.fields or dtype.kind in "SV"):  # each of whose values may be a picture
        return dtype.itemsize >= decoding.SMALLEST**2
    return shape != count and math.prod(shape) >= decoding.SMALLEST**2  # no picture has fewer values
