"""Pictures that lie packed in one file: a zip or tar archive (WebDataset's shards), or a Parquet table of bytes.

A member is told by its first bytes, as a file in a folder is. What is no picture is named, and what cannot be read,
such as a link, fails: nothing that another reader would unpack is passed over.
"""

from __future__ import annotations

import math
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from advconn.data.decoding import LARGEST_FILE, SMALLEST, can_open
from advconn.data.formats import HEAD, UNREAD, is_left_behind, looks_like_picture, looks_unread
from advconn.errors import DataError, first_line
from advconn.files import require_zip_alone

PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".parquet")
MOST_MEMBERS = 10**6
MOST_INFLATED = 50  # times that a compressed tar may grow, beside ROOM
ROOM = 2**26  # bytes
NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
LONGEST_TEXT = 2**20  # bytes of a text beside a picture
BESIDE = {".cls", ".json", ".txt", ".id", ".caption"}  # texts that WebDataset keeps beside a picture of the same name
LONGEST_LABEL = 1000  # characters
TOGETHER = 1000  # rows of a table that are looked at at once
WRITTEN_FILES = "^(iVBOR|/9j/|R0lG|UklGR|Qk|SUkq|TU0A|data:)"  # how base64 of pictures begins
COLUMNS = ("image", "img", "picture", "jpg", "png", "bytes")  # of a table: where its pictures are likely to be
LABELS = ("label", "labels", "class", "target")
_LOCK = Lock()  # a file is read by one thread at a time; decoding is what takes long
Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """The pictures in a packed file: their names, their labels where known, and what else is in it.

    members: how each is found again. skipped: names of what is no picture. failed: names of what cannot be read, and
    why. stamp: of the file, which must stay the same.
    """

    path: Path
    members: tuple[Any, ...]
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    skipped: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    stamp: Stamp = ()

    def content(self, i: int) -> bytes:
        """The file of picture i, from 0.

        Raises:
            DataError: damaged, encrypted, too large, or changed since it was listed.
        """

        def read() -> bytes:
            if _stamp(self.path) != self.stamp:
                raise DataError(f"{self.path}: was changed while it was read")
            return bytes(_opened(self.path, self.stamp).read(self.members[i]))

        with _LOCK:
            return _told(self.path, read)


def is_packed(path: Path) -> bool:
    """Whether a file is packed, by its name."""
    return path.name.lower().endswith(PACKED)


def open_packed(path: Path) -> Packed:
    """What a packed file holds.

    Raises:
        DataError: damaged, too many members, no picture, or its package is not installed.
    """
    with _LOCK:
        return _told(path, lambda: _opened(path, _stamp(path)).listed())


def _told(path: Path, work: Callable[[], Any]) -> Any:
    """What `work` gives, or whatever a damaged file makes the libraries raise as one line."""
    try:
        return work()
    except DataError:
        raise
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs pyarrow: pip install 'advconn[parquet]', or '.[parquet]' in a checkout"
        ) from None
    except Exception as error:  # zipfile, tarfile, zlib and pyarrow have many types
        raise DataError(f"{path}: cannot be read: {first_line(error, 160)}") from error


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@lru_cache(maxsize=8)
def _opened(path: Path, stamp: Stamp) -> Any:
    kinds: Mapping[str, Any] = {".zip": _Zip, ".parquet": _Parquet}
    return kinds.get(path.suffix.lower(), _Tar)(path, stamp)


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its name, its first bytes, or why they cannot be read."""

    name: str
    head: bytes
    fault: str | None = None


def _sorted_out(
    path: Path,
    stamp: Stamp,
    members: list[_Member],
    read: Callable[[int], bytes],
    label: Callable[[str], str | None],
) -> Packed:
    """Which members are pictures, which are not, and which cannot be read."""
    kinds = [_kind(member) for member in members]
    for i, kind in enumerate(kinds):
        if kind == "left behind" and can_open(read(i)):
            kinds[i] = "other"
    keys = {m.name.rpartition(".")[0] for m, kind in zip(members, kinds, strict=True) if kind == "picture"}
    skipped, failed = [], []
    for i, (member, kind) in enumerate(zip(members, kinds, strict=True)):
        key, suffix = member.name.rpartition(".")[0], PurePosixPath(member.name).suffix.lower()
        if kind == "failed":
            failed.append((member.name, member.fault or UNREAD))
        elif kind == "other" and not (suffix in BESIDE and key in keys and _is_text(member, partial(read, i))):
            skipped.append(member.name)
    pictures = [i for i, kind in enumerate(kinds) if kind == "picture"]
    if not pictures:
        raise DataError(f"{path}: no picture in it; found: {', '.join([*skipped, *dict(failed)][:3]) or 'nothing'}")
    names = tuple(members[i].name for i in pictures)
    return Packed(path, tuple(pictures), names, tuple(map(label, names)), tuple(skipped), tuple(failed), stamp)


def _kind(member: _Member) -> str:
    if member.fault is not None or looks_unread(member.name, member.head):
        return "failed"
    if is_left_behind(member.name, member.head):
        return "left behind"
    return "picture" if looks_like_picture(member.name, member.head) else "other"


def _is_text(member: _Member, read: Callable[[], bytes]) -> bool:
    """Whether a member is a text from its first to its last byte, and no picture that is written as one."""
    if NO_TEXT.search(member.head) or member.head.lstrip().startswith((b"#define", b"/* XPM")):
        return False
    whole = read()
    return len(whole) <= LONGEST_TEXT and not NO_TEXT.search(whole) and not can_open(whole)


def _folder(name: str) -> str | None:
    """The first folder of a member's name, as a label."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else None


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > LARGEST_FILE:
        raise DataError(f"{name}: more than {LARGEST_FILE / 1e6:.0f} MB")
    return data


