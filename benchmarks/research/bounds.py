"""Which bounded map of standardised features serves networks that were left out? The record behind BoundedScaler.

    python -m benchmarks.research.bounds --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

For each map the heads are taught on the other networks (teach.py; relatives and data sets are left out too) and serve
this one: AUROC / caught at the threshold of 5 % of its clean test images, the same for all maps. `unbounded` is how it
was: features clipped at 3 spreads in teaching, and by nothing in serving.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from advconn.cascade.cascade import head_log_odds
from advconn.cascade.early_exit import cascade_score, exits_at
from advconn.cascade.pretrained import floors_of
from advconn.cascade.scaling import BoundedScaler, spread_of
from advconn.metrics import auroc
from benchmarks.common.heads import FPR, SHARES, TEACHERS, family, group, linear_head, tables_of
from benchmarks.common.lessons import Lesson, arguments, lessons
from benchmarks.common.provenance import SEED, write_record

Map = Callable[[np.ndarray], np.ndarray]
NAMES = ("resnet20", "resnet44", "shipped", "plain", "mnist-mlp")


def clip(limit: float) -> Map:
    return lambda z: z.clip(-limit, limit)


def both(*maps: Map) -> Map:
    return lambda z: np.concatenate([each(z) for each in maps], axis=1)


MAPS: dict[str, tuple[Map, Map, bool]] = {  # in teaching, in serving, with floors under the scales
    "unbounded": (clip(3), lambda z: z, False),
    "clip 3": (clip(3), clip(3), True),
    "clip 5": (clip(5), clip(5), True),
    "clip 10": (clip(10), clip(10), True),
    "asinh, clip 6": (*(2 * (lambda z: np.arcsinh(z).clip(-6, 6),)), True),
    "tanh z/2 and clip 5": (*(2 * (both(lambda z: np.tanh(z / 2), clip(5)),)), True),
    "tanh z/2 and clip 5, no floors": (*(2 * (both(lambda z: np.tanh(z / 2), clip(5)),)), False),
    "clip 5 and asinh z/10": (*(2 * (both(clip(5), lambda z: np.arcsinh(z / 10).clip(-5, 5)),)), True),
}  # fmt: skip


def standardised(lesson: Lesson, k: int, table: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Features (n, d) in spreads from the median of the network's clean images."""
    scale = BoundedScaler(floor).fit(lesson.learn.features[k][lesson.learn.plain])
    return (table - scale.center_) / scale.scale_


class Served:
    """A head behind a map."""

    def __init__(self, lesson: Lesson, k: int, floor: np.ndarray, serving: Map, fitted: Any) -> None:
        self.lesson, self.k, self.floor, self.serving, self.fitted = lesson, k, floor, serving, fitted

    def decision_function(self, table: np.ndarray) -> np.ndarray:
        return self.fitted.decision_function(self.serving(standardised(self.lesson, self.k, table, self.floor)))


def served(lesson: Lesson, others: list[Lesson], teaching: Map, serving: Map, floors: bool) -> list[Served]:
    """Heads for every stage of a network that two others have."""
    made = []
    for k in range(lesson.first, len(lesson.names)):
        tables = tables_of(others, lesson.names[k])
        if len(tables) < 2:
            break
        spreads = np.stack([spread_of(t.learn.features[j][t.learn.plain]) for t, j in tables])
        floor = floors_of(spreads) if floors else np.zeros(spreads.shape[1])
        rows = [teaching(standardised(t, j, t.learn.features[j], floor)) for t, j in tables]
        kinds = [np.array(["", *map(family, t.learn.attacks)])[t.learn.kinds] for t, _ in tables]
        made.append(Served(lesson, k, floor, serving, linear_head(np.concatenate(rows), np.concatenate(kinds))))
    return made


def judged(lesson: Lesson, heads: list[Served]) -> dict[str, Any]:
    """AUROC and share caught of every attack."""

    def scores(tables: tuple[np.ndarray, ...]) -> np.ndarray:
        return np.stack([head_log_odds(h, t) for h, t in zip(heads, tables[lesson.first :], strict=False)], 1)

    base = scores(tuple(table[lesson.learn.plain] for table in lesson.learn.features))
    limits = exits_at(base, SHARES[lesson.first : lesson.first + len(heads) - 1])
    clean = cascade_score(scores(lesson.clean), limits)[0]
    threshold, out = np.quantile(clean, 1 - FPR), {}
    for spec, tables in lesson.attacked.items():
        found = cascade_score(scores(tables), limits)[0]
        share = round(float((found > threshold).mean()), 4)
        out[spec] = {"auroc": round(auroc(clean, found), 4), "caught": share, "n": len(found)}
    return out


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    every = tuple(dict.fromkeys((*TEACHERS, *args.names)))
    known = lessons(every, args.cache, args.data, args.nets, args.public)
    record: dict[str, Any] = {"seed": SEED, "fpr": FPR, "networks": {}}
    for name in args.names:
        others = [known[other] for other in TEACHERS if group(other) != group(name)]
        rows = record["networks"][name] = {}
        for called, how in MAPS.items():
            rows[called] = judged(known[name], served(known[name], others, *how))
            cells = " ".join(f"{s.split(',')[0]} {v['auroc']:.3f}/{v['caught']:.2f}" for s, v in rows[called].items())
            print(f"{name}, {called}: {cells}", flush=True)
            write_record(args.record, "bounds", record, __file__)


if __name__ == "__main__":
    main()
