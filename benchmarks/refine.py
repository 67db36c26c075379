"""What a few attacked images add to the heads that ship: `advconn fit --refine N`, from none to a full fit's number.

    python benchmarks/refine.py --data DIR --cache DIR --nets DIR [--record DIR]

Every network's heads are taught on the other ones (benchmarks/teach.py), standardised by its clean images, and moved by
so many of its attacked images, spread over the lesson's attacks. Beside them stand heads that are fitted on all its
attacked images alone. Claim: about a hundred attacked images bring the taught heads to what those reach, or over it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import SEED, machine
from families import NAMED, arguments
from lessons import DIGIT_TEST, TOY, Lesson, cifar, photographs, toy
from photographs import TEST as PHOTOGRAPHED
from sklearn.pipeline import make_pipeline
from teach import FPR, judged, taught

from advconn.heads import default_head
from advconn.pretrained import moved, standard

NAMED_OF = {*NAMED, *DIGIT_TEST, *PHOTOGRAPHED[:-1]}
EACH = (1, 2, 4, 8, 24)  # attacked images of each attack


def refined(lesson: Lesson, heads: tuple[Any, ...], each: int) -> tuple[tuple[Any, ...], int]:
    """The heads after so many images of each attack, and how many these are in all."""
    learn, rng = lesson.learn, np.random.default_rng(SEED)
    kinds = range(1, int(learn.kinds.max()) + 1)
    rows = np.concatenate([rng.permutation(np.flatnonzero(learn.kinds == kind))[:each] for kind in kinds])
    out = []
    for table, head in zip(learn.features, heads, strict=False):
        scale = standard(table[learn.plain])
        out.append(make_pipeline(scale, moved(head, *(scale.transform(table[r]) for r in (learn.plain, rows)))))
    return tuple(out), len(rows)


def worst(figures: dict[str, Any]) -> dict[str, float]:
    """Of a judgement: the worst named attack, the mean of all, false alarms."""
    named = [value["auroc"] for spec, value in figures["attacks"].items() if spec in NAMED_OF]
    every = [value["auroc"] for value in figures["attacks"].values()]
    return {"worst_named": min(named), "mean": round(float(np.mean(every)), 4), "fpr": figures["fpr"]}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", nargs="+", default=("shipped", "robust", "plain", "half18", "vit6"))
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    lessons = {name: cifar(args.cache, args.data, args.nets, name, 24, 250, 60) for name in args.networks}
    lessons |= {name: toy(args.cache, name) for name in TOY} | {"photographs": photographs(args.cache)}
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, lesson in lessons.items():
        if not lesson.attacked:
            continue
        heads = taught([teacher for other, teacher in lessons.items() if other != name], len(lesson.names))
        curve = [{"attacked": 0} | worst(judged(lesson, heads))]
        for each in EACH:
            made, count = refined(lesson, heads, each)
            curve.append({"attacked": count} | worst(judged(lesson, made, plain=True)))
        own = tuple(default_head(SEED).fit(table, lesson.learn.kinds) for table in lesson.learn.features)
        count = int((lesson.learn.kinds > 0).sum())
        curve.append({"attacked": count, "own": True} | worst(judged(lesson, own, plain=True)))
        curves[name] = curve
        for row in curve:
            print(name, row, flush=True)
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "seed": SEED, "fpr": FPR, "curves": curves}
        (args.record / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
