"""Which detector stands first, and what a report says in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from advconn.benchmark.results import Report, Row

OURS = "advconn"


def worst(rows: Iterable[Row]) -> Row | None:
    """The row with the smallest AUROC that is a number."""
    finite = [r for r in rows if math.isfinite(r.auroc)]
    return min(finite, key=lambda r: r.auroc, default=None)


def rank(rows: Sequence[Row]) -> list[str]:
    """Detectors, the one with the highest worst AUROC first."""
    low: dict[str, float] = {}
    for name in dict.fromkeys(r.detector for r in rows):
        row = worst(r for r in rows if r.detector == name)
        low[name] = 1.0 if row is None else row.auroc
    return sorted(low, key=lambda name: -low[name])


def best_baseline(rows: Sequence[Row], attack: str) -> str | None:
    """The detector that is not ours with the highest AUROC on an attack."""
    mine = [r for r in rows if r.attack == attack and not r.detector.startswith(OURS) and math.isfinite(r.auroc)]
    return max(mine, key=lambda r: r.auroc).detector if mine else None


def sentence(report: Report) -> str:
    """What was found, on what, on how many images."""
    first = rank(report.rows)[0]
    mine = [r for r in report.rows if r.detector == first]
    low = worst(mine)
    others = [n for n in rank(report.rows) if not n.startswith(OURS)]
    second = worst(r for r in report.rows if others and r.detector == others[0])
    if low is None:
        return f"No attack succeeded on any of {mine[0].n_clean} images of {report.settings['data']}."
    beside = f" (best baseline, {others[0]}: {second.auroc:.3f})" if second is not None and first != others[0] else ""
    return (
        f"{first} tells {len(mine)} attack{'s' * (len(mine) > 1)} from {low.n_clean} clean images of "
        f"{report.settings['data']} with an AUROC of {low.auroc:.3f} at worst, on {low.attack}{beside}; it catches "
        f"{low.tpr:.0%} of these and flags {low.fpr:.1%} of the clean images."
    )
