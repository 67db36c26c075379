"""Gu & Borovykh, Table 1: of pairs of a class, how many are connected by a line, only by a curve, not at all.

In pixel space, after the first block, and before the last layer. Besides 25 pairs as in the paper, what its discussion
leaves open: all pairs among images of a class (are there parts that no path joins?), images that are misclassified, and
other networks or initialisations, where they are given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advconn.errors import PathError
from advconn.paths.connection import OUTCOMES, SCAN, connect
from advconn.paths.path import Path, Profile, straight
from advconn.paths.space import PIXEL, Space
from advconn.runtime.progress import Progress, ignore_progress
from advconn.studies.common import Pairs, Pool, Study, Subject, blocks, pool, same_class, to_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF = 0.6931  # cross-entropy of a class with half of the probability: under it, it is the prediction
PAPER = {"pixel": (19, 6, 0), "first block": (14, 11, 0), "last layer": (25, 0, 0)}
LONG = 150  # steps of a second search, where a first one failed


def run(subject: Subject, fast: bool = False) -> Study:
    """Connect pairs in three spaces. fast: fewer images in the all-pairs part, and fewer points looked at."""
    pooled = pool(subject, 400 if fast else 4000)
    pairs = same_class(pooled, 25, subject.seed)
    samples = 33 if fast else SCAN
    table = spaces(subject, pairs, samples)
    figures: dict[str, Any] = {
        "pairs": len(pairs),
        "table": table,
        "paper": {k: dict(zip(OUTCOMES, v, strict=True)) for k, v in PAPER.items()},
    }
    pixel = Space(subject.classifier)
    figures["all pairs"] = all_pairs(subject, pooled, pixel, 12 if fast else 60, samples)
    figures["misclassified"] = misclassified_pairs(pooled, pixel, 25 if fast else 100, samples)
    figures["other networks"] = {}
    for i, other in enumerate(subject.others, 2):
        other_subject = replace(subject, classifier=other)
        other_pool = pool(other_subject, 400 if fast else 4000)
        figures["other networks"][f"{i}: {other}"] = spaces(
            other_subject, same_class(other_pool, 25, subject.seed), samples
        )
    return Study(figures, text(figures), lambda: draw(figures))


def spaces(subject: Subject, pairs: Pairs, samples: int) -> dict[str, Any]:
    """How many pairs are connected in each of the three spaces of a subject's classifier, and how.

    Args:
        subject: whose classifier is looked at, and whose `progress` is told.
        pairs: what is connected.
        samples: points of each path that are looked at.
    """
    classifier = subject.classifier
    layers, table = {"pixel": PIXEL}, dict[str, Any]()
    try:
        layers |= blocks(classifier)
    except PathError as error:
        table |= {name: {"layer": None, "why": str(error)} for name in PAPER if name != "pixel"}
    for i, (name, layer) in enumerate(layers.items()):
        space = Space(classifier, layer)
        table[name] = {
            "layer": layer,
            "same prediction": counts(outcomes(space, pairs, None, samples)),
            "cross-entropy under .001": counts(outcomes(space, pairs, 1e-3, samples)),
        }
        subject.progress(f"spaces of {classifier}", i + 1, len(layers))
    return table


def outcomes(
    space: Space, pairs: Pairs, delta: float | None, samples: int, chunk: int = 64, progress: Progress = ignore_progress
) -> list[str]:
    """For every pair, `chunk` at a time: does a line connect it, else a band, else one relaxed for LONG steps?

    Args:
        space: where the paths live.
        pairs: what is connected.
        delta: cross-entropy above which a barrier stands; None: one stands where the prediction is another.
        samples: points of each path that are looked at.
        chunk: pairs at once.
        progress: told (stage, done, total).
    """
    out: list[str] = []
    for rows in torch.arange(len(pairs), dtype=torch.int64, device="cpu").split(chunk) if len(pairs) else ():
        results = _judged(space, pairs.rows(rows), delta, HALF, samples)
        lost = [i for i, outcome in enumerate(results) if outcome == "none"]
        if lost:
            again = _judged(space, pairs.rows(rows[lost]), delta, HALF / 10, samples, steps=LONG)
            for i, outcome in zip(lost, again, strict=True):
                results[i] = outcome
        out += results
        progress("all pairs", int(rows[-1]) + 1, len(pairs))
    return out


def _judged(space: Space, pairs: Pairs, delta: float | None, aim: float, samples: int, **search: Any) -> list[str]:
    """Outcomes by cross-entropy, or by prediction of a path whose cross-entropy was to stay under `aim`."""
    connection = connect(space, pairs.start, pairs.end, pairs.labels, delta=delta or aim, samples=samples, **search)
    if delta is not None:
        return connection.outcome
    line = _keeps(space, straight(connection.path.start, connection.path.end), connection.line, pairs.labels)
    curve = _keeps(space, connection.path, connection.curve, pairs.labels)
    return ["line" if a else "curve" if b else "none" for a, b in zip(line, curve, strict=True)]


def _keeps(space: Space, path: Path, profile: Profile, labels: Tensor) -> list[bool]:
    """Whether the prediction is the label at every point looked at; sure where that has half of the probability."""
    kept = profile.barrier <= HALF
    rows = (~kept).nonzero()[:, 0]
    if len(rows):
        points = Path(path.knots[rows]).at(profile.t)
        given = space.logits(points.flatten(0, 1)).argmax(1).view(len(rows), -1)
        kept[rows] = (given == labels[rows, None]).all(1)
    return kept.tolist()


def counts(outcomes: list[str]) -> dict[str, int]:
    """How many pairs had each outcome."""
    return {name: outcomes.count(name) for name in OUTCOMES}


def all_pairs(subject: Subject, pooled: Pool, space: Space, each: int, samples: int) -> dict[str, Any]:
    """All pairs among `each` images of the commonest class: outcomes, and connected parts by lines and by any path.

    Args:
        subject: whose `progress` is told.
        pooled: images and their classes; only those classified right are taken.
        space: where the paths live.
        each: images, at most.
        samples: points of each path that are looked at.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    right = pooled.right.nonzero()[:, 0]
    label = int(pooled.labels[right].mode().values)
    rows = right[pooled.labels[right] == label][:each]
    a, b = torch.triu_indices(len(rows), len(rows), 1).to(rows)
    pairs = Pairs(pooled.images[rows[a]], pooled.images[rows[b]], pooled.labels[rows[a]])
    results = np.array(outcomes(space, pairs, None, samples, progress=subject.progress))
    parts = {}
    for name, kept in (("lines", results == "line"), ("paths", results != "none")):
        edges = (np.ones(kept.sum()), (a.cpu().numpy()[kept], b.cpu().numpy()[kept]))
        parts[name] = int(connected_components(coo_array(edges, shape=(len(rows), len(rows))), directed=False)[0])
    return {
        "class": label,
        "images": len(rows),
        "pairs": len(pairs),
        "outcomes": counts(results.tolist()),
        "parts joined by lines": parts["lines"],
        "parts joined by paths": parts["paths"],
    }


