"""The figures of a report: a heat map of detection rates, ROC curves, histograms, cost, margins along paths."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from advconn.benchmark.result_types import OURS, Report, best_baseline, rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(report: Report) -> dict[str, Figure]:
    """All of them, by name."""
    return {"overview": overview(report), "roc": roc(report), "scores": histograms(report), "cost": cost(report)}


def svg(figure: Figure) -> str:
    """As an element for a page, or a file of its own; drawn again, the figure keeps its layout."""
    out = io.StringIO()
    figure.savefig(out, format="svg")
    figure.set_layout_engine("none")
    text = out.getvalue()
    return text[text.index("<svg") :]


def grid(count: int) -> tuple[Figure, list[Any]]:
    """A figure of at least so many axes, three a line, and these."""
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def overview(report: Report) -> Figure:
    """Detection rates as a heat map: detectors from the best, attacks from the worst detected; false alarms beside."""
    from matplotlib.figure import Figure

    names = rank(report.rows)
    rates = {(r.detector, r.attack): r.tpr for r in report.rows}
    rates |= {(r.detector, f"{r.attack}, {r.saved_as}"): r.tpr for r in report.saved}
    columns = list(dict.fromkeys(attack for _, attack in rates))
    first = names[0]
    columns.sort(key=lambda attack: (not np.isfinite(rates[first, attack]), rates[first, attack]))
    alarms = {r.detector: r.fpr for r in report.rows}
    table = np.array([[rates[name, attack] for attack in columns] for name in names])
    figure = Figure(figsize=(3.2 + 0.62 * (len(columns) + 1), 1.9 + 0.3 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, max(1, len(columns))], sharey=True)
    false = np.array([[alarms[name]] for name in names])
    for ax, values, labels, colours, top in (
        (left, false, ["false alarms"], "Reds", max(0.1, 2 * float(report.settings["fpr"]))),
        (right, table, columns, "RdYlGn", 1.0),
    ):
        ax.imshow(values, aspect="auto", cmap=colours, vmin=0, vmax=top, alpha=0.75)
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
        for (y, x), value in np.ndenumerate(values):
            shown = "–" if not np.isfinite(value) else f"{value:.2f}"[-3:] if value < 0.995 else "1.0"
            ax.text(x, y, shown, ha="center", va="center", fontsize=7)
    left.set_yticks(range(len(names)), names, fontsize=7)
    return figure


def roc(report: Report) -> Figure:
    """Of advconn, and of the best baseline of each attack."""
    attacks = [a.attack for a in report.attacks]
    figure, axes = grid(len(attacks))
    ours = [name for name in rank(report.rows) if name.startswith(OURS)]
    for ax, attack in zip(axes, attacks, strict=True):
        best = best_baseline(report.rows, attack)
        for name in [*ours, *([best] if best else [])]:
            scores = report.scores[name]
            if len(scores[attack]):
                cuts = np.sort(scores["clean"])[::-1]
                fpr = np.arange(1, len(cuts) + 1) / len(cuts)
                tpr = (scores[attack][None] >= cuts[:, None]).mean(1)
                ax.step(fpr, tpr, where="post", label=name, lw=2 if name.startswith(OURS) else 1)
        ax.set_title(attack, fontsize=8)
        ax.set(xlabel="false alarms", ylabel="caught", xscale="log", xlim=(1e-3, 1), ylim=(0, 1.02))
        ax.legend(fontsize=6)
    return figure


def histograms(report: Report) -> Figure:
    """Scores over the threshold, of the best detector of ours."""
    attacks = [a.attack for a in report.attacks]
    figure, axes = grid(len(attacks))
    name = next(n for n in rank(report.rows) if n.startswith(OURS))
    scores = report.scores[name]
    for ax, attack in zip(axes, attacks, strict=True):
        both = np.concatenate([scores["clean"], scores[attack]])
        both = both[np.isfinite(both)]
        bins = np.linspace(float(np.percentile(both, 0.5)), float(np.percentile(both, 99.5)), 40)
        ax.hist(scores["clean"], bins, density=True, alpha=0.6, label="clean")
        if len(scores[attack]):
            ax.hist(scores[attack], bins, density=True, alpha=0.6, label="attacked")
        ax.axvline(0, color="black", lw=1)
        ax.set_title(attack, fontsize=8)
        ax.set(xlabel=f"score over the threshold ({name})", yticks=[])
    axes[0].legend(fontsize=7)
    return figure


def cost(report: Report) -> Figure:
    """Mean share caught against forwards a query."""
    figure, (ax,) = grid(1)
    for name in rank(report.rows):
        mine = [r for r in report.rows if r.detector == name]
        spent = max(mine[0].forwards + 3 * mine[0].gradients, 0.5)
        caught = float(np.nanmean([r.tpr for r in mine]))
        ax.plot(spent, caught, "o", color="C0" if name.startswith(OURS) else "grey")
        ax.annotate(name, (spent, caught), fontsize=7, xytext=(4, 2), textcoords="offset points")
    ax.set(xscale="log", xlabel="forwards a query (a gradient counts as 3)", ylabel="mean share caught", ylim=(0, 1.05))
    return figure


def profile(paths: Mapping[str, Sequence[Sequence[float]]]) -> Figure | None:
    """The margin along every path: under zero the predicted class wins."""
    if not paths:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(paths), 1.7), layout="constrained")
    axes = figure.subplots(1, len(paths), squeeze=False, sharey=True)[0]
    for ax, (family, curves) in zip(axes, paths.items(), strict=True):
        for values in curves:
            ax.plot(np.linspace(0, 1, len(values)), values, ".-" if family == "self" else "-", lw=1, ms=3)
        ax.axhline(0, color="black", lw=0.6)
        ax.set_title(family + (" (copies, sorted)" if family == "self" else " paths"), fontsize=7)
        ax.tick_params(labelsize=6)
    axes[0].set_ylabel("margin", fontsize=7)
    return figure
