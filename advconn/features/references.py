"""Modes: inputs that a query can be connected to.

own and rival: reference images of the predicted class and of others, chosen from clean images or synthesised;
self: label-preserving copies of the query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.errors import DataError
from advconn.models.classifier import Classifier
from advconn.models.margin import margin, temperature_of
from advconn.runtime.forward_passes import gradients_enabled


@dataclass(frozen=True)
class References:
    """Reference images.

    Attributes:
        images: (m, c, h, w) in [0, 1].
        logits: (m, k) that the classifier gives them.
        origin: 'chosen', 'synthesised' or 'given'.
    """

    images: Tensor
    logits: Tensor
    origin: str = "given"

    def __repr__(self) -> str:
        return f"References({len(self.images)} {self.origin}, {len(self.labels.unique())} classes)"

    @cached_property
    def labels(self) -> Tensor:
        """The class that the classifier gives each, (m,)."""
        return self.logits.argmax(1)

    @cached_property
    def missing(self) -> list[int]:
        """Classes without a reference."""
        return sorted(set(range(self.logits.shape[1])) - set(self.labels.tolist()))

    @cached_property
    def by_class(self) -> Tensor:
        """Indices (k, per_class) of each class's references, repeated where a class has fewer.

        Raises:
            DataError: a class has none.
        """
        classes = self.logits.shape[1]
        if self.missing:
            raise DataError(
                f"{len(self.missing)} of {classes} classes have no reference image (the first: {self.missing[0]}): "
                "give images of every class, synthesise references, or use the self family alone"
            )
        where = [(self.labels == label).nonzero()[:, 0] for label in range(classes)]
        width = max(len(w) for w in where)
        return torch.stack([w.repeat(math.ceil(width / len(w)))[:width] for w in where])


def choose(classifier: Classifier, images: Tensor, labels: Tensor | None = None, per_class: int = 5) -> References:
    """Pick references among clean images: of each predicted class the most confident, spread apart.

    The more confident half of a class's images stand for choice; the most confident comes first, then each time the one
    farthest (in pixels) from those already picked.

    Args:
        classifier: whose classes they stand for.
        images: (n, c, h, w), checked.
        labels: true classes (n,), where known; images that are given another class are left out.
        per_class: references of each class, at most.

    Raises:
        DataError: no image is given its true class.

    Example:
        >>> import torch
        >>> from advconn import Classifier, choose
        >>> classifier = Classifier(torch.nn.Flatten().eval(), size=1, channels=2)
        >>> images = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.2, 0.8]]).view(3, 2, 1, 1)
        >>> choose(classifier, images, per_class=1)
        References(2 chosen, 2 classes)
    """
    logits = classifier.logits(images)
    predicted = logits.argmax(1)
    confident = margin(logits / temperature_of(logits), predicted)  # the same order at any scale of the logits
    right = torch.ones_like(predicted, dtype=torch.bool) if labels is None else predicted == labels.to(predicted)
    picked = []
    for label in range(classifier.num_classes):
        rows = (right & (predicted == label)).nonzero()[:, 0]
        rows = rows[confident[rows].argsort(stable=True)]
        rows = rows[: max(per_class, len(rows) // 2)]
        picked.append(rows[_spread(images[rows].flatten(1), per_class)] if len(rows) else rows)
    index = torch.cat(picked)
    if not len(index):
        raise DataError("no image that the classifier gets right: nothing to choose references from")
    return References(images[index].clone(), logits[index].clone(), "chosen")


def _spread(points: Tensor, count: int) -> Tensor:
    picked = [0]
    nearest = torch.cdist(points, points[:1])[:, 0]
    while len(picked) < min(count, len(points)):
        picked.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(points, points[picked[-1] :][:1])[:, 0])
    return torch.tensor(picked, device=points.device, dtype=torch.int64)


LARGEST = 2**23  # values in one batch of images that are synthesised together


def synthesise(
    classifier: Classifier,
    per_class: int = 5,
    *,
    classes: Tensor | None = None,
    fourier: bool = True,
    free: bool = False,
    jitter: int | None = None,
    tv: float = 0.0,
    stop: float = 5e-4,
    steps: int = 256,
    rate: float = 0.05,
    seed: int = 0,
) -> References:
    """References made by input optimisation (feature visualisation), all classes in one batch, or as many as fit.

    Adam on the pixels, or on a spectrum whose amplitudes fall as 1/f, through a sigmoid, shifted at random at each
    step. The best image seen is kept. After Vrabel et al. (ICLR 2025, section 4.3), who optimise pixels, and Olah et
    al. (2017).

    Args:
        classifier: whose classes they stand for; its input size must be known.
        per_class: references of each class.
        classes: (q,) that references are made of; None for all.
        fourier: whether the spectrum is optimised, and not the pixels.
        free: pixels of any value, neither through a sigmoid nor rounded to bytes; a classifier without mean and std
            then sees them as its network does.
        jitter: largest shift in pixels; a sixteenth of the size unless told.
        tv: weight of the total variation in the loss.
        stop: cross-entropy of the unshifted images under which it stops.
        steps: at most so many.
        rate: of Adam.
        seed: of all that is drawn.

    Raises:
        DataError: an input size is not known, or a class was not reached.
    """
    if classifier.preprocessing.size is None:
        raise DataError("the classifier's input size is not known: give size=(height, width)")
    h, w = classifier.preprocessing.size
    reach = min(h, w) // 16 if jitter is None else jitter
    wanted = torch.arange(classifier.num_classes, dtype=torch.int64, device="cpu") if classes is None else classes.cpu()
    together = max(1, LARGEST // (per_class * classifier.channels * h * w))
    if len(wanted) > together:
        same: dict[str, Any] = {"fourier": fourier, "free": free, "jitter": jitter, "tv": tv}
        same |= {"stop": stop, "steps": steps, "rate": rate, "seed": seed}
        parts = [synthesise(classifier, per_class, classes=some, **same) for some in wanted.split(together)]
        return References(torch.cat([p.images for p in parts]), torch.cat([p.logits for p in parts]), "synthesised")
    labels = wanted.repeat_interleave(per_class).to(classifier.device)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    with gradients_enabled():
        canvas = _canvas((len(labels), classifier.channels, h, w), fourier, free, generator, classifier.device)
        best, lowest = _painted(classifier, labels, canvas, reach, tv, stop, steps, rate, generator)
    lost = labels[lowest >= 0].unique().tolist()
    if lost:
        raise DataError(f"no input of class {lost[0]} was found in {steps} steps: give more steps or a larger rate")
    best = best if free else (best * 255).round() / 255
    return References(best, classifier.logits(best), "synthesised")


def _painted(
    classifier: Classifier,
    labels: Tensor,
    canvas: tuple[Tensor, Callable[[Tensor], Tensor]],
    reach: int,
    tv: float,
    stop: float,
    steps: int,
    rate: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The images of the lowest margin against their labels (n,) that were seen, and that margin (n,)."""
    leaf, paint = canvas
    optimizer = torch.optim.Adam([leaf], rate)
    best = torch.zeros_like(paint(leaf))
    lowest = torch.full((len(labels),), torch.inf, dtype=torch.float32, device=classifier.device)
    for _ in range(steps):
        images = paint(leaf)
        energy = margin(classifier.logits(images.detach()), labels)
        better = energy < lowest
        lowest = torch.where(better, energy, lowest)
        best = torch.where(better[:, None, None, None], images.detach(), best)
        if bool((F.softplus(lowest) < stop).all()):
            break
        dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator, dtype=torch.int64, device="cpu").tolist()
        loss = F.softplus(margin(classifier.logits(images.roll((dy, dx), (2, 3))), labels)).sum()
        loss = loss + tv * _total_variation(images)
        optimizer.zero_grad()
        (leaf.grad,) = torch.autograd.grad(loss, leaf)
        optimizer.step()
    return best, lowest


def _canvas(
    shape: tuple[int, ...], fourier: bool, free: bool, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    n, c, h, w = shape
    if free or not fourier:
        grain = (
            (0.01 * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu"))
            .to(device)
            .requires_grad_()
        )
        return grain, torch.Tensor.clone if free else torch.sigmoid
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    frequency = (torch.fft.fftfreq(h, **options)[:, None] ** 2 + torch.fft.rfftfreq(w, **options)[None] ** 2).sqrt()
    scale = (1 / frequency.clamp_min(1 / max(h, w))).to(device).unsqueeze(-1) / 4
    spectrum = 0.01 * torch.randn(n, c, h, w // 2 + 1, 2, generator=generator, dtype=torch.float32, device="cpu")

    def paint(values: Tensor) -> Tensor:
        return torch.sigmoid(torch.fft.irfft2(torch.view_as_complex(values * scale), s=(h, w), norm="ortho"))

    return spectrum.to(device).requires_grad_(), paint


def _total_variation(images: Tensor) -> Tensor:
    return images.diff(dim=2).abs().sum() + images.diff(dim=3).abs().sum()
