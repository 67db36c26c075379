"""Train the CIFAR-10 classifier that advconn ships: 92 % or more on the test images, in about two hours on two cores.

    python -m benchmarks.ship.train_cifar10 --data DIR --out a.safetensors --epochs 32 --widths 24 64 128 256 --whole
    python -m benchmarks.ship.train_cifar10 --data DIR --out b.safetensors
    python -m benchmarks.ship.train_cifar10 --data DIR --out c.safetensors --start b.safetensors \\
        --teachers a.safetensors b.safetensors --epochs 10 --lr 0.1 --seed 1
    python -m benchmarks.ship.train_cifar10 --data DIR --out classifier.safetensors --start c.safetensors \\
        --teachers b.safetensors c.safetensors --epochs 3 --lr 0.05 --seed 2

Four cycles: two plain ones, and two more of the second network that distil the mean logits of earlier ones.
DIR holds train.npz and test.npz (`images` uint8 n x 32 x 32 x 3, `labels`). The last HELD_OUT training images (in a
seeded order) are never trained on: a detector is fitted and calibrated on them, so that the test images are used for
nothing but the figures. Goes on from OUT.partial after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from advconn.models.architectures import compact
from benchmarks.common.training import MEAN, STD, accuracy, augment, network, optimizer_of, split

WIDTHS = (24, 64, 192, 320)


def cut_out(images: torch.Tensor, generator: torch.Generator, side: int = 8) -> torch.Tensor:
    """Blank a square of every image (DeVries & Taylor 2017)."""
    n, _, h, w = images.shape
    top, left = (torch.randint(0, size - side + 1, (n, 1), generator=generator) for size in (h, w))
    rows, columns = torch.arange(h) - top, torch.arange(w) - left
    inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    return images.masked_fill(inside, 0.0)


def distilled(logits: torch.Tensor, taught: torch.Tensor, temperature: float = 2.0) -> torch.Tensor:
    """Cross-entropy to the teachers' softened answer, scaled to match the labels' (Hinton et al. 2015)."""
    return temperature**2 * F.cross_entropy(logits / temperature, (taught / temperature).softmax(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights to start from: a further cycle")
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="weights whose mean logits are distilled")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--whole", action="store_true", help="do not cut squares out of the images")
    parser.add_argument("--epochs", type=int, default=26)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    sets = {}
    for name in ("train", "test"):
        with np.load(args.data / f"{name}.npz") as data:
            images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).float() / 255
            sets[name] = ((images - mean) / std, torch.from_numpy(data["labels"]))
    train_rows, kept = split(len(sets["train"][1]))
    x, y = sets["train"][0][train_rows], sets["train"][1][train_rows]

    net = (network(args.start) if args.start else compact(widths=tuple(args.widths))).train()
    net = net.to(memory_format=torch.channels_last)
    teachers = [network(path).to(memory_format=torch.channels_last) for path in args.teachers]
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    optimizer = optimizer_of(net, args.lr)
    steps = len(y) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * steps, pct_start=0.2)
    partial = args.out.with_suffix(".partial")
    first = 0
    if partial.exists():
        state = torch.load(partial, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        first = state["epoch"]

    started = time.time()
    for epoch in range(first, args.epochs):
        order = torch.randperm(len(y), generator=generator)[: steps * args.batch].view(steps, args.batch)
        total = torch.zeros(())
        for rows in order:
            batch = augment(x[rows], generator)
            batch = batch if args.whole else cut_out(batch, generator)
            batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(batch).float()
                with torch.no_grad():
                    taught = [teacher(batch).float() for teacher in teachers]
            loss = F.cross_entropy(logits, y[rows])
            if taught:
                loss = (loss + distilled(logits, torch.stack(taught).mean(0))) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            average.update_parameters(net)
            total += loss.detach()
        held = accuracy(average.module, sets["train"][0][kept[:2000]], sets["train"][1][kept[:2000]])
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {total / steps:.4f} held-out {held:.4f} "
            f"{time.time() - started:.0f} s",
            flush=True,
        )
        torch.save(
            {
                "net": net.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "epoch": epoch + 1,
            },
            partial,
        )

    figures = {
        "test_accuracy": accuracy(average.module, *sets["test"]),
        "held_out_accuracy": accuracy(average.module, sets["train"][0][kept], sets["train"][1][kept]),
        "train_images": len(y),
        "test_images": len(sets["test"][1]),
        "epochs": args.epochs,
        "seed": args.seed,
        "torch": torch.__version__,
        "seconds": round(time.time() - started),
    }
    save_file({k: v.contiguous() for k, v in average.module.state_dict().items()}, args.out)
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    partial.unlink()
    print(figures)


if __name__ == "__main__":
    main()
