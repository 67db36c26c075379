"""Results as tables for papers and spreadsheets: Markdown, LaTeX, CSV; of one run, of repeats, or of several runs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from advconn.benchmark.adaptive_evaluation import BEST
from advconn.benchmark.result_types import OURS, FalsePositiveRow, Report, Row, sentence
from advconn.errors import DataError


def benchmark_tables(report: Report) -> list[Table]:
    """The attacks, AUROC and catch rate by detector, false alarms, and the attack that knows the detector."""
    out = [
        _attacks(report),
        _detectors(report),
        *([_saved(report)] if report.saved else []),
        *([_published(report)] if report.published else []),
        _alarms(report.alarms),
    ]
    return [*out, _aware(report)] if report.evasions else out


def _attacks(report: Report) -> Table:
    heads = ("attack", "family", "succeeded", "mean L2", "mean Linf x 255", "confidence", "trained on")
    table = Table(*heads, title="attacks")
    for a in report.attacks:
        cells = (f"{a.succeeded} of {a.tried}", f"{a.l2:.3f}", f"{a.linf:.1f}", f"{a.confidence:.3f}")
        table.add_row(a.attack, a.family, *cells, "yes" if a.in_mixture else "")
    return table


def _detectors(report: Report) -> Table:
    attacks = [a.attack for a in report.attacks]
    title = "AUROC / caught at the frozen threshold (a gradient costs three forwards)"
    table = Table("detector", *attacks, "false alarms", "forwards", "ms", title=title, caption=sentence(report))
    by_pair = {(r.detector, r.attack): r for r in report.rows}
    for name in dict.fromkeys(r.detector for r in report.rows):
        mine = [by_pair[name, a] for a in attacks]
        first = mine[0]
        table.add_row(
            name,
            *(f"{r.auroc:.3f} / {r.tpr:.2f}" for r in mine),
            f"{first.fpr:.3f}",
            f"{first.forwards + 3 * first.gradients:.0f}",
            f"{first.milliseconds:.1f}",
            style="bold" if name.startswith(OURS) else "",
        )
    return table


def _saved(report: Report) -> Table:
    """Of attacked images that were saved and still fool the classifier."""
    pairs = dict.fromkeys((r.attack, r.saved_as) for r in report.saved)
    by_pair = {(r.detector, r.attack, r.saved_as): r for r in report.saved}
    names = list(dict.fromkeys(r.detector for r in report.saved))
    table = Table("detector", *(f"{attack}, {way}" for attack, way in pairs), title="AUROC / caught, saved copies")
    table.add_row("(still fool the classifier)", *(_share(by_pair[names[0], *pair]) for pair in pairs), style="dim")
    for name in names:
        mine = [by_pair[name, *pair] for pair in pairs]
        cells = (f"{r.auroc:.3f} / {r.tpr:.2f}" if r.n_attacked else "–" for r in mine)
        table.add_row(name, *cells, style="bold" if name.startswith(OURS) else "")
    return table


def _published(report: Report) -> Table:
    """Of detectors that were trained on the attack that they are tested on."""
    attacks = list(dict.fromkeys(r.attack for r in report.published))
    by_pair = {(r.detector, r.attack): r for r in report.published}
    table = Table("detector", *attacks, title="AUROC / caught, as published: trained on that attack alone")
    for name in dict.fromkeys(r.detector for r in report.published):
        mine = [by_pair.get((name, a)) for a in attacks]
        cells = ("–" if r is None else f"{r.auroc:.3f} / {r.tpr:.2f}" for r in mine)
        table.add_row(name, *cells, style="bold" if name.startswith(OURS) else "")
    return table


def _share(row: Row) -> str:
    return "–" if math.isnan(row.success) else f"{row.n_attacked} ({row.success:.0%})"


def _alarms(alarms: Sequence[FalsePositiveRow]) -> Table:
    """Share of clean images flagged, by detector and condition; halves and classes are in the report."""
    by_pair = {(a.detector, a.condition): a for a in alarms if a.images == "all"}
    conditions = list(dict.fromkeys(condition for _, condition in by_pair))
    table = Table("detector", *conditions, title="clean images flagged")
    for name in dict.fromkeys(detector for detector, _ in by_pair):
        table.add_row(name, *(f"{by_pair[name, c].fpr:.3f} of {by_pair[name, c].n}" for c in conditions))
    return table


def _aware(report: Report) -> Table:
    heads = ("detector", "eps x 255", "misclassified", "SR@5", "SR@50", "claims", "credible", "finds")
    table = Table(*heads, title="attack that knows the detector")
    for e in report.evasions:
        if e.way == BEST:
            strict = f"{e.sr5:.2f} ({e.sr5_low:.2f} to {e.sr5_high:.2f})"
            claim = (f"{e.claimed:.2f}", {True: "yes", False: "no", None: ""}[e.credible])
            finds = f"{e.planted_found} of {e.planted}{', too weak' * bool(e.too_weak)}" if e.planted else ""
            table.add_row(e.detector, f"{e.eps:g}", f"{e.success:.2f}", strict, f"{e.sr50:.2f}", *claim, finds)
    return table


KINDS = ("md", "latex", "csv")
SPECIAL = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"}
Records = Sequence[Mapping[str, Any]]


def print_tables(kind: str, records: Mapping[str, Records], *, spread: bool = False) -> str:
    """A table of the runs, in one of KINDS: 'AUROC / caught' by detector and attack; as CSV one number a cell.

    Args:
        kind: 'md', 'latex' or 'csv'.
        records: results.json's by the run's name.
        spread: whether they are repeats of one run, whose mean and standard deviation are told.

    Raises:
        DataError: runs on other images.
    """
    if not spread:
        _same_images(records)
    runs = {"": [r for repeats in records.values() for r in repeats]} if spread else records
    return _csv(runs) if kind == "csv" else _text(kind, *_cells(runs))


def _csv(runs: Mapping[str, Records]) -> str:
    """One line for each run, detector and attack: a spreadsheet counts with it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "detector", "attack", "auroc", "auroc_sd", "caught", "caught_sd", "repeats"])
    for run, repeats in runs.items():
        grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in (row for record in repeats for row in record["rows"]):
            grouped.setdefault((row["detector"], row["attack"]), []).append(row)
        for names, rows in grouped.items():
            numbers = [f"{v:.6g}" if math.isfinite(v) else "" for key in ("auroc", "tpr") for v in _spread(rows, key)]
            writer.writerow([run, *names, *numbers, len(rows)])
    return out.getvalue().rstrip("\n")


