"""Which features and which head the default takes: AUROC and catch rate against forwards, cross-validated by image.

    python -m benchmarks.research.ablation --data DIR --cache DIR [--detector models/cifar10] [--record DIR]

Uses the fitting part alone (no calibration or test image): in two folds by image, a head is fitted on one half of
the clean images and their attacked copies, and measured on the other half, at the threshold that 5 % of the other
half's clean images exceed. DeepFool is never fitted on; `fgsm left out` is fitted without FGSM.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from advconn import bundle
from advconn.attacks.attack import SuccessfulAttacks
from advconn.attacks.catalog import MIXTURE
from advconn.cascade.cascade import log_odds
from advconn.cascade.heads import default_head
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import Trace
from advconn.metrics import auroc
from benchmarks.common.cifar10 import attacked, everything, parts, stacked, taught, walked
from benchmarks.common.detection import logits_only, only
from benchmarks.common.provenance import SEED, write_record

RANKS = QuantileTransformer(n_quantiles=300, output_distribution="normal")
HEADS = {
    "default": default_head(),
    "logistic regression, C=.01": make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)),
    "logistic regression on ranks": make_pipeline(RANKS, LogisticRegression(C=0.1, max_iter=2000)),
    "logistic regression on both": make_pipeline(
        FeatureUnion([("ranks", RANKS), ("values", StandardScaler())]), LogisticRegression(C=0.03, max_iter=2000)
    ),
    "network": make_pipeline(
        StandardScaler(), MLPClassifier((64,), alpha=1.0, max_iter=60, early_stopping=True, random_state=SEED)
    ),
    "extra trees": ExtraTreesClassifier(400, min_samples_leaf=2, class_weight="balanced", random_state=SEED),
    "gradient boosting": HistGradientBoostingClassifier(max_iter=60, learning_rate=0.1, l2_regularization=1.0),
}
EVERY = ("query", "self", "own", "rival")
GROUPS = {
    "geometry": ("left", "right", "up", "down", "aside", "zoom", "shear", "flip"),
    "smoothing": ("blur", "mean", "median", "rescale"),
    "noise and bits": ("noise", "bits"),
    "colour and contrast": ("pale", "strong"),
}
BENT = 1000
SHOWN = ("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=20", "cw:kappa=0,steps=100", "deepfool", "fgsm:eps=8/255")


class Folds:
    """Traces of clean images and of attacked copies, and which fold every row belongs to."""

    def __init__(self, clean: Trace, hits: dict[str, tuple[Trace, np.ndarray]]) -> None:
        self.clean, self.hits = clean, hits

    def measure(
        self, head, features, left_out: Iterable[str] = (), apart: bool = True
    ) -> dict[str, tuple[float, float]]:
        """AUROC and catch rate of each attack; the head tells attacks apart, or takes them as one class."""
        clean = features(self.clean)
        hits = {spec: features(trace) for spec, (trace, _) in self.hits.items()}
        fold = np.arange(len(clean)) % 2
        where = {spec: fold[rows] for spec, (_, rows) in self.hits.items()}
        base, attacked_scores = np.zeros(len(clean)), {spec: np.zeros(len(x)) for spec, x in hits.items()}
        for k in (0, 1):
            taught = [s for s in hits if s != "deepfool" and name_of(s) not in left_out]
            rows, kinds = stacked([clean[fold != k], *(hits[s][where[s] != k] for s in taught)])
            fitted = clone(head).fit(rows, kinds if apart else kinds > 0)
            scores = log_odds(fitted, clean[fold == k])
            threshold = np.quantile(scores, 0.95)
            base[fold == k] = scores - threshold
            for spec, x in hits.items():
                attacked_scores[spec][where[spec] == k] = log_odds(fitted, x[where[spec] == k]) - threshold
        return {
            spec: (round(auroc(base, s), 4), round(float((s > 0).mean()), 4)) for spec, s in attacked_scores.items()
        }


def name_of(spec: str) -> str:
    return spec.split(":")[0]


def thinned(
    trace: Trace, names: tuple[str, ...] | None = None, halves: bool = True, refs: int = 3, samples: int = 1
) -> Trace:
    """The same trace with some copies only, fewer references, or every so-many-th sample."""
    wanted = trace.names if names is None else names
    kept = [i for i, name in enumerate(trace.halves) if halves and name in wanted]
    keep = {"names": wanted, "copies": trace.copies[:, [trace.names.index(n) for n in wanted]]}
    keep |= {"halves": tuple(trace.halves[i] for i in kept), "midway": trace.midway[:, kept] if kept else None}
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


class Table:
    """Rows of the record, printed as they come."""

    def __init__(self, folds: Folds) -> None:
        self.folds = folds
        self.rows: list[dict[str, object]] = []

    def add(self, what: str, features, cost: int, *, head=None, gradients=0.0, folds=None, apart=True) -> None:
        folds, head = folds or self.folds, default_head() if head is None else head
        measured = folds.measure(head, features, apart=apart)
        without = folds.measure(head, features, ("fgsm",), apart=apart)
        attacks = {s: measured[s] for s in SHOWN if s in measured} | {"fgsm left out": without["fgsm:eps=8/255"]}
        mean = round(float(np.mean([a for a, _ in attacks.values()])), 4)
        self.rows.append(
            {"what": what, "forwards": cost, "gradients": round(gradients, 1), "mean_auroc": mean, "attacks": attacks}
        )
        shown = "  ".join(f"{s.split(',')[0]} {a:.4f}/{t:.2f}" for s, (a, t) in attacks.items())
        print(f"{what:34} {cost:4} {mean:.4f}  {shown}", flush=True)


def heads(table: Table, cost: int) -> None:
    for name, head in HEADS.items():
        table.add(f"head: {name}", everything, cost, head=head)
    table.add("head: default, attacks as one", everything, cost, apart=False)


def families(table: Table) -> None:
    table.add("logits only", logits_only, 1)
    copies = ("query", "self")
    for chosen in (copies, ("own",), ("rival",), ("own", "rival"), (*copies, "own"), (*copies, "rival")):
        prefixes = tuple(f"{f}." for f in chosen)
        table.add("+".join(chosen), lambda t, p=prefixes: only(p, t), forwards(table.folds.clean, chosen))


def fewer(table: Table) -> None:
    names = table.folds.clean.names
    options = {
        f"without {group}": {"names": tuple(n for n in names if not n.startswith(starts))}
        for group, starts in GROUPS.items()
    }
    options |= {
        "every second copy": {"names": names[::2]},
        "every fourth copy": {"names": names[::4]},
        "no half-ways": {"halves": False},
        "2 references": {"refs": 2},
        "1 reference": {"refs": 1},
        "3 samples": {"samples": 2},
    }
    for what, option in options.items():
        cost = forwards(thinned(table.folds.clean, **option), EVERY)
        table.add(what, lambda t, o=option: everything(thinned(t, **o)), cost)


def bending(
    table: Table, cache: Path, connectivity: Connectivity, images: torch.Tensor, sets: dict[str, SuccessfulAttacks]
) -> None:
    """Bypass on and off, on the first `BENT` clean images and the attacks shown alone: it is dear."""
    bend = Connectivity(
        connectivity.classifier, connectivity.references, families=(*EVERY, "complexity"), levels=1, steps=4
    )
    detours = walked(cache, bend, "clean, bypass", images[:BENT])
    hits = {}
    for spec in SHOWN:
        low = sets[spec].rows < BENT
        hits[spec] = (walked(cache, bend, spec, sets[spec].images[low]), sets[spec].rows[low].numpy())
    folds, cost = Folds(detours, hits), forwards(table.folds.clean, EVERY)
    spent = float(detours.detour.gradients.sum()) / BENT
    table.add(f"bypass on, {BENT} images", everything, cost, gradients=spent, folds=folds)
    prefixes = tuple(f"{f}." for f in EVERY)
    table.add("bypass off, the same images", lambda t: only(prefixes, t), cost, folds=folds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--deepfool", type=int, default=400)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    connectivity = bundle.load(args.detector).connectivity
    part = parts(args.data)["fit"]
    sets = {s: attacked(args.cache, connectivity.classifier, "fit", part, s, taught(s)) for s in MIXTURE}
    sets["deepfool"] = attacked(args.cache, connectivity.classifier, "fit", part, "deepfool", args.deepfool)
    clean = walked(args.cache, connectivity, "clean", part.images)
    hits = {s: (walked(args.cache, connectivity, s, h.images), h.rows.numpy()) for s, h in sets.items()}
    table = Table(Folds(clean, hits))
    heads(table, forwards(clean, EVERY))
    families(table)
    fewer(table)
    bending(table, args.cache, connectivity, part.images, sets)
    record = {"claim": __doc__.strip().split("\n")[0], "seed": SEED, "n_clean": len(part.labels)}
    record |= {"n_attacked": {s: len(h.rows) for s, h in sets.items()}, "rows": table.rows}
    write_record(args.record, "ablation", record, __file__)


if __name__ == "__main__":
    main()
