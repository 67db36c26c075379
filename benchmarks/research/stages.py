"""Which copies come first, how many stages there are and how many images go on: a search on fitting images alone.

    python -m benchmarks.research.stages --data DIR --cache DIR [--limit 1250] [--record DIR]

No calibration or test image is used. In two folds by image, heads are fitted on one half of the clean images and their
attacked copies, and asked about the other half. Copies join the first stage one at a time, each time the one with which
the fewest attacked images that the whole walk catches leave early, when a quarter of the clean ones go on; then the
second stage, when a tenth does. Then cascades of one to four stages are compared by mean forwards of clean images,
by what they miss, and by AUROC.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from advconn.attacks.catalog import MIXTURE
from advconn.cascade.cascade import log_odds
from advconn.cascade.early_exit import cascade_score, choose_exits
from advconn.cascade.heads import default_head
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import Trace, feature_table
from advconn.features.references import synthesise
from advconn.metrics import auroc
from benchmarks.common.cifar10 import attacked, classifier, kept, parts, taught, walked
from benchmarks.common.provenance import SEED, write_record

FIRST, SECOND = 0.25, 0.10
SHARES = {
    "two stages, 15 %": (0.15,),
    "two stages, 10 %": (0.10,),
    "three stages, 25 %, 10 %": (0.25, 0.10),
    "three stages, 30 %, 12 %": (0.30, 0.12),
    "three stages, 35 %, 15 %": (0.35, 0.15),
}


def cut(trace: Trace, names: tuple[str, ...], halves: bool = False) -> np.ndarray:
    """Features of the self family with these copies alone."""
    index = [trace.names.index(name) for name in names]
    some = dataclasses.replace(trace, names=names, copies=trace.copies[:, index], own=None, rival=None, rivals=None)
    if not halves:
        some = dataclasses.replace(some, halves=(), midway=None)
    return feature_table(some)[0].double().numpy()


class Folds:
    """Clean traces and attacked ones, with the image each is a copy of."""

    def __init__(self, clean: Trace, hits: dict[str, tuple[Trace, np.ndarray]]) -> None:
        self.clean, self.hits = clean, hits
        self.fold = np.arange(len(clean.query)) % 2
        self.kinds = [spec for spec, (_, rows) in hits.items() for _ in rows]
        self._scores: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}

    def scores(self, names: tuple[str, ...], halves: bool = False, quick: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Held-out scores of clean and attacked images by a head that sees these copies; `quick`: attacks as one."""
        key = (names, halves, quick)
        if key in self._scores:
            return self._scores[key]
        clean, parts = cut(self.clean, names, halves), [cut(t, names, halves) for t, _ in self.hits.values()]
        rows, where = np.concatenate(parts), np.concatenate([self.fold[r] for _, r in self.hits.values()])
        kinds = np.repeat(np.arange(1, len(parts) + 1), [len(p) for p in parts])
        base, attacked_scores = np.zeros(len(clean)), np.zeros(len(rows))
        for k in (0, 1):
            x = np.concatenate([clean[self.fold != k], rows[where != k]])
            y = np.concatenate([np.zeros(int((self.fold != k).sum()), int), kinds[where != k]])
            plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
            head = plain.fit(x, y > 0) if quick else default_head().fit(x, y)
            base[self.fold == k], attacked_scores[where == k] = (
                log_odds(head, clean[self.fold == k]),
                log_odds(head, rows[where == k]),
            )
        self._scores[key] = base, attacked_scores
        return base, attacked_scores

    def missed(self, names: tuple[str, ...], share: float, full: np.ndarray) -> float:
        """Mean over the attacks of the share that leaves early though the whole walk catches it."""
        base, attacked_scores = self.scores(names)
        early = full & (attacked_scores <= np.quantile(base, 1 - share))
        kinds = np.array(self.kinds)
        return float(np.mean([early[kinds == spec].mean() for spec in self.hits]))


