"""Which attacks a detector is fitted on: leave-one-family-out on the shipped classifier's fitting images alone.

    python benchmarks/mixture.py --data DIR --cache DIR --nets DIR [--steps 4] [--out DIR]

No calibration or test image is used. In two folds by image, a head of the whole walk of copies is fitted on one fold's
clean images and their attacked copies, without a family, and asked about that family's images of the other fold. The
attack joins that lifts the worst family most, where the family that it belongs to is left out with it. Spatial and
colour changes are measured, and not waited for: what is another view of the same thing, no head can tell.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import SEED, machine, parts, tables, taught, whole
from detection import auroc
from families import CHEAP, hits_of, network, walk_of
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from advconn.attacks import MIXTURE, Attack
from advconn.stages import STAGES, scored, walks_of

APART = ("spatial", "colour")
MOST = 120  # attacked images of each attack that a head is fitted on


def family(spec: str) -> str:
    return Attack.parse(spec).family


class Folds:
    """Features of clean and attacked fitting images, by the whole walk of copies, in two folds by image."""

    def __init__(self, cache: Path, data: Path, nets: Path) -> None:
        model, fit = network("shipped", nets), parts(data)["fit"]
        walk = walk_of(cache, model)
        walks = walks_of(walk, STAGES)[:3]
        self.clean = tables(whole(cache, walk, "fit", fit.images), walks)[2]
        self.fold = np.arange(len(self.clean)) % 2
        self.hits: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for spec in (*MIXTURE, *CHEAP):
            hits = hits_of(cache, nets, "shipped", "fit", fit, spec, taught(spec) if spec in MIXTURE else 250)
            self.hits[spec] = (tables(whole(cache, walk, spec, hits.images), walks)[2], hits.rows.numpy())
        self._heads: dict[tuple[tuple[str, ...], int], Any] = {}

    def head(self, specs: tuple[str, ...], part: int) -> Any:
        """Fitted on one fold."""
        if (specs, part) not in self._heads:
            found = [self.clean[self.fold == part]]
            for spec in specs:
                table, rows = self.hits[spec]
                found.append(table[self.fold[rows] == part][:MOST])
            made = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=150, tol=1e-3))
            kinds = np.repeat(np.arange(len(found)), [len(table) for table in found])
            self._heads[specs, part] = made.fit(np.concatenate(found), kinds)
        return self._heads[specs, part]

    def asked(self, specs: Sequence[str], about: str) -> tuple[float, float, int]:
        """AUROC and share caught at 5 % of an attack's images, by heads of the fold that they are not in."""
        clean, hits = [], []
        for part in (0, 1):
            head = self.head(tuple(specs), part)
            table, rows = self.hits[about]
            base = scored(head, self.clean[self.fold != part])
            at = np.quantile(base, 0.95)  # so that folds are alike
            clean.append(base - at)
            hits.append(scored(head, table[self.fold[rows] != part]) - at)
        base, found = np.concatenate(clean), np.concatenate(hits)
        return auroc(base, found), float((found > 0).mean()), len(found)


def left_out(folds: Folds, specs: Sequence[str], names: Sequence[str]) -> dict[str, tuple[float, float, int]]:
    """Of each attack of these families, by heads that were fitted on none of its family."""
    out = {}
    for name in names:
        rest = [spec for spec in specs if family(spec) != name]
        for about in (spec for spec in folds.hits if family(spec) == name):
            out[about] = folds.asked(rest, about)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "nets"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folds, started = Folds(args.cache, args.data, args.nets), time.time()
    every = tuple(dict.fromkeys(map(family, folds.hits)))
    mixture, log = list(MIXTURE), []

    def told(what: str, found: dict[str, tuple[float, float, int]]) -> None:
        log.append({"step": what, "mixture": list(mixture), "left_out": {k: list(v) for k, v in found.items()}})
        cells = ", ".join(f"{spec} {a:.3f}/{c:.2f}" for spec, (a, c, _) in found.items())
        print(f"{time.time() - started:.0f} s {what}: {cells}", flush=True)

    found = left_out(folds, mixture, every)
    told("as it was", found)
    for _ in range(args.steps):
        worst = sorted((s for s in found if family(s) not in APART), key=lambda s: found[s][0])[:3]
        names = tuple(dict.fromkeys(map(family, worst)))
        tried = {}
        for spec in (s for s in CHEAP if s not in mixture and family(s) not in APART):
            there = left_out(folds, [*mixture, spec], names)
            tried[spec] = min(value[0] for about, value in there.items() if about in worst)
            print(f"  with {spec}: worst of {', '.join(worst)} {tried[spec]:.4f}", flush=True)
        best = max(tried, key=lambda spec: tried[spec])
        if tried[best] <= min(found[s][0] for s in worst) + 0.001:
            break
        mixture.append(best)
        found = left_out(folds, mixture, every)
        told(f"with {best}", found)
    inside = {about: folds.asked(mixture, about) for about in folds.hits}
    told("all in", inside)
    whole_set = [*MIXTURE, *(s for s in CHEAP if family(s) not in APART)]
    mixture = whole_set
    told("every candidate, left out", left_out(folds, whole_set, every))
    told("every candidate, in", {about: folds.asked(whole_set, about) for about in folds.hits})
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "seed": SEED, "log": log}
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
