"""What an attacker who knows the shipped detector leaves of it: SR@5 and SR@50 at eps 1, 2, 4 and 8 / 255.

    python benchmarks/adaptive.py --data DIR [--images 32] [--cache DIR] [--steps 25] [--restarts 1] [--out DIR]

Lagrangian, Selective and Orthogonal PGD (Bryniarski et al. 2021) through every path of the default, and the same on the
baselines that can be differentiated. SR: share of test images misclassified and not flagged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cifar10 import machine, parts

from advconn import bundle
from advconn.evaluation.data import Data
from advconn.evaluation.run import Settings, run
from advconn.evaluation.runner import Runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="where finished work is kept: an interrupted run goes on")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    part = parts(args.data)["attack"]
    data = Data("CIFAR-10 (test images)", part.images[:1000], part.labels[:1000])
    settings = Settings(
        attacks=("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=20"),
        baselines=("energy", "logits-only", "feature-squeezing", "flip-shift"),
        limit=50,
        adaptive=True,
        adaptive_limit=args.images,
        adaptive_steps=args.steps,
        adaptive_restarts=args.restarts,
    )

    def tell(stage: str, done: int, total: int) -> None:
        if stage.startswith("evade"):
            print(stage, done, total, flush=True)

    runner = Runner(folder=str(args.cache) if args.cache else None, progress=tell)
    report = run(data, bundle.load(args.detector), settings, runner)
    for row in report.rows:
        if row.get("way") == "best of all":
            print(row)
    record = {"machine": machine(), "settings": report.settings, "rows": report.rows, "attacks": report.attacks}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
