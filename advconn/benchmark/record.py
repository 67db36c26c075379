"""What a benchmark found, and the folder it is kept in: results.json, results.csv and report.html."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from advconn.files import writing


@dataclass(frozen=True)
class Report:
    """What was measured; every list holds records of plain values.

    rows: detector x attack. alarms: false alarms by kind of clean image. attacks: success and size of each attack.
    left: trained without x tested on. controls: barriers by kind of pair. scores: each detector's, less its
    threshold, of clean images and of every attack. shown: images for the page.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    attacks: list[dict[str, Any]]
    left: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    scores: dict[str, dict[str, np.ndarray]]
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def save(report: Report, folder: Path) -> None:
    """results.json, results.csv and report.html in a folder that appears only whole.

    Raises:
        DataError: the folder is not empty, or cannot be written.
    """
    from advconn.benchmark.page import html

    with writing(folder) as partial:
        record = {name: getattr(report, name) for name in ("settings", "rows", "alarms", "attacks", "left", "controls")}
        (partial / "results.json").write_text(json.dumps(_plain(record), indent=1) + "\n")
        keys = list(dict.fromkeys(k for r in report.rows for k in r))
        with (partial / "results.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, keys)
            writer.writeheader()
            writer.writerows(report.rows)
        (partial / "report.html").write_text(html(report))


def _plain(value: Any) -> Any:
    """For JSON: nan as null, tuples as lists."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
