"""Modes: inputs that a query can be connected to.

own and rival: reference images of the predicted class and of others, chosen from clean images or synthesised;
self: label-preserving copies of the query.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.classifier import Classifier, margin
from advconn.errors import DataError


@dataclass(frozen=True)
class References:
    """Reference images (m, c, h, w) in [0, 1] and the logits (m, k) that the classifier gives them."""

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
    """Pick references among clean images (n, c, h, w): of each predicted class the most confident, spread apart.

    The more confident half of a class's images stand for choice; the most confident comes first, then each time the one
    farthest (in pixels) from those already picked. Images whose true label, where given, is another are left out.
    """
    logits = classifier.logits(images)
    predicted = logits.argmax(1)
    confident = margin(logits, predicted)
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
    return torch.tensor(picked, device=points.device)


def synthesise(
    classifier: Classifier,
    per_class: int = 5,
    *,
    classes: Tensor | None = None,
    fourier: bool = True,
    jitter: int | None = None,
    tv: float = 0.0,
    stop: float = 5e-4,
    steps: int = 256,
    rate: float = 0.05,
    seed: int = 0,
) -> References:
    """References made by input optimisation (feature visualisation), all classes in one batch.

    Adam on the pixels, or on a spectrum whose amplitudes fall as 1/f, through a sigmoid, shifted at random by up to
    `jitter` pixels (a sixteenth of the size unless told) at each step, with `tv` times the total variation added to the
    loss. Stops where the unshifted image's cross-entropy is under `stop`; the best image seen is kept. After Vrabel et
    al. (ICLR 2025, section 4.3), who optimise pixels, and Olah et al. (2017).

    Raises:
        DataError: an input size is not known, or a class was not reached.
    """
    if classifier.preprocessing.size is None:
        raise DataError("the classifier's input size is not known: give size=(height, width)")
    h, w = classifier.preprocessing.size
    reach = min(h, w) // 16 if jitter is None else jitter
    wanted = torch.arange(classifier.num_classes) if classes is None else classes.cpu()
    labels = wanted.repeat_interleave(per_class).to(classifier.device)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), classifier.channels, h, w)
    with torch.inference_mode(False), torch.enable_grad():
        leaf, paint = _canvas(shape, fourier, generator, classifier.device)
        optimizer = torch.optim.Adam([leaf], rate)
        best, lowest = torch.zeros(shape, device=classifier.device), torch.full(shape[:1], torch.inf)
        lowest = lowest.to(classifier.device)
        for _ in range(steps):
            images = paint(leaf)
            energy = margin(classifier.logits(images.detach()), labels)
            better = energy < lowest
            lowest = torch.where(better, energy, lowest)
            best = torch.where(better[:, None, None, None], images.detach(), best)
            if bool((F.softplus(lowest) < stop).all()):
                break
            dy, dx = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
            loss = F.softplus(margin(classifier.logits(images.roll((dy, dx), (2, 3))), labels)).sum()
            loss = loss + tv * _total_variation(images)
            optimizer.zero_grad()
            (leaf.grad,) = torch.autograd.grad(loss, leaf)
            optimizer.step()
    lost = labels[lowest >= 0].unique().tolist()
    if lost:
        raise DataError(f"no input of class {lost[0]} was found in {steps} steps: give more steps or a larger rate")
    best = (best * 255).round() / 255
    return References(best, classifier.logits(best), "synthesised")


def _canvas(
    shape: tuple[int, ...], fourier: bool, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    n, c, h, w = shape
    if not fourier:
        return (0.01 * torch.randn(shape, generator=generator)).to(device).requires_grad_(), torch.sigmoid
    frequency = (torch.fft.fftfreq(h)[:, None] ** 2 + torch.fft.rfftfreq(w)[None] ** 2).sqrt()
    scale = (1 / frequency.clamp_min(1 / max(h, w))).to(device).unsqueeze(-1) / 4
    spectrum = 0.01 * torch.randn(n, c, h, w // 2 + 1, 2, generator=generator)

    def paint(values: Tensor) -> Tensor:
        return torch.sigmoid(torch.fft.irfft2(torch.view_as_complex(values * scale), s=(h, w), norm="ortho"))

    return spectrum.to(device).requires_grad_(), paint


def _total_variation(images: Tensor) -> Tensor:
    return images.diff(dim=2).abs().sum() + images.diff(dim=3).abs().sum()


Copy = Callable[[Tensor], Tensor]


def mean3(images: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


_MEDIAN_OF_NINE = (  # a sorting network cut down to its fifth place
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def median3(images: Tensor) -> Tensor:
    """Median over 3 x 3 pixels, by exchanges between the nine shifted images."""
    h, w = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    p = [padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    for a, b in _MEDIAN_OF_NINE:
        p[a], p[b] = torch.minimum(p[a], p[b]), torch.maximum(p[a], p[b])
    return p[4]


def flip(images: Tensor) -> Tensor:
    """Mirror image."""
    return images.flip(3)


def bits(count: int) -> Copy:
    """Rounded to so many bits a channel; a gradient goes straight through (Athalye et al. 2018)."""

    def fewer(images: Tensor) -> Tensor:
        rounded = (images.detach() * (2**count - 1)).round() / (2**count - 1)
        return images + (rounded - images.detach()) if images.requires_grad else rounded

    return fewer


def shift(dy: int, dx: int) -> Copy:
    """Moved by whole pixels; the border is repeated."""

    def moved(images: Tensor) -> Tensor:
        h, w = images.shape[2:]
        rows = (torch.arange(h, device=images.device) - dy).clamp(0, h - 1)
        columns = (torch.arange(w, device=images.device) - dx).clamp(0, w - 1)
        return images[:, :, rows][:, :, :, columns]

    return moved


def rescale(factor: float) -> Copy:
    """Resized by a factor and back (bilinear)."""

    def there_and_back(images: Tensor) -> Tensor:
        size = images.shape[2:]
        small = [max(1, round(side * factor)) for side in size]
        down = F.interpolate(images, small, mode="bilinear", antialias=True, align_corners=False)
        return F.interpolate(down, size, mode="bilinear", align_corners=False).clamp(0, 1)

    return there_and_back


def zoom(factor: float) -> Copy:
    """Magnified about the centre, or made smaller (the border is mirrored)."""
    return _linear(1 / factor, 0, 0, 1 / factor)


def rotate(degrees: float) -> Copy:
    """Turned about the centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _linear(cos, -sin, sin, cos)


