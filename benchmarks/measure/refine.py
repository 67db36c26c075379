"""What a few attacked images add to the heads that ship: `advconn fit --refine N`, from none to a full fit's number.

    python -m benchmarks.measure.refine --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

Every network's heads are taught on the other ones (benchmarks/ship/teach.py), scaled by its clean images, and moved by
so many of its attacked images, spread over the lesson's attacks. Beside them stand heads that are fitted on all its
attacked images alone. Claim: about a hundred attacked images bring the taught heads to what those reach, or over it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline

from advconn.cascade.heads import default_head
from advconn.cascade.pretrained import refine_head
from advconn.cascade.scaling import BoundedScaler
from benchmarks.common.arguments import FOLDERS, parse, parser_of
from benchmarks.common.heads import FPR, TEACHERS, Heads, group, judged, taught
from benchmarks.common.lessons import Lesson, lessons
from benchmarks.common.provenance import SEED, write_record

EACH = (1, 2, 4, 8, 24)  # attacked images of each attack
NAMES = ("resnet44", "shipped", "robust", "plain", "digits", "digits-mlp", "mnist-cnn", "mnist-mlp", "photographs")


def refined(lesson: Lesson, heads: Heads, each: int) -> tuple[list[Any], int]:
    """The heads after so many images of each attack, and how many these are in all."""
    learn, rng = lesson.learn, np.random.default_rng(SEED)
    kinds = range(1, int(learn.kinds.max()) + 1)
    rows = np.concatenate([rng.permutation(np.flatnonzero(learn.kinds == kind))[:each] for kind in kinds])
    out = []
    for names, table in zip(lesson.names, learn.features, strict=True):
        if names not in heads.heads:
            break
        scale = BoundedScaler(heads.floors[names]).fit(table[learn.plain])
        head = refine_head(heads.heads[names], *(scale.transform(table[r]) for r in (learn.plain, rows)))
        out.append(make_pipeline(scale, head))
    return out, len(rows)


def worst(figures: dict[str, Any]) -> dict[str, float]:
    """Of a judgement: the worst attack, the mean of all, false alarms."""
    every = [value["auroc"] for value in figures["attacks"].values()]
    return {"worst": min(every), "mean": round(float(np.mean(every)), 4), "fpr": figures["fpr"]}


def main() -> None:
    parser = parser_of(__doc__, *FOLDERS)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--with-relatives", action="store_true", help="a network's relatives teach it, and it itself")
    parser.add_argument("--each", type=int, nargs="+", default=EACH, help="attacked images of each attack")
    parser.add_argument("--few", type=int, help="images attacked by each attack, in place of those of each network")
    toy = ["digits", "digits-mlp"]
    args = parse(parser, *FOLDERS, names=["digits"], teachers=toy, each=[1], few=2, with_relatives=True)
    every = tuple(dict.fromkeys((*args.teachers, *args.names)))
    known = lessons(every, args.cache, args.data, args.nets, args.public, args.few)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in args.names:
        lesson = known[name]
        others = [other for other in args.teachers if args.with_relatives or group(other) != group(name)]
        heads = taught([known[other] for other in others], lesson.names)
        curve = [{"attacked": 0} | worst(judged(lesson, heads))]
        for each in args.each:
            made, count = refined(lesson, heads, each)
            curve.append({"attacked": count} | worst(judged(lesson, made)))
        own = [default_head(SEED).fit(table, lesson.learn.kinds) for table in lesson.learn.features]
        curve.append({"attacked": int((lesson.learn.kinds > 0).sum()), "own": True} | worst(judged(lesson, own)))
        curves[name] = curve
        for row in curve:
            print(name, row, flush=True)
        record = {"seed": SEED, "fpr": FPR, "curves": curves}
        write_record(args.record, "refine", record, __file__)


if __name__ == "__main__":
    main()
