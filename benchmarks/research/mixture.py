"""Which attacks a detector is fitted on: leave-one-family-out on the shipped classifier's fitting images alone.

    python -m benchmarks.research.mixture --data DIR --cache DIR --nets DIR [--steps 4] [--record DIR]

No calibration or test image is used. In two folds by image, a head of the whole walk of copies is fitted on one fold's
clean images, benign changes and attacked copies, without a family, and asked about that family in the other fold.
Compared are the mixture before (BEFORE), that with every candidate that it catches too little of and that needs neither
another package nor a gradient of every class, and that with all candidates. Spatial and colour changes stand apart:
another view of the same thing need not be an attack.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from advconn.attacks.attack import Attack
from advconn.attacks.catalog import MIXTURE
from advconn.cascade.attacked_copies import still_misclassified
from advconn.cascade.cascade import STAGES, head_log_odds, stage_extractors
from advconn.data.conditions import BENIGN, CONDITIONS
from advconn.metrics import auroc
from benchmarks.common.cifar10 import parts, tables, taught, whole
from benchmarks.common.families import CHEAP, arguments, hits_of, network, walk_of
from benchmarks.common.provenance import SEED, write_record

APART = ("spatial", "colour")
HEAVY = ("fmn-l0", "saltpepper", "deepfool")  # that want foolbox, or a gradient of every class
GOOD = (0.99, 0.95)  # AUROC and share caught at 5 % that make a candidate needless
BEFORE = MIXTURE[: MIXTURE.index("tifgsm:eps=8/255")]
MOST = 120  # attacked images of each attack that a head is fitted on


def family(spec: str) -> str:
    return Attack.parse(spec).family


class Folds:
    """Features of clean and attacked fitting images, by the whole walk of copies, in two folds by image."""

    def __init__(self, cache: Path, data: Path, nets: Path) -> None:
        model, fit = network("shipped", nets), parts(data)["fit"]
        connectivity = walk_of(cache, model)
        connectivities = stage_extractors(connectivity, STAGES)[:3]
        self.clean = tables(whole(cache, connectivity, "fit", fit.images), connectivities)[2]
        self.fold = np.arange(len(self.clean)) % 2
        made = [
            tables(
                whole(cache, connectivity, kind, CONDITIONS[kind](fit.images[i :: len(BENIGN)], SEED)), connectivities
            )[2]
            for i, kind in enumerate(BENIGN)
        ]
        order = [np.arange(len(fit.images))[i :: len(BENIGN)] for i in range(len(BENIGN))]
        self.benign, self.benign_fold = np.concatenate(made), np.concatenate(order) % 2
        self.hits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.changed: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for spec in dict.fromkeys((*BEFORE, *CHEAP)):
            hits = hits_of(cache, nets, "shipped", "fit", fit, spec, taught(spec) if spec in BEFORE else 250)
            self.hits[spec] = (
                tables(whole(cache, connectivity, spec, hits.images), connectivities)[2],
                hits.rows.numpy(),
            )
            changed, index = still_misclassified(model, hits.images, fit.labels[hits.rows], BENIGN, SEED)
            table = tables(whole(cache, connectivity, f"{spec}, changed", changed), connectivities)[2]
            self.changed[spec] = (table, hits.rows[index].numpy())
        self._heads: dict[tuple[tuple[str, ...], int], Any] = {}

    def head(self, specs: tuple[str, ...], part: int) -> Any:
        """Fitted on one fold."""
        if (specs, part) not in self._heads:
            by_kind = [np.concatenate([self.clean[self.fold == part], self.benign[self.benign_fold == part]])]
            for spec in specs:
                (table, rows), (other, others) = self.hits[spec], self.changed[spec]
                mine, more = table[self.fold[rows] == part][:MOST], other[self.fold[others] == part][:MOST]
                by_kind.append(np.concatenate([mine, more]))
            made = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=150, tol=1e-3))
            kinds = np.repeat(np.arange(len(by_kind)), [len(table) for table in by_kind])
            self._heads[specs, part] = made.fit(np.concatenate(by_kind), kinds)
        return self._heads[specs, part]

    def asked(self, specs: Sequence[str], about: str) -> tuple[float, float, int]:
        """AUROC and share caught at 5 % of an attack's images, by heads of the fold that they are not in."""
        clean, hits = [], []
        for part in (0, 1):
            head = self.head(tuple(specs), part)
            table, rows = self.hits[about]
            base = head_log_odds(head, self.clean[self.fold != part])
            threshold = np.quantile(base, 0.95)  # so that folds are alike
            clean.append(base - threshold)
            hits.append(head_log_odds(head, table[self.fold[rows] != part]) - threshold)
        base, attacked = np.concatenate(clean), np.concatenate(hits)
        return auroc(base, attacked), float((attacked > 0).mean()), len(attacked)


def left_out(folds: Folds, specs: Sequence[str], names: Sequence[str]) -> dict[str, tuple[float, float, int]]:
    """Of each attack of these families, by heads that were fitted on none of its family."""
    out = {}
    for name in names:
        rest = [spec for spec in specs if family(spec) != name]
        for about in (spec for spec in folds.hits if family(spec) == name):
            out[about] = folds.asked(rest, about)
    return out


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    folds, started = Folds(args.cache, args.data, args.nets), time.time()
    every = tuple(dict.fromkeys(map(family, folds.hits)))
    log: list[dict[str, Any]] = []

    def told(what: str, mixture: Sequence[str], figures: dict[str, tuple[float, float, int]]) -> None:
        log.append({"what": what, "mixture": list(mixture), "found": {k: list(v) for k, v in figures.items()}})
        cells = ", ".join(f"{spec} {a:.3f}/{c:.2f}" for spec, (a, c, _) in figures.items())
        print(f"{time.time() - started:.0f} s {what}: {cells}", flush=True)

    old = [spec for spec in BEFORE if spec in folds.hits]
    candidates = [spec for spec in CHEAP if family(spec) not in APART]
    light = [spec for spec in candidates if spec.split(":")[0] not in HEAVY]
    asked = {spec: folds.asked(old, spec) for spec in folds.hits}
    told("before, asked", old, asked)
    missing = [spec for spec in light if asked[spec][0] < GOOD[0] or asked[spec][1] < GOOD[1]]
    for what, mixture in (("before", old), ("and what it misses", [*old, *missing]), ("and all", [*old, *candidates])):
        told(f"{what}: family left out", mixture, left_out(folds, mixture, every))
        told(f"{what}: asked", mixture, {spec: folds.asked(mixture, spec) for spec in folds.hits})
        near = [*mixture, "colour", "spatial"]
        told(f"{what}, with views: family left out", near, left_out(folds, near, every))
    record = {"seed": SEED, "log": log}
    write_record(args.record, "mixture", record, __file__)


if __name__ == "__main__":
    main()
