"""What an attacker who knows the shipped detector leaves of it: SR@5 and SR@50 at eps 1, 2, 4 and 8 / 255.

    python benchmarks/adaptive.py --data DIR [--images 32] [--cache DIR] [--steps 25] [--restarts 1] [--out DIR]

Lagrangian, Selective and Orthogonal PGD (Bryniarski et al. 2021) through every path of the default, and the same on the
baselines that can be differentiated. SR: share of test images misclassified and not flagged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from cifar10 import Part, machine, parts

from advconn import bundle
from advconn.benchmark.adaptive import evade
from advconn.benchmark.evasion import BEST, Effort
from advconn.benchmark.folder import as_record
from advconn.benchmark.following import differentiable
from advconn.benchmark.run import Settings, run
from advconn.benchmark.runner import Runner
from advconn.datasets import Data
from advconn.detector import Detector
from advconn.metrics import share_interval


def alone(detector: Detector, part: Part, args: argparse.Namespace) -> None:
    """The Lagrangian on the detector alone: what is misclassified and not flagged at the threshold that ships."""
    model = detector.connectivity.classifier
    said = model.logits(model.check(part.images[: 2 * args.images])).argmax(1)
    rows = (said == part.labels[: 2 * args.images]).nonzero()[: args.images, 0]
    images, labels = model.check(part.images[rows]), part.labels[rows]
    at, results = detector.calibration_.threshold, []
    for size in (1, 2, 4, 8):
        settings = {"eps": size / 255, "way": "lagrangian", "steps": args.steps, "restarts": args.restarts}
        found = evade(model, differentiable(detector), images, labels, at, batch_size=16, **settings)
        seen = detector.judge(found.images)
        wrong = seen.predicted != labels.numpy()
        got = wrong & ~seen.adversarial
        low, high = share_interval(got)
        results.append(
            {"eps": f"{size}/255", "n": len(got), "misclassified": float(wrong.mean()), "evaded": float(got.mean())}
            | {"low": low, "high": high, "left_at": np.bincount(seen.stage[got], minlength=5)[1:].tolist()}
        )
        print(results[-1], flush=True)
    if args.out:
        record = {"machine": machine(), "way": "lagrangian", "steps": args.steps, "results": results}
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--eps", type=int, nargs="+", default=[1, 2, 4, 8], help="largest changes, in steps of 1/255")
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="one way, and no baseline beside it: minutes")
    parser.add_argument("--cache", type=Path, help="where finished work is kept: an interrupted run goes on")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    part = parts(args.data)["attack"]
    if args.alone:
        alone(bundle.load(args.detector), part, args)
        return
    data = Data("CIFAR-10 (test images)", part.images[:1000], part.labels[:1000])
    settings = Settings(
        attacks=("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=20"),
        baselines=("energy", "logits-only", "feature-squeezing", "flip-shift"),
        limit=50,
        effort=Effort(args.images, tuple(size / 255 for size in args.eps), args.steps, args.restarts),
    )

    def tell(stage: str, done: int, total: int) -> None:
        if stage.startswith("evade"):
            print(stage, done, total, flush=True)

    runner = Runner(folder=str(args.cache) if args.cache else None, progress=tell)
    report = run(data, bundle.load(args.detector), settings, runner)
    for row in report.evasions:
        if row.way == BEST:
            print(row)
    record = {"machine": machine()} | as_record(report)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
