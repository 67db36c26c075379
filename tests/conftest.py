"""What several test files use: a small classifier of scikit-learn's digits, and a detector fitted for it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from advconn.detector.detector import Detector
from advconn.detector.fitting import fit
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier

sys.path.insert(0, str(Path(__file__).parent))

MIXTURE = ("pgd:eps=0.2,steps=10", "pgd:eps=0.1,steps=10", "fgsm:eps=0.2", "cw:steps=30,lr=0.05")


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 images (n, 1, 8, 8) uint8 of hand-written digits, and their labels; shuffled, for they come by writer."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] * 255 / 16).round().astype(np.uint8)
    return torch.from_numpy(images)[:, None], torch.from_numpy(data.target[order])


@pytest.fixture(scope="session")
def net(digits) -> torch.nn.Module:
    """A small network trained on the first 900 digits for seconds: 9 of 10 of the others right."""
    images, labels = digits[0][:900].float() / 255, digits[1][:900]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = compact(10, 1, (8, 16, 32))
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        for _ in range(12):
            for rows in torch.randperm(900).split(100):
                optimizer.zero_grad()
                F.cross_entropy(module(images[rows]), labels[rows]).backward()
                optimizer.step()
    return module.eval()


@pytest.fixture(scope="session")
def classifier(net) -> Classifier:
    """The network as a classifier of 8 x 8 images of one channel."""
    return Classifier(net, size=(8, 8), channels=1)


@pytest.fixture(scope="session")
def detector(classifier, digits) -> Detector:
    """A detector fitted on 500 digits that the network was not trained on."""
    images, labels = digits
    return fit(classifier, images[900:1400], labels[900:1400], attacks=MIXTURE, per_attack=150, seed=0)
