"""What `score` writes into a folder: results.jsonl, results.csv and report.html, a page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advconn.explain import Explanation
from advconn.report import as_json
from advconn.shown import shown

PICTURES = 1000  # images shown on a page; the others stand there without their picture
FIGURES = 100  # images whose path is drawn
_COLUMNS = (
    "image", "prediction", "class_name", "adversarial", "p_value", "score", "stage", "consensus_name", "agreeing",
    "copies", "barrier", "secondary_barriers", "bends", "reading", "why", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A record of report.rows, the image (c, h, w) as it was judged, and what explains it, as far as they are kept."""

    record: dict[str, Any]
    image: Tensor | None = None
    explanation: Explanation | None = None


def write(cases: Sequence[Case], about: str, folder: Path) -> None:
    """Write the three files into a folder that is there."""
    lines = (as_json(case.record) + "\n" for case in cases)
    (folder / "results.jsonl").write_text("".join(lines), encoding="utf-8")
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: _plain(v) for k, v in case.record.items()} for case in cases)
    (folder / "report.html").write_text(page(cases, about), encoding="utf-8")


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    text = shown(value) if isinstance(value, str) else value
    return "'" + text if isinstance(text, str) and text[:1] in ("=", "+", "-", "@") else text


def page(cases: Sequence[Case], about: str) -> str:
    """A self-contained HTML page: flagged images first, then by p-value."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(
        (Path(__file__).parent / "templates" / "score.html").read_text(encoding="utf-8")
    )
    entries = sorted(map(_entry, cases), key=lambda e: (e["kind"] != "flagged", e["p"]))
    bare = sum(case.image is None and "error" not in case.record for case in cases)
    undrawn = sum(case.explanation is None and bool(case.record.get("adversarial")) for case in cases)
    left_out = [f"{bare} images are listed without their picture"] * bool(bare)
    left_out += [f"{undrawn} flagged images without their path"] * bool(undrawn)
    return template.render(
        cases=entries,
        flagged=sum(e["kind"] == "flagged" for e in entries),
        failed=sum(e["kind"] == "failed" for e in entries),
        about=about,
        left_out="; ".join(left_out),
    )


def _entry(case: Case) -> dict[str, Any]:
    """What the template shows of a case."""
    r, told = case.record, case.explanation
    if "error" in r:
        return {
            "kind": "failed",
            "p": 1.0,
            "name": shown(r["image"]),
            "label": "",
            "barrier": "",
            "why": shown(r["error"]),
        }
    votes = []
    if told is not None and told.votes:
        most = max(told.votes.values())
        for name, count in list(told.votes.items())[:6]:
            votes.append((shown(name), count, round(100 * count / most), name == told.prediction))
    return {
        "kind": "flagged" if r["adversarial"] else "clean",
        "p": round(r["p_value"], 5),
        "name": shown(r["image"]),
        "label": shown(r["class_name"]),
        "consensus": shown(r["consensus_name"]),
        "barrier": "" if r["barrier"] is None else r["barrier"],
        "stage": r["stage"],
        "why": shown(r["why"]),
        "votes": votes,
        "levels": ", ".join(map(str, told.secondary_barriers)) if told is not None else "",
        "picture": None if case.image is None else _png(case.image),
        "figure": None if told is None else _svg(told),
    }


def _png(image: Tensor) -> str:
    from PIL import Image

    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _svg(told: Explanation) -> str:
    buffer = io.BytesIO()
    told.figure(votes=False).savefig(buffer, format="svg")
    return base64.b64encode(buffer.getvalue()).decode()
