"""The folder that a report is kept in: results.json, results.csv, report.html, figures, and what else is asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advconn.benchmark.result_types import Report, Row
from advconn.errors import DataError
from advconn.files import atomic_folder

LISTS = ("rows", "saved", "published", "alarms", "attacks", "expenses", "evasions", "left", "controls")
EXTRAS = ("scores", "split", "images")


def save(report: Report, folder: Path, extras: Sequence[str] = ()) -> None:
    """Write a report to a folder, which appears only whole.

    Args:
        report: what is written.
        folder: a new one, or an empty one.
        extras: some of EXTRAS: 'scores' (each detector's, less its threshold, of clean test images and of every
            attack's), 'split' (rows of the images in each part), 'images' (those of every attack that succeeded, and
            the rows they were made from).

    Raises:
        DataError: the folder is not empty, or cannot be written.
    """
    from advconn.benchmark.report.html import html
    from advconn.benchmark.report.plots import figures, svg
    from advconn.benchmark.report.tables import print_tables

    with atomic_folder(folder) as partial:
        (partial / "results.json").write_text(json.dumps(as_record(report), indent=1) + "\n")
        with (partial / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row)])
            writer.writeheader()
            writer.writerows(asdict(row) for row in (*report.rows, *report.saved, *report.published))
        (partial / "table.tex").write_text(print_tables("latex", {"": [as_record(report)]}) + "\n")
        (partial / "figures").mkdir()
        drawn = {}
        for name, figure in figures(report).items():
            drawn[name] = svg(figure)
            (partial / "figures" / f"{name}.svg").write_text(drawn[name])
            figure.savefig(partial / "figures" / f"{name}.pdf")
        (partial / "report.html").write_text(html(report, drawn))
        for name in extras:
            np.savez_compressed(partial / f"{name}.npz", allow_pickle=False, **arrays(report, name))


def arrays(report: Report, name: str) -> dict[str, np.ndarray]:
    """What one of EXTRAS holds, by 'detector/attack', part, or attack and 'rows of attack'."""
    if name == "scores":
        return {f"{d}/{attack}": values for d, scores in report.scores.items() for attack, values in scores.items()}
    if name == "split":
        return dict(report.split)
    out: dict[str, np.ndarray] = {}
    for attack, (images, rows) in report.attacked.items():
        out |= {attack: images, f"rows of {attack}": rows}
    return out


def as_record(report: Report) -> dict[str, Any]:
    """As JSON holds it: nan as null, lists of objects of one kind."""
    contents = {"settings": dict(report.settings)} | {name: getattr(report, name) for name in LISTS}
    return {name: to_plain(value) for name, value in contents.items()}


def to_plain(value: Any) -> Any:
    """For JSON: nan as null, tuples and frozen values as lists and objects."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(asdict(value))
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a run: of the folder that `save` wrote, of results.json itself, or of a folder of repeats.

    Raises:
        DataError: none there, or of another kind.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give folders of advconn benchmark --out")
    repeats = sorted(path.glob("seed-*/results.json")) if path.is_dir() else []
    return [_read(file) for file in repeats or [path]]


def _read(path: Path) -> dict[str, Any]:
    file = path / "results.json" if path.is_dir() else path
    try:
        record = json.loads(file.read_text())
        rows = [(r["detector"], r["attack"], r["auroc"], r["tpr"]) for r in record["rows"]]
        if not rows or "data_sha256" not in record["settings"]:
            raise KeyError("rows")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: no results of a benchmark; give folders of advconn benchmark --out") from error
    return dict(record)
