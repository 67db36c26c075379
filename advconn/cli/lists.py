"""Lists of images: a path a line, or a table with a column of paths."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from advconn.errors import DataError

LISTS = {".txt", ".csv"}
COLUMNS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path", "img")
LARGEST_LIST = 2**28  # bytes


def listed(source: Path) -> list[Path]:
    """The paths in a list; '-' is standard input. A path that is nowhere is looked for beside the list too.

    Raises:
        DataError: it cannot be read, or names nothing.
    """
    name = "standard input" if str(source) == "-" else str(source)
    try:
        data = sys.stdin.buffer.read(LARGEST_LIST + 1) if str(source) == "-" else source.read_bytes()
        text = data.decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_LIST or "\0" in text:
        raise DataError(f"{name}: no list of paths; expected one a line")
    names = _column(text, name) if source.suffix.lower() == ".csv" else text.splitlines()
    paths = [Path(line.strip()) for line in names if line.strip()]
    if not paths:
        raise DataError(f"{name}: names no image")
    return [_found(path, source.parent) for path in paths]


def _column(text: str, name: str) -> list[str]:
    """The column of paths of a table with a heading."""
    table = csv.DictReader(io.StringIO(text))
    column = next((c for c in table.fieldnames or () if c.strip().lower() in COLUMNS), None)
    if column is None:
        raise DataError(f"{name}: no column of paths; expected one called {', '.join(COLUMNS[:4])}")
    return [row[column] or "" for row in table]


def _found(path: Path, beside: Path) -> Path:
    return path if path.is_absolute() or path.exists() or not (beside / path).exists() else beside / path
