"""Attacks that no library brings in this form: changes of a given shape or through JPEG, PGD that stops, random signs.

Each is a function of a classifier, images (n, c, h, w) in [0, 1] and their classes (n,), and gives attacked images.
Whether they succeeded is for the caller to see. Where one needs gradients the classifier must give them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.data.conditions import saved_as
from advconn.models.classifier import Classifier
from advconn.models.margin import margin

Applied = Callable[[Tensor, Tensor], Tensor]  # images (n, c, h, w) and a perturbation (n or 1, ...) to attacked images
Views = Callable[[Tensor], Sequence[Tensor]]  # attacked images to what the classifier is shown of them
EOT_QUALITIES = (50, 95)  # JPEG qualities that are drawn from


def low_frequency(
    classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, alpha: float, steps: float, grid: float
) -> Tensor:
    """PGD (Linf) on a coarse grid of values, enlarged to the image (bicubic).

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        eps: largest change, in [0, 1].
        alpha: size of a step.
        steps: number of steps.
        grid: values on each side of the grid, for every channel.
    """
    size = images.shape[2:]

    def applied(x: Tensor, change: Tensor) -> Tensor:
        return x + F.interpolate(change, size=size, mode="bicubic", align_corners=False).clamp(-eps, eps)

    start = _signs(images, (len(images), images.shape[1], int(grid), int(grid))) * eps / 2
    return _climbed(classifier, images, labels, start, applied, alpha, steps, (-eps, eps))


def universal(
    classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, alpha: float, steps: float
) -> Tensor:
    """One perturbation (Linf) for all the images of a batch (Moosavi-Dezfooli et al. 2017), by PGD.

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        eps: largest change, in [0, 1].
        alpha: size of a step.
        steps: number of steps.
    """
    start = _signs(images, (1, *images.shape[1:])) * eps / 2
    return _climbed(classifier, images, labels, start, torch.add, alpha, steps, (-eps, eps))


def patch(classifier: Classifier, images: Tensor, labels: Tensor, *, side: float, alpha: float, steps: float) -> Tensor:
    """A square at a random place of each image, anything in [0, 1] (Brown et al. 2017).

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        side: of the square, in pixels.
        alpha: size of a step.
        steps: number of steps.
    """
    n, _, h, w = images.shape
    side = min(int(side), h, w)
    top, left = (torch.randint(0, size - side + 1, (n, 1), dtype=torch.int64, device="cpu") for size in (h, w))
    rows, columns = (torch.arange(size, dtype=torch.int64, device="cpu") for size in (h, w))
    inside = ((rows >= top) & (rows < top + side))[:, None, :, None]
    inside = (inside & ((columns >= left) & (columns < left + side))[:, None, None, :]).to(images.device)

    def applied(x: Tensor, change: Tensor) -> Tensor:
        return torch.where(inside, change, x)

    start = (images + _signs(images, tuple(images.shape)) / 4).clamp(0, 1)
    return _climbed(classifier, images, labels, start, applied, alpha, steps, (0, 1))


def colour(
    classifier: Classifier, images: Tensor, labels: Tensor, *, size: float, alpha: float, steps: float
) -> Tensor:
    """Every pixel's channels mixed by one matrix and shifted.

    An image of one channel is made lighter or darker and stronger or weaker.

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        size: largest change of every entry of the matrix and of the shift.
        alpha: size of a step.
        steps: number of steps.
    """
    n, c = images.shape[:2]
    plain = torch.eye(c, c + 1, dtype=torch.float32, device=images.device)

    def applied(x: Tensor, change: Tensor) -> Tensor:
        matrix = plain + change
        return torch.einsum("nij,njhw->nihw", matrix[:, :, :c], x) + matrix[:, :, c:, None]

    start = _signs(images, (n, c, c + 1)) * size / 4
    return _climbed(classifier, images, labels, start, applied, alpha, steps, (-size, size))


def through_jpeg(
    classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, alpha: float, steps: float, quality: float
) -> Tensor:
    """PGD (Linf) on what a JPEG file shows of the image, with the codec's gradient taken for the identity's.

    Athalye et al. 2018 (BPDA). What is returned is not saved yet.

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1], of one or three channels.
        labels: their classes (n,).
        eps: largest change, in [0, 1].
        alpha: size of a step.
        steps: number of steps.
        quality: of the file, from 1 to 100.
    """
    return _climbed_through(classifier, images, labels, lambda x: [_saved(x, int(quality))], eps, alpha, steps)


def through_any_jpeg(
    classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, alpha: float, steps: float, samples: float
) -> Tensor:
    """The same in expectation over qualities (Athalye et al. 2018, EOT): each step draws some from EOT_QUALITIES.

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1], of one or three channels.
        labels: their classes (n,).
        eps: largest change, in [0, 1].
        alpha: size of a step.
        steps: number of steps.
        samples: qualities in each step.
    """

    def views(x: Tensor) -> list[Tensor]:
        low, high = EOT_QUALITIES
        drawn = torch.randint(low, high + 1, (int(samples),), dtype=torch.int64, device="cpu")
        return [_saved(x, quality) for quality in drawn.tolist()]

    return _climbed_through(classifier, images, labels, views, eps, alpha, steps)


def _climbed_through(
    classifier: Classifier, images: Tensor, labels: Tensor, views: Views, eps: float, alpha: float, steps: float
) -> Tensor:
    """PGD (Linf) from random signs, on what the classifier is shown of the image."""
    start = _signs(images, tuple(images.shape)) * eps / 2
    return _climbed(classifier, images, labels, start, torch.add, alpha, steps, (-eps, eps), views)


def _saved(images: Tensor, quality: int) -> Tensor:
    """What a JPEG file shows of images in [0, 1]; gradients pass straight through."""
    pixels = (255 * images.detach()).round().to(torch.uint8)
    shown = saved_as("JPEG", quality)(pixels, 0).to(images) / 255
    return images + (shown - images).detach()


def _signs(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Random signs; drawn on the CPU, so that a seed gives the same everywhere."""
    return (torch.randint(0, 2, shape, dtype=torch.float32, device="cpu") * 2 - 1).to(images.device)


