"""Pictures that a reader would put in a paper: a path between two images, drawn on given axes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advconn.errors import printable
from advconn.paths.connection import Connection
from advconn.paths.path import Path, straight

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from advconn.paths.decoder import Decoder


STOPS = 9  # images shown along a path
MOST = 10  # classes shown of many
TARGET, OTHER, LINE, FOUND = "C1", "0.7", "C3", "C0"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left}img{max-width:100%;height:auto}
"""


def connection(
    result: Connection, row: int = 0, decoder: Decoder | None = None, given: Sequence[Tensor] = ()
) -> Figure:
    """One pair: images and class probabilities along the straight and the found path, losses, the difference pattern.

    In a latent space the images along a path are the decoder's. Where the line connects, or nothing else was looked
    for, there is no second path to show.

    Args:
        result: connected pairs.
        row: which of them.
        decoder: of the latent space, or None.
        given: two images (1, c, h, w) in [0, 1] that stand at the ends of the path.
    """
    from matplotlib.figure import Figure

    ends = result.path.start[row : row + 1], result.path.end[row : row + 1]
    paths = {"straight": straight(*ends)}
    bent = result.method != "line" and result.outcome[row] != "line"
    if bent:
        paths[result.method] = Path(result.path.knots[row : row + 1])
    rows = 2 * len(paths)
    figure = Figure(figsize=(12, 3.6 + 2.5 * len(paths)), layout="constrained")
    grid = figure.add_gridspec(rows + 1, STOPS, height_ratios=(*(1.2, 0.8) * len(paths), 2.2))
    t = torch.linspace(0, 1, STOPS, dtype=torch.float32, device="cpu")
    label = int(result.labels[row])
    for i, (name, path) in enumerate(paths.items()):
        points = path.at(t.to(path.knots))[0]
        shares = result.space.logits(points).softmax(1).cpu()
        shown = images(result, points, decoder)
        kinds = sorted({label, *shares.amax(0).topk(min(MOST, shares.shape[1])).indices.tolist()})
        for j in range(STOPS):
            above, below = figure.add_subplot(grid[2 * i, j]), figure.add_subplot(grid[2 * i + 1, j])
            at_end = given[j // (STOPS - 1)][0].cpu() if given and j in (0, STOPS - 1) else None
            picture(above, shown[j] if shown is not None else at_end)
            names = result.space.classifier.label_names(kinds) if 2 * i + 2 == rows else []
            bars(below, shares[j, kinds], kinds.index(label), names)
            above.set_title(f"{name} " * (j == 0) + f"{float(t[j]):.2f}", fontsize=8)
            below.set_yticks([0, 1] if j == 0 else [])
    curves(figure.add_subplot(grid[rows, : STOPS - 3 if bent else STOPS]), result, row, bent)
    if bent:
        pattern(figure, figure.add_subplot(grid[rows, STOPS - 3 :]), result, row)
    return figure


def images(result: Connection, points: Tensor, decoder: Decoder | None) -> Tensor | None:
    """Points of a path as images (n, c, h, w), if that can be had, else None.

    Args:
        result: connected pairs.
        points: (n, *shape) in their space.
        decoder: of a latent space, or None.
    """
    if result.space.layer == "pixel":
        return points.clamp(0, 1).cpu()
    return None if decoder is None else decoder.images(points).cpu()


def picture(ax: Axes, image: Tensor | None) -> None:
    """An image (c, h, w) in [0, 1]."""
    ax.set_axis_off()
    if image is not None:
        ax.imshow(to_display(image), cmap="gray", vmin=0, vmax=1)
    else:
        ax.text(0.5, 0.5, "latent", ha="center", va="center", fontsize=8, color="0.5", transform=ax.transAxes)


def bars(ax: Axes, shares: Tensor, target: int, names: Sequence[str]) -> None:
    """Class probabilities, the target's marked, with names under them if there are any.

    Args:
        ax: where they are drawn.
        shares: probabilities (k,).
        target: index of the class that is marked.
        names: of the k classes, or none.
    """
    ax.bar(range(len(shares)), shares.numpy(), color=[TARGET if i == target else OTHER for i in range(len(shares))])
    ax.set(ylim=(0, 1), xticks=range(len(names)))
    ax.set_xticklabels([to_ascii(name[:10]) for name in names], fontsize=6, rotation=90)
    ax.tick_params(axis="y", labelsize=6)


def curves(ax: Axes, result: Connection, row: int, bent: bool = True) -> None:
    """Cross-entropy along both paths on a logarithmic scale, with the ceiling, the barrier and secondary barriers.

    Args:
        ax: where they are drawn.
        result: connected pairs.
        row: which of them.
        bent: whether the path found is drawn beside the straight one.
    """
    ceiling, least = float(result.ceiling[row]), 1e-8
    profiles = (("straight", result.line, LINE), (result.method, result.curve, FOUND))
    for name, profile, colour in profiles if bent else profiles[:1]:
        t, energy = profile.t.cpu().numpy(), profile.energies[row].clamp_min(least).cpu().numpy()
        ax.plot(t, energy, color=colour, label=f"{name}: largest {float(profile.barrier[row]):.2g}")
        for i in peaks(energy, ceiling):
            ax.plot(t[i], energy[i], "v", color=colour, ms=6)
        ax.plot(float(profile.place[row]), energy.max(), "o", mfc="none", color=colour, ms=9, clip_on=False)
    ax.axhline(ceiling, color="black", lw=0.8, ls="--", label=f"ceiling {ceiling:.2g}")
    ax.plot([], [], "v", color="0.4", label="barrier above the ceiling")
    ax.plot([], [], "o", mfc="none", color="0.4", label="largest on the path")
    ax.set(yscale="log", xlabel="position on the path", ylabel="cross-entropy", xlim=(0, 1))
    told = {"line": "connected by a line", "curve": "connected by a curved path", "none": "not connected"}
    levels = "" if result.barriers is None else f"; barriers by level {result.barriers[row].tolist()}"
    ax.set_title(told[result.outcome[row]] + levels, fontsize=9)
    ax.legend(fontsize=8)


def peaks(energy: np.ndarray, ceiling: float) -> list[int]:
    """Where a curve (s,) has a maximum above a ceiling, ends excepted."""
    inner = energy[1:-1]
    highest = (inner > energy[:-2]) & (inner >= energy[2:]) & (inner > ceiling)
    return [int(i) + 1 for i in np.flatnonzero(highest)]


def bypass_point(result: Connection, row: int, samples: int = 65) -> tuple[Tensor, Tensor]:
    """B and B' - B (*shape): B' is the found path's point that stands over the straight path's highest, B its foot.

    Args:
        result: connected pairs.
        row: which of them.
        samples: points of the path among which B' is looked for.
    """
    start, end = result.path.start[row], result.path.end[row]
    chord = end - start
    points = Path(result.path.knots[row : row + 1]).at(
        torch.linspace(0, 1, samples, device=chord.device, dtype=torch.float32)
    )[0]
    along = ((points - start) * chord).flatten(1).sum(1) / chord.square().sum().clamp_min(1e-24)
    nearest = int((along - result.line.place[row]).abs().argmin())
    foot = start + along[nearest] * chord
    return foot.cpu(), (points[nearest] - foot).cpu()


def relative_displacement(result: Connection, row: int) -> float:
    """Largest value of B' - B over the largest value at B."""
    foot, change = bypass_point(result, row)
    return float(change.abs().max() / foot.abs().max().clamp_min(1e-12))


def pattern(figure: Figure, ax: Axes, result: Connection, row: int) -> None:
    """The difference pattern B' - B; of a latent space, its channels' mean or its values in a row.

    Args:
        figure: that the axes are in.
        ax: where it is drawn.
        result: connected pairs.
        row: which of them.
    """
    _, change = bypass_point(result, row)
    values = change.mean(0).numpy() if change.ndim == 3 else change.reshape(1, -1).numpy()
    most = max(float(np.abs(values).max()), 1e-12)
    shown = ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="equal" if change.ndim == 3 else "auto")
    figure.colorbar(shown, ax=ax, shrink=0.8)
    ax.set_axis_off()
    ax.set_title(f"B' - B, channel mean; largest value {relative_displacement(result, row):.1%} of B's", fontsize=9)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def page(title: str, figures: Sequence[Figure], facts: Sequence[tuple[str, Any]]) -> str:
    """A self-contained page: facts, then figures.

    Args:
        title: of the page.
        figures: in order.
        facts: (name, value) pairs, one a line.
    """
    rows = "".join(f"<tr><th>{escape(k)}<td>{escape(str(v))}" for k, v in facts)
    shown = "".join(f'<img alt="" src="data:image/png;base64,{base64.b64encode(png(f)).decode()}">' for f in figures)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<body><h1>{escape(title)}</h1><table>{rows}</table>{shown}</body></html>\n"
    )


def to_display(image: Tensor) -> np.ndarray:
    """An image (c, h, w) as (h, w) or (h, w, 3): of more channels the first three, of two the first."""
    few = image[:3] if len(image) >= 3 else image[:1]
    return np.asarray(few.permute(1, 2, 0).squeeze(2).numpy() if len(few) == 1 else few.permute(1, 2, 0).numpy())


def to_ascii(text: str) -> str:
    """A text that matplotlib draws as it is, and takes no part of for a formula."""
    return printable(text).replace("$", r"\$")
