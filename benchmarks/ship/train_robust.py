"""Train a CIFAR-10 network against attacks: a companion for the shipped classifier, or what is taught beside it.

    python -m benchmarks.ship.train_robust --data DIR --out robust.safetensors
    python -m benchmarks.ship.train_robust --data DIR --out companion.safetensors --device cuda --objective trades \\
        --widths 64 112 224 448 --eps 4 --steps 3 --epochs 40 --lr 0.2

The first goes on from the shipped classifier's weights with the step of Wong, Rice & Kolter 2020: every batch is
replaced by its FGSM copy from a random start. Objectives: `attacked` is the cross-entropy of the attacked copy (Madry
et al. 2018), `trades` the cross-entropy of the clean image plus BETA times the divergence of the attacked one (Zhang et
al. 2019), `reject` asks that no attacked copy make another class plausible while the true one stays plausible on the
clean image: what a detector needs of its companion; `noise` is the cross-entropy under Gaussian noise of deviation EPS
(Cohen et al. 2019), for certificate.py. Trained on the same images as train_cifar10.py; weights are
averaged over the steps. Goes on from OUT.partial after an interruption.

The figures tell, of images that it was not trained on: accuracy; of PGD, 20 steps, that knows this network alone and
has no other to fool, the share of images on which another class becomes as plausible as the true one is on 95 % of
clean images.
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
from torch import Tensor, nn

from advconn.models.architectures import compact
from benchmarks.common.training import MEAN, STD, accuracy, augment, network, optimizer_of, split

SHIPPED = Path(__file__).parent.parent / "models" / "cifar10" / "classifier.safetensors"
LOOKED = 2000  # held-out images that the figures are of


class Normalised(nn.Module):
    """A network that takes images in [0, 1]."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.net = net
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def forward(self, images: Tensor) -> Tensor:
        batch = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16):
            logits: Tensor = self.net(batch)
        return logits.float()


def others(values: Tensor, labels: Tensor) -> Tensor:
    """The largest value (n,) of (n, k) among classes that are not the label."""
    return values.scatter(1, labels[:, None], -torch.inf).amax(1)


def aim(objective: str, logits: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """What the attack of the training raises, summed over the batch."""
    if objective == "trades":
        return F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="sum")
    if objective == "reject":
        return others(logits.log_softmax(1), labels).sum()
    return F.cross_entropy(logits, labels, reduction="sum")


