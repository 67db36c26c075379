"""Other architectures for CIFAR-10, trained briefly: what `advconn study architectures` compares where none is at hand.

    python -m benchmarks.ship.train_architectures googlenet --data DIR --out googlenet.safetensors
    advconn study architectures --data DIR/test.npz --out STUDY \\
        --model benchmarks/ship/train_architectures.py:compact --weights models/cifar10/classifier.safetensors \\
        --model benchmarks/ship/train_architectures.py:googlenet --weights googlenet.safetensors

torchvision's ResNet-18 and GoogLeNet as they are (made for 224 pixels, so they keep little resolution of 32), a small
vision transformer, and `compact`, the network that advconn ships. For what carries over from one network to another:
ResNet-18 of half the width at CIFAR-10's resolution (He et al. 2016), a vision transformer of six layers
(both of timm's parts), and plain convolutions without any normalisation. Each is made for images in [0, 1]. Trained on
the same images as train_cifar10.py's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.models as tv
from safetensors.torch import save_file
from torch import Tensor, nn

from advconn.models import architectures

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
WIDTHS = (24, 64, 192, 320)  # of the shipped network


class Normalised(nn.Sequential):
    """Layers in turn, after bringing images in [0, 1] to about zero mean and unit deviation."""

    def __init__(self, *layers: nn.Module | OrderedDict[str, nn.Module]) -> None:
        super().__init__(*layers)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images - self.mean) / self.std)


def compact() -> nn.Module:
    return Normalised(OrderedDict(architectures.compact(widths=WIDTHS).named_children())).eval()


def resnet18() -> nn.Module:
    return Normalised(tv.resnet18(num_classes=10)).eval()


def googlenet() -> nn.Module:
    return Normalised(tv.googlenet(num_classes=10, aux_logits=False, init_weights=True)).eval()


def vit() -> nn.Module:
    return Normalised(tv.VisionTransformer(32, 4, 4, 4, 96, 192, num_classes=10)).eval()


def half18() -> nn.Module:
    from timm.models.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, (2, 2, 2, 2), num_classes=10, channels=(32, 64, 128, 256), stem_width=32)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return Normalised(net).eval()


def vit6() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return Normalised(
        VisionTransformer(img_size=32, patch_size=4, num_classes=10, embed_dim=192, depth=6, num_heads=3, mlp_ratio=2.0)
    ).eval()


def plain() -> nn.Module:
    layers: list[nn.Module] = []
    for inside, out in ((3, 48), (48, 48), (48, 96), (96, 96), (96, 192), (192, 192)):
        layers += [nn.Conv2d(inside, out, 3, padding=1), nn.ReLU(), *[nn.MaxPool2d(2)] * (inside == out)]
    head = (nn.Flatten(), nn.Dropout(0.3), nn.Linear(192 * 16, 128), nn.ReLU(), nn.Linear(128, 10))
    return Normalised(*layers, *head).eval()


FACTORIES = {f.__name__: f for f in (compact, resnet18, googlenet, vit, half18, vit6, plain)}
RATES = dict.fromkeys(FACTORIES, 2e-3) | {"vit": 1e-3, "vit6": 1e-3, "plain": 1e-3}


def main() -> None:
    from benchmarks.common.cifar10 import read
    from benchmarks.common.provenance import machine
    from benchmarks.common.training import augment, split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FACTORIES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    train, test = read(args.data / "train.npz"), read(args.data / "test.npz")
    train_rows = split(len(train.labels))[0]
    x, y = train.images[train_rows], train.labels[train_rows]
    net = FACTORIES[args.name]().train().to(memory_format=torch.channels_last)
    rate, steps = RATES[args.name], len(y) // args.batch
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=args.epochs * steps, pct_start=0.2)
    started = time.time()
    for epoch in range(args.epochs):
        total = 0.0
        for rows in torch.randperm(len(y), generator=generator)[: steps * args.batch].view(steps, args.batch):
            batch = augment(x[rows].float() / 255, generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(batch).float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"epoch {epoch + 1}/{args.epochs} loss {total / steps:.4f} {time.time() - started:.0f} s", flush=True)

    net.eval()
    with torch.inference_mode():
        hits = [
            (net(i.float() / 255).argmax(1) == t).sum()
            for i, t in zip(test.images.split(500), test.labels.split(500), strict=True)
        ]
    figures = {
        "test_accuracy": float(torch.stack(hits).sum()) / len(test.labels),
        "epochs": args.epochs,
        "seed": args.seed,
        "seconds": round(time.time() - started),
    } | machine()
    partial = args.out.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, partial)
    partial.rename(args.out)
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    print(figures)


if __name__ == "__main__":
    main()