def _refuse_many(path: Path, count: int) -> None:
    if count > MOST_MEMBERS:
        raise DataError(f"{path}: {count} files in it; expected {MOST_MEMBERS} or fewer: split it")


class _Zip:
    def __init__(self, path: Path, stamp: Stamp) -> None:
        self.path, self.stamp, self.archive = path, stamp, zipfile.ZipFile(path)
        require_zip_alone(self.archive, path)
        self.infos = [i for i in self.archive.infolist() if not (i.is_dir() and i.file_size == 0)]

    def listed(self) -> Packed:
        _refuse_many(self.path, len(self.infos))
        return _sorted_out(self.path, self.stamp, [*map(self._member, self.infos)], self.read, _folder)

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        try:
            with self.archive.open(info) as stream:
                return _Member(info.filename, stream.read(HEAD))
        except Exception as error:  # encrypted, damaged, or packed in a way that is not known
            return _Member(info.filename, b"", f"cannot be read: {first_line(error, 100)}")

    def read(self, member: int) -> bytes:
        info = self.infos[member]
        with self.archive.open(info) as stream:
            return _bounded(stream.read(LARGEST_FILE + 1), f"{self.path}[{info.filename}]")


class _Tar:
    def __init__(self, path: Path, stamp: Stamp) -> None:
        self.path, self.stamp = path, stamp
        plain = path.suffix.lower() == ".tar"
        if not plain:
            self._refuse_bombs()
        self.archive = tarfile.open(path, "r:" if plain else "r:gz")  # noqa: SIM115 - read on at the next picture
        self.members = [m for m in self._all() if not m.isdir()]
        self._refuse_more()

    def _refuse_bombs(self) -> None:
        import gzip

        most = ROOM + MOST_INFLATED * self.path.stat().st_size
        with gzip.open(self.path) as stream:
            while part := stream.read(2**20):
                most -= len(part)
                if most < 0:
                    raise DataError(f"{self.path}: grows more than {MOST_INFLATED} times when it is unpacked")

    def _all(self) -> Iterator[tarfile.TarInfo]:
        for count, member in enumerate(self.archive):
            _refuse_many(self.path, count)
            yield member

    def _refuse_more(self) -> None:
        """Refuse an archive that ends before its file does: a damaged header, or another archive behind it."""
        stream: Any = self.archive.fileobj
        stream.seek(self.archive.offset)
        first = stream.read(tarfile.BLOCKSIZE)
        if len(first) < tarfile.BLOCKSIZE or first.strip(b"\0"):
            raise DataError(f"{self.path}: a damaged tar archive: it has no end")
        while part := stream.read(2**20):
            if part.strip(b"\0"):
                raise DataError(f"{self.path}: more stands behind the end of the tar archive")

    def listed(self) -> Packed:
        texts = {m.name.rpartition(".")[0]: i for i, m in enumerate(self.members) if m.name.lower().endswith(".cls")}

        def label(name: str) -> str | None:
            at = texts.get(name.rpartition(".")[0])
            return _folder(name) if at is None else self.read(at)[:200].decode(errors="replace").strip()

        return _sorted_out(self.path, self.stamp, [*map(self._member, self.members)], self.read, label)

    def _member(self, member: tarfile.TarInfo) -> _Member:
        if not member.isreg() or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = "a link" if member.islnk() or member.issym() else "no regular file"
            return _Member(member.name, b"", f"{kind}, which is not followed: pack the file itself")
        return _Member(member.name, self._start(member, HEAD))

    def _start(self, member: tarfile.TarInfo, count: int) -> bytes:
        stream = self.archive.extractfile(member)
        if stream is None:
            raise DataError(f"{self.path}[{member.name}]: no regular file; pack the file itself")
        return stream.read(count)

    def read(self, member: int) -> bytes:
        found = self.members[member]
        return _bounded(self._start(found, LARGEST_FILE + 1), f"{self.path}[{found.name}]")


