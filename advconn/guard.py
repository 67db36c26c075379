"""Guard: the classifier's answer, a score and a flag, in one call inside an inference pipeline."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from advconn.detector import Detector


class Verdict(NamedTuple):
    """Of n images: logits (n, k), score (n,) (higher = more adversarial), p_value (n,) in (0, 1], flag (n,) bool."""

    logits: Tensor
    score: Tensor
    p_value: Tensor
    flag: Tensor


class Guard(nn.Module):
    """A module from images (n, c, h, w) in [0, 1] to a Verdict, all on the classifier's device.

    It answers the same at every batch size, in threads, and under `no_grad` and `inference_mode`. No gradient flows
    through it. It takes no part in training: it stays in evaluation mode.

    Raises:
        FitError: the detector has not been fitted.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        detector._fitted()
        self.detector = detector
        super().train(False)

    def train(self, mode: bool = True) -> Guard:
        """Stay in evaluation mode."""
        return self

    def forward(self, images: Tensor) -> Verdict:
        """Judge images (n, c, h, w): floats in [0, 1], or uint8."""
        seen = self.detector.judge(images)
        device = seen.logits.device
        score, p_value, flag = (torch.from_numpy(v).to(device) for v in (seen.score, seen.p_value, seen.adversarial))
        return Verdict(seen.logits, score, p_value, flag)
