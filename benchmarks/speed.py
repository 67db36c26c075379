"""What a verdict costs: time against the same forwards run bare, forwards per clean query, memory, and cold start.

    python benchmarks/speed.py [--detector models/cifar10] [--data DIR] [--device cpu] [--out DIR]

Claim: seconds per scored image divided by the seconds of the same number of forwards and input gradients, run through
the unmodified module in float32 at its best batch size in the same run, are 1.0 or less; 150 forwards or fewer a clean
query (a gradient counts as three); one image from a cold start in 6 s; memory grows with the batch, not the images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from cifar10 import MEAN, STD, machine, parts
from safetensors.torch import load_file

from advconn import bundle
from advconn.classifier import counting
from advconn.nets import compact

CAT = Path(__file__).parents[1] / "tests" / "images" / "cat.png"
MEMORY = """
import resource, sys, torch, advconn
from advconn.bundle import default
detector = advconn.load(default())
images = torch.randint(0, 256, (int(sys.argv[1]), 3, 32, 32), dtype=torch.uint8)
detector.score_samples(images)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Median of repeats, after a warm-up."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def bare(module: torch.nn.Module, images: torch.Tensor, gradient: bool) -> float:
    """Seconds per image of a forward, or of an input gradient, of the module as a user has it."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def forward() -> None:
        with torch.no_grad():
            module((images - mean) / std)

    def slope() -> None:
        leaf = images.clone().requires_grad_()
        loss = F.cross_entropy(
            module((leaf - mean) / std), torch.zeros(len(leaf), dtype=torch.long, device=leaf.device)
        )
        torch.autograd.grad(loss, leaf)

    return seconds(slope if gradient else forward) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--data", type=Path, help="CIFAR-10 as .npz; noise stands in without it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    detector = bundle.load(args.detector, device=args.device)
    state = load_file(args.detector / bundle.WEIGHTS)
    widths = tuple(state[k].shape[0] for k in sorted(k for k in state if k.endswith("widen.weight")))
    module = compact(10, 3, (state["stem.weight"].shape[0], *widths)).eval()
    module.load_state_dict(state)
    module.to(args.device)
    images = parts(args.data)["clean"].images[:64] if args.data else torch.randint(0, 256, (64, 3, 32, 32)).byte()
    with counting() as cost:
        detector.judge(images)
    noise = torch.rand(256, 3, 32, 32, device=args.device)
    rates = {}
    for kind in (False, True):
        sizes = {n: bare(module, noise[:n], kind) for n in (16, 64, 256)}
        rates[kind] = min(sizes.values())
        print("gradient" if kind else "forward", {n: f"{1 / s:.0f}/s" for n, s in sizes.items()}, flush=True)
    taken = seconds(lambda: detector.judge(images)) / 64
    floor = (cost.forwards * rates[False] + cost.gradients * rates[True]) / 64
    figures: dict[str, object] = {
        "seconds_per_image": taken,
        "seconds_bare": floor,
        "ratio": taken / floor,
        "forwards_per_query": cost.forwards / 64,
        "gradients_per_query": cost.gradients / 64,
        "seconds_one_image": seconds(lambda: detector.judge(images[:1])),
    }
    if args.device == "cpu":
        run = [sys.executable, "-m", "advconn.cli"]
        figures["help_seconds"] = seconds(lambda: subprocess.run([*run, "--help"], capture_output=True, check=True), 5)
        figures["cold_score_seconds"] = seconds(
            lambda: subprocess.run([*run, "score", CAT], capture_output=True, check=False), 3
        )
        for n in (64, 256, 2048):
            out = subprocess.run([sys.executable, "-c", MEMORY, str(n)], capture_output=True, text=True, check=True)
            figures[f"peak_mib_{n}_images"] = float(out.stdout)
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
