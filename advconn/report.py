"""A judgement as lines of JSON, or as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from advconn.detector import Detector, Judgement

VERDICTS = ("clean", "ADVERSARIAL")


def rows(detector: Detector, names: Iterable[str], judgement: Judgement, seconds: float) -> list[dict[str, Any]]:
    """One record an image; its keys are those that README lists."""
    predictions = judgement.logits.argmax(1).tolist()
    class_names = detector.connectivity.classifier.label_names(predictions)
    n = len(predictions)
    cost = {
        "forwards": judgement.cost.forwards // n,
        "gradients": judgement.cost.gradients // n,
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
        for i, name in enumerate(names)
    ]


def as_json(row: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(row)


def as_table(records: Iterable[dict[str, Any]], threshold: float, fpr: float) -> Table:
    """A table for the terminal: prediction, score, p-value, verdict, and the family that spoke loudest."""
    title = f"score above {threshold:.2f}, or p-value at most {fpr:g}, is flagged"
    table = Table(caption=title, caption_justify="left")
    for name, justify in (("image", "left"), ("prediction", "left"), ("score", "right"), ("p-value", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("verdict")
    table.add_column("loudest")
    for r in records:
        style = "bold red" if r["adversarial"] else ""
        table.add_row(
            r["image"],
            r["class_name"],
            f"{r['score']:.2f}",
            f"{r['p_value']:.4f}",
            VERDICTS[r["adversarial"]],
            f"{r['loudest']} {r['families'][r['loudest']]:+.1f}",
            style=style,
        )
    return table