def misclassified_pairs(pooled: Pool, space: Space, most: int, samples: int) -> dict[str, Any]:
    """Images that get a wrong class, each to an image of that class: connected there as right ones are?

    Args:
        pooled: images and their classes.
        space: where the paths live.
        most: misclassified images, at most.
        samples: points of each path that are looked at.
    """
    wrong = (~pooled.right).nonzero()[:most, 0]
    if not len(wrong):
        return {"pairs": 0, "outcomes": dict.fromkeys(OUTCOMES, 0)}
    pairs = to_class(pooled.images[wrong], pooled.predicted[wrong], pooled)
    return {"pairs": len(pairs), "outcomes": counts(outcomes(space, pairs, None, samples))}


def text(figures: dict[str, Any]) -> str:
    """The table in words."""
    out = ["Line / curve / none of 25 pairs of a class whose prediction stays on the way (paper, in brackets):"]
    out += rows(figures["table"])
    every, wrong = figures["all pairs"], figures["misclassified"]
    out.append(
        f"All {every['pairs']} pairs among {every['images']} images of class {every['class']}: {every['outcomes']}; "
        f"lines leave {every['parts joined by lines']} part(s), paths {every['parts joined by paths']}."
    )
    out.append(f"{wrong['pairs']} misclassified images to images of the class they are given: {wrong['outcomes']}.")
    for name, table in figures["other networks"].items():
        out += [f"\nThe same of {name}:", *rows(table)]
    return "\n".join(out)


def rows(table: dict[str, Any]) -> list[str]:
    """A line for each space."""
    out = []
    for name, row in table.items():
        if row["layer"] is None:
            out.append(f"- {name}: not looked at: {row['why']}")
            continue
        mine = "/".join(str(row["same prediction"][o]) for o in OUTCOMES)
        strict = "/".join(str(row["cross-entropy under .001"][o]) for o in OUTCOMES)
        theirs = "/".join(map(str, PAPER[name]))
        out.append(f"- {name} ({row['layer']}): {mine} ({theirs}); with the cross-entropy under .001: {strict}")
    return out


def draw(figures: dict[str, Any]) -> Figure:
    """Stacked bars: ours and the paper's by space; beside them all pairs of a class, and misclassified images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    ax, right = figure.subplots(1, 2, width_ratios=(5, 2))
    names, ours, theirs = [], [], []
    for name, row in figures["table"].items():
        if row["layer"] is None:
            continue
        names.append(name if name == row["layer"] else f"{name}\n({row['layer']})")
        ours.append([row["same prediction"][o] for o in OUTCOMES])
        theirs.append(PAPER[name])
    for shift, rows, alpha in ((-0.2, ours, 1.0), (0.2, theirs, 0.4)):
        bottom = [0.0] * len(rows)
        for k, colour in enumerate(("C0", "C1", "C3")):
            values = [r[k] for r in rows]
            label = f"{OUTCOMES[k]}{'' if alpha == 1 else ' (paper)'}"
            places = [i + shift for i in range(len(rows))]
            ax.bar(places, values, 0.36, bottom=bottom, color=colour, alpha=alpha, label=label)
            bottom = [b + v for b, v in zip(bottom, values, strict=True)]
    ax.set_xticks(range(len(names)), names)
    ax.set_ylabel("pairs")
    for i, key in enumerate(("all pairs", "misclassified")):
        row, low = figures[key], 0.0
        for k, colour in enumerate(("C0", "C1", "C3")):
            share = row["outcomes"][OUTCOMES[k]] / max(row["pairs"], 1)
            right.bar(i, share, 0.6, bottom=low, color=colour)
            low += share
    several = [f"{figures[key]['pairs']}" for key in ("all pairs", "misclassified")]
    right.set_xticks((0, 1), (f"all {several[0]} pairs\nof a class", f"{several[1]} misclassified\nimages"))
    right.set_ylabel("share of pairs, in pixels")
    figure.legend(ncols=6, fontsize=8, loc="outside upper center")
    return figure
