"""Network architectures that advconn ships weights for."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn


class _Stage(nn.Module):
    """Halve the resolution, widen to `out` channels, then one residual convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(out)
        self.refine = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(out)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.pool(self.widen_norm(self.widen(x))))
        return x + self.act(self.refine_norm(self.refine(x)))


def compact(num_classes: int = 10, in_chans: int = 3, widths: tuple[int, ...] = (24, 64, 128, 256)) -> nn.Sequential:
    """A plain convolutional classifier for images of about 32 pixels; 80 million multiply-adds at 32 x 32.

    A stem, then one stage for each further width (each halves the resolution), global max-pooling and a linear layer.
    Takes normalised images (n, in_chans, h, w), gives logits (n, num_classes).

    Args:
        num_classes: of its answer.
        in_chans: channels of the images.
        widths: channels of the stem and of every stage.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
    layers["stem_norm"] = nn.BatchNorm2d(widths[0])
    layers["stem_act"] = nn.ReLU()
    for i, (channels, out) in enumerate(pairwise(widths), start=1):
        layers[f"stage{i}"] = _Stage(channels, out)
    layers["pool"] = nn.AdaptiveMaxPool2d(1)
    layers["flat"] = nn.Flatten()
    layers["head"] = nn.Linear(widths[-1], num_classes)
    return nn.Sequential(layers)
