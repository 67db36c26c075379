"""Classifiers by dotted name."""

from torch import nn

from advconn.models.architectures import compact


def five() -> nn.Module:
    """Five classes, untrained."""
    return compact(5, widths=(4, 8)).eval()
