"""Vrabel et al., section 4.1: share of barriers removed at each level, size of B' - B, number of secondary barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advconn.attacks.attack import Attack
from advconn.metrics import auroc
from advconn.paths.connection import Connection, connect
from advconn.paths.plots import relative_displacement
from advconn.paths.space import Space
from advconn.studies.barriers import ATTACKS, REAL
from advconn.studies.common import Pairs, Pool, Study, Subject, pool, same_class, spread, to_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = 4
PAPER = (0.01, 0.05)  # largest value of B' - B over the largest pixel


def run(subject: Subject, fast: bool = False) -> Study:
    """Bypass every barrier of pairs by kind. fast: 30 pairs of each; else 200."""
    count = 30 if fast else 200
    pooled = pool(subject, 600 if fast else 3000)
    kinds = pairs(subject, pooled, count)
    rows: dict[str, Any] = {}
    for i, (kind, some) in enumerate(kinds.items()):
        subject.progress("bypass", i + 1, len(kinds))
        if len(some):
            rows[kind] = summary(
                connect(Space(subject.classifier), some.start, some.end, some.labels, method="bypass", levels=LEVELS)
            )
    for row in rows.values():
        row["auroc of the count"] = auroc(rows[REAL]["secondary"], row["secondary"])
    figures = {"kinds": {k: {n: v for n, v in r.items() if n != "secondary"} for k, r in rows.items()}, "paper": PAPER}
    return Study(figures, text(figures), lambda: draw(rows))


def pairs(subject: Subject, pooled: Pool, count: int) -> dict[str, Pairs]:
    """Real pairs of a class, and attacked images with real ones of the class they are given.

    Args:
        subject: the classifier, the seed, and the attacks' specifications.
        pooled: checked images and their classes, which the pairs are made of.
        count: pairs of each kind, at most.
    """
    out = {REAL: same_class(pooled, count, subject.seed)}
    clean = pooled.right.nonzero()[:count, 0]
    images, labels = pooled.images[clean], pooled.labels[clean]
    for name in ("pgd", "cw"):
        attack = Attack.parse(subject.attacks.get(name, ATTACKS[name]))
        attacked = attack.run(subject.classifier, images, labels, seed=subject.seed)
        given = subject.classifier.logits(attacked).argmax(1)
        rows = (given != labels).nonzero()[:, 0]
        out[f"real, adversarial {name}"] = to_class(attacked[rows], given[rows], pooled, subject.seed)
    return out


def summary(connection: Connection) -> dict[str, Any]:
    """Barriers by level, shares of pairs without one, sizes of B' - B where something was bypassed."""
    counts = connection.barriers.cpu().double() if connection.barriers is not None else None
    if counts is None:
        return {}
    first = counts[:, 0] > 0
    sizes = [relative_displacement(connection, int(i)) for i in first.nonzero()[:, 0]]
    secondary = counts[:, 1:].sum(1).numpy()
    return {
        "pairs": len(counts),
        "with a barrier": int(first.sum()),
        "free at level": [float((counts[:, k] == 0).double().mean()) for k in range(counts.shape[1])],
        "barriers removed by level": [
            float(1 - (counts[first, k] > 0).double().mean()) if bool(first.any()) else float("nan")
            for k in range(1, counts.shape[1])
        ],
        "size of B' - B": spread(sizes),
        "secondary barriers": spread(secondary),
        "gradients": float(connection.gradients.mean()),
        "secondary": secondary,
    }


def text(figures: dict[str, Any]) -> str:
    """The figures in words."""
    out = [f"Of pairs with a barrier (cross-entropy above .001), share free of any after each level, {LEVELS} levels:"]
    for kind, row in figures["kinds"].items():
        if not row["with a barrier"]:
            out.append(f"- {kind}: none of {row['pairs']} pairs has a barrier: nothing to bypass")
            continue
        removed = ", ".join(f"{v:.2f}" for v in row["barriers removed by level"])
        size = row["size of B' - B"]
        out.append(
            f"- {kind}: {row['with a barrier']} of {row['pairs']} have one; {removed}; largest value of B' - B "
            f"{size['median']:.1%} of B's (10 to 90 %: {size['p10']:.1%} to {size['p90']:.1%}; paper: 1 to 5 %); "
            f"{row['secondary barriers']['mean']:.2f} secondary barriers a pair, whose number tells them from real "
            f"pairs with an AUROC of {row['auroc of the count']:.3f}"
        )
    return "\n".join(out)


def draw(rows: dict[str, Any]) -> Figure:
    """Share of pairs free of barriers by level, and secondary barriers by kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, row in rows.items():
        left.plot(range(LEVELS + 1), row["free at level"], "o-", label=kind)
        values, counts = zip(
            *sorted({v: int((row["secondary"] == v).sum()) for v in row["secondary"]}.items()), strict=True
        )
        right.plot(values, [c / row["pairs"] for c in counts], "o-", label=kind)
    left.set(
        xlabel="level of bypass", ylabel="share of pairs without a barrier", ylim=(0, 1.02), xticks=range(LEVELS + 1)
    )
    right.set(xlabel="secondary barriers", ylabel="share of pairs")
    left.legend(fontsize=8)
    return figure
