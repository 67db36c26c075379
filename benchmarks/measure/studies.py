"""The two papers' experiments on the classifier that ships: what `advconn study NAME` finds, as a dated record.

    python -m benchmarks.measure.studies NAME --data DIR [--fast] [--record DIR]

Claim: the figures of the guide's page on papers and studies. `--fast` is the short version of a study, and its record
says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from advconn.cli.study import NAMES
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import SEED, write_record


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("--fast", action="store_true")
    args = parse(parser, "name", "data", name="percolation", fast=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        line = [sys.executable, "-m", "advconn", "study", args.name, "--out", str(out)]
        line += ["--data", str(args.data / "test.npz")]
        subprocess.run([*line, "--seed", str(SEED), *["--fast"] * args.fast], check=True)
        found = json.loads((out / "results.json").read_text())
    write_record(args.record, f"study-{args.name}", found | {"fast": args.fast, "seed": SEED}, __file__)


if __name__ == "__main__":
    main()
