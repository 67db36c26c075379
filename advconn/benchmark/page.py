"""A report as one self-contained page, readable offline: table, ROC curves, histograms, cost, examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from advconn.benchmark.record import Report

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:90em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums;font-size:14px}
table{display:block;overflow-x:auto}
th,td{padding:.25em .5em;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left}
td{white-space:nowrap}th{overflow-wrap:anywhere;max-width:7em;vertical-align:bottom}
tr.ours{background:#eef5ff}td.best{font-weight:700}td.bad{color:#b00}svg{max-width:100%;height:auto}
figure{display:inline-block;margin:.5em;text-align:center}figure img{width:96px;image-rendering:pixelated}
small{color:#666}
"""
OURS = "advconn"


def html(report: Report) -> str:
    """The page."""
    settings = report.settings
    parts = settings["parts"]
    attacks = [a["attack"] for a in report.attacks]
    body = [
        f"<h1>advconn benchmark: {escape(str(settings['data']))}</h1>",
        f"<p>{parts['train']} clean images to fit on, {parts['calibrate']} others to set one threshold at "
        f"{settings['fpr']:.0%} false alarms, {parts['test']} others to test. Only attacked images whose prediction "
        f"changed count. {_accuracy(settings['accuracy'])}</p>",
        "<h2>AUROC, and share caught at the frozen threshold</h2>",
        _main_table(report, attacks),
        "<h2>The attacks</h2>",
        _records(report.attacks, ("attack", "tried", "succeeded", "success", "l2", "linf", "confidence", "in_mixture")),
        "<h2>The attack that knows the detector</h2>",
        _adaptive(report),
        "<h2>False alarms on clean images</h2>",
        _alarms(report),
    ]
    keys = ("network", "pairs", "n", "median_barrier", "auroc")
    body += ["<h2>Controls: the barrier on a straight path, by pair</h2>", _records(report.controls, keys)]
    if report.left:
        body += ["<h2>Trained without, tested on: AUROC</h2>", _left(report)]
    body += ["<h2>ROC curves</h2>", _svg(_roc(report, attacks))]
    body += ["<h2>Scores over the threshold</h2>", _svg(_histograms(report, attacks))]
    body += ["<h2>Catch rate against cost</h2>", _svg(_cost(report))]
    body += ["<h2>Missed attacks</h2>", _pictures(report.shown.get("missed", ()))]
    body += ["<h2>False alarms</h2>", _pictures(report.shown.get("alarms", ()))]
    sources = "; ".join(f"{name}: {source}" for name, source in settings["sources"].items())
    body += [f"<h2>Sources</h2><p>{escape(sources)}.</p>"]
    body += [f"<p><small>{escape(str(settings['versions']))}, {escape(str(settings['machine']))}, seed "
             f"{settings['seed']}, data {settings['data_sha256'][:16]}</small></p>"]  # fmt: skip
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>advconn benchmark</title><style>{STYLE}</style>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _accuracy(value: float) -> str:
    return f"The classifier is right on {value:.1%}." if np.isfinite(value) else "True labels are not known."


def _worst(values: Iterable[float]) -> float:
    """The smallest that is a number; nan of none."""
    return min((v for v in values if np.isfinite(v)), default=float("nan"))


