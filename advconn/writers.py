"""Verdicts as files: JSON lines, CSV, Parquet, written a record at a time, so that memory does not grow with them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from advconn.errors import DataError
from advconn.shown import shown

Record = Mapping[str, Any]
COLUMNS: Mapping[str, str] = {  # of a table, and of what kind each is; README says what it holds
    "image": "string", "prediction": "int64", "class_name": "string", "adversarial": "bool", "p_value": "double",
    "score": "double", "stage": "int64", "consensus_name": "string", "agreeing": "int64", "copies": "int64",
    "barrier": "double", "secondary_barriers": "int64", "bends": "double", "reading": "string", "why": "string",
    "error": "string",
}  # fmt: skip
TOGETHER = 10_000  # records of a Parquet file's row group


def as_jsonl(records: Iterable[Record], file: Path) -> None:
    """One JSON object a line, with every key."""
    with file.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record) + "\n")


def as_csv(records: Iterable[Record], file: Path) -> None:
    """A heading and one row a record; no cell is taken for a formula."""
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(COLUMNS), extrasaction="ignore")
        writer.writeheader()
        for record in records:
            writer.writerow({k: _plain(v) for k, v in record.items()})


def as_parquet(records: Iterable[Record], file: Path) -> None:
    """COLUMNS, of their kinds, null where a record has none; needs pyarrow."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(list(COLUMNS.items()))
    with parquet.ParquetWriter(file, schema) as writer:
        rest = iter(records)
        while some := list(islice(rest, TOGETHER)):
            writer.write_table(pa.Table.from_pylist([{k: r.get(k) for k in COLUMNS} for r in some], schema))


WRITERS: Mapping[str, Callable[[Iterable[Record], Path], None]] = {
    ".jsonl": as_jsonl,
    ".csv": as_csv,
    ".parquet": as_parquet,
}


def writer_for(file: Path) -> Callable[[Iterable[Record], Path], None] | None:
    """What writes a file of this name; None where it names a folder.

    Raises:
        DataError: its package is not installed.
    """
    writer = WRITERS.get(file.suffix.lower())
    if writer is as_parquet:
        try:
            import pyarrow  # noqa: F401 - asked for before the work
        except ImportError:
            raise DataError(f"{file}: Parquet needs pyarrow: pip install 'advconn[parquet]'") from None
    return writer


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    text = shown(value) if isinstance(value, str) else value
    return "'" + text if isinstance(text, str) and text[:1] in ("=", "+", "-", "@") else text
