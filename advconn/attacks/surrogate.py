"""A small network that answers as a classifier does: what an attacker without access trains, to attack it instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.runtime.forward_passes import gradients_enabled

LARGEST = 48  # pixels of a side that the network sees; more are brought to so many
STEPS, BATCH, RATE = 400, 64, 4e-3


class _Shrunk(nn.Module):
    """A network that sees at most LARGEST pixels a side."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, k) of images (n, c, h, w) in [0, 1]."""
        side = max(images.shape[2:])
        if side > LARGEST:
            images = F.interpolate(images, size=(LARGEST, LARGEST), mode="area")
        out: Tensor = self.net(images * 4 - 2)
        return out


def train_surrogate(classifier: Classifier, images: Tensor, *, seed: int = 0, steps: int = STEPS) -> Classifier:
    """A network trained on a classifier's answers to images (Papernot et al. 2017).

    It asks for the classifier's logits at every image once, and for nothing else: no label, no gradient. It is trained
    on copies of the images that are shifted, mirrored and changed in light, to give the same answer.

    Args:
        classifier: what is imitated.
        images: (n, c, h, w) in [0, 1].
        seed: of its weights and of all that is drawn.
        steps: of training.
    """
    images = classifier.check(images).detach()
    with torch.no_grad():
        wanted = torch.cat([classifier.logits(x) for x in images.split(64)]).softmax(1)
    devices: list[torch.device] = [classifier.device] if classifier.device.type == "cuda" else []
    with torch.random.fork_rng(devices), gradients_enabled():
        torch.manual_seed(seed)
        depth = 3 if min(images.shape[2:]) >= 16 else 2  # each stage halves the resolution
        net = _Shrunk(compact(classifier.num_classes, classifier.channels, (16, 32, 64, 96)[: depth + 1]))
        net.train().to(images.device)
        optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
        for _ in range(steps):
            rows = torch.randint(0, len(images), (min(BATCH, max(len(images), 2)),), dtype=torch.int64, device="cpu")
            loss = F.cross_entropy(net(_varied(images[rows.to(images.device)])), wanted[rows.to(images.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return Classifier(net.eval(), size=classifier.preprocessing.size, channels=classifier.channels)


def _varied(images: Tensor) -> Tensor:
    """Copies shifted by up to an eighth of the side, half of them mirrored, in another light."""
    h, w = images.shape[2:]
    dy, dx = (int(torch.randint(-(s // 8), s // 8 + 1, (), dtype=torch.int64, device="cpu")) for s in (h, w))
    mirrored = torch.rand(len(images), 1, 1, 1, dtype=torch.float32, device="cpu").to(images.device) < 0.5
    gain = torch.rand(len(images), 1, 1, 1, dtype=torch.float32, device="cpu").to(images.device) * 0.4 + 0.8
    return (torch.where(mirrored, images.flip(3), images).roll((dy, dx), (2, 3)) * gain).clamp(0, 1)