def shear(slope: float) -> Copy:
    """Slanted: columns move down by this share of their distance from the centre."""
    return _linear(1, 0, slope, 1)


def _linear(a: float, b: float, c: float, d: float) -> Copy:
    """Sampled bilinearly at the matrix times the pixels' places, about the centre."""

    def warped(images: Tensor) -> Tensor:
        theta = torch.tensor([[a, b, 0], [c, d, 0]], device=images.device, dtype=images.dtype)
        grid = F.affine_grid(theta.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    return warped


def blur(sigma: float) -> Copy:
    """Gaussian blur of this standard deviation in pixels, over 5 x 5 pixels."""

    def blurred(images: Tensor) -> Tensor:
        c = images.shape[1]
        weights = torch.exp(-(torch.arange(-2, 3).to(images) ** 2) / (2 * sigma**2))
        line = (weights / weights.sum()).expand(c, 1, 5)
        padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
        return F.conv2d(F.conv2d(padded, line.unsqueeze(3), groups=c), line.unsqueeze(2), groups=c)

    return blurred


def saturation(factor: float) -> Copy:
    """Distance from grey changed by a factor."""

    def coloured(images: Tensor) -> Tensor:
        grey = images.mean(1, keepdim=True)
        return (grey + factor * (images - grey)).clamp(0, 1)

    return coloured


def both(first: Copy, second: Copy) -> Copy:
    """One after the other."""
    return lambda images: second(first(images))


def noise(scale: float, seed: int) -> Copy:
    """Gaussian noise of this standard deviation, the same for every image; clamped to [0, 1]."""

    def noisy(images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        grain = torch.randn(images.shape[1:], generator=generator).to(images)
        return (images + scale * grain).clamp(0, 1)

    return noisy


def contrast(factor: float) -> Copy:
    """Contrast about each image's mean changed by a factor."""

    def changed(images: Tensor) -> Tensor:
        middle = images.mean((1, 2, 3), keepdim=True)
        return (middle + factor * (images - middle)).clamp(0, 1)

    return changed