class _Parquet:
    def __init__(self, path: Path, stamp: Stamp) -> None:
        from pyarrow import parquet

        schema = parquet.read_schema(path)
        self.label = next((f.name for f in schema if f.name in LABELS and not f.type.num_fields), None)
        texts = [self.label] if self.label is not None and "string" in str(schema.field(self.label).type) else []
        self.path, self.stamp = path, stamp
        self.file = parquet.ParquetFile(path, read_dictionary=texts)
        _refuse_many(path, self.file.metadata.num_rows)
        self._refuse_bombs()
        readable = [field.name for field in schema if _holds_a_file(field.type)]
        if not readable:
            raise DataError(f"{path}: no column of bytes; found: {', '.join(schema.names[:8])}")
        self.column = next((name for name in COLUMNS if name in readable), readable[0])
        self.others = [f.name for f in schema if f.name != self.column and self._may_hold_pictures(f)]
        held = schema.field(self.column).type
        if str(held).startswith("struct"):
            self.others += [
                f"{self.column}.{f.name}"
                for f in held
                if f.name != "bytes" and (_may_hold_a_file(f.type) or _values_at_once(f.type) >= SMALLEST**2)
            ]
        self.rows: Iterator[Any] = iter(())
        self.next = -1

    def listed(self) -> Packed:
        count = self.file.metadata.num_rows
        if not count:
            raise DataError(f"{self.path}: no picture in it; found: no rows")
        labels = self._labels() if self.label else [None] * count
        told = tuple(None if value is None else str(value) for value in labels)
        names = tuple(map(str, range(count)))
        return Packed(self.path, tuple(range(count)), names, told, tuple(self.others), (), self.stamp)

    def _may_hold_pictures(self, field: Any) -> bool:
        """Whether a column's values may be pictures: files, texts that stand for files, or enough numbers."""
        from pyarrow import compute, types

        if _may_hold_a_file(field.type):
            return True
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        text = types.is_string(kind) or types.is_large_string(kind)
        listed = (types.is_list(kind) or types.is_large_list(kind)) and _values_at_once(kind.value_type) == 1
        if not text and not listed:
            return _values_at_once(kind) >= SMALLEST**2
        for batch in self.file.iter_batches(TOGETHER, columns=[field.name]):
            values = getattr(batch.column(0), "dictionary", batch.column(0))
            if text and compute.any(compute.match_substring_regex(values, WRITTEN_FILES)).as_py():
                return True
            if listed and (compute.max(compute.list_value_length(values)).as_py() or 0) >= SMALLEST**2:
                return True
        return False

    def _refuse_bombs(self) -> None:
        about = self.file.metadata
        for group in (about.row_group(i) for i in range(about.num_row_groups)):
            for column in (group.column(i) for i in range(group.num_columns)):
                if column.total_uncompressed_size > ROOM + MOST_INFLATED * column.total_compressed_size:
                    raise DataError(f"{self.path}: grows more than {MOST_INFLATED} times when it is unpacked")

    def _labels(self) -> list[Any]:
        """Labels of all rows; texts come as a dictionary, so that a long one is not written out for each row."""
        from pyarrow import compute

        chunks = self.file.read([self.label])[self.label].chunks
        for chunk in chunks:
            texts = getattr(chunk, "dictionary", None)
            if texts is not None and (compute.max(compute.binary_length(texts)).as_py() or 0) > LONGEST_LABEL:
                raise DataError(f"{self.path}: {self.label} has texts of more than {LONGEST_LABEL} characters")
        return [value for chunk in chunks for value in chunk.to_pylist()]

    def _values(self) -> Iterator[Any]:
        for batch in self.file.iter_batches(1, columns=[self.column]):  # one by one: each may be large
            yield from batch.column(0)

    def read(self, member: int) -> bytes:
        if member < self.next or self.next < 0:
            self.rows, self.next = self._values(), 0
        value = None
        while self.next <= member:
            value = next(self.rows)
            self.next += 1
        held = value.as_py() if value is not None else None
        held = held.get("bytes") if isinstance(held, dict) else held
        if not isinstance(held, bytes):
            raise DataError(f"{self.path}: row {member} holds no bytes of a picture")
        return _bounded(held, f"{self.path}[{member}]")


def _may_hold_a_file(kind: Any) -> bool:
    """Whether bytes lie anywhere in a column's values, which a reader may take for a file."""
    return any(part in str(kind) for part in ("binary", "int8>", "int8 not null>"))


def _values_at_once(kind: Any) -> float:
    """How many numbers one value of a column holds: 0 of none, infinity where it differs from row to row."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)
    if types.is_fixed_size_list(kind):
        return float(kind.list_size) * _values_at_once(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return math.inf if _values_at_once(kind.value_type) else 0
    if types.is_struct(kind):
        return sum(_values_at_once(field.type) for field in kind)
    return float(types.is_floating(kind) or types.is_integer(kind))


def _holds_a_file(kind: Any) -> bool:
    """Whether a column's values are files: bytes, or a struct with bytes in it."""
    if str(kind).startswith("struct"):
        with suppress(KeyError, ValueError):
            return "binary" in str(kind.field("bytes").type)
        return False
    return str(kind).startswith(("binary", "large_binary", "fixed_size_binary"))
