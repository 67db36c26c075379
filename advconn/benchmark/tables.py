"""Results as tables for papers and spreadsheets: Markdown, LaTeX, CSV; of one run, of repeats, or of several runs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from advconn.errors import DataError

KINDS = ("md", "latex", "csv")
SPECIAL = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"}
Records = Sequence[Mapping[str, Any]]


def cells(records: Mapping[str, Records], *, spread: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of 'AUROC / caught' by detector and attack.

    Args:
        records: results.json's by the run's name. spread: they are repeats of one run: their mean and deviation.

    Raises:
        DataError: runs on other images.
    """
    first = next(iter(records.values()))[0]
    if not spread:
        _same_images(records)
    runs = {"": [r for found in records.values() for r in found]} if spread else records
    attacks = list(dict.fromkeys(row["attack"] for row in first["rows"]))
    attacks += [
        row["attack"] for found in records.values() for r in found for row in r["rows"] if row["attack"] not in attacks
    ]
    attacks = list(dict.fromkeys(attacks))
    lines = []
    for run, found in runs.items():
        for name in dict.fromkeys(row["detector"] for r in found for row in r["rows"]):
            rows = [row for r in found for row in r["rows"] if row["detector"] == name]
            label = f"{run}: {name}" if run and len(runs) > 1 else name
            lines.append([label, *(_cell([r for r in rows if r["attack"] == a]) for a in attacks)])
    return ["detector", *attacks], lines


def _same_images(records: Mapping[str, Records]) -> None:
    wanted = ("data_sha256", "test_sha256")  # all images, and those tested on
    marks = {name: {tuple(r["settings"].get(k) for k in wanted) for r in found} for name, found in records.items()}
    base, *rest = marks.items()
    for name, found in rest:
        if found != base[1]:
            raise DataError(
                f"{name} was measured on other images than {base[0]}: their figures do not compare (give both the same "
                "--data, --limit and --seed)"
            )


def _cell(rows: Records) -> str:
    """Of one row, or of its repeats."""
    if not rows:
        return "–"
    parts = []
    for key in ("auroc", "tpr"):
        values = np.array([math.nan if r[key] is None else r[key] for r in rows], float)
        shown = f"{values.mean():.3f}"
        parts.append(shown if len(values) == 1 else f"{shown} ± {values.std(ddof=1):.3f}")
    return " / ".join(parts).replace("nan", "–")


def text(kind: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in one of KINDS."""
    if kind == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([heads, *lines])
        return out.getvalue().rstrip("\n")
    if kind == "md":
        rule = ["---", *["---:"] * (len(heads) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))
    body = [r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}", r"\toprule", _latex(heads), r"\midrule"]
    return "\n".join([*body, *map(_latex, lines), r"\bottomrule", r"\end{tabular}"])


def _latex(line: Sequence[str]) -> str:
    escaped = ["".join(SPECIAL.get(c, c) for c in cell).replace("±", r"$\pm$") for cell in line]
    return " & ".join(escaped) + r" \\"
