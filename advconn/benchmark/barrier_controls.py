"""Controls of connectivity: what barriers there are between images that no one has attacked.

A straight path between two clean images of a class is to be compared with paths that end in another class, with
attacked images, and with a network that has learnt nothing (Vrabel et al. 2025, sections 4.2 and 4.3).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.benchmark.result_types import Control
from advconn.metrics import auroc, auroc_bootstrap_interval
from advconn.models.classifier import Classifier, untrained
from advconn.paths.path import Profile, path_positions, straight

SAMPLES = 9


def barriers(classifier: Classifier, starts: Tensor, ends: Tensor, labels: Tensor) -> np.ndarray:
    """Barrier (n,): the largest cross-entropy of `labels` (n,) on the straight path, its ends included.

    Args:
        classifier: whose cross-entropy is looked at.
        starts: first ends (n, c, h, w), checked.
        ends: second ends (n, c, h, w), checked.
        labels: a class (n,) for each path.
    """
    t = path_positions(SAMPLES, starts)
    points = straight(starts, ends).at(t)
    values = F.softplus(classifier.landscape(labels)(points))
    return np.asarray(Profile(t, values).barrier.cpu().double().numpy())


def controls(
    images: np.ndarray, attacks: np.ndarray, classes: np.ndarray, seed: int, classifier: Classifier
) -> list[Control]:
    """Rows: kind of pair, how many, median barrier, and its AUROC against clean pairs of a class.

    The barrier is one for the start's predicted class: a path that ends in another class has a high one.

    Args:
        images: clean ones (n, c, h, w), uint8 or in [0, 1].
        attacks: attacked ones (m, c, h, w), uint8 or in [0, 1].
        classes: true classes (m,) of the attacked ones.
        seed: of the pairs, of the untrained network and of the bootstrap.
        classifier: the trained one; an untrained copy is set beside it.
    """
    clean, attacked = (classifier.check(torch.from_numpy(values)) for values in (images, attacks))
    truth = torch.from_numpy(classes)
    out: list[Control] = []
    for network, model in (("trained", classifier), ("untrained", untrained(classifier, seed))):
        label = model.logits(clean).argmax(1)
        wrong = model.logits(attacked).argmax(1)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        kinds = {
            "clean to clean, same class": _pairs(clean, label, clean, label, label, True, generator),
            "clean to clean, another class": _pairs(clean, label, clean, label, label, False, generator),
            "attacked to clean, predicted class": _pairs(attacked, wrong, clean, label, wrong, True, generator),
        }
        if network == "trained":
            kinds["attacked to clean, true class"] = _pairs(
                attacked, wrong, clean, label, truth.to(label), True, generator
            )
        by_kind = {kind: barriers(model, *pairs) for kind, pairs in kinds.items() if len(pairs[0])}
        base = by_kind.get("clean to clean, same class", np.zeros(0))
        for kind, heights in by_kind.items():
            low, high = auroc_bootstrap_interval(base, heights, draws=200, seed=seed)
            middle = float(np.median(heights))
            out.append(Control(network, kind, len(heights), middle, auroc(base, heights), low, high))
    return out


def _pairs(
    starts: Tensor,
    labels: Tensor,
    ends: Tensor,
    end_labels: Tensor,
    wanted: Tensor,
    same: bool,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """For every start with one, an end whose class is (or is not) the wanted one: starts, ends, the starts' labels."""
    fits = (end_labels[None] == wanted[:, None]) == same
    if starts is ends:
        fits = fits & ~torch.eye(len(starts), dtype=torch.bool, device=fits.device)
    kept = fits.any(1).nonzero()[:, 0]
    chosen = (
        torch.rand(fits.shape, generator=generator, dtype=torch.float32, device="cpu").to(fits.device) * fits
    ).argmax(1)[kept]
    return starts[kept], ends[chosen], labels[kept]
