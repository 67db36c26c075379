"""README's table: the shipped CIFAR-10 detector beside every baseline, on the same images, in one command.

    python -m benchmarks.measure.benchmark --data DIR --out DIR [--detector DIR] [--limit 200] [--record DIR]

Runs `advconn benchmark` on CIFAR-10's test images with the companion of models/
cifar10-hardened as PID's second network, also on attacked images that were saved, and also with a head of each attack
alone. Claim: AUROC and detection rates in README, each detector at one threshold from clean images alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from advconn import bundle
from advconn.cli.benchmark import CARD, CARD_WAYS
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import write_record

SECOND = bundle.default("cifar10-hardened") / "companion.safetensors"


def main() -> None:
    parser = parser_of(__doc__, "data", "cache")
    parser.add_argument("--out", type=Path, help="where the report goes")
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--attacks", nargs="+", default=CARD)
    parser.add_argument("--ways", default=",".join(CARD_WAYS), help="of saving, with commas between them")
    parser.add_argument("--setting", default="both")
    parser.add_argument("--baselines", nargs="*", default=(), help="else all")
    parser.add_argument("--second", type=Path, default=SECOND, help="weights of PID's second network")
    args = parse(
        parser, "data", "out", detector=None, data=None, second=None, limit=10,
        attacks=["fgsm:eps=51/255"], ways="jpeg75", setting="used", baselines=["max-softmax"],
    )  # fmt: skip
    if args.tiny is not None:  # the command's own example, on scikit-learn's digits
        args.out = args.tiny / "benchmark"
    line = [sys.executable, "-m", "advconn", "benchmark"]
    line += [] if args.detector is None else ["--detector", str(args.detector)]
    line += ["--limit", str(args.limit), "--save-as", args.ways, "--setting", args.setting, "--out", str(args.out)]
    line += [] if args.data is None else ["--data", str(args.data / "test.npz")]
    line += [] if args.second is None else ["--second", "advconn:compact", "--second-weights", str(args.second)]
    line += [] if args.cache is None else ["--cache", str(args.cache)]
    for spec in args.attacks:
        line += ["--attack", spec]
    for name in args.baselines:
        line += ["--baseline", name]
    subprocess.run(line, check=True)
    write_record(args.record, "benchmark", json.loads((args.out / "results.json").read_text()), __file__)


if __name__ == "__main__":
    main()
