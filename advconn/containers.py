"""Pictures that lie packed in one file: a zip or tar archive (WebDataset's shards), or a Parquet table of bytes."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from advconn.errors import DataError, line_of
from advconn.pictures import LARGEST_FILE, SUFFIXES, UNREAD_SUFFIXES

PACKED = (".zip", ".tar", ".tar.gz", ".tgz", ".parquet")
MOST_MEMBERS = 10**6
BESIDE = {".cls", ".json", ".txt", ".id", ".caption"}  # what WebDataset keeps beside a picture of the same name
COLUMNS = ("image", "img", "picture", "jpg", "png", "bytes")  # of a table: where its pictures are likely to be
LABELS = ("label", "labels", "class", "target")
_LOCK = Lock()  # a file is read by one thread at a time; decoding is what takes long


@dataclass(frozen=True)
class Packed:
    """The pictures in a packed file: their names, their labels where known, and what else is in it.

    members: how each is found again. skipped: names of what is no picture. unread: of pictures of kinds that are not
    read.
    """

    path: Path
    members: tuple[Any, ...]
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    skipped: tuple[str, ...]
    unread: tuple[str, ...]

    def content(self, i: int) -> bytes:
        """The file of picture i, from 0.

        Raises:
            DataError: damaged, encrypted, or too large.
        """
        with _LOCK:
            return _told(self.path, lambda: _opened(self.path, _stamp(self.path)).read(self.members[i]))


def is_packed(path: Path) -> bool:
    """Whether a file is packed, by its name."""
    return path.name.lower().endswith(PACKED)


def packed(path: Path) -> Packed:
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
        raise DataError(f"{path}: Parquet needs pyarrow: pip install 'advconn[parquet]'") from None
    except Exception as error:  # zipfile, tarfile, zlib and pyarrow have many types
        raise DataError(f"{path}: cannot be read: {line_of(error, 160)}") from error


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=8)
def _opened(path: Path, stamp: tuple[int, int]) -> Any:
    kinds: Mapping[str, Any] = {".zip": _Zip, ".parquet": _Parquet}
    return kinds.get(path.suffix.lower(), _Tar)(path)


def _sorted_out(path: Path, members: list[tuple[Any, str]], label: Callable[[str], str | None]) -> Packed:
    """Which members are pictures, by their names."""
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{path}: {len(members)} files in it; expected {MOST_MEMBERS} or fewer")
    suffix = {name: PurePosixPath(name).suffix.lower() for _, name in members}
    pictures = [(member, name) for member, name in members if suffix[name] in SUFFIXES]
    keys = {name.rpartition(".")[0] for _, name in pictures}
    beside = {name for _, name in members if suffix[name] in BESIDE and name.rpartition(".")[0] in keys}
    others = [name for _, name in members if suffix[name] not in SUFFIXES and name not in beside]
    unread = tuple(name for name in others if suffix[name] in UNREAD_SUFFIXES)
    if not pictures:
        raise DataError(f"{path}: no picture in it; found: {', '.join(others[:3]) or 'nothing'}")
    return Packed(
        path,
        tuple(member for member, _ in pictures),
        tuple(name for _, name in pictures),
        tuple(label(name) for _, name in pictures),
        tuple(name for name in others if name not in unread),
        unread,
    )


def _folder(name: str) -> str | None:
    """The first folder of a member's name, as a label."""
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else None


class _Zip:
    def __init__(self, path: Path) -> None:
        self.path, self.archive = path, zipfile.ZipFile(path)

    def listed(self) -> Packed:
        infos = [info for info in self.archive.infolist() if not info.is_dir()]
        return _sorted_out(self.path, [(i, info.filename) for i, info in enumerate(infos)], _folder)

    def read(self, member: int) -> bytes:
        infos = [info for info in self.archive.infolist() if not info.is_dir()]
        with self.archive.open(infos[member]) as stream:
            return _bounded(stream.read(LARGEST_FILE + 1), f"{self.path}[{infos[member].filename}]")


class _Tar:
    def __init__(self, path: Path) -> None:
        self.path, self.archive = path, tarfile.open(path)  # noqa: SIM115 - read on at the next picture
        self.members = [member for member in self.archive.getmembers() if member.isreg()]

    def listed(self) -> Packed:
        texts = {m.name.rpartition(".")[0]: i for i, m in enumerate(self.members) if m.name.lower().endswith(".cls")}

        def label(name: str) -> str | None:
            at = texts.get(name.rpartition(".")[0])
            return _folder(name) if at is None else self.read(at)[:200].decode(errors="replace").strip()

        return _sorted_out(self.path, [(i, member.name) for i, member in enumerate(self.members)], label)

    def read(self, member: int) -> bytes:
        stream = self.archive.extractfile(self.members[member])
        assert stream is not None
        return _bounded(stream.read(LARGEST_FILE + 1), f"{self.path}[{self.members[member].name}]")


class _Parquet:
    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.path, self.file = path, parquet.ParquetFile(path)
        schema = self.file.schema_arrow
        kinds = {
            field.name: field.type
            for field in schema
            if pa.types.is_binary(field.type)
            or pa.types.is_large_binary(field.type)
            or (pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        }
        wanted = [name for name in COLUMNS if name in kinds] or list(kinds)
        if not wanted:
            raise DataError(f"{path}: no column of bytes; found: {', '.join(schema.names[:8])}")
        self.column, self.others = wanted[0], [name for name in kinds if name != wanted[0]]
        self.label = next((name for name in LABELS if name in schema.names), None)
        self.group, self.values = -1, None

    def listed(self) -> Packed:
        rows = [
            (g, i) for g in range(self.file.num_row_groups) for i in range(self.file.metadata.row_group(g).num_rows)
        ]
        if len(rows) > MOST_MEMBERS:
            raise DataError(f"{self.path}: {len(rows)} rows; expected {MOST_MEMBERS} or fewer: split it")
        labels = self.file.read([self.label])[self.label].to_pylist() if self.label else [None] * len(rows)
        told = tuple(None if value is None else str(value) for value in labels)
        return Packed(self.path, tuple(rows), tuple(map(str, range(len(rows)))), told, tuple(self.others), ())

    def read(self, member: tuple[int, int]) -> bytes:
        group, row = member
        if group != self.group:
            self.group, self.values = group, self.file.read_row_group(group, [self.column])[self.column]
        value = self.values[row].as_py()  # type: ignore[index]
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise DataError(f"{self.path}: row {row} of group {group} holds no bytes")
        return _bounded(value, f"{self.path}[{row}]")


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > LARGEST_FILE:
        raise DataError(f"{name}: more than {LARGEST_FILE / 1e6:.0f} MB")
    return data