def attacked(net: nn.Module, objective: str, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Copies within eps (Linf) that raise the objective's aim."""
    if objective == "noise":
        return x + eps * torch.randn_like(x)
    with torch.no_grad():
        clean = net(x) if objective == "trades" else x
    centre, size = x, 1.25 * eps if steps == 1 else 2.5 * eps / steps
    point = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        leaf = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(aim(objective, net(leaf), clean, y), leaf)
        point = (centre + (leaf.detach() + size * slope.sign() - centre).clamp(-eps, eps)).clamp(0, 1)
    return point


def loss_of(objective: str, net: nn.Module, x: Tensor, y: Tensor, changed: Tensor, beta: float) -> Tensor:
    if objective in ("attacked", "noise"):
        return F.cross_entropy(net(changed), y)
    clean, moved = net(torch.cat([x, changed])).chunk(2)
    if objective == "trades":
        apart = F.kl_div(moved.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return F.cross_entropy(clean, y) + beta * apart
    wrong = others(moved.log_softmax(1), y)  # of a probability that must stay small
    return F.cross_entropy(clean, y) - beta * torch.log1p(-wrong.exp().clamp(max=0.999)).mean()


def admitted(net: nn.Module, x: Tensor, y: Tensor, eps: float, threshold: float) -> float:
    """Share of images, within eps, on which another class gets a log-probability over `threshold`."""
    point, over = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for step in range(21):
        leaf = point.detach().requires_grad_()
        value = others(net(leaf).log_softmax(1), y)
        over |= value.detach() > threshold
        (slope,) = torch.autograd.grad(value.sum(), leaf)
        size = eps * (0.5 - 0.45 * step / 20)
        point = (x + (leaf.detach() + size * slope.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return float(over.float().mean())


def looked_at(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, object]:
    """Accuracy, and what an attack on this network alone gets admitted at 1, 2, 4 and 8 / 255."""
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(x) for x in images.split(500)])
    own = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    threshold = float(own.quantile(0.05))
    rows = slice(0, 1000)
    shares = {f"{e}/255": admitted(net, images[rows], labels[rows], e / 255, threshold) for e in (1, 2, 4, 8)}
    return {"accuracy": float((logits.argmax(1) == labels).float().mean()), "at": threshold, "admitted": shares}


def load(path: Path, device: torch.device) -> tuple[Tensor, Tensor]:
    with np.load(path) as data:
        images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
        return images.to(device), torch.from_numpy(data["labels"]).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, default=SHIPPED, help="weights to go on from, without --widths")
    parser.add_argument("--widths", type=int, nargs="+", help="of a new network")
    parser.add_argument("--objective", choices=["attacked", "trades", "reject", "noise"], default="attacked")
    parser.add_argument("--beta", type=float, default=6.0)
    parser.add_argument("--eps", type=float, default=4, help="in steps of 1/255")
    parser.add_argument("--steps", type=int, default=1, help="of the attack")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="train no longer than this: the schedule ends then")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="write weights of half precision")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device, eps = torch.device(args.device), args.eps / 255
    generator = torch.Generator().manual_seed(args.seed)
    (images, labels), test = load(args.data / "train.npz", device), load(args.data / "test.npz", device)
    train_rows, kept = (torch.from_numpy(rows).to(device) for rows in split(len(labels)))
    x, y = images[train_rows], labels[train_rows]

    inner = compact(widths=tuple(args.widths)) if args.widths else network(args.start)
    inner = inner.train().to(device, memory_format=torch.channels_last)
    net = Normalised(inner, device)
    average = torch.optim.swa_utils.AveragedModel(
        inner, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    optimizer = optimizer_of(inner, args.lr)
    steps = len(y) // args.batch
    partial, first = args.out.with_suffix(".partial"), 0
    if partial.exists():
        state = torch.load(partial, weights_only=True)
        inner.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first = state["epoch"]
    started = time.time()

    def rate(done: float) -> float:
        """Learning rate when this share of the work is done."""
        return args.lr * (done / 0.2 if done < 0.2 else (1 - done) / 0.8)

    for epoch in range(first, args.epochs):
        order = torch.randperm(len(y), generator=generator)[: steps * args.batch].view(steps, args.batch)
        total, spent = torch.zeros((), device=device), time.time() - started
        for i, rows in enumerate(order.to(device)):
            done = (epoch + i / steps) / args.epochs
            if args.seconds:
                done = max(done, (time.time() - started) / args.seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = rate(done)
            clean = augment(x[rows].float() / 255, generator)
            changed = attacked(net, args.objective, clean, y[rows], eps, args.steps)
            loss = loss_of(args.objective, net, clean, y[rows], changed, args.beta)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(inner.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(inner)
            total += loss.detach()
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {float(total) / steps:.4f} {time.time() - started:.0f} s", flush=True
        )
        state = {"net": inner, "average": average, "optimizer": optimizer}
        saved = {name: part.state_dict() for name, part in state.items()}
        torch.save(saved | {"generator": generator.get_state(), "epoch": epoch + 1}, partial)
        if args.seconds and time.time() - started + (time.time() - started - spent) / 2 > args.seconds:
            break

    final = average.module.eval()
    apart = slice(0, LOOKED)
    figures = {
        "test_accuracy": accuracy(Normalised(final, device), test[0].float() / 255, test[1]),
        "held_out": looked_at(Normalised(final, device), images[kept[apart]].float() / 255, labels[kept[apart]]),
        "n": LOOKED,
    }
    chosen = ("objective", "beta", "eps", "steps", "epochs", "batch", "lr", "seed", "widths", "seconds")
    figures |= {name: getattr(args, name) for name in chosen}
    figures |= {"torch": torch.__version__, "took": round(time.time() - started), "epochs_done": epoch + 1}
    half = torch.float16 if args.half else torch.float32
    state = {k: v.contiguous().cpu() for k, v in final.state_dict().items()}
    save_file({k: v.to(half) if v.is_floating_point() else v for k, v in state.items()}, args.out)
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    partial.unlink()
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
