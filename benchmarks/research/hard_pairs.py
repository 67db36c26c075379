"""Which search connects pairs of a class best at equal cost, and what a batch of pairs takes: the default of `connect`.

    python -m benchmarks.research.hard_pairs --data DIR [--record DIR]

Of 300 pairs of test images of a class (30 a class, cross-entropy under .001 at both ends) the 24 with the largest
linear barriers; at most 200 gradients a pair. Then 64 pairs: the seconds of a band in which no pivot rests, over the
seconds of as many gradients run bare through the unmodified module.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from advconn import bundle
from advconn.models.classifier import Classifier
from advconn.paths.connection import Connection, connect
from advconn.paths.elastic_band import relax_band
from advconn.paths.path import straight
from advconn.paths.space import Space
from advconn.runtime.forward_passes import count_passes
from benchmarks.common.cifar10 import read
from benchmarks.common.provenance import write_record
from benchmarks.common.training import MEAN, STD, network

SEARCHES = {
    "bypass, 3 levels": {"method": "bypass"},
    "bypass, 4 levels, 40 steps": {"method": "bypass", "levels": 4, "steps": 40},
    "band, rate .05": {"method": "band", "steps": 22, "rate": 0.05},
    "band, rate .1": {"method": "band", "steps": 22, "rate": 0.1},
    "band, rate .2": {"method": "band", "steps": 22, "rate": 0.2},
    "band of 5, rate .1": {"method": "band", "steps": 40, "pivots": 5, "rate": 0.1},
}


def pairs(classifier: Classifier, data: Path, each: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, ...), as many others, and their classes: both classified right with a cross-entropy under .001."""
    part = read(data / "test.npz")
    logits = classifier.logits(classifier.check(part.images))
    sure = F.cross_entropy(logits, part.labels, reduction="none") < 1e-3
    generator = torch.Generator().manual_seed(0)
    first, second = [], []
    for label in range(classifier.num_classes):
        rows = (sure & (part.labels == label)).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[: 2 * each]]
        first.append(rows[:each])
        second.append(rows[each:])
    a, b = torch.cat(first), torch.cat(second)
    return classifier.check(part.images[a]), classifier.check(part.images[b]), part.labels[a]


def summary(name: str, connection: Connection, seconds: float) -> dict:
    top = connection.curve.barrier
    return {
        "search": name,
        "mean_ce": float(top.mean()),
        "worst_ce": float(top.max()),
        "under_001": float((top < 1e-3).float().mean()),
        "under_01": float((top < 1e-2).float().mean()),
        "length_ratio": float(connection.length_ratio.mean()),
        "gradients": float(connection.gradients.mean()),
        "most_gradients": float(connection.gradients.max()),
        "seconds": seconds,
    }


def batched(space: Space, a: Tensor, b: Tensor, labels: Tensor, pivots: int = 9, steps: int = 22) -> dict:
    """Seconds of a band of 64 pairs, and of its gradients run bare through the unmodified module.

    Without the scans that find the highest point (a first and a last one of a point a segment), and with them as
    `connect` asks for: those are forward passes besides.
    """
    seconds, forwards = [], []
    for scans in ({"check": steps, "samples": 1}, {"check": 5}):
        with count_passes() as cost:
            started = time.perf_counter()
            band = relax_band(space.landscape(labels), straight(a, b), pivots=pivots, steps=steps, **scans)
            seconds.append(time.perf_counter() - started)
        forwards.append(cost.forwards)
    ours, count = seconds[0], int(band.gradients.sum())
    module = network(bundle.default() / "classifier.safetensors")
    for p in module.parameters():
        p.requires_grad_(False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    bare = torch.inf
    for size in (64, 256):
        images = torch.rand(size, 3, 32, 32)
        started, done = time.perf_counter(), 0
        while done < count // 4:
            leaf = images.clone().requires_grad_()
            torch.autograd.grad(module((leaf - mean) / std).logsumexp(1).sum(), leaf)
            done += size
        bare = min(bare, (time.perf_counter() - started) * count / done)
    return {
        "pairs": len(labels),
        "gradients": count,
        "seconds": ours,
        "bare_seconds": bare,
        "ratio": ours / bare,
        "forwards": forwards[0],
        "with_scans": {"seconds": seconds[1], "forwards": forwards[1], "ratio": seconds[1] / bare},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    classifier = bundle.load(bundle.default()).classifier
    space = Space(classifier)
    a, b, labels = pairs(classifier, args.data)
    line = connect(space, a, b, labels, method="line", samples=33).line.barrier
    spread = [float(line.quantile(q)) for q in (0.1, 0.5, 0.9)]
    hard = line.argsort(descending=True)[:24]
    results = []
    for delta in (1e-3, 1e-4):
        for name, options in SEARCHES.items():
            started = time.perf_counter()
            connection = connect(space, a[hard], b[hard], labels[hard], delta=delta, **options)
            results.append({"delta": delta} | summary(name, connection, time.perf_counter() - started))
            print(results[-1], flush=True)
    record = {
        "pairs": len(labels),
        "linear_barrier_10_50_90": spread,
        "connected_by_a_line_001": float((line < 1e-3).float().mean()),
        "hard_mean_linear_barrier": float(line[hard].mean()),
        "batch": batched(space, a[:64], b[:64], labels[:64]),
        "results": results,
    }
    print(record["batch"])
    write_record(args.record, "hard-pairs", record, __file__)


if __name__ == "__main__":
    main()
