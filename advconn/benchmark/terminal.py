"""A report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from advconn.benchmark.evasion import BEST
from advconn.benchmark.ranking import OURS, sentence
from advconn.benchmark.results import Alarm, Report


def benchmark_tables(report: Report) -> list[Table]:
    """The attacks, AUROC and catch rate by detector, false alarms, and the attack that knows the detector."""
    out = [_attacks(report), _detectors(report), _alarms(report.alarms)]
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


def _alarms(alarms: Sequence[Alarm]) -> Table:
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
