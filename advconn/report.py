"""A judgement as lines of JSON, or as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from advconn.detector import Detector, Judgement
from advconn.shown import shown

VERDICTS = ("clean", "ADVERSARIAL")
FAR = 1.5  # a picture so many times larger than what is judged is another one than people see


def rows(detector: Detector, names: Iterable[str], judgement: Judgement, seconds: float) -> list[dict[str, Any]]:
    """One record an image; its keys are those that README lists."""
    names = list(names)
    predictions = judgement.logits.argmax(1).tolist()
    class_names = detector.connectivity.classifier.label_names(predictions)
    n = len(predictions)
    cost = {
        "forwards": judgement.total_cost.forwards // n,
        "gradients": judgement.total_cost.gradients // n,
        "seconds": round(seconds / n, 4),
    }
    return [
        {
            "image": name,
            "prediction": predictions[i],
            "class_name": class_names[i],
            "score": float(judgement.score[i]),
            "p_value": float(judgement.p_value[i]),
            "adversarial": bool(judgement.adversarial[i]),
            "loudest": judgement.loudest(i),
            "families": {family: float(values[i]) for family, values in judgement.families.items()},
            "features": dict(zip(map(str, detector.names_), map(float, judgement.features[i]), strict=True)),
            "cost": cost,
        }
        if judgement.errors[i] is None
        else {"image": name, "error": judgement.errors[i]}
        for i, name in enumerate(names)
    ]


def merged(records: list[dict[str, Any]], fpr: float) -> dict[str, Any]:
    """One record of an image from those of its readings: of two the smaller p speaks, doubled (Bonferroni)."""
    broken = next((r for r in records if "error" in r), None)
    if broken is not None:
        return broken
    first = min(records, key=lambda r: (r["p_value"], -r["score"]))
    out = first | {"readings": [r["reading"] for r in records]}
    if len(records) > 1:
        out["p_value"] = min(1.0, len(records) * first["p_value"])
        out["adversarial"] = out["p_value"] <= fpr + 1e-12
        out["cost"] = {key: sum(r["cost"][key] for r in records) for key in first["cost"]}
    return out


def as_json(row: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(row)


def as_table(records: Iterable[dict[str, Any]], threshold: float, fpr: float, view: str = "") -> Table:
    """A table for the terminal: prediction, score, p-value, verdict, and the family that spoke loudest.

    `view`: what is judged of a much larger picture, said in the verdict.
    """
    title = f"score above {threshold:.2f}, or p-value at most {fpr:g}, is flagged"
    table = Table(caption=title, caption_justify="left")
    for name, justify in (("image", "left"), ("prediction", "left"), ("score", "right"), ("p-value", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("verdict")
    table.add_column("loudest")
    for r in records:
        style = "bold red" if r["adversarial"] else ""
        seen = f" (its {view} view)" if view and max(r["given"]) > FAR * max(r["judged"]) else ""
        spoke = f" ({r['reading']})" if len(r.get("readings", ())) > 1 else ""
        table.add_row(
            escape(shown(r["image"])),
            escape(shown(r["class_name"])),
            f"{r['score']:.2f}",
            f"{r['p_value']:.4f}",
            VERDICTS[r["adversarial"]] + spoke + seen,
            f"{r['loudest']} {r['families'][r['loudest']]:+.1f}",
            style=style,
        )
    return table


def _alarms(rows: Any) -> Table:
    """Share of clean images flagged, by detector and by what is wrong with them."""
    at = {(r["detector"], r["images"]): r for r in rows}
    kinds = list(dict.fromkeys(r["images"] for r in rows))
    table = Table("detector", *kinds, title="clean images flagged")
    for name in dict.fromkeys(r["detector"] for r in rows):
        found = [at.get((name, kind)) for kind in kinds]
        table.add_row(name, *(f"{r['fpr']:.3f} of {r['n']}" if r else "" for r in found))
    return table


def benchmark_tables(report: Any) -> list[Table]:
    """A benchmark in the terminal: the attacks, AUROC and catch rate by detector, and the adaptive attack's rows."""
    attacks = [a["attack"] for a in report.attacks]
    sizes = Table("attack", "succeeded", "mean L2", "mean Linf x 255", "confidence", "trained on", title="attacks")
    for a in report.attacks:
        sizes.add_row(
            a["attack"],
            f"{a['succeeded']} of {a['tried']}",
            f"{a['l2']:.3f}",
            f"{a['linf'] * 255:.1f}",
            f"{a['confidence']:.3f}",
            "yes" if a["in_mixture"] else "",
        )
    title = "AUROC / caught at the frozen threshold (a gradient costs three forwards)"
    main = Table("detector", *attacks, "false alarms", "forwards", "ms", title=title)
    at = {(r["detector"], r["attack"]): r for r in report.rows}
    for name in dict.fromkeys(r["detector"] for r in report.rows):
        found = [at[name, a] for a in attacks]
        cells = [f"{r['auroc']:.3f} / {r['tpr']:.2f}" for r in found]
        first = found[0]
        style = "bold" if name.startswith("advconn") else ""
        cost = f"{first['forwards'] + 3 * first['gradients']:.0f}"
        main.add_row(name, *cells, f"{first['fpr']:.3f}", cost, f"{first['milliseconds']:.1f}", style=style)
    out = [sizes, main, _alarms(report.alarms)]
    known = [r for r in report.rows if r.get("way") == "best of all"]
    if known:
        aware = Table("detector", "eps", "misclassified", "SR@5", "SR@50", title="attack that knows the detector")
        for r in known:
            strict = f"{r['sr5']:.2f} ({r['sr5_low']:.2f} to {r['sr5_high']:.2f})"
            aware.add_row(r["detector"], r["eps"], f"{r['success']:.2f}", strict, f"{r['sr50']:.2f}")
        out.append(aware)
    return out
