"""Vrabel et al., appendix F.1: how the barrier between synthesised inputs changes over training's first batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from advconn.errors import DataError
from advconn.features.references import synthesise
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.paths.connection import connect
from advconn.paths.space import Space
from advconn.runtime.forward_passes import gradients_enabled
from advconn.studies.common import Study, Subject, pool, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64


def run(subject: Subject, fast: bool = False) -> Study:
    """Train a small network from nothing and stop to look. fast: at 4 moments of 32 batches; else at 9 of 512."""
    moments = (0, 2, 8, 32) if fast else (0, 1, 2, 4, 8, 16, 64, 256, 512)
    pooled = pool(subject, 2000 if fast else 20000)
    images, labels = pooled.images, pooled.labels
    generator = torch.Generator(device="cpu").manual_seed(subject.seed)
    cut = max(1, len(images) // 5)
    order = torch.randperm(len(images), generator=generator, dtype=torch.int64, device="cpu")
    kept, train_rows = order[:cut], order[cut:]
    rows: list[dict[str, Any]] = []
    with gradients_enabled(), torch.random.fork_rng():
        torch.manual_seed(subject.seed)
        net = compact(subject.classifier.num_classes, images.shape[1], (16, 32, 64) if fast else (24, 64, 128, 256))
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):  # as residual networks draw them; others barely see their input
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        net = net.to(images.device)
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for step in range(moments[-1] + 1):
            if step in moments:
                rows.append({"batches": step} | look(net, subject, images[kept], labels[kept], 200 if fast else 1024))
                subject.progress("training", len(rows), len(moments))
            batch = train_rows[
                torch.randint(len(train_rows), (BATCH,), generator=generator, dtype=torch.int64, device="cpu")
            ]
            net.train()
            loss = F.cross_entropy(net(normal(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    figures = {"rows": rows, "classes": subject.classifier.num_classes}
    return Study(figures, text(figures), lambda: draw(rows))


def normal(images: torch.Tensor) -> torch.Tensor:
    """About zero."""
    return (images - 0.5) / 0.25


def look(
    net: torch.nn.Module, subject: Subject, images: torch.Tensor, labels: torch.Tensor, steps: int
) -> dict[str, Any]:
    """Accuracy, and barriers on the line and after two rounds of bypass between two synthesised inputs of a class.

    Args:
        net: the network in training; it is put into evaluation mode.
        subject: whose seed is used.
        images: (n, c, h, w) in [0, 1], which the accuracy is measured on.
        labels: true classes (n,).
        steps: of the synthesis, at most.
    """
    c, h, w = images.shape[1:]
    classifier = Classifier(net.eval(), size=(h, w), channels=c)
    right = classifier.logits(normal(images)).argmax(1) == labels
    out: dict[str, Any] = {"accuracy": float(right.float().mean())}
    wanted = torch.arange(min(classifier.num_classes, 10), dtype=torch.int64, device="cpu")
    try:
        made = synthesise(classifier, 2, classes=wanted, free=True, jitter=0, steps=steps, seed=subject.seed)
    except DataError as error:  # a class that an untrained network gives to no input
        return out | {"lost": str(error)}
    pairs = made.images.unflatten(0, (len(wanted), 2))
    connection = connect(
        Space(classifier), pairs[:, 0], pairs[:, 1], wanted.to(images.device), method="bypass", levels=2, samples=33
    )
    out["barrier of the line"] = spread(connection.line.barrier.tolist())
    out["barrier after bypass"] = spread(connection.curve.barrier.tolist())
    return out


def text(figures: dict[str, Any]) -> str:
    """The rows in words."""
    out = ["Mean barrier between two synthesised inputs of a class, on the line and after two rounds of bypass:"]
    for row in figures["rows"]:
        if "lost" in row:
            out.append(f"- after {row['batches']} batches (accuracy {row['accuracy']:.2f}): {row['lost']}")
            continue
        line, after = row["barrier of the line"], row["barrier after bypass"]
        told = f"- after {row['batches']} batches (accuracy {row['accuracy']:.2f})"
        out.append(f"{told}: {line['mean']:.3g}, {after['mean']:.3g}")
    out.append("Paper: connected from the start; the barrier changes most over the first batches.")
    return "\n".join(out)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """Barrier and accuracy over batches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    shown = [r for r in rows if "lost" not in r]
    batches = [max(r["batches"], 0.5) for r in shown]
    for key in ("barrier of the line", "barrier after bypass"):
        low, middle, high = ([max(r[key][q], 1e-6) for r in shown] for q in ("p10", "median", "p90"))
        ax.plot(batches, middle, "o-", label=key)
        ax.fill_between(batches, low, high, alpha=0.2)
    ax.set(xscale="log", yscale="log", xlabel="batches of training (.5: none)", ylabel="cross-entropy")
    twin = ax.twinx()
    twin.plot([max(r["batches"], 0.5) for r in rows], [r["accuracy"] for r in rows], "k:", label="accuracy")
    twin.set(ylabel="accuracy (dotted)", ylim=(0, 1))
    ax.legend(fontsize=8)
    return figure
