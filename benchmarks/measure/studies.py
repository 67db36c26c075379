"""The two papers' experiments on the classifier that ships: what `advconn study NAME` finds, as a dated record.

    python -m benchmarks.measure.studies NAME --data DIR [--model SPEC --images DIR] [--fast] [--record DIR]

Claim: the figures of the guide's page on papers and studies. `--fast` is the short version of a study, and its record
says so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from advconn.cli.study import NAMES
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import SEED, file_of, write_record

SOME = 40  # made-up pictures


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("--images", type=Path, help="in place of CIFAR-10's test images")
    parser.add_argument("--model", help="in place of the classifier that ships")
    parser.add_argument("--subject", help="of the record, in place of study-NAME")
    parser.add_argument("--fast", action="store_true")
    args = parse(parser, "NAME", name="percolation", fast=True)
    if args.images is None and args.data is None:
        parser.error("give --data, or --images")
    if args.model is not None and args.subject is None:
        parser.error("--model needs --subject: the record is not that of the classifier that ships")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        if args.tiny is not None:
            args.images = Path(folder) / "some.npz"
            with np.load(args.data / "train.npz") as made:
                np.savez(args.images, **{name: values[:SOME] for name, values in made.items()})
        line = [sys.executable, "-m", "advconn", "study", args.name, "--out", str(out)]
        line += ["--data", str(args.images or args.data / "test.npz")]
        line += [] if args.model is None else ["--model", args.model]
        subprocess.run([*line, "--seed", str(SEED), *["--fast"] * args.fast], check=True)
        found = json.loads((out / "results.json").read_text())
        subject = args.subject or f"study-{args.name}"
        write_record(args.record, subject, found | {"fast": args.fast, "seed": SEED}, __file__)
        if args.record is not None:  # beside it, as people read it
            file = file_of(args.record, subject)
            shutil.copy(out / "text.md", file.with_suffix(".md"))
            shutil.copy(out / "figure.png", file.with_suffix(".png"))


if __name__ == "__main__":
    main()