def _climbed(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    applied: Applied,
    alpha: float,
    steps: float,
    bounds: tuple[float, float],
    views: Views = lambda x: [x],
) -> Tensor:
    """Signed gradient ascent on the mean margin of the views against the labels, over perturbations within bounds.

    Of each image the strongest copy on the way is kept.
    """
    change, best = start, images.clone()
    worst = torch.full((len(images),), -torch.inf, dtype=torch.float32, device=images.device)
    for step in range(int(steps) + 1):
        leaf = change.detach().requires_grad_()
        point = applied(images, leaf).clamp(0, 1)
        value = torch.stack([margin(classifier.logits(view), labels) for view in views(point)]).mean(0)
        better = value.detach() > worst
        best[better], worst[better] = point.detach()[better], value.detach()[better].to(worst)
        if step < int(steps):
            (slope,) = torch.autograd.grad(value.sum(), leaf)
            change = (leaf.detach() + alpha * slope.sign()).clamp(*bounds)
    return best


def stop_at_boundary(
    classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, alpha: float, steps: float
) -> Tensor:
    """PGD (Linf) in which every image stops once it is misclassified as confidently as another clean image is right.

    Args:
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        eps: largest change, in [0, 1].
        alpha: size of a step.
        steps: number of steps.
    """
    with torch.no_grad():
        goal = margin(classifier.logits(images), labels).roll(1).clamp(max=0)
    point = (images + eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    live = torch.arange(len(images), device=images.device, dtype=torch.int64)
    for step in range(int(steps) + 1):
        leaf = point[live].requires_grad_()
        logits = classifier.logits(leaf)
        predicted = logits.argmax(1)
        confident = margin(logits, predicted) <= goal[live]
        going = (predicted == labels[live]) | ~confident
        if step == int(steps) or not bool(going.any()):
            break
        (slope,) = torch.autograd.grad(margin(logits, labels[live]).sum(), leaf)
        origin = images[live]
        moved = (leaf.detach() + alpha * slope.sign()).clamp(origin - eps, origin + eps).clamp(0, 1)
        point[live[going]] = moved[going]
        live = live[going]
    return point


def noise(classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, tries: float) -> Tensor:
    """Random signs, drawn anew for each image until it is misclassified.

    Args:
        classifier: what is attacked; no gradient is needed.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        eps: size of the change, in [0, 1].
        tries: at most so many draws.
    """
    out = images.clone()
    live = torch.arange(len(images), device=images.device, dtype=torch.int64)
    for _ in range(int(tries)):
        out[live] = (images[live] + eps * _signs(images, tuple(images[live].shape))).clamp(0, 1)
        live = live[classifier.logits(out[live]).argmax(1) == labels[live]]
        if not len(live):
            break
    return out
