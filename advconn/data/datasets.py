"""Images that a benchmark runs on: the user's own, CIFAR-10's test images, or the digits inside scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advconn.errors import DataError
from advconn.runtime.cache import cache_folder

TRAIN_END, FIT_END = 600, 1000  # digits up to TRAIN_END train the shipped classifier, up to FIT_END its detector

DIGIT_ATTACKS: Mapping[str, str] = {
    "pgd": "pgd:eps=51/255,steps=10",
    "pgd-l2": "pgd-l2:eps=1,steps=10",
    "pgd-stop": "pgd-stop:eps=51/255,steps=20",
    "fgsm": "fgsm:eps=51/255",
    "ffgsm": "ffgsm:eps=51/255",
    "bim": "bim:eps=51/255,steps=10",
    "jitter": "jitter:eps=51/255,steps=10",
    "cw": "cw:c=1,kappa=0,lr=0.05,steps=50",
    "square": "square:eps=51/255,n_queries=500",
    "autoattack": "autoattack:eps=51/255",
}
DIGIT_MIXTURE = (
    "pgd:eps=51/255,steps=10",
    "pgd:eps=26/255,steps=10",
    "pgd:eps=13/255,steps=10",
    "pgd-l2:eps=1,steps=10",
    "pgd-l2:alpha=1,eps=1,steps=1",
    "pgd-stop:eps=51/255,steps=20",
    "cw:kappa=0,lr=0.05,steps=50",
    "cw:kappa=3,lr=0.05,steps=50",
    "fgsm:eps=51/255",
    "fgsm:eps=26/255",
)


@dataclass(frozen=True)
class Data:
    """Images that a benchmark runs on.

    Attributes:
        name: what they are.
        images: (n, c, h, w) uint8.
        labels: true classes (n,), or None where they are not known.
        attacks: specifications by name, of strengths that suit the images.
        adaptive_eps: largest changes (Linf) of attacks that know the detector, in [0, 1].
    """

    name: str
    images: Tensor
    labels: Tensor | None
    attacks: Mapping[str, str] = field(default_factory=dict)
    adaptive_eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)

    def __len__(self) -> int:
        return len(self.images)


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 images (n, 1, 8, 8) uint8 of hand-written digits inside scikit-learn, shuffled, and their labels."""
    from sklearn.datasets import load_digits

    dataset = load_digits()
    order = np.random.default_rng(0).permutation(len(dataset.target))
    images = (dataset.images[order] * 255 / 16).round().astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(dataset.target[order])


def unseen_digits() -> Data:
    """The digits that neither the shipped classifier nor its detector has seen."""
    images, labels = digits()
    return Data(
        "digits (scikit-learn)", images[FIT_END:], labels[FIT_END:], DIGIT_ATTACKS, (13 / 255, 26 / 255, 51 / 255)
    )


def cifar10(root: Path | None = None) -> Data:
    """CIFAR-10's 10,000 test images through torchvision: from its folder, or downloaded with its progress bar.

    Raises:
        DataError: not there, and the network is not either.
    """
    from torchvision.datasets import CIFAR10

    cache = cache_folder()
    folder = root or (Path(os.environ["ADVCONN_DATA"]) if os.environ.get("ADVCONN_DATA") else cache and cache / "data")
    if folder is None:
        raise DataError("there is no home to keep CIFAR-10 in: set ADVCONN_DATA to a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        dataset = CIFAR10(str(folder), train=False, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"CIFAR-10 is not in {folder} and could not be downloaded: {error}") from error
    return Data(
        "CIFAR-10 (test images)",
        torch.from_numpy(dataset.data).permute(0, 3, 1, 2),
        torch.tensor(dataset.targets, dtype=torch.int64, device="cpu"),
    )
