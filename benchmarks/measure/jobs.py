"""Processes or threads: seconds of the same benchmark with --jobs 1 (all cores as threads) and --jobs 2.

    python -m benchmarks.measure.jobs --data DIR [--record DIR]

Digits (8 x 8) and CIFAR-10 (32 x 32), several attacks, nothing cached, in fresh processes; and the command that README
shows, `--attack pgd --limit 200`, a first and a second time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from advconn import bundle
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import write_record

DIGITS = ["--attack", "pgd", "--attack", "cw", "--attack", "square", "--limit", "200"]
CIFAR = ["--attack", "pgd", "--attack", "fgsm", "--attack", "cw", "--limit", "40", "--baseline", "feature-squeezing"]
PARTS = ("digits", "cifar10", "readme")
README = ["--attack", "pgd", "--limit", "200"]


def seconds(options: list[str], cache: str, digits: bool) -> float:
    environment = os.environ | ({"ADVCONN_DATA": os.devnull + "/none"} if digits else {})
    command = [sys.executable, "-m", "advconn.cli", "benchmark", *options, "--cache", cache]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("--limit", type=int, help="images attacked, in place of those of each command")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="processes to compare")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    args = parse(parser, "data", limit=10, only=["digits"], jobs=[2])
    few = [] if args.limit is None else ["--limit", str(args.limit)]
    few += ["--baseline", "max-softmax"] if args.tiny else []
    images = args.data / ("test.npz" if args.tiny is None else "train.npz")  # of which more are made up
    cifar = ["--detector", str(bundle.default()), "--data", str(images)]
    record: dict[str, object] = {"cores": os.cpu_count()}
    for name, options, digits in (("digits", DIGITS, True), ("cifar10", [*cifar, *CIFAR], False)):
        if name not in args.only:
            continue
        for jobs in args.jobs:
            with tempfile.TemporaryDirectory() as cache:
                record[f"{name}, --jobs {jobs}: seconds"] = seconds(
                    [*options, *few, "--jobs", str(jobs)], cache, digits
                )
            print(record, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for time_ in ("first", "second") if "readme" in args.only else ():
            record[f"cifar10, pgd, 200 images, {time_} run: seconds"] = seconds([*cifar, *README, *few], cache, False)
            print(record, flush=True)
    write_record(args.record, "jobs", record, __file__)


if __name__ == "__main__":
    main()
