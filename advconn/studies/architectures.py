"""`barriers` over several classifiers of the same images (Vrabel et al. look at GoogLeNet, ResNets and a ViT)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from advconn.studies import barriers
from advconn.studies.common import Study, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("real, adversarial unbounded", "real, adversarial pgd", "real, adversarial cw", "real, misclassified")


def run(subject: Subject, fast: bool = False) -> Study:
    """The study of barriers for each."""
    subjects = [subject, *(replace(subject, classifier=other, others=()) for other in subject.others)]
    names = [f"{i}: {(s.classifier.name or str(s.classifier)).rpartition('/')[2]}" for i, s in enumerate(subjects, 1)]
    figures = {name: barriers.run(s, fast).figures for name, s in zip(names, subjects, strict=True)}
    return Study({"classifiers": figures}, text(figures), lambda: draw(figures))


def text(figures: dict[str, Any]) -> str:
    """AUROC of one pair, by classifier."""
    out = ["AUROC of one pair's barrier (gap) against two real images, by classifier:"]
    for name, classifier in figures.items():
        cells = []
        for kind in KINDS:
            row = classifier["kinds"].get(kind)
            if row is not None:
                cells.append(f"{kind.split(', ')[1]} {row['barrier']['auroc']:.3f} ({row['gap']['auroc']:.3f})")
        out.append(f"- {name}: {', '.join(cells)}")
    out.append(f"Paper: {barriers.PAPER} on GoogLeNet, unbounded.")
    if len(figures) == 1:
        out.append("Give --model more than once to compare classifiers.")
    return "\n".join(out)


def draw(figures: dict[str, Any]) -> Figure:
    """AUROC by classifier and kind, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    ax = figure.subplots()
    for i, (name, classifier) in enumerate(figures.items()):
        rows = [classifier["kinds"].get(kind) for kind in KINDS]
        shown = [(k + 0.12 * i, r["barrier"]) for k, r in enumerate(rows) if r is not None]
        middle = [b["auroc"] for _, b in shown]
        bounds = [[b["auroc"] - b["auroc_low"] for _, b in shown], [b["auroc_high"] - b["auroc"] for _, b in shown]]
        ax.errorbar([x for x, _ in shown], middle, yerr=bounds, fmt="o", label=name)
    ax.axhline(barriers.PAPER, color="black", ls="--", lw=0.8, label="paper, GoogLeNet, unbounded")
    ax.axhline(0.5, color="0.7", lw=0.8)
    ax.set_xticks(range(len(KINDS)), [k.split(", ")[1].replace(" ", "\n") for k in KINDS])
    ax.set(ylabel="AUROC of one pair's barrier", ylim=(0, 1.02))
    ax.legend(fontsize=7)
    return figure
