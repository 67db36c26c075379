"""Files of results: verdicts as JSON lines, CSV or Parquet, a record at a time; images as PNG files."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from advconn.data.input_conversion import as_bytes
from advconn.data.laundering import Laundering
from advconn.errors import DataError, printable
from advconn.files import atomic_folder
from advconn.scoring.records import Result, as_json

COLUMNS: Mapping[str, str] = {  # of a table, and of what kind each is; README says what it holds
    "image": "string", "prediction": "int64", "class_name": "string", "adversarial": "bool", "doubtful": "bool",
    "p_value": "double", "score": "double", "stage": "int64", "consensus_name": "string", "agreeing": "int64",
    "copies": "int64", "barrier": "double", "secondary_barriers": "int64", "bends": "double", "reading": "string",
    "why": "string", "other_pictures": "int64", "error": "string",
}  # fmt: skip
FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # that a spreadsheet begins to compute at
LONGEST_NAME = 200  # bytes of a file's name that is written
TOGETHER = 10_000  # records of a Parquet file's row group


def as_jsonl(records: Iterable[Result], file: Path) -> None:
    """One JSON object a line, with every key."""
    with file.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(as_json(record) + "\n")


def as_csv(records: Iterable[Result], file: Path) -> None:
    """A heading and one row a record, as spreadsheets read it: a byte-order mark, no cell that is a formula."""
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.DictWriter(out, list(COLUMNS), extrasaction="ignore", quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        for record in records:
            writer.writerow({k: _plain(v) for k, v in record.to_dict().items()})


def as_parquet(records: Iterable[Result], file: Path) -> None:
    """COLUMNS, of their kinds, null where a record has none; needs pyarrow."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(list(COLUMNS.items()))
    with parquet.ParquetWriter(file, schema) as writer:
        rest = iter(records)
        while some := list(islice(rest, TOGETHER)):
            rows = [{k: _written(v) for k, v in r.to_dict().items() if k in COLUMNS} for r in some]
            writer.write_table(pa.Table.from_pylist(rows, schema))


WRITERS: Mapping[str, Callable[[Iterable[Result], Path], None]] = {
    ".jsonl": as_jsonl,
    ".csv": as_csv,
    ".parquet": as_parquet,
}


def writer_for(file: Path) -> Callable[[Iterable[Result], Path], None] | None:
    """What writes a file of this name; None where it names a folder.

    Raises:
        DataError: its package is not installed.
    """
    writer = WRITERS.get(file.suffix.lower())
    if writer is as_parquet:
        try:
            import pyarrow  # noqa: F401 - asked for before the work
        except ImportError:
            raise DataError(
                f"{file}: Parquet needs pyarrow: pip install 'advconn[parquet]', or '.[parquet]' in a checkout"
            ) from None
    return writer


def _written(value: Any) -> Any:
    """A text in which what no encoding holds is escaped, such as bytes of a file's name."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    text = printable(value) if isinstance(value, str) else value
    return "'" + text if isinstance(text, str) and text.lstrip()[:1] in FORMULAS else text


def save_images(
    images: Tensor,
    labels: Tensor,
    names: Sequence[str],
    folder: Path,
    *,
    succeeded: Tensor | None = None,
    floats: bool = False,
    lossy: tuple[Tensor, Laundering] | None = None,
) -> None:
    """Write images (n, c, h, w) in [0, 1] as files and as images.npz, the folder appearing only whole.

    Args:
        images: attacked copies, or others, as the files show them.
        labels: their classes (n,), for images.npz.
        names: one for each file, without suffix.
        folder: that is made.
        succeeded: whether each copy fools the classifier (n,), for images.npz.
        floats: the .npz holds them as they are, in float32, and no PNG is written: bytes would round them, as
            of images of other channels than 1 or 3.
        lossy: the images before they are saved, and how: of a format that loses something the file is made of these.
            Else files are lossless PNG files.
    """
    plain = images.clamp(0, 1)
    array = _last(plain.cpu()).astype(np.float32) if floats else _last(as_bytes(plain))
    files, way = array, Laundering(lambda values, seed: values)
    if lossy is not None and lossy[1].quality is not None:
        files, way = _last(as_bytes(lossy[0].clamp(0, 1))), lossy[1]
    options = {} if way.quality is None else {"quality": way.quality}
    with atomic_folder(folder) as partial:
        for pixels, name in zip(files, names, strict=True):
            if not floats and pixels.shape[2] in (1, 3):  # no PNG file holds other channels
                image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels)
                image.save(partial / f"{_short(name)}{way.suffix}", way.kind, **options)
        arrays: dict[str, Any] = {"images": array, "labels": labels.cpu().numpy()}
        arrays |= {} if succeeded is None else {"succeeded": succeeded.cpu().numpy()}
        np.savez_compressed(partial / "images.npz", **arrays)


def _last(images: Tensor) -> np.ndarray:
    """With the channels last."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def _short(name: str) -> str:
    """A name that every file system takes."""
    return os.fsencode(name)[:LONGEST_NAME].decode(errors="ignore")
