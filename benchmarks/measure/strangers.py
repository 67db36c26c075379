"""The default fit on networks that nobody here trained, or of kinds that the heads do not know: 500 images, no option.

    python -m benchmarks.measure.strangers --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

For every network the heads are taught on the others (teach.py; relatives and data sets are left out with it), a
detector is fitted on 500 images, and attacks are made on images in no other use. Told are AUROC and the share caught
at the detector's own threshold, the share of unseen clean images flagged, and seconds. Beside it stands the one-number
detector `logits`: the better of the margin's two sides, with a threshold from the same number of clean images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import Attack, attack_correct_images
from advconn.detector.fitting import fit
from advconn.metrics import auroc
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from benchmarks.common.arguments import FOLDERS, parse, parser_of
from benchmarks.common.cifar10 import Part
from benchmarks.common.left_out import ATTACKED, FITTED, MNIST, PRETRAINED, RELATIVES, network, others_than, pooled
from benchmarks.common.lessons import Subject
from benchmarks.common.provenance import SEED, file_of, write_record

NAMES = ("resnet20", "resnet44", "mnist-cnn", "mnist-mlp", "shipped", "robust", "plain", "smooth", "mixed", "sure",
         "grey28", "two", "ensemble", *RELATIVES)  # fmt: skip


def logits_only(model: Classifier, clean: Part, attacked: Tensor) -> float:
    """AUROC of the query's own margin, on its better side."""

    def margins(images: Tensor) -> np.ndarray:
        logits = torch.cat([model.logits(model.check(x)).cpu() for x in images.split(256)])
        return margin(logits, logits.argmax(1)).double().numpy()

    found = auroc(margins(clean.images), margins(attacked))
    return max(found, 1 - found)


def judged(name: str, args: argparse.Namespace, seed: int = 0) -> dict[str, Any]:
    """All figures of a network."""
    about = network(name, args.data, args.nets, args.public)
    model = about.model
    specs = args.attacks or (MNIST if model.channels == 1 and name != "grey28" else about.tested)
    train, clean, attacked = pooled(about, seed)
    clean = clean.rows(slice(0, len(clean.labels) - max(0, FITTED + len(clean.labels) + 2 * ATTACKED - _count(about))))
    heads, notes = others_than(name, (args.cache, args.data, args.nets, args.public), args.heads), []
    started = time.perf_counter()
    detector = fit(model, train.images, train.labels, pretrained=heads, accept_weak=True, seed=seed, note=notes.append)
    seconds = time.perf_counter() - started
    judgement = detector.judge(clean.images)
    wrong = judgement.predicted != clean.labels.numpy()
    flagged = judgement.adversarial
    out: dict[str, Any] = {
        "accuracy": round(1 - float(wrong.mean()), 4),
        "seconds": round(seconds, 1),
        "n_clean": len(clean.labels),
        "flagged": round(float(flagged.mean()), 4),
        "flagged_right": round(float(flagged[~wrong].mean()), 4),
        "forwards": round(float(judgement.forwards.mean()), 1),
        "groups": len(set(map(id, detector.calibration_.by_group.values()))),
        "notes": [note for note in notes if "accuracy" not in note],
        "attacks": {},
    }
    for spec in specs:
        if not model.differentiable and Attack.parse(spec).needs_gradient:
            continue
        hits = attack_correct_images(
            model, Attack.parse(spec), attacked.images[:ATTACKED], attacked.labels[:ATTACKED], seed=SEED
        )
        if not len(hits.rows):
            continue
        found = detector.judge(hits.images)
        out["attacks"][spec] = {
            "auroc": round(auroc(judgement.score, found.score), 4),
            "caught": round(float(found.adversarial.mean()), 4),
            "logits_auroc": round(logits_only(model, clean, hits.images), 4),
            "n": len(hits.rows),
            "success": round(len(hits.rows) / max(hits.tried, 1), 3),
        }
    return out


def _count(about: Subject) -> int:
    return sum(len(part.labels) for part in about.images)


def main() -> None:
    parser = parser_of(__doc__, *FOLDERS)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--heads", type=Path, help="in place of heads that are trained without the network")
    parser.add_argument("--attacks", nargs="+", help="in place of those that suit the network")
    args = parse(parser, *FOLDERS, names=["digits"], heads=PRETRAINED, attacks=["pgd:eps=0.2,steps=5"])
    record: dict[str, Any] = {"seed": SEED, "fitted": FITTED, "networks": {}}
    file = None if args.record is None else file_of(args.record, "strangers")
    if file is not None and file.exists():
        record["networks"] = json.loads(file.read_text())["networks"]
    for name in args.names:
        record["networks"][name] = row = judged(name, args)
        cells = " ".join(f"{s.split(',')[0]} {v['auroc']:.3f}/{v['caught']:.2f}" for s, v in row["attacks"].items())
        print(f"{name}: {row['seconds']} s, clean flagged {row['flagged']:.3f}, {cells}", flush=True)
        write_record(args.record, "strangers", record, __file__)


if __name__ == "__main__":
    main()
