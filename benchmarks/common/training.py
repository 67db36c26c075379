"""How the CIFAR-10 networks are trained: split, augmentation, optimiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from advconn.models.architectures import compact

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
HELD_OUT = 5000


def split(total: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images the classifier sees, and of those kept for the detector."""
    order, held = np.random.default_rng(seed).permutation(total), min(HELD_OUT, total // 8)
    return order[:-held], order[-held:]


def augment(images: torch.Tensor, generator: torch.Generator, reach: int = 4) -> torch.Tensor:
    """Mirror at random and shift by up to `reach` pixels."""
    n, _, h, w = images.shape
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    device = images.device
    dy, dx = (torch.randint(0, 2 * reach + 1, (n, 1), generator=generator).to(device) for _ in range(2))
    rows = (dy + torch.arange(h, device=device))[:, None, :, None]
    columns = dx + torch.arange(w, device=device)
    mirrored = torch.rand(n, 1, generator=generator).to(device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)[:, None, None, :]
    batch = torch.arange(n, device=device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=device)[None, :, None, None]
    return padded[batch, channel, rows, columns]


def accuracy(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    net.eval()
    with torch.inference_mode():
        hits = [(net(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    net.train()
    return float(torch.stack(hits).sum()) / len(labels)


def network(path: Path) -> torch.nn.Module:
    """The network whose weights stand in a file, in evaluation mode."""
    state = load_file(path)
    widths = [state["stem.weight"].shape[0], *(state[f"stage{i}.widen.weight"].shape[0] for i in (1, 2, 3))]
    net = compact(widths=tuple(widths)).eval()
    net.load_state_dict(state)
    return net


def optimizer_of(net: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """SGD with momentum; weights decay, biases and normalisation do not."""
    decay = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
