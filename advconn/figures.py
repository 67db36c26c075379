"""Pictures that a reader would put in a paper: a path between two images, drawn on given axes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advconn.connection import Connection
from advconn.paths import Path, straight

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from advconn.decoder import Decoder

STOPS = 9  # images shown along a path
TARGET, OTHER, LINE, FOUND = "C1", "0.7", "C3", "C0"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left}img{max-width:100%;height:auto}
"""


def connection(found: Connection, row: int = 0, decoder: Decoder | None = None) -> Figure:
    """One pair: images and class probabilities along the straight and the found path, losses, the difference pattern.

    In a latent space the images along a path are the decoder's; without one only the two given stand at its ends.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.5), layout="constrained")
    grid = figure.add_gridspec(5, STOPS, height_ratios=(1.2, 0.8, 1.2, 0.8, 2.2))
    t = torch.linspace(0, 1, STOPS)
    ends = found.path.start[row : row + 1], found.path.end[row : row + 1]
    walked = {"straight": straight(*ends), found.method: Path(found.path.knots[row : row + 1])}
    label = int(found.labels[row])
    for i, (name, path) in enumerate(walked.items()):
        points = path.at(t.to(path.knots))[0]
        shares = found.space.logits(points).softmax(1).cpu()
        shown = images(found, points, decoder)
        for j in range(STOPS):
            above, below = figure.add_subplot(grid[2 * i, j]), figure.add_subplot(grid[2 * i + 1, j])
            picture(above, shown[j] if shown is not None else None)
            bars(below, shares[j], label, found.space.classifier.label_names)
            above.set_title(f"{name} " * (j == 0) + f"{float(t[j]):.2f}", fontsize=8)
            below.set_yticks([0, 1] if j == 0 else [])
    curves(figure.add_subplot(grid[4, : STOPS - 3]), found, row)
    pattern(figure, figure.add_subplot(grid[4, STOPS - 3 :]), found, row)
    return figure


def images(found: Connection, points: Tensor, decoder: Decoder | None) -> Tensor | None:
    """Points (n, *shape) of a path as images (n, c, h, w), if that can be had."""
    if found.space.layer == "pixel":
        return points.clamp(0, 1).cpu()
    return None if decoder is None else decoder.images(points).cpu()


def picture(ax: Axes, image: Tensor | None) -> None:
    """An image (c, h, w) in [0, 1]."""
    ax.set_axis_off()
    if image is not None:
        values = image.permute(1, 2, 0).numpy()
        ax.imshow(values.squeeze(-1) if values.shape[2] == 1 else values, cmap="gray", vmin=0, vmax=1)
    else:
        ax.text(0.5, 0.5, "latent", ha="center", va="center", fontsize=8, color="0.5", transform=ax.transAxes)


def bars(ax: Axes, shares: Tensor, label: int, names: Callable[[Sequence[int]], list[str]], most: int = 10) -> None:
    """Class probabilities, the target's marked; of many classes the target and the most probable."""
    index = sorted({label, *shares.topk(min(most, len(shares))).indices.tolist()})
    ax.bar(range(len(index)), shares[index].numpy(), color=[TARGET if i == label else OTHER for i in index])
    ax.set(ylim=(0, 1), xticks=range(len(index)))
    ax.set_xticklabels([name[:10] for name in names(index)], fontsize=6, rotation=90)
    ax.tick_params(axis="y", labelsize=6)


def curves(ax: Axes, found: Connection, row: int) -> None:
    """Cross-entropy along both paths on a logarithmic scale, with the level, the barrier and secondary barriers."""
    height, least = float(found.heights[row]), 1e-8
    for name, seen, colour in (("straight", found.line, LINE), (found.method, found.found, FOUND)):
        t, energy = seen.t.cpu().numpy(), seen.energies[row].clamp_min(least).cpu().numpy()
        ax.plot(t, energy, color=colour, label=f"{name}: barrier {float(seen.barrier[row]):.2g}")
        for i in peaks(energy, height):
            ax.plot(t[i], energy[i], "v", color=colour, ms=6)
        ax.plot(float(seen.place[row]), energy.max(), "o", mfc="none", color=colour, ms=9)
    ax.axhline(height, color="black", lw=0.8, ls="--", label=f"level {height:.2g}")
    ax.set(yscale="log", xlabel="position on the path", ylabel="cross-entropy", xlim=(0, 1))
    told = "" if found.barriers is None else f"; barriers by level {found.barriers[row].tolist()}"
    ax.set_title(f"outcome: {found.outcome[row]}{told}", fontsize=9)
    ax.legend(fontsize=8)


def peaks(energy: np.ndarray, height: float) -> list[int]:
    """Where a curve (s,) has a maximum above a height, ends excepted."""
    inner = energy[1:-1]
    top = (inner > energy[:-2]) & (inner >= energy[2:]) & (inner > height)
    return [int(i) + 1 for i in np.flatnonzero(top)]


def detour(found: Connection, row: int, samples: int = 65) -> tuple[Tensor, Tensor]:
    """B and B' - B (*shape): B' is the found path's point that stands over the straight path's highest, B its foot."""
    start, end = found.path.start[row], found.path.end[row]
    chord = end - start
    points = Path(found.path.knots[row : row + 1]).at(torch.linspace(0, 1, samples, device=chord.device))[0]
    along = ((points - start) * chord).flatten(1).sum(1) / chord.square().sum().clamp_min(1e-24)
    nearest = int((along - found.line.place[row]).abs().argmin())
    foot = start + along[nearest] * chord
    return foot.cpu(), (points[nearest] - foot).cpu()


def relative(found: Connection, row: int) -> float:
    """Largest value of B' - B over the largest value at B."""
    foot, change = detour(found, row)
    return float(change.abs().max() / foot.abs().max().clamp_min(1e-12))


def pattern(figure: Figure, ax: Axes, found: Connection, row: int) -> None:
    """The difference pattern B' - B; of a latent space, its channels' mean or its values in a row."""
    _, change = detour(found, row)
    values = change.mean(0).numpy() if change.ndim == 3 else change.reshape(1, -1).numpy()
    most = max(float(np.abs(values).max()), 1e-12)
    shown = ax.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="equal" if change.ndim == 3 else "auto")
    figure.colorbar(shown, ax=ax, shrink=0.8)
    ax.set_axis_off()
    ax.set_title(f"B' - B, channel mean; largest value {relative(found, row):.1%} of B's", fontsize=9)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def page(title: str, figures: Sequence[Figure], facts: Sequence[tuple[str, Any]]) -> str:
    """A self-contained page: facts, then figures."""
    rows = "".join(f"<tr><th>{escape(k)}<td>{escape(str(v))}" for k, v in facts)
    shown = "".join(f'<img alt="" src="data:image/png;base64,{base64.b64encode(png(f)).decode()}">' for f in figures)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<body><h1>{escape(title)}</h1><table>{rows}</table>{shown}</body></html>\n"
    )
