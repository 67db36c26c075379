"""Label-preserving copies of images (n, c, h, w) in [0, 1]: what a clean query is connected to without a barrier.

Each is the same for every image and knows nothing of the batch; all are differentiable, rounding straight through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.errors import DataError

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
    """Mirror image.

    Example:
        >>> import torch
        >>> from advconn.features.transforms import flip
        >>> flip(torch.tensor([[[[0.0, 0.5, 1.0]]]])).tolist()
        [[[[1.0, 0.5, 0.0]]]]
    """
    return images.flip(3)


def bits(count: int) -> Copy:
    """Rounded to so many bits a channel; a gradient goes straight through (Athalye et al. 2018).

    Example:
        >>> import torch
        >>> from advconn.features.transforms import bits
        >>> bits(1)(torch.tensor([0.2, 0.4, 0.6]))
        tensor([0., 0., 1.])
    """

    def fewer(images: Tensor) -> Tensor:
        rounded = (images.detach() * (2**count - 1)).round() / (2**count - 1)
        return images + (rounded - images.detach()) if images.requires_grad else rounded

    return fewer


def shift(dy: int, dx: int) -> Copy:
    """Moved by whole pixels; the border is repeated.

    Args:
        dy: pixels down.
        dx: pixels to the right.

    Example:
        >>> import torch
        >>> from advconn.features.transforms import shift
        >>> right1 = shift(0, 1)
        >>> right1(torch.tensor([[[[0.0, 0.5, 1.0]]]])).tolist()
        [[[[0.0, 0.0, 0.5]]]]
    """

    def moved(images: Tensor) -> Tensor:
        h, w = images.shape[2:]
        rows = (torch.arange(h, dtype=torch.int64, device=images.device) - dy).clamp(0, h - 1)
        columns = (torch.arange(w, dtype=torch.int64, device=images.device) - dx).clamp(0, w - 1)
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
        weights = torch.exp(-(torch.arange(-2, 3, dtype=images.dtype, device=images.device) ** 2) / (2 * sigma**2))
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
        generator = torch.Generator(device="cpu").manual_seed(seed)
        grain = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32, device="cpu").to(images)
        return (images + scale * grain).clamp(0, 1)

    return noisy


def contrast(factor: float) -> Copy:
    """Contrast about each image's mean changed by a factor."""

    def changed(images: Tensor) -> Tensor:
        middle = images.mean((1, 2, 3), keepdim=True)
        return (middle + factor * (images - middle)).clamp(0, 1)

    return changed


COPIES: Mapping[str, Copy] = MappingProxyType(
    {
        "blur4": blur(0.4),
        "blur5": blur(0.5),
        "mean3": mean3,
        "median3": median3,
        "rescale50": rescale(0.5),
        "bits5": bits(5),
        "noise2": noise(0.02, 2),
        "noise3": noise(0.03, 3),
        "noise3b": noise(0.03, 14),
        "noise12": noise(0.12, 18),
        "pale": saturation(0.5),
        "strong": contrast(1.3),
        "strongest": contrast(1.6),
        "strong+down1": both(contrast(1.3), shift(1, 0)),
        "left1": shift(0, -1),
        "right1": shift(0, 1),
        "up1": shift(-1, 0),
        "down1": shift(1, 0),
        "aside1": shift(1, 1),
        "aside1b": shift(-1, -1),
        "left2": shift(0, -2),
        "zoom108": zoom(1.08),
        "zoom92": zoom(0.92),
        "zoom85": zoom(0.85),
        "shear": shear(0.12),
        "flip": flip,
        "flip+up1": both(flip, shift(-1, 0)),
        "flip+down1": both(flip, shift(1, 0)),
        "flip+rotate": both(flip, rotate(6)),
        "flip+unrotate": both(flip, rotate(-6)),
    }
)


def transform_named(name: str) -> Copy:
    """The copy of this name.

    Raises:
        DataError: there is none.
    """
    if name not in COPIES:
        raise DataError(f"no copy named {name!r}: expected some of {', '.join(COPIES)}")
    return COPIES[name]
