"""Heads that serve networks they have never seen: taught here once, shipped in models/pretrained.

    python -m benchmarks.ship.teach --data DIR --cache DIR --nets DIR --public DIR --out models/pretrained --record DIR

Lessons come from benchmarks/common/lessons.py. Every table of a lesson is scaled by that network's own clean images
(scaling.BoundedScaler), and one head a stage is fitted on all of them. Claim: a head taught on the other networks
serves the one left out, with a threshold from its clean images alone; no attack is made on it. Networks of one kind
(GROUPS) are left out together, so that none is judged by heads that know a relative of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline

from advconn.cascade.head_files import save as save_head
from advconn.cascade.heads import default_head, largest_share
from advconn.cascade.scaling import BoundedScaler
from benchmarks.common.heads import FPR, TEACHERS, Heads, family, group, judged, stages_of, taught
from benchmarks.common.lessons import Lesson, arguments, lessons
from benchmarks.common.provenance import SEED, machine, write_record

TESTED = (*TEACHERS, "mnist-cnn", "mnist-mlp")


def show(name: str, figures: dict[str, Any]) -> None:
    cells = " ".join(
        f"{spec.split(',')[0]}{' from another' * (' from ' in spec)} {value['auroc']:.3f}/{value['caught']:.2f}"
        for spec, value in figures["attacks"].items()
    )
    print(f"{name}: false alarms {figures['fpr']:.3f} {cells}", flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--tested", nargs="+", default=TESTED)
    parser.add_argument("--strict", action="store_true", help="also leave out each family beside each network")
    parser.add_argument("--out", type=Path, help="where the heads are written")
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    every = tuple(dict.fromkeys((*args.teachers, *args.tested)))
    known = lessons(every, args.cache, args.data, args.nets, args.public)
    stages = stages_of(list(known.values()))
    record: dict[str, Any] = {"seed": SEED, "fpr": FPR, "left_out": {}, "own": {}, "strict": {}}
    for name in args.tested:
        lesson = known[name]
        others = [known[other] for other in args.teachers if group(other) != group(name)]
        record["left_out"][name] = judged(lesson, taught(others, lesson.names))
        show(f"taught on the others, used on {name}", record["left_out"][name])
        if lesson.learn.attacks:  # a full fit on as many attacked images as the lesson has
            own = [default_head(SEED).fit(table, lesson.learn.kinds) for table in lesson.learn.features]
            record["own"][name] = judged(lesson, own)
            show(f"  fitted on {name} itself", record["own"][name])
        by_attack: dict[str, Any] = {}
        for left in dict.fromkeys(map(family, lesson.attacked)) if args.strict else ():
            part = judged(lesson, taught(others, lesson.names, left))
            by_attack |= {s: v for s, v in part["attacks"].items() if v["family"] == left}
        if args.strict:
            record["strict"][name] = {"fpr": record["left_out"][name]["fpr"], "attacks": by_attack}
            show(f"  and its family left out, used on {name}", record["strict"][name])
        write_record(args.record, "pretrained", record, __file__)
    if args.out:
        _write(args.out, taught([known[name] for name in args.teachers], stages), args.teachers, known)


def _write(out: Any, made: Heads, teachers: Sequence[str], known: Mapping[str, Lesson]) -> None:
    """The heads as files, and their card."""
    out.mkdir(parents=True, exist_ok=True)
    for k, fitted in enumerate(made.heads.values()):
        save_head(fitted, out / f"head-{k + 1}.skops")
    specs = sorted({spec for name in teachers for spec in known[name].learn.attacks})
    shares = [
        float(np.median(largest_share(make_pipeline(BoundedScaler(floor), fitted))))
        for floor, fitted in zip(made.floors.values(), made.heads.values(), strict=True)
    ]
    card = {
        "names": list(made.heads),
        "floors": [floor.tolist() for floor in made.floors.values()],
        "networks": list(teachers),
        "attacks": specs,
        "median_largest_share": shares,
        "machine": machine(),
    }
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
