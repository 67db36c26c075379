"""Whether an attack that knows a detector finds images that are known to be there (Zimmermann et al., NeurIPS 2022).

Every image gets a linear classifier of its own on the network's last hidden features, which gives one class to the
image and to what is near it, and another to a few planted points at the full distance that the detector accepts. An
attack that does not find what another class is given to and is accepted is too weak: its failures tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from advconn.models.classifier import Classifier

Accepts = Callable[[Tensor], np.ndarray]
NEAR, TRIED, PLANTED = 200, 40, 5  # points near an image, corners tried, and those of them that are planted
INSIDE = 0.9  # of the largest change: how far those near it lie
ENOUGH = 0.9  # of what is planted: an attack that finds less is too weak


@dataclass(frozen=True)
class PlantedExamples:
    """Images (n, c, h, w) near which others are planted, and the classifier of each: weights (n, d), biases (n,)."""

    images: Tensor
    weights: Tensor
    biases: Tensor
    hidden: Callable[[Tensor], Tensor]

    def logits(self, points: Tensor, rows: Tensor) -> Tensor:
        """Logits (m, 2) of points (m, c, h, w) near the images in `rows` (m,): 0, and over 0 where it is planted."""
        rows = rows.to(points.device)
        values = (self.hidden(points) * self.weights[rows]).sum(1) + self.biases[rows]
        return torch.stack([torch.zeros_like(values), values], 1)

    def reached(self, points: Tensor) -> np.ndarray:
        """(n,) whether points made from the images, one each, are where the other class is planted."""
        rows = torch.arange(len(points), dtype=torch.int64, device=points.device)
        with torch.no_grad():
            return np.asarray((self.logits(points, rows).argmax(1) == 1).cpu().numpy())

    @property
    def labels(self) -> Tensor:
        """(n,) the class that the images have: 0."""
        return torch.zeros(len(self.images), dtype=torch.int64, device="cpu")


def last_hidden(classifier: Classifier) -> Callable[[Tensor], Tensor] | None:
    """What the last linear layer is given, (n, d) for images (n, c, h, w), differentiable; None where there is none."""
    layers = [module for module in classifier.network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        return None
    last = layers[-1]

    def hidden(points: Tensor) -> Tensor:
        captured: list[Tensor] = []
        hook = last.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
        try:
            classifier.logits(points)
        finally:
            hook.remove()
        return torch.cat([values.flatten(1) for values in captured])[: len(points)].float()  # batches may be padded

    return hidden


def plant(
    classifier: Classifier, accepts: Accepts, images: Tensor, eps: float, *, seed: int = 0
) -> PlantedExamples | None:
    """Plant images within `eps` (Linf) of checked ones (n, c, h, w), as far as the detector accepts any.

    None where nothing can be planted.

    Args:
        classifier: gives the last hidden features that the linear classifiers are fitted on.
        accepts: tells of images (m, c, h, w) which (m,) are not flagged.
        images: checked ones (n, c, h, w).
        eps: largest change of every value (Linf), in [0, 1].
        seed: of the points that are tried.
    """
    from sklearn.linear_model import LogisticRegression

    hidden = last_hidden(classifier)
    if hidden is None or not classifier.differentiable:
        return None
    generator = torch.Generator(device="cpu").manual_seed(seed)
    kept, weights, biases = [], [], []
    for i, image in enumerate(images):
        noise = 2 * torch.rand((NEAR + TRIED, *image.shape), generator=generator, dtype=torch.float32, device="cpu") - 1
        noise = noise.to(image)
        near = (image + INSIDE * eps * noise[:NEAR]).clamp(0, 1)
        corners = (image + eps * noise[NEAR:].sign()).clamp(0, 1)
        corners = corners[torch.from_numpy(accepts(corners)).to(corners.device)][:PLANTED]
        if len(corners) < PLANTED:
            continue
        with torch.no_grad():
            values = hidden(torch.cat([image[None], near, corners])).double().cpu().numpy()
        scale = values.std(0) + 1e-9
        kinds = np.repeat([0, 1], [1 + NEAR, PLANTED])
        regression = LogisticRegression(C=1e5, class_weight="balanced", max_iter=5000).fit(values / scale, kinds)
        weight = regression.coef_[0] / scale
        shown = values @ weight
        low, high = shown[kinds == 0].max(), shown[kinds == 1].min()
        if low < high:  # else the features do not tell them apart
            unit = max(float(shown.std()), 1e-9)
            kept.append(i)
            weights.append(weight / unit)
            biases.append(-(low + high) / 2 / unit)
    if not kept:
        return None
    rows = torch.tensor(kept, dtype=torch.int64, device=images.device)
    as_tensor = [torch.from_numpy(np.asarray(v)).float().to(images.device) for v in (weights, biases)]
    return PlantedExamples(images[rows], as_tensor[0], as_tensor[1], hidden)
