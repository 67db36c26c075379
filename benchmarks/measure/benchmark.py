"""README's table: the shipped CIFAR-10 detector beside every baseline, on the same images, in one command.

    python -m benchmarks.measure.benchmark --data FILE --out DIR [--detector DIR] [--limit 200] [--record DIR]

Runs `advconn benchmark` on CIFAR-10's test images (an .npz of images and labels) with the companion of models/
cifar10-hardened as PID's second network, also on attacked images that were saved, and also with a head of each attack
alone. Claim: AUROC and detection rates in README, each detector at one threshold from clean images alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from advconn import bundle
from advconn.cli.benchmark import CARD, CARD_WAYS
from benchmarks.common.provenance import write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--attacks", nargs="+", default=CARD)
    parser.add_argument("--ways", default=",".join(CARD_WAYS), help="of saving, with commas between them")
    parser.add_argument("--setting", default="both")
    parser.add_argument("--baselines", nargs="*", default=(), help="else all")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    line = [sys.executable, "-m", "advconn", "benchmark", "--detector", str(args.detector), "--data", str(args.data)]
    line += ["--limit", str(args.limit), "--save-as", args.ways, "--setting", args.setting, "--out", str(args.out)]
    line += ["--second", "advconn:compact"]
    line += ["--second-weights", str(bundle.default("cifar10-hardened") / "companion.safetensors")]
    line += [] if args.cache is None else ["--cache", str(args.cache)]
    for spec in args.attacks:
        line += ["--attack", spec]
    for name in args.baselines:
        line += ["--baseline", name]
    subprocess.run(line, check=True)
    write_record(args.record, "benchmark", json.loads((args.out / "results.json").read_text()), __file__)


if __name__ == "__main__":
    main()