def greedy(folds: Folds, start: tuple[str, ...], count: int, share: float, full: np.ndarray) -> tuple[str, ...]:
    chosen = start
    for _ in range(count):
        rest = [name for name in folds.clean.names if name not in chosen]
        best = min(rest, key=lambda name: folds.missed((*chosen, name), share, full))
        chosen = (*chosen, best)
        left = folds.missed(chosen, share, full)
        print(f"{len(chosen) + 1:3} forwards, {share:.0%} go on: + {best}, missed {left:.4f}", flush=True)
    return chosen


def compared(folds: Folds, what: str, stages: list[tuple[str, ...]], shares: tuple[float, ...]) -> dict[str, object]:
    """One row: a cascade's mean forwards, misses and AUROC on held-out images."""
    whole = folds.scores(folds.clean.names, True, False)
    pairs = [*(folds.scores(names, False, False) for names in stages), whole]
    clean, attacked_scores = (np.stack([p[i] for p in pairs], 1) for i in (0, 1))
    exit_scores, missed = choose_exits(clean, attacked_scores, folds.kinds, shares, 0.05)
    base, stage = cascade_score(clean, exit_scores)
    score, _ = cascade_score(attacked_scores, exit_scores)
    cost = np.array([*(1 + len(names) for names in stages), 1 + len(folds.clean.names) + len(folds.clean.halves)])
    threshold, kinds = np.quantile(base, 0.95), np.array(folds.kinds)
    full = np.quantile(whole[0], 0.95)
    row = {
        "what": what,
        "forwards": round(float(cost[stage - 1].mean()), 2),
        "go_on": [round(float((stage > k + 1).mean()), 3) for k in range(len(stages))],
        "missed": missed.count,
        "of": missed.of,
        "missed_at_most": round(missed.at_most, 4),
        "attacks": {
            spec: {
                "auroc": round(auroc(base, score[kinds == spec]), 4),
                "caught": round(float((score[kinds == spec] > threshold).mean()), 4),
                "auroc_full": round(auroc(whole[0], whole[1][kinds == spec]), 4),
                "caught_full": round(float((whole[1][kinds == spec] > full).mean()), 4),
                "missed": missed.by_attack[spec],
            }
            for spec in folds.hits
        },
    }
    print(what, row["forwards"], row["go_on"], f"missed {missed.count} of {missed.of}", flush=True)
    for spec, r in row["attacks"].items():
        print(
            f"   {spec:34} {r['auroc']:.4f} ({r['auroc_full']:.4f})  {r['caught']:.3f} ({r['caught_full']:.3f})",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path("models/cifar10/classifier.safetensors"))
    parser.add_argument("--limit", type=int, default=1250, help="clean images")
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()

    model, fit = classifier(args.weights), parts(args.data)["fit"]
    references = kept(args.cache, f"references {model.fingerprint}", lambda: synthesise(model))
    connectivity = Connectivity(model, references)
    clean = walked(args.cache, connectivity, "fit", fit.images).rows(np.arange(args.limit))
    hits = {}
    for spec in MIXTURE:
        hit = attacked(args.cache, model, "fit", fit, spec, taught(spec))
        rows = hit.rows.numpy()
        keep = np.flatnonzero(rows < args.limit)
        hits[spec] = (walked(args.cache, connectivity, spec, hit.images).rows(keep), rows[keep])
    folds = Folds(clean, hits)
    base, attacked_scores = folds.scores(clean.names, True)
    full = attacked_scores > np.quantile(base, 0.95)
    first = greedy(folds, (), 5, FIRST, full)
    second = {n: greedy(folds, first[:n], 6, SECOND, full) for n in (2, 3, 4)}
    rows = [compared(folds, "whole walk", [], ())]
    for what, shares in SHARES.items():
        for n, more in second.items():
            for m in (4, 6) if len(shares) == 2 else (0,):
                stages = [first[:n], more[: n + m]][: len(shares)]
                rows.append(
                    compared(folds, f"{what}: {n + 1}{f', {n + m + 1}' * (m > 0)} forwards first", stages, shares)
                )
    record = {
        "claim": __doc__.strip().split("\n")[0],
        "seed": SEED,
        "clean": args.limit,
        "attacked": len(folds.kinds),
        "first": first,
        "second": second,
        "rows": rows,
    }
    write_record(args.record, "stages", record, __file__)


if __name__ == "__main__":
    main()
