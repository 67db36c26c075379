"""What `score` writes into a folder: results.jsonl, results.csv and report.html, a page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advconn.detector.explanation import Explanation
from advconn.errors import printable
from advconn.paths.plots import to_display
from advconn.scoring.records import DOUBTFUL, Failure, Record, Result
from advconn.scoring.writers import as_csv, as_jsonl

LISTED = 10_000  # images that a page tells of, the flagged ones first
PICTURES = 1000  # of these, how many with their picture
FIGURES = 100  # images whose path is drawn


@dataclass(frozen=True)
class PageEntry:
    """What is said of an image, the image (c, h, w) as it was judged, and what explains it, as far as they are kept."""

    result: Result
    image: Tensor | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Counts:
    """Of all images of a run: how many there are, are flagged, could not be judged."""

    images: int
    flagged: int
    failed: int


def write(records: Callable[[], Iterable[Result]], page: str, folder: Path) -> None:
    """Write results.jsonl, results.csv and report.html.

    Args:
        records: gives them from the first one, each time.
        page: the report.
        folder: that is there.
    """
    as_jsonl(records(), folder / "results.jsonl")
    as_csv(records(), folder / "results.csv")
    (folder / "report.html").write_text(page, encoding="utf-8")


def template_source() -> str:
    """What the page is made from; its script is the same in every page."""
    return (Path(__file__).parent / "templates" / "score.html").read_text(encoding="utf-8")


def page(cases: Sequence[PageEntry], about: str, counts: Counts | None = None) -> str:
    """A self-contained HTML page: flagged images first, then by p-value.

    Args:
        cases: what is shown.
        about: the detector, and how it flags.
        counts: of all images, where not every one is shown.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(template_source())
    entries = sorted(map(_entry, cases), key=lambda e: (e["kind"] != "flagged", e["p"]))
    bare = sum(case.image is None and isinstance(case.result, Record) for case in cases)
    undrawn = sum(
        case.explanation is None and isinstance(case.result, Record) and case.result.adversarial for case in cases
    )
    left_out = [f"{bare} images are listed without their picture"] * bool(bare)
    left_out += [f"{undrawn} flagged images without their path"] * bool(undrawn)
    if counts is None:
        counts = Counts(len(cases), *(sum(e["kind"] == kind for e in entries) for kind in ("flagged", "failed")))
    left_out += [f"{counts.images - len(cases)} other images stand in results.jsonl"] * (counts.images > len(cases))
    return template.render(
        cases=entries,
        counts=counts,
        about=about,
        left_out="; ".join(left_out),
    )


def _entry(case: PageEntry) -> dict[str, Any]:
    """What the template shows of a case."""
    r, told = case.result, case.explanation
    if isinstance(r, Failure):
        return {
            "kind": "failed",
            "p": 1.0,
            "name": printable(r.image),
            "label": "",
            "barrier": "",
            "why": printable(r.error),
        }
    votes = []
    if told is not None and told.votes:
        most = max(told.votes.values())
        for name, count in list(told.votes.items())[:6]:
            votes.append((printable(name), count, round(100 * count / most), name == told.prediction))
    return {
        "kind": "flagged" if r.adversarial else "clean",
        "p": round(r.p_value, 5),
        "name": printable(r.image),
        "label": printable(r.class_name) + f" ({DOUBTFUL})" * bool(r.doubtful and not r.adversarial),
        "consensus": printable(r.consensus_name),
        "barrier": "" if r.barrier is None else r.barrier,
        "stage": r.stage,
        "why": printable(r.why),
        "votes": votes,
        "levels": ", ".join(map(str, told.secondary_barriers)) if told is not None else "",
        "picture": None if case.image is None else _png(case.image),
        "figure": None if told is None else _svg(told),
    }


def _png(image: Tensor) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((to_display(image) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _svg(told: Explanation) -> str:
    buffer = io.BytesIO()
    told.figure(votes=False).savefig(buffer, format="svg")
    return base64.b64encode(buffer.getvalue()).decode()
