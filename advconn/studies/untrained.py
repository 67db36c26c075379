"""Vrabel et al., section 4.3: two synthesised inputs of a class in a randomly initialised ResNet-18, connected.

Two rounds of bypass, so four segments at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from advconn.errors import DataError
from advconn.features.references import synthesise
from advconn.models.classifier import Classifier
from advconn.paths.bypass import DELTA
from advconn.paths.connection import Connection, connect
from advconn.paths.space import Space
from advconn.studies.common import Study, Subject, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 2


def run(subject: Subject, fast: bool = False) -> Study:
    """Several initialisations. fast: 2 networks at 32 pixels, 2 classes each, inputs synthesised to a loss of .05; else
    5 at 224, 4 classes each, to half of .001.
    """
    side, seeds, classes, delta = (32, 2, 2, 0.1) if fast else (224, 5, 4, DELTA)
    connections: list[Connection] = []
    lost = 0
    for seed in range(seeds):
        classifier = resnet18(side, subject.seed + seed, subject.classifier.device)
        try:
            connections.append(concat_results(classifier, classes, delta, subject.seed + seed))
        except DataError:
            lost += 1
        subject.progress("untrained networks", seed + 1, seeds)
    if not connections:
        raise DataError("no input of a class was found in any untrained network: try another --seed")
    figures = summary(connections) | {"networks": seeds, "networks without a synthesised pair": lost, "side": side}
    return Study(figures, text(figures), lambda: draw(connections))


def resnet18(side: int, seed: int, device: torch.device) -> Classifier:
    """Torchvision's ResNet-18 for ten classes with parameters as they are drawn, in evaluation mode.

    Args:
        side: height and width of the input, in pixels.
        seed: of the parameters.
        device: where the classifier runs.
    """
    from torchvision.models import resnet18 as architecture

    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(seed)
        module = architecture(weights=None, num_classes=10).eval()
    return Classifier(module, size=(side, side), device=device)


def concat_results(classifier: Classifier, classes: int, delta: float, seed: int) -> Connection:
    """Two inputs of each of the first classes, synthesised freely in pixels, and connected by two rounds of bypass.

    Args:
        classifier: whose inputs are synthesised.
        classes: how many classes, from the first on.
        delta: cross-entropy above which a barrier stands; the synthesis stops under half of it.
        seed: of the synthesis.
    """
    wanted = torch.arange(classes, dtype=torch.int64, device="cpu")
    made = synthesise(
        classifier, 2, classes=wanted, free=True, jitter=0, stop=delta / 2, steps=4096, rate=0.05, seed=seed
    )
    pairs = made.images.unflatten(0, (classes, 2))
    labels = wanted.to(classifier.device)
    return connect(
        Space(classifier), pairs[:, 0], pairs[:, 1], labels, delta=delta, method="bypass", levels=ROUNDS, steps=60
    )


def summary(connections: list[Connection]) -> dict[str, Any]:
    """Pairs by outcome, and barriers before and after."""
    outcomes = [o for c in connections for o in c.outcome]
    return {
        "pairs": len(outcomes),
        "outcomes": {name: outcomes.count(name) for name in ("line", "curve", "none")},
        "barrier of the line": spread(torch.cat([c.line.barrier for c in connections]).tolist()),
        "barrier after bypass": spread(torch.cat([c.curve.barrier for c in connections]).tolist()),
        "gradients": float(torch.cat([c.gradients for c in connections]).mean()),
    }


def text(figures: dict[str, Any]) -> str:
    """The outcome in words."""
    before, after = figures["barrier of the line"], figures["barrier after bypass"]
    return (
        f"{figures['pairs']} pairs of synthesised inputs in {figures['networks']} untrained ResNet-18s at "
        f"{figures['side']} pixels: {figures['outcomes']}. Median barrier {before['median']:.3g} on the line, "
        f"{after['median']:.3g} after {ROUNDS} rounds of bypass. Paper: untrained networks are connected too, with two "
        "rounds and four segments."
    )


def draw(connections: list[Connection]) -> Figure:
    """Losses along the first pairs, on the line and round it."""
    from matplotlib.figure import Figure

    from advconn.paths.plots import curves

    shown = [(c, row) for c in connections for row in range(len(c.labels))][:4]
    figure = Figure(figsize=(10, 3.4 * ((len(shown) + 1) // 2)), layout="constrained")
    axes = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).flatten()
    for ax, (connection, row) in zip(axes, shown, strict=False):
        curves(ax, connection, row)
    return figure