def _spread(rows: Records, key: str) -> tuple[float, float]:
    """Mean and standard deviation of repeats; of one, no deviation."""
    values = np.array([math.nan if r[key] is None else r[key] for r in rows], float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _cells(runs: Mapping[str, Records]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines."""
    attacks = list(dict.fromkeys(row["attack"] for repeats in runs.values() for r in repeats for row in r["rows"]))
    lines = []
    for run, repeats in runs.items():
        for name in dict.fromkeys(row["detector"] for r in repeats for row in r["rows"]):
            rows = [row for r in repeats for row in r["rows"] if row["detector"] == name]
            label = f"{run}: {name}" if run and len(runs) > 1 else name
            had = sum(any(row["detector"] == name for row in r["rows"]) for r in repeats)
            label += f" ({had} of {len(repeats)} runs)" * (had < len(repeats))
            lines.append([label, *(_cell([r for r in rows if r["attack"] == a]) for a in attacks)])
    return ["detector", *attacks], lines


def _same_images(records: Mapping[str, Records]) -> None:
    wanted = ("data_sha256", "test_sha256")  # all images, and those tested on
    marks = {name: {tuple(r["settings"].get(k) for k in wanted) for r in repeats} for name, repeats in records.items()}
    base, *rest = marks.items()
    for name, digests in rest:
        if digests != base[1]:
            raise DataError(
                f"{name} was measured on other images than {base[0]}: their figures do not compare (give both the same "
                "--data, --limit, --seed and --repeats)"
            )


def _cell(rows: Records) -> str:
    """Of one row, or of its repeats."""
    if not rows:
        return "–"
    parts = []
    for key in ("auroc", "tpr"):
        mean, deviation = _spread(rows, key)
        parts.append(f"{mean:.3f}" if len(rows) == 1 else f"{mean:.3f} ± {deviation:.3f}")
    return " / ".join(parts).replace("nan", "–")


def _text(kind: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table for a page or a paper."""
    if kind == "md":
        rule = ["---", *["---:"] * (len(heads) - 1)]
        return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))
    body = [r"\begin{tabular}{l" + "r" * (len(heads) - 1) + "}", r"\toprule", _latex(heads), r"\midrule"]
    return "\n".join([*body, *map(_latex, lines), r"\bottomrule", r"\end{tabular}"])


def _latex(line: Sequence[str]) -> str:
    escaped = ["".join(SPECIAL.get(c, c) for c in cell).replace("±", r"$\pm$") for cell in line]
    return " & ".join(escaped) + r" \\"
