"""Which features and which head the default takes: AUROC and catch rate against forwards, cross-validated by image.

    python benchmarks/ablation.py --data DIR --cache DIR [--detector models/cifar10] [--out DIR]

Uses the fitting part alone (no calibration or test image): in two folds by image, a head is fitted on one half of
the clean images and their attacked copies, and measured on the other half, at the threshold that 5 % of the other
half's clean images exceed. DeepFool is never fitted on; `fgsm left out` is fitted without FGSM.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cifar10 import SEED, attacked, machine, parts, walked
from detection import auroc, everything, logits_only, name_of, only
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from advconn import bundle
from advconn.attacks import MIXTURE
from advconn.connectivity import Connectivity
from advconn.detector import default_head
from advconn.features import Trace

HEADS = {
    "default": default_head(),
    "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=3000)),
    "logistic regression on ranks": make_pipeline(
        QuantileTransformer(n_quantiles=300, output_distribution="normal"), LogisticRegression(C=0.05, max_iter=3000)
    ),
    "gradient boosting": HistGradientBoostingClassifier(max_iter=300, learning_rate=0.06, l2_regularization=1.0),
    "extra trees": ExtraTreesClassifier(400, min_samples_leaf=2, class_weight="balanced", random_state=SEED),
    "network": make_pipeline(
        StandardScaler(), MLPClassifier((64,), alpha=1.0, max_iter=60, early_stopping=True, random_state=SEED)
    ),
}
SHOWN = ("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=20", "cw:kappa=0,steps=100", "deepfool", "fgsm:eps=8/255")


class Folds:
    """Traces of clean images and of attacked copies, and which fold every row belongs to."""

    def __init__(self, clean: Trace, hits: dict[str, tuple[Trace, np.ndarray]]) -> None:
        self.clean, self.hits = clean, hits

    def measure(self, head, features, left_out: Iterable[str] = ()) -> dict[str, tuple[float, float]]:
        """AUROC and catch rate of each attack."""
        clean = features(self.clean)
        hits = {spec: features(trace) for spec, (trace, _) in self.hits.items()}
        fold = np.arange(len(clean)) % 2
        where = {spec: fold[rows] for spec, (_, rows) in self.hits.items()}
        base, found = np.zeros(len(clean)), {spec: np.zeros(len(x)) for spec, x in hits.items()}
        for k in (0, 1):
            taught = [s for s in hits if s != "deepfool" and name_of(s) not in left_out]
            rows = [clean[fold != k], *(hits[s][where[s] != k] for s in taught)]
            kinds = np.repeat([0, 1], [len(rows[0]), sum(map(len, rows[1:]))])
            fitted = clone(head).fit(np.concatenate(rows), kinds)
            scores = _score(fitted, clean[fold == k])
            threshold = np.quantile(scores, 0.95)
            base[fold == k] = scores - threshold
            for spec, x in hits.items():
                found[spec][where[spec] == k] = _score(fitted, x[where[spec] == k]) - threshold
        return {spec: (round(auroc(base, s), 4), round(float((s > 0).mean()), 4)) for spec, s in found.items()}


def _score(head, rows: np.ndarray) -> np.ndarray:
    if hasattr(head, "decision_function"):
        return head.decision_function(rows)
    share = head.predict_proba(rows)[:, 1].clip(1e-9, 1 - 1e-9)
    return np.log(share / (1 - share))


def thinned(trace: Trace, copies: int | None = None, halves: bool = True, refs: int = 3, samples: int = 1) -> Trace:
    """The same trace with the first copies only, fewer references, or every so-many-th sample."""
    keep = {}
    if copies is not None and trace.copies is not None:
        names = trace.names[:copies]
        kept = [i for i, name in enumerate(trace.halves) if name in names]
        keep = {"names": names, "copies": trace.copies[:, :copies], "halves": tuple(trace.halves[i] for i in kept)}
        keep["midway"] = trace.midway[:, kept] if kept else None
    if not halves:
        keep |= {"halves": (), "midway": None}
    index = torch.unique(torch.cat([torch.arange(0, len(trace.t), samples), torch.tensor([len(trace.t) - 1])]))
    return replace(trace, **keep, t=trace.t[index], own=trace.own[:, :refs, index], rival=trace.rival[:, :, index])


def forwards(trace: Trace, families: tuple[str, ...]) -> int:
    inner = len(trace.t) - 2
    own, rival = inner * trace.own.shape[1], inner * trace.rival.shape[1]
    return (
        1
        + ("self" in families) * (len(trace.names) + len(trace.halves))
        + ("own" in families) * own
        + ("rival" in families) * rival
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--per-attack", type=int, default=400)
    parser.add_argument("--deepfool", type=int, default=200)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    shipped = bundle.load(args.detector).connectivity
    walk = Connectivity(shipped.classifier, shipped.references)
    part = parts(args.data)["fit"]
    sets = {s: attacked(args.cache, walk.classifier, "fit", part, s, args.per_attack) for s in MIXTURE}
    sets["deepfool"] = attacked(args.cache, walk.classifier, "fit", part, "deepfool", args.deepfool)
    clean = walked(args.cache, walk, "clean", part.images)
    hits = {s: (walked(args.cache, walk, s, h.images), h.rows.numpy()) for s, h in sets.items()}
    folds = Folds(clean, hits)
    rows = []

    def measure(what: str, head, features, cost: int, gradients: float = 0.0, folds: Folds = folds) -> None:
        found = folds.measure(head, features)
        without = folds.measure(head, features, ("fgsm",))
        row = {"what": what, "forwards": cost, "gradients": round(gradients, 1)}
        row["attacks"] = {s: found[s] for s in SHOWN if s in found}
        row["attacks"]["fgsm left out"] = without["fgsm:eps=8/255"]
        row["mean_auroc"] = round(float(np.mean([a for a, _ in row["attacks"].values()])), 4)
        rows.append(row)
        shown = "  ".join(f"{s.split(',')[0]} {a:.3f}/{t:.2f}" for s, (a, t) in row["attacks"].items())
        print(f"{what:34} {cost:4} {row['mean_auroc']:.4f}  {shown}", flush=True)

    every = ("self", "own", "rival")
    for name, head in HEADS.items():
        measure(f"head: {name}", head, everything, forwards(clean, every))
    head = HEADS["default"]
    measure("logits only", head, logits_only, 1)
    for families in (("self",), ("own",), ("rival",), ("own", "rival"), ("self", "own"), ("self", "rival")):
        prefixes = tuple(f"{f}." for f in families)
        measure("+".join(families), head, lambda t, p=prefixes: only(p, t), forwards(clean, families))
    for label, options in {
        "6 copies": {"copies": 6},
        "12 copies": {"copies": 12},
        "18 copies": {"copies": 18},
        "no half-ways": {"halves": False},
        "2 references": {"refs": 2},
        "1 reference": {"refs": 1},
        "4 samples": {"samples": 2},
    }.items():
        measure(
            label, head, lambda t, o=options: everything(thinned(t, **o)), forwards(thinned(clean, **options), every)
        )
    bend = Connectivity(shipped.classifier, shipped.references, families=(*every, "complexity"), levels=1, steps=4)
    few = {s: sets[s] for s in SHOWN}
    detours = walked(args.cache, bend, "clean, bypass", part.images[:1000])
    low = {s: h.rows.numpy() < 1000 for s, h in few.items()}
    curved = Folds(
        detours,
        {
            s: (walked(args.cache, bend, s, h.images[torch.from_numpy(low[s])]), h.rows.numpy()[low[s]])
            for s, h in few.items()
        },
    )
    spent = float(detours.detour.gradients.sum()) / 1000
    measure("bypass on, 1000 images", head, everything, forwards(clean, every), spent, curved)
    measure(
        "bypass off, the same images",
        head,
        lambda t: only(tuple(f"{f}." for f in every), t),
        forwards(clean, every),
        0,
        curved,
    )
    record = {"claim": __doc__.strip().split("\n")[0], "machine": machine(), "seed": SEED, "n_clean": len(part.labels)}
    record |= {"n_attacked": {s: len(h.rows) for s, h in sets.items()}, "rows": rows}
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