def ordinary(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of attacks that do not know the detector."""
    return [r for r in rows if "auroc" in r]


def ranking(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Detectors, the one with the highest worst AUROC first."""
    worst: dict[str, float] = {}
    for r in ordinary(rows):
        value = r["auroc"] if np.isfinite(r["auroc"]) else 1.0
        worst[r["detector"]] = min(value, worst.get(r["detector"], 1.0))
    return sorted(worst, key=lambda d: -worst[d])


def _main_table(report: Report, attacks: Sequence[str]) -> str:
    rows = ordinary(report.rows)
    at = {(r["detector"], r["attack"]): r for r in rows}
    best = {a: -_worst(-r["auroc"] for r in rows if r["attack"] == a) for a in attacks}
    head = ["detector", *attacks, "worst", "false alarms", "forwards", "gradients", "ms"]
    lines = []
    for name in ranking(report.rows):
        found = [at[name, a] for a in attacks]
        cells = [f"<td>{escape(name)}</td>"]
        for r in found:
            mark = " class=best" if r["auroc"] >= best[r["attack"]] - 5e-4 else ""
            interval = f"{r['auroc_low']:.3f} to {r['auroc_high']:.3f}, {r['n_attacked']} images"
            cells.append(f'<td{mark} title="{interval}">{r["auroc"]:.3f} / {r["tpr"]:.2f}</td>')
        worst = _worst(r["auroc"] for r in found)
        over = " class=bad" if found[0]["fpr"] > 1.3 * report.settings["fpr"] else ""
        cells.append(f"<td>{worst:.3f}</td><td{over}>{found[0]['fpr']:.3f}</td>")
        for key in ("forwards", "gradients", "milliseconds"):
            cells.append(f"<td>{found[0][key]:.1f}</td>")
        lines.append(f"<tr class={'ours' if name.startswith(OURS) else 'other'}>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{escape(h)}</th>" for h in head)
    return f'<table id="results"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def _records(records: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    lines = []
    for r in records:
        cells = (f"{r[k]:.3g}" if isinstance(r[k], float) else escape(str(r[k])) for k in keys)
        lines.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{k}</th>' for k in keys)}</tr>{''.join(lines)}</table>"


def _adaptive(report: Report) -> str:
    rows = [r for r in report.rows if "sr5" in r]
    if not rows:
        return "<p>Not measured (--adaptive): nothing is claimed.</p>"
    return (
        "<p>Misclassified, and SR at 5 % and 50 % false alarms: the share of images misclassified and not flagged. The "
        "best of three attacks on every image; each alone is in results.json.</p>"
        + _records(best_of_all(rows), ("detector", "eps", "n_attacked", "success", "sr5", "sr50"))
    )


def best_of_all(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the attack that knows the detector, the three ways taken together."""
    return [r for r in rows if r.get("way") == "best of all"]


def _alarms(report: Report) -> str:
    kinds = list(dict.fromkeys(a["images"] for a in report.alarms))
    at = {(a["detector"], a["images"]): a for a in report.alarms}
    lines = []
    for name in ranking(report.rows):
        cells = "".join(f"<td>{at[name, k]['fpr']:.3f}</td>" for k in kinds)
        lines.append(f"<tr class={'ours' if name.startswith(OURS) else 'other'}><td>{escape(name)}</td>{cells}</tr>")
    counts = {k: next(a["n"] for a in report.alarms if a["images"] == k) for k in kinds}
    heads = "".join(f"<th>{escape(k)} ({counts[k]})</th>" for k in kinds)
    return f"<table><tr><th>detector</th>{heads}</tr>{''.join(lines)}</table>"


def _left(report: Report) -> str:
    tested = list(dict.fromkeys(r["attack"] for r in report.left))
    without = list(dict.fromkeys(r["without"] for r in report.left))
    at = {(r["without"], r["attack"]): r["auroc"] for r in report.left}
    lines = []
    for name in without:
        cells = []
        for a in tested:
            mark = " class=best" if a.partition(":")[0] == name else ""
            cells.append(f"<td{mark}>{at[name, a]:.3f}</td>")
        lines.append(f"<tr><td>without {escape(name)}</td>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{escape(a)}</th>" for a in tested)
    return f"<table><tr><th></th>{heads}</tr>{''.join(lines)}</table>"


def _grid(count: int) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _roc(report: Report, attacks: Sequence[str]) -> Figure:
    figure, axes = _grid(len(attacks))
    names = ranking(report.rows)[:6]
    for ax, attack in zip(axes, attacks, strict=True):
        for name in names:
            scores = report.scores[name]
            if attack in scores and len(scores[attack]):
                cuts = np.sort(scores["clean"])[::-1]
                fpr = np.arange(1, len(cuts) + 1) / len(cuts)
                tpr = (scores[attack][None] >= cuts[:, None]).mean(1)
                ax.step(fpr, tpr, where="post", label=name, lw=2 if name.startswith(OURS) else 1)
        ax.set(title=attack, xlabel="false alarms", ylabel="caught", xscale="log", xlim=(1e-3, 1), ylim=(0, 1.02))
    axes[0].legend(fontsize=7)
    return figure


def _histograms(report: Report, attacks: Sequence[str]) -> Figure:
    figure, axes = _grid(len(attacks))
    name = next(n for n in ranking(report.rows) if n.startswith(OURS))
    scores = report.scores[name]
    for ax, attack in zip(axes, attacks, strict=True):
        both = np.concatenate([scores["clean"], scores.get(attack, scores["clean"][:0])])
        bins = np.linspace(float(np.percentile(both, 0.5)), float(np.percentile(both, 99.5)), 40)
        ax.hist(scores["clean"], bins, density=True, alpha=0.6, label="clean")
        if attack in scores:
            ax.hist(scores[attack], bins, density=True, alpha=0.6, label="attacked")
        ax.axvline(0, color="black", lw=1)
        ax.set(title=attack, xlabel=f"score over the threshold ({name})", yticks=[])
    axes[0].legend(fontsize=7)
    return figure


def _cost(report: Report) -> Figure:
    figure, (ax,) = _grid(1)
    rows = ordinary(report.rows)
    for name in ranking(report.rows):
        mine = [r for r in rows if r["detector"] == name]
        cost = mine[0]["forwards"] + 3 * mine[0]["gradients"]
        caught = np.nanmean([r["tpr"] for r in mine])
        ax.plot(max(cost, 0.5), caught, "o", color="C0" if name.startswith(OURS) else "grey")
        ax.annotate(name, (max(cost, 0.5), caught), fontsize=7, xytext=(4, 2), textcoords="offset points")
    ax.set(xscale="log", xlabel="forwards a query (a gradient counts as 3)", ylabel="mean share caught", ylim=(0, 1.05))
    return figure


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg")
    text = out.getvalue()
    return text[text.index("<svg") :]


def _pictures(shown: Iterable[dict[str, Any]]) -> str:
    from PIL import Image

    out = []
    for item in shown:
        image = np.asarray(item["image"])
        data = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]).save(data, "PNG")
        code = base64.b64encode(data.getvalue()).decode()
        out.append(
            f'<figure><img alt="" src="data:image/png;base64,{code}">{_profiles(item.get("paths", {}))}'
            f"<figcaption><small>{escape(item['what'])}<br>{item['score']:+.2f}</small></figcaption></figure>"
        )
    return "".join(out) or "<p>None.</p>"


def _profiles(paths: dict[str, list[list[float]]]) -> str:
    """The margin along every path: under zero the predicted class wins."""
    if not paths:
        return ""
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
    return f"<br>{_svg(figure)}<br>"
