"""What every study is given and gives back, and pairs of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advconn.errors import DataError, PathError
from advconn.models.classifier import Classifier
from advconn.runtime.progress import Progress, ignore_progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Subject:
    """What a study looks at: a classifier, images (n, c, h, w) uint8 that suit it and labels (n,) where known.

    others: further classifiers of the same images, for `architectures`. attacks: specifications for attacks whose
    usual strength does not suit the images, by name.
    """

    classifier: Classifier
    images: Tensor
    labels: Tensor | None
    name: str = "images"
    others: Sequence[Classifier] = ()
    attacks: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    progress: Progress = ignore_progress


@dataclass(frozen=True)
class Study:
    """figures: what was measured, as JSON has it. text: sets it beside the paper's. draw: a picture."""

    figures: dict[str, Any]
    text: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Pairs:
    """n pairs of checked images (n, c, h, w) and the class (n,) that each is to stay in."""

    start: Tensor
    end: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.start[index], self.end[index], self.labels[index])


@dataclass(frozen=True)
class Pool:
    """Checked images with their predicted and true classes (the predicted, where no labels are known)."""

    images: Tensor
    predicted: Tensor
    labels: Tensor

    @property
    def right(self) -> Tensor:
        """(n,) classified right."""
        return self.predicted == self.labels


def pool(subject: Subject, most: int) -> Pool:
    """At most so many of a subject's images, drawn at random.

    Raises:
        DataError: fewer than 20.
    """
    if len(subject.images) < 20:
        raise DataError(f"{len(subject.images)} images: a study needs 20 or more, of every class two or more")
    generator = torch.Generator(device="cpu").manual_seed(subject.seed)
    rows = torch.randperm(len(subject.images), generator=generator, dtype=torch.int64, device="cpu")[:most]
    images = subject.classifier.check(subject.images[rows])
    predicted = subject.classifier.logits(images).argmax(1)
    labels = predicted if subject.labels is None else subject.labels[rows].to(predicted)
    return Pool(images, predicted, labels)


def same_class(pooled: Pool, count: int, seed: int = 0) -> Pairs:
    """At most `count` pairs of two images of a class, classified right; classes in turn, no image in two pairs.

    Args:
        pooled: checked images and their classes, which the pairs are made of.
        count: pairs, at most.
        seed: of the draw.

    Raises:
        DataError: no class has two images that are classified right.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    queues: dict[int, list[int]] = {}
    for label in pooled.labels.unique().tolist():
        rows = (pooled.right & (pooled.labels == label)).nonzero()[:, 0].cpu()
        queues[label] = rows[torch.randperm(len(rows), generator=generator, dtype=torch.int64, device="cpu")].tolist()
    queues = {label: rows for label, rows in queues.items() if len(rows) >= 2}
    if not queues:
        raise DataError("no class has two images that are classified right: no pair to connect")
    pairs = [
        (rows[2 * turn], rows[2 * turn + 1], label)
        for turn in range(max(map(len, queues.values())) // 2)
        for label, rows in queues.items()
        if 2 * turn + 1 < len(rows)
    ][:count]
    start, end, labels = (pooled.labels.new_tensor(column) for column in zip(*pairs, strict=True))
    return Pairs(pooled.images[start], pooled.images[end], labels)


def to_class(images: Tensor, wanted: Tensor, pooled: Pool, seed: int = 0) -> Pairs:
    """Each image (n, c, h, w) with an image that is classified right and of the wanted class (n,), if there is one.

    Args:
        images: first images of the pairs (n, c, h, w), checked.
        wanted: classes (n,) of the second images.
        pooled: what the second images are drawn from.
        seed: of the draw.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    fits = pooled.right[None] & (pooled.labels[None] == wanted[:, None])
    kept = fits.any(1).nonzero()[:, 0]
    chosen = (
        torch.rand(fits.shape, generator=generator, dtype=torch.float32, device="cpu").to(fits.device) * fits
    ).argmax(1)[kept]
    return Pairs(images[kept], pooled.images[chosen], wanted[kept])


def blocks(classifier: Classifier) -> dict[str, str]:
    """Names of the two layers that Gu & Borovykh look at: after the first block, and what the last layer is given.

    The first block: the first layer made of up to a dozen plain ones, with less than half of all parameters, that the
    network can be cut at (else the first plain one).

    Raises:
        PathError: the network cannot be cut.
    """
    from advconn.paths.space import layers, split_network

    names = layers(classifier)
    modules = dict(classifier.network.named_modules())

    def weight(name: str) -> int:
        return sum(p.numel() for p in modules[name].parameters())

    def small(name: str) -> bool:
        children = list(modules[name].children())
        plain = not any(list(child.children()) for child in children)
        return 0 < len(children) <= 12 and plain and 2 * weight(name) < weight("")

    leaves = [name for name in names if not list(modules[name].children())]
    if not leaves:
        split_network(classifier.network, next(name for name in modules if name))
        raise PathError("the network can be cut at none of its layers")
    last = [name for name in leaves if weight(name)][-1]
    return {"first block": next(filter(small, names), leaves[0]), "last layer": f"{last}:input"}


def boxes(panels: dict[str, dict[str, Any]], log: bool = False) -> Figure:
    """Box plots side by side, a panel for each quantity."""
    from matplotlib.figure import Figure

    widest = max(map(len, panels.values()))
    figure = Figure(figsize=(2 + 1.3 * widest, 3.6 * len(panels)), layout="constrained")
    for ax, (label, groups) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        ax.boxplot(list(groups.values()), tick_labels=[name.replace(", ", "\n") for name in groups], showfliers=True)
        ax.tick_params(axis="x", labelsize=8)
        ax.set_ylabel(label)
        if log:
            ax.set_yscale("log")
    return figure


def spread(values: Any) -> dict[str, float]:
    """Mean, and 10, 50 and 90 % of numbers (n,)."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    low, middle, high = np.quantile(numbers, (0.1, 0.5, 0.9)) if len(numbers) else (np.nan,) * 3
    mean = float(numbers.mean()) if len(numbers) else float("nan")
    return {"n": len(numbers), "mean": mean, "p10": float(low), "median": float(middle), "p90": float(high)}
