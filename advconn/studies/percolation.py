"""Vrabel et al.'s conjecture, looked at: are class regions connected because they percolate?

An illustration and no proof. The sites of a network are not independent, and a path on a lattice need be neither short
nor straight. Two things are measured: the share of input space that each class has, against the threshold above which
independent sites of a lattice of that dimension percolate; and connected parts of class regions in random slices of a
few dimensions, on a grid, in a trained network and in an untrained one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from advconn.models.classifier import Classifier, untrained
from advconn.studies.common import Study, Subject, pool, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = {2: 48, 3: 15, 4: 8, 5: 5}  # points of the grid along each of so many dimensions
FAST = {2: 16, 3: 7, 4: 4}


def threshold(dimension: int) -> float:
    """Site-percolation threshold of the cubic lattice Z^d by its expansion in s = 1 / (2d - 1), to the sixth order.

    Gaunt, Sykes & Ruskin (1976), Mertens & Moore (2018). Meant for d of 4 and more: at 3 it is off by a fifth.
    """
    s = 1 / (2 * dimension - 1)
    series = (1, 3 / 2, 15 / 4, 83 / 4, 6577 / 48, 119077 / 96)
    return float(sum(a * s ** (i + 1) for i, a in enumerate(series)))


def run(subject: Subject, fast: bool = False) -> Study:
    """Shares and slices. fast: 2,000 random inputs, small grids and 2 slices; else 20,000, and 5 slices."""
    classifier = subject.classifier
    draws, slices, sides = (2000, 2, FAST) if fast else (20000, 5, SIDES)
    networks = {"trained": classifier, "untrained": untrained(classifier, subject.seed)}
    images = pool(subject, 200).images
    dimension = int(np.prod(images.shape[1:]))
    shares = {name: share(model, tuple(images.shape[1:]), draws, subject.seed) for name, model in networks.items()}
    parts = []
    for name, model in networks.items():
        for d, side in sides.items():
            components = [component(model, images, d, side, subject.seed + i) for i in range(slices)]
            rows = [r for some in components for r in some]
            parts.append(
                {
                    "network": name,
                    "dimensions": d,
                    "classes": len(rows),
                    "parts a class": spread([r["parts"] for r in rows]),
                    "share in the largest part": spread([r["largest"] for r in rows]),
                }
            )
            subject.progress("slices", len(parts), len(networks) * len(sides))
    figures = {
        "dimension": dimension,
        "threshold": threshold(dimension),
        "shares": shares,
        "slices": parts,
        "draws": draws,
    }
    return Study(figures, text(figures), lambda: draw(figures))


def share(classifier: Classifier, shape: tuple[int, ...], draws: int, seed: int) -> list[float]:
    """Share of uniformly random inputs that each class is given.

    Args:
        classifier: what classifies them.
        shape: (c, h, w) of an input; its values are uniform in [0, 1).
        draws: how many inputs.
        seed: of the draw.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    counts = torch.zeros(classifier.num_classes, dtype=torch.float32, device="cpu")
    for start in range(0, draws, 500):
        noise = torch.rand(min(500, draws - start), *shape, generator=generator, dtype=torch.float32, device="cpu").to(
            classifier.device
        )
        counts += torch.bincount(classifier.logits(noise).argmax(1).cpu(), minlength=classifier.num_classes)
    return (counts / draws).tolist()


def component(classifier: Classifier, images: torch.Tensor, d: int, side: int, seed: int) -> list[dict[str, float]]:
    """Of every class met on a grid in a random d-dimensional slice: how many parts, and the share in the largest.

    The slice goes through d + 1 images: its axes are the differences to the first, made orthogonal, as long as the
    images are apart.

    Args:
        classifier: what gives the classes.
        images: (n, c, h, w), checked; at least d + 1.
        d: dimensions of the slice.
        side: points of the grid along each dimension.
        seed: of the choice of images.
    """
    from scipy.ndimage import label

    generator = torch.Generator(device="cpu").manual_seed(seed)
    chosen = (
        images[torch.randperm(len(images), generator=generator, dtype=torch.int64, device="cpu")[: d + 1]]
        .flatten(1)
        .cpu()
    )
    middle = chosen.mean(0)
    axes = torch.linalg.qr((chosen[1:] - chosen[0]).T).Q.T
    reach = (chosen - middle).norm(dim=1).mean()
    ticks = torch.linspace(-1, 1, side, dtype=torch.float32, device="cpu") * reach
    grid = torch.cartesian_prod(*[ticks] * d).view(-1, d)
    given = torch.cat(
        [
            classifier.logits((middle + some @ axes).view(-1, *images.shape[1:]).to(classifier.device)).argmax(1).cpu()
            for some in grid.split(512)
        ]
    )
    field = given.view(*[side] * d).numpy()
    out = []
    for kind in np.unique(field):
        parts, count = label(field == kind)
        largest = np.bincount(parts.ravel())[1:].max()
        out.append({"parts": int(count), "largest": float(largest / (field == kind).sum())})
    return out


def text(figures: dict[str, Any]) -> str:
    """What it says, and what it does not."""
    out = [
        f"In {figures['dimension']} dimensions independent sites percolate above a share of {figures['threshold']:.3g} "
        f"(a class of ten has .1). Of {figures['draws']} uniformly random inputs:"
    ]
    least = 3 / figures["draws"]  # what a share is under, with 95 %, where no draw met it
    for name, values in figures["shares"].items():
        over = sum(v > max(figures["threshold"], least) for v in values)
        told = f"- {name}: {over} of {len(values)} classes have more; the largest share is {max(values):.3f}"
        open_ = sum(v <= least for v in values) if least > figures["threshold"] else 0
        out.append(told + (f"; {open_} were met too rarely to say (a share under {least:.1g})" if open_ else ""))
    out.append("Random slices through images, on a grid: mean number of parts of a class, share in its largest part:")
    for row in figures["slices"]:
        parts, largest = row["parts a class"], row["share in the largest part"]
        out.append(f"- {row['network']}, {row['dimensions']} dimensions: {parts['mean']:.2f}, {largest['mean']:.3f}")
    out.append(
        "An illustration and no proof: the sites of a network are not independent, and uniform noise is not where "
        "images are. A class that no random input is given can still be connected."
    )
    return "\n".join(out)


def draw(figures: dict[str, Any]) -> Figure:
    """Share in the largest part by dimension, and class shares against the threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in figures["shares"]:
        rows = [r for r in figures["slices"] if r["network"] == name]
        d = [r["dimensions"] for r in rows]
        left.plot(d, [r["share in the largest part"]["mean"] for r in rows], "o-", label=name)
        right.plot(sorted(figures["shares"][name], reverse=True), "o-", label=name)
    left.set(xlabel="dimensions of the slice", ylabel="share of a class in its largest part", ylim=(0, 1.05), xticks=d)
    right.axhline(figures["threshold"], color="black", ls="--", label="percolation threshold")
    right.set(xlabel="class, by share", ylabel="share of random inputs")
    right.set_yscale("symlog", linthresh=figures["threshold"] / 10)
    right.set_ylim(0, 1)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure
