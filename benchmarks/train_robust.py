"""Train the shipped CIFAR-10 classifier against attacks, to see what a detector on such a one costs an attacker.

    python benchmarks/train_robust.py --data DIR --out robust.safetensors

Single-step adversarial training from a random start (Wong, Rice & Kolter 2020): every batch is replaced by its FGSM
copy at eps (Linf). Trained on the same images as train_cifar10.py. Goes on from OUT.partial after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from cifar10 import read
from safetensors.torch import save_file
from train_cifar10 import MEAN, STD, accuracy, augment, network, split

from advconn import bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=bundle.default() / "classifier.safetensors")
    parser.add_argument("--eps", type=float, default=4 / 255)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    train, test = read(args.data / "train.npz"), read(args.data / "test.npz")
    seen, kept = split(len(train.labels))
    x, y = train.images[seen], train.labels[seen]

    def look(net: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        batch = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            logits: torch.Tensor = net(batch)
        return logits.float()

    net = network(args.start).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(y) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.2)
    partial, first = args.out.with_suffix(".partial"), 0
    if partial.exists():
        state = torch.load(partial, weights_only=True)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        first = state["epoch"]
    started = time.time()
    for epoch in range(first, args.epochs):
        order = torch.randperm(len(y), generator=generator)[: steps * args.batch].view(steps, args.batch)
        hits = 0.0
        for rows in order:
            clean = augment(x[rows].float() / 255, generator)
            change = args.eps * (2 * torch.rand(clean.shape, generator=generator) - 1)
            leaf = (clean + change).clamp(0, 1).requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(look(net, leaf), y[rows]), leaf)
            moved = (leaf.detach() + 1.25 * args.eps * slope.sign() - clean).clamp(-args.eps, args.eps)
            logits = look(net, (clean + moved).clamp(0, 1))
            loss = F.cross_entropy(logits, y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            hits += float((logits.argmax(1) == y[rows]).float().mean())
        print(f"epoch {epoch + 1}/{args.epochs} attacked {hits / steps:.4f} {time.time() - started:.0f} s", flush=True)
        state = {"net": net, "optimizer": optimizer, "schedule": schedule}
        saved = {name: part.state_dict() for name, part in state.items()}
        torch.save(saved | {"generator": generator.get_state(), "epoch": epoch + 1}, partial)

    def normalised(images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - mean) / std

    figures = {
        "test_accuracy": accuracy(net, normalised(test.images), test.labels),
        "held_out_accuracy": accuracy(net, normalised(train.images[kept]), train.labels[kept]),
        "eps": args.eps,
        "epochs": args.epochs,
        "seed": args.seed,
        "torch": torch.__version__,
        "seconds": round(time.time() - started),
    }
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, args.out)
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    partial.unlink()
    print(figures)


if __name__ == "__main__":
    main()
