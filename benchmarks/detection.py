"""How well the shipped detector does: AUROC and catch rate at one frozen threshold, false alarms, and leave-one-out.

    python benchmarks/detection.py --data DIR --cache DIR [--detector models/cifar10] [--limit 600] [--out DIR]

Claim: on test images in no other use, at a threshold frozen on other clean images at 5 %, the figures in README.
Beside the detector stand a logits-only one and the paper's own features (own-class cross-entropy barrier and path
complexity; on fewer of them), fitted and calibrated on the same images. Only successful attacks count; their number is
shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from cifar10 import SEED, attacked, machine, parts, taught, walked
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from advconn import bundle
from advconn.attacks import MIXTURE
from advconn.calibration import Calibration
from advconn.connectivity import Connectivity
from advconn.detector import Hits, log_odds
from advconn.features import Trace, table

ATTACKS = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "cw:c=1,kappa=0,steps=100",
    "deepfool",
    "fgsm:eps=8/255",
)
FPR = 0.05
PAPER_LABEL = "paper: own barrier, complexity"
PAPER = ("own.barrier", "own.gap", "own.place", "own.loss", "own.connected", "complexity.")


def only(prefixes: tuple[str, ...], trace: Trace) -> np.ndarray:
    columns, names = table(trace)
    return columns[:, [i for i, name in enumerate(names) if name.startswith(prefixes)]].double().numpy()


def everything(trace: Trace) -> np.ndarray:
    return table(trace)[0].double().numpy()


def logits_only(trace: Trace) -> np.ndarray:
    """What can be read off the query's own logits: margin, energy, entropy, gap, the sorted logits."""
    columns, names = table(Trace(trace.query, ("query",), trace.query[:, None]))
    keep = [names.index(f"self.{n}") for n in ("margin", "energy", "entropy.query", "gap")]
    top = trace.query.sort(dim=1, descending=True).values
    return torch.cat([columns[:, keep], top], 1).double().numpy()


def interval(clean: np.ndarray, hits: np.ndarray, draws: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC."""
    rng = np.random.default_rng(SEED)
    both = []
    for _ in range(draws):
        a, b = rng.choice(clean, len(clean)), rng.choice(hits, len(hits))
        both.append(auroc(a, b))
    low, high = np.percentile(both, [2.5, 97.5])
    return float(low), float(high)


def auroc(clean: np.ndarray, hits: np.ndarray) -> float:
    return float(roc_auc_score(np.repeat([0, 1], [len(clean), len(hits)]), np.concatenate([clean, hits])))


def stacked(tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of clean images first, then of each attack, and which is which: 0 clean, 1 and more the attacks."""
    return np.concatenate(tables), np.repeat(np.arange(len(tables)), [len(t) for t in tables])


class Scored:
    """One head on one set of features: fitted, calibrated at FPR, then frozen."""

    def __init__(self, head, features, clean: Trace, hits: list[Trace], calibrate: Trace) -> None:
        self.features = features
        self.head = clone(head).fit(*stacked([features(t) for t in (clean, *hits)]))
        self.calibration = Calibration(self.score(calibrate), FPR)

    def score(self, trace: Trace) -> np.ndarray:
        return log_odds(self.head, self.features(trace))

    def row(self, attack: str, clean: np.ndarray, hits: np.ndarray, tried: int) -> dict[str, object]:
        low, high = interval(clean, hits)
        return {
            "attack": attack,
            "auroc": round(auroc(clean, hits), 4),
            "auroc_low": round(low, 4),
            "auroc_high": round(high, 4),
            "tpr": round(float((hits > self.calibration.threshold).mean()), 4),
            "fpr": round(float((clean > self.calibration.threshold).mean()), 4),
            "success": round(len(hits) / tried, 4),
            "n_clean": len(clean),
            "n_attacked": len(hits),
        }


def name_of(spec: str) -> str:
    return spec.split(":")[0]


def single(spec: str) -> str:
    return "single steps" if name_of(spec) == "fgsm" or spec.endswith("steps=1") else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--limit", type=int, default=600, help="images attacked by each")
    parser.add_argument("--left-limit", type=int, default=300, help="the same, where an attack is only left out")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    detector = bundle.load(args.detector)
    model, groups = detector.connectivity.classifier, parts(args.data)
    shipped = detector.connectivity
    paper = Connectivity(**shipped.get_params(deep=False) | {"families": ("own", "complexity")})

    def trace(walk: Connectivity, name: str, images: torch.Tensor) -> Trace:
        return walked(args.cache, walk, name, images)

    def sets(part: str, spec: str, limit: int) -> Hits:
        return attacked(args.cache, model, part, groups[part], spec, limit)

    predicted = torch.cat([model.logits(model.check(x)).argmax(1) for x in groups["clean"].images.split(500)])
    right = float((predicted == groups["clean"].labels).float().mean())
    results = []
    for label, features, walk in (
        ("advconn", everything, shipped),
        ("logits only", logits_only, shipped),
        (PAPER_LABEL, lambda t: only(PAPER, t), paper),
    ):
        few = label == PAPER_LABEL  # bypass is dear: fewer images of every kind, and no leave-one-out
        if few:
            groups = {name: part.rows(slice(0, 1000)) for name, part in groups.items()}
        clean = {n: trace(walk, n, groups[n].images) for n in ("fit", "calibrate", "clean")}
        hits = {spec: trace(walk, spec, sets("fit", spec, 120 if few else taught(spec)).images) for spec in MIXTURE}
        scored = Scored(detector.head_, features, clean["fit"], list(hits.values()), clean["calibrate"])
        base = scored.score(clean["clean"])
        for spec in ATTACKS:
            found = sets("attack", spec, 200 if few else args.limit)
            row = scored.row(spec, base, scored.score(trace(walk, spec, found.images)), found.tried)
            results.append({"detector": label, "left_out": None, **row})
            print(results[-1], flush=True)
        if few:
            continue
        for left in (*dict.fromkeys(map(name_of, MIXTURE)), "single steps"):
            out = [spec for spec in MIXTURE if left in (name_of(spec), single(spec))]
            rest = [t for spec, t in hits.items() if spec not in out]
            without = Scored(detector.head_, features, clean["fit"], rest, clean["calibrate"])
            scores = without.score(clean["clean"])
            for spec in dict.fromkeys((*(s for s in ATTACKS if name_of(s) == left), *out)):
                found = sets("attack", spec, args.limit if spec in ATTACKS else args.left_limit)
                row = without.row(spec, scores, without.score(trace(walk, spec, found.images)), found.tried)
                results.append({"detector": label, "left_out": left, **row})
                print(results[-1], flush=True)
    record = {
        "claim": __doc__.strip().split("\n")[0],
        "machine": machine(),
        "seed": SEED,
        "fpr": FPR,
        "fingerprint": model.fingerprint,
        "clean_accuracy": right,
        "results": results,
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
