"""A report as one self-contained page, readable offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from advconn.benchmark.adaptive_evaluation import BEST
from advconn.benchmark.report import plots
from advconn.benchmark.result_types import OURS, ErrorExample, Report, rank, sentence, worst_auroc

CAPTIONS = {
    "overview": "Detection rate by detector and attack, the worst detected first",
    "roc": "ROC curves: advconn and the best baseline of each attack",
    "scores": "Scores over the threshold",
    "cost": "Catch rate against cost",
}


HALVES = ("all", "right", "wrong")  # of clean images; others are of one predicted class


def html(report: Report, drawn: Mapping[str, str]) -> str:
    """The page, from the template beside this file; drawn: its figures as SVG, by name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"three": _three, "breakable": _breakable}
    names = rank(report.rows)
    return environment.get_template("report.html").render(
        report=report,
        settings=report.settings,
        sentence=sentence(report),
        names=names,
        ours=OURS,
        at={(r.detector, r.attack): r for r in report.rows},
        best={a.attack: _highest(report, a.attack) for a in report.attacks},
        summaries=[_summary(report, name) for name in names],
        conditions=list(dict.fromkeys((a.condition, a.images) for a in report.alarms if a.images in HALVES)),
        classes=list(dict.fromkeys((a.condition, a.images) for a in report.alarms if a.images not in HALVES)),
        alarms={(a.detector, a.condition, a.images): a for a in report.alarms},
        saved={(r.detector, r.attack, r.saved_as): r for r in report.saved},
        saved_pairs=list(dict.fromkeys((r.attack, r.saved_as) for r in report.saved)),
        published_pairs={(r.detector, r.attack): r for r in report.published},
        published_names=list(dict.fromkeys(r.detector for r in report.published)),
        published_attacks=list(dict.fromkeys(r.attack for r in report.published)),
        evasions=[e for e in report.evasions if e.way == BEST],
        overview=drawn["overview"],
        figures=[(name, CAPTIONS[name], figure) for name, figure in drawn.items() if name != "overview"],
        missed=[_picture(shown) for shown in report.missed],
        alarmed=[_picture(shown) for shown in report.alarmed],
    )


def _three(value: float) -> str:
    """Three digits after the point, or a dash."""
    return f"{value:.3f}" if np.isfinite(value) else "–"


def _breakable(text: str) -> Any:
    """A specification that may break after its punctuation, and nowhere else."""
    from markupsafe import Markup, escape

    return Markup(str(escape(text)).replace(":", ":<wbr>").replace(",", ",<wbr>"))


def _highest(report: Report, attack: str) -> float:
    return max((r.auroc for r in report.rows if r.attack == attack and np.isfinite(r.auroc)), default=float("nan"))


def _summary(report: Report, name: str) -> dict[str, Any]:
    """A detector in one line: worst of the families trained on, and of those never seen; false alarms; cost."""
    mine = [r for r in report.rows if r.detector == name]
    costs = [e for e in report.expenses if e.detector == name]
    return {
        "name": name,
        "seen": worst_auroc(r for r in mine if r.in_training),
        "unseen": worst_auroc(r for r in mine if not r.in_training),
        "first": mine[0],
        "restored": float(np.nanmean([r.restored for r in mine])) if any(r.restored >= 0 for r in mine) else np.nan,
        "clean": costs[0],
        "dearest": costs[-1],
    }


def _picture(shown: ErrorExample) -> dict[str, Any]:
    figure = plots.profile(shown.paths)
    return {
        "what": shown.what,
        "score": shown.score,
        "classes": shown.classes,
        "image": _png(shown.image),
        "original": None if shown.original is None else _png(shown.original),
        "paths": "" if figure is None else plots.svg(figure),
    }


def _png(image: np.ndarray) -> str:
    """An image (c, h, w) uint8 as the address of a picture."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
