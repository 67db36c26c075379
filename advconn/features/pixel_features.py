"""What an image's own pixels are: how they are spread, how like their neighbours, how far from references.

Attacks that go far beyond the boundary leave copies that agree with the wrong class, but not the pixels of a picture:
the flat ground of a drawing, the black and white of a scan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advconn.features.references import References

PIXELS = ("dark", "light", "between", "same", "close", "levels", "entropy")
NEAR = ("own", "other", "rival", "nearer")
CLOSE = 2  # steps of 1/255 between neighbours that are close
DARKEST, LIGHTEST = 8, 247  # steps of 1/255 up to which a value is dark, and from which it is light
COARSE = 8  # values of a byte that fall into one bin of the entropy


@torch.no_grad()
def pixels(images: Tensor) -> Tensor:
    """What the values of images (n, c, h, w) in [0, 1] are, rounded to bytes: (n, PIXELS), each in [0, 1].

    The shares of values that are dark, light and between; of neighbours (across and down) that are the same and that
    are close; how many of the 256 values occur; and the entropy of their histogram of 32 bins, over its largest value.
    """
    n = len(images)
    values = (images * 255).round().clamp(0, 255).to(torch.int64)
    flat = values.flatten(1)
    ones = torch.ones_like(flat, dtype=torch.float32)
    none = torch.zeros(n, 256, dtype=torch.float32, device=images.device)
    counts = none.scatter_add_(1, flat, ones) / max(flat.shape[1], 1)
    bins = counts.view(n, 256 // COARSE, COARSE).sum(2)
    steps = torch.cat([values.diff(dim=dim).abs().flatten(1) for dim in (2, 3)], 1)
    dark, light = counts[:, : DARKEST + 1].sum(1), counts[:, LIGHTEST:].sum(1)
    columns = [dark, light, 1 - dark - light]
    columns += [(steps <= most).to(torch.float32).mean(1) for most in (0, CLOSE)]
    columns += [(counts > 0).to(torch.float32).mean(1), torch.special.entr(bins).sum(1) / math.log(bins.shape[1])]
    return torch.stack(columns, 1).nan_to_num(0.0).to(images.dtype)


@torch.no_grad()
def nearness(images: Tensor, references: References, classes: Tensor) -> Tensor:
    """How far the nearest references are from images (n, c, h, w): (n, NEAR).

    The logarithm of the distance (root mean square over the values) to the nearest of the predicted class; how much
    smaller, in logarithms, the one to the nearest of any other class is, and the one to the nearest of the next class;
    and the share of the other classes that have a nearer one.

    Args:
        images: (n, c, h, w) in [0, 1].
        references: of every class.
        classes: (n, 2) the predicted class and the next.
    """
    anchors = references.images.to(images).flatten(1)
    distance = torch.cdist(images.flatten(1), anchors) / anchors.shape[1] ** 0.5
    k = references.logits.shape[1]
    nearest = torch.stack([distance[:, rows].amin(1) for rows in references.by_class.to(images.device)], 1)
    nearest = (nearest + 1e-3).log()
    own, rival = nearest.gather(1, classes).unbind(1)
    others = nearest.scatter(1, classes[:, :1], torch.inf)
    nearer = (others < own[:, None]).to(images.dtype).sum(1) / max(k - 1, 1)
    return torch.stack([own, own - others.amin(1), own - rival, nearer], 1)
