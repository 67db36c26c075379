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


def read_lists(source: Path) -> list[Path]:
    """The paths in a list; '-' is standard input. A path that is nowhere is looked for beside the list too.

    Raises:
        DataError: it cannot be read, or names nothing.
    """
    name = "standard input" if str(source) == "-" else str(source)
    try:
        data = sys.stdin.buffer.read(LARGEST_LIST + 1) if str(source) == "-" else source.read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error
    if len(data) > LARGEST_LIST:
        raise DataError(f"{name}: more than {LARGEST_LIST / 1e6:.0f} MB; expected a list of paths, one a line")
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = data.decode("utf-16" if wide else "utf-8-sig", "replace" if wide else "surrogateescape")
    if source.suffix.lower() == ".csv":
        names = _column(text, name)
    else:
        names = text.split("\0" if "\0" in text else "\n")  # as find -print0 has it
        names = [line.removesuffix("\r") for line in names if line.removesuffix("\r")]
    if not names:
        raise DataError(f"{name}: names no image")
    return [_found(Path(line), source.parent) for line in names]


def _column(text: str, name: str) -> list[str]:
    """The one column of paths of a table with a heading."""
    heading = text.partition("\n")[0]
    mark = next((m for m in ",;\t" if m in heading), ",")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
    except csv.Error as error:
        raise DataError(f"{name}: not readable as a table: {error}") from error
    columns = [i for i, cell in enumerate(rows[0] if rows else []) if cell.strip().lower() in COLUMNS]
    if len(columns) != 1:
        found = f"{len(columns)} columns" if columns else "no column"
        raise DataError(f"{name}: {found} of paths; expected one called {', '.join(COLUMNS[:4])}")
    cells = [row[columns[0]] if len(row) > columns[0] else "" for row in rows[1:] if row]
    empty = next((i for i, cell in enumerate(cells, 2) if not cell), None)
    if empty is not None:
        raise DataError(f"{name}: row {empty} names no path")
    return cells


def _found(path: Path, beside: Path) -> Path:
    return path if path.is_absolute() or path.exists() or not (beside / path).exists() else beside / path
