"""What the promise is worth: clean images flagged under every benign condition, its price in catches, and the watch.

    python -m benchmarks.measure.conditions --data DIR --cache DIR --nets DIR [--limit 2000] [--record DIR]

Claim: at the threshold that ships, the shares of clean test images flagged, cost and catches in README. A third of the
conditions was in no fit and no calibration. Beside it: catches for each choice of conditions; attacked images that are
saved or made noisy afterwards; the true class given back by the copies' consensus; what noise levels and benign images
in the fit each bring; and after how many noisy images the watch speaks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.cascade.cascade import head_log_odds
from advconn.cascade.heads import default_head
from advconn.data.conditions import CONDITIONS, PROMISED, USES
from advconn.detector.calibration import Calibration
from advconn.detector.detector import Detector
from advconn.detector.drift import Watch
from advconn.detector.judgement import Judgement
from advconn.features.connectivity import Connectivity
from advconn.metrics import auroc
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import Part, attacked, kept, parts, tables, whole
from benchmarks.common.detection import ATTACKS, SQUARE
from benchmarks.common.provenance import SEED, write_record
from benchmarks.common.training_rows import FITTED_ON, rows

HARD = ("noise8", "signs8", "sharpen")
FEW = 600  # images of a condition in the comparison of fits
AFTER = ("jpeg75", "noise8")  # what may happen to attacked images on their way
LATER = 100  # of each attack


def judged(cache: Path, detector: Detector, name: str, images: Tensor) -> dict[str, np.ndarray]:
    """What the detector says of many images, kept."""

    def make() -> dict[str, np.ndarray]:
        judgements = [detector.judge(block) for block in detector.cascade_.blocks(images)]
        print(name, len(images), flush=True)
        found = {key: np.concatenate([np.asarray(getattr(one, key)) for one in judgements]) for key in KEPT}
        if detector.groups_ is not None:
            found["group"] = np.concatenate([np.asarray(detector.group_of(one)) for one in judgements])
        return found

    mark = hash(tuple(detector.calibration_.scores.tolist()))
    return kept(cache, f"judged {mark} {name} {len(images)} {float(images.double().sum())} grouped", make)


def flagged_by(calibration: Calibration, verdicts: dict[str, np.ndarray]) -> np.ndarray:
    """Which images (n,) a calibration flags, each by the threshold of its class or group of pictures."""
    return verdicts["score"] > calibration.thresholds(verdicts["predicted"], verdicts.get("group"))


KEPT = ("score", "predicted", "consensus", "stage", "forwards", "gradients", "adversarial")
assert set(KEPT) <= set(Judgement.__dataclass_fields__) | {"predicted"}


def alarms(verdicts: dict[str, np.ndarray], labels: np.ndarray, calibration: Calibration) -> dict[str, float]:
    flagged, right = flagged_by(calibration, verdicts), verdicts["predicted"] == labels
    cost = verdicts["forwards"] + 3 * verdicts["gradients"]
    return {
        "n": len(flagged),
        "accuracy": float(right.mean()),
        "flagged": float(flagged.mean()),
        "flagged_right": float(flagged[right].mean()),
        "flagged_misclassified": float(flagged[~right].mean()),
        "forwards": float(cost.mean()),
        "forwards_median": float(np.median(cost)),
        "forwards_largest": float(cost.max()),
        "last_stage": float((verdicts["stage"] == verdicts["stage"].max()).mean()),
        "consensus_accuracy": float((verdicts["consensus"] == labels).mean()),
    }


def fits(
    args: argparse.Namespace, detector: Detector, groups: dict[str, Part], spoilt: dict[str, Tensor]
) -> list[dict[str, object]]:
    """All copies at once, with and without noise levels and benign images in the fit."""
    cache, left = args.cache, [spec for spec in FITTED_ON if spec not in args.fitted_on]
    fit = rows(cache, args.nets, detector, groups["fit"], left)
    k = len(detector.cascade_.connectivities) - 2  # the last stage of copies
    names = detector.cascade_.names[k]
    connectivity = detector.connectivity
    alone = Connectivity(
        connectivity.classifier,
        families=("query", "self", "grain"),
        copies=connectivity.copies,
        halves=connectivity.halves,
    )
    columns = list(map(str, alone.get_feature_names_out()))

    def table(name: str, images: Tensor) -> np.ndarray:
        values = kept(cache, f"copies {name} {len(images)} {columns}", lambda: alone.transform(images))
        order = [columns.index(n) for n in names]
        return values[:, order]

    held = tables(
        whole(cache, connectivity, "calibrate", groups["calibrate"].images), detector.cascade_.connectivities
    )[k]
    out = []
    for what, levels, benign in (
        ("neither", False, False),
        ("benign images in the fit", False, True),
        ("noise levels as features", True, False),
        ("both: the default", True, True),
    ):
        keep = [i for i, name in enumerate(names) if levels or not name.startswith("grain.")]
        used = np.ones(len(fit.kinds), bool) if benign else ~fit.benign
        head = default_head().fit(fit.features[k][used][:, keep], fit.kinds[used])
        threshold = float(np.quantile(head_log_odds(head, held[:, keep]), 0.95))
        labels = groups["clean"].labels.numpy()
        clean = tables(whole(cache, connectivity, "clean", groups["clean"].images), detector.cascade_.connectivities)[k]
        base = head_log_odds(head, clean[:, keep])
        row: dict[str, object] = {"what": what, "clean": float((base > threshold).mean())}
        for name, images in spoilt.items():
            said = (
                connectivity.classifier.logits(connectivity.classifier.check(images)).argmax(1).numpy()
                == labels[: len(images)]
            )
            row[name] = float((head_log_odds(head, table(name, images)[:, keep])[said] > threshold).mean())
        for spec in args.attacks:
            hits = attacked(
                cache, connectivity.classifier, "attack", groups["attack"], spec, 300 if spec == SQUARE else 600
            )
            features = tables(whole(cache, connectivity, spec, hits.images), detector.cascade_.connectivities)[k]
            score = head_log_odds(head, features[:, keep])
            row[spec] = [round(auroc(base, score), 4), round(float((score > threshold).mean()), 4)]
        print(row, flush=True)
        out.append(row)
    return out


def streams(detector: Detector, clean: np.ndarray, other: dict[str, np.ndarray], count: int) -> dict[str, object]:
    """Streams of 500 clean scores, and what follows them: after how many more images the watch speaks."""
    random, false = np.random.default_rng(SEED), 0
    for i in range(count):
        false += Watch(detector.calibration_, seed=i).see(random.permutation(clean)[:1000])
    turns: dict[str, object] = {}
    for name, scores in other.items():
        after = []
        for i in range(count):
            quiet, watch = random.permutation(clean), Watch(detector.calibration_, seed=i)
            if not watch.see(quiet[:500]):
                watch.see(random.permutation(scores)[:400])
                after.append(np.inf if watch.spoke_at is None else watch.spoke_at - 500)
        parts = np.percentile(after, [10, 50, 90], method="nearest")
        turns[name] = {"after": [str(v) for v in parts], "silent": int(np.isinf(after).sum()), "streams": len(after)}
    return {"streams": count, "false_in_1000_clean": false, "turns": turns}


def main() -> None:
    parser = parser_of(__doc__, "data", "cache", "nets")
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument("--limit", type=int, default=2000, help="clean images")
    parser.add_argument("--attacks", nargs="+", default=[*ATTACKS, SQUARE])
    parser.add_argument("--fitted-on", nargs="+", default=FITTED_ON, help="attacks, in the comparison of fits")
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS, help="with clean")
    parser.add_argument("--streams", type=int, default=100, help="that the watch sees")
    args = parse(
        parser, "data", "cache", "nets", limit=4, attacks=ATTACKS[:1], fitted_on=ATTACKS[:1], streams=2,
        conditions=["clean", "noise8", "blur"],
    )  # fmt: skip

    detector, groups = bundle.load(args.detector), parts(args.data)
    calibration, model = detector.calibration_, detector.classifier
    images, labels = groups["clean"].images[: args.limit], groups["clean"].labels[: args.limit].numpy()
    clean = {
        n: judged(args.cache, detector, n, CONDITIONS[n](images, SEED + 1))
        for n in dict.fromkeys(("clean", *args.conditions))
    }
    rates = [
        {"condition": name, "use": USES[name]}
        | alarms(verdicts, labels, calibration)
        | {"flagged_right_clean_only": alarms(verdicts, labels, calibration.at(conditions=("clean",)))["flagged_right"]}
        for name, verdicts in clean.items()
    ]
    choices = {"clean, on average": calibration.at(conditions=("clean",), confidence=None)}
    choices |= {"clean": calibration.at(conditions=("clean",))}
    choices |= {f"clean, {name}": calibration.at(conditions=("clean", name)) for name in PROMISED[1:]}
    choices |= {"all seven: the default": calibration}
    catches, later, attacked_scores = [], [], {}
    for spec in args.attacks:
        hits = attacked(args.cache, model, "attack", groups["attack"], spec, 300 if spec == SQUARE else 600)
        truth = groups["attack"].labels[hits.rows].numpy()
        hit_verdicts = judged(args.cache, detector, spec, hits.images)
        attacked_scores[spec] = hit_verdicts["score"]
        catches.append(
            {
                "attack": spec,
                "n": len(truth),
                "forwards": float((hit_verdicts["forwards"] + 3 * hit_verdicts["gradients"]).mean()),
            }
            | {"restored": float((hit_verdicts["consensus"] == truth).mean())}
            | {"caught": {what: float(flagged_by(choice, hit_verdicts).mean()) for what, choice in choices.items()}}
        )
        for name in AFTER:
            changed = CONDITIONS[name]((hits.images[:LATER] * 255).round().to(torch.uint8), SEED)
            after = judged(args.cache, detector, f"{spec} {name}", changed)
            wrong = after["predicted"] != truth[:LATER]
            later.append(
                {"attack": spec, "then": name, "still_wrong": float(wrong.mean()), "n": int(wrong.sum())}
                | {"caught": float(after["adversarial"][wrong].mean()) if wrong.any() else None}
            )
    one = next((spec for spec in args.attacks if spec.startswith("cw")), args.attacks[0])
    quiet, hit = clean["clean"]["score"], attacked_scores[one]
    turns = {name: clean[name]["score"] for name in ("noise8", "blur") if name in clean} | {
        f"one in ten attacked by {one}": np.concatenate([quiet[:360], hit[:40]]),
        f"one in three attacked by {one}": np.concatenate([quiet[:267], hit[:133]]),
    }
    record = {
        "claim": __doc__.strip().split("\n")[0],
        "seed": SEED,
        "fpr": calibration.fpr,
        "confidence": calibration.confidence,
        "level": calibration.level,
        "rates": rates,
        "catches": catches,
        "afterwards": later,
        "watch": streams(detector, clean["clean"]["score"], turns, args.streams),
        "fits": fits(args, detector, groups, {n: CONDITIONS[n](images[:FEW], SEED + 1) for n in HARD}),
    }
    for row in (*rates, *catches, *later, record["watch"]):
        print(row, flush=True)
    write_record(args.record, "conditions", record, __file__)


if __name__ == "__main__":
    main()
