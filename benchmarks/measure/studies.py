"""The two papers' experiments on the classifier that ships: what `advconn study NAME` finds, as a dated record.

    python -m benchmarks.measure.studies NAME --data FILE [--fast] [--record DIR]

Claim: the figures of the guide's page on papers and studies. `--fast` is the short version of a study, and its record
says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from advconn.cli.study import NAMES
from benchmarks.common.provenance import SEED, write_record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True, help="an .npz of images and labels")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        line = [sys.executable, "-m", "advconn", "study", args.name, "--data", str(args.data), "--out", str(out)]
        subprocess.run([*line, "--seed", str(SEED), *["--fast"] * args.fast], check=True)
        found = json.loads((out / "results.json").read_text())
    write_record(args.record, f"study-{args.name}", found | {"fast": args.fast, "seed": SEED}, __file__)


if __name__ == "__main__":
    main()
