"""Linear heads, small trees or a small network: which of them serves networks that were left out, and saved copies?

    python -m benchmarks.research.head_kinds --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

Heads of each kind are taught on the other networks (teach.py; relatives and data sets are left out too) on the same
bounded columns, and serve this one: AUROC / caught at the threshold of 5 % of half of its clean test images. Trees and
networks tell clean from attacked alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common.heads import TEACHERS, group, judged, linear_head, taught
from benchmarks.common.lessons import SAVED_MARK, arguments, lessons
from benchmarks.common.provenance import SEED, write_record

NAMES = ("resnet20", "resnet44", "shipped", "plain", "photographs")


def boosted(features: np.ndarray, families: np.ndarray) -> Any:
    """Histogram gradient boosting of small trees."""
    trees = HistGradientBoostingClassifier(max_iter=200, max_leaf_nodes=8, learning_rate=0.06, random_state=SEED)
    return trees.fit(features, (families != "").astype(int))


def network(features: np.ndarray, families: np.ndarray) -> Any:
    """A network of one hidden layer."""
    net = MLPClassifier((32,), alpha=1.0, early_stopping=True, max_iter=200, random_state=SEED)
    return make_pipeline(StandardScaler(), net).fit(features, (families != "").astype(int))


KINDS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "linear": linear_head,
    "trees": boosted,
    "network": network,
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    every = tuple(dict.fromkeys((*TEACHERS, *args.names)))
    known = lessons(every, args.cache, args.data, args.nets, args.public)
    record: dict[str, Any] = {"seed": SEED, "networks": {}}
    for name in args.names:
        others = [known[other] for other in TEACHERS if group(other) != group(name)]
        rows = record["networks"][name] = {}
        for called, make in KINDS.items():
            rows[called] = judged(known[name], taught(others, known[name].names, head=make))
            found = rows[called]["attacks"]
            for saved in (False, True):
                mine = [v for spec, v in found.items() if (SAVED_MARK in spec) == saved]
                means = [float(np.mean([v[key] for v in mine])) for key in ("auroc", "caught")]
                print(
                    f"{name}, {called}{', saved' * saved}: mean AUROC {means[0]:.3f}, caught {means[1]:.2f}", flush=True
                )
            write_record(args.record, "head-kinds", record, __file__)


if __name__ == "__main__":
    main()
