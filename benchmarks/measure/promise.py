"""Is the false-alarm rate that is asked for spent, and kept? Rules of calibration compared over ten splits.

    python -m benchmarks.measure.promise --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

Ten times a detector is fitted on 500 images (heads taught without the network, see strangers.py) and judges others, as
they are and under every condition of its guarantee, and attacked ones. The rules: one threshold with 95 % confidence
(as before), one threshold on average, groups of pictures (the default), and groups in which each condition with 80
images counts by itself. Conditions that a fit leaves out because they are dear are not judged.
Must: of unseen clean images .035 to .05 are flagged on average, under no condition more than .05 and two standard
errors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from advconn.attacks.attack import Attack, attack_correct_images
from advconn.data.conditions import CONDITIONS
from advconn.detector.calibration import Calibration, Cell
from advconn.detector.detector import Detector
from advconn.detector.fitting import fit
from advconn.detector.judgement import Judgement
from benchmarks.common.arguments import FOLDERS, parse, parser_of
from benchmarks.common.left_out import ATTACKED, FITTED, MNIST, PRETRAINED, network, others_than, pooled
from benchmarks.common.provenance import SEED, write_record

ALONE = 80  # images of a condition in a group
NAMES, SPLITS, JUDGED = ("resnet20", "mnist-cnn", "mnist-mlp"), 10, 500
COLOURED = ("pgd:eps=8/255,steps=10", "cw:c=1,kappa=0,steps=100", "deepfool", "fgsm:eps=8/255")


class Strict(Calibration):
    """Groups of pictures, each with the largest p over the conditions that have enough images in it."""

    @cached_property
    def by_group(self) -> dict[int, tuple[Cell, ...]]:  # type: ignore[override]
        out = {}
        for label, cells in Calibration.by_group.func(self).items():  # type: ignore[attr-defined]
            own = [values[self.groups[name] == label] for name, values in self.tables.items()]
            out[label] = (*cells, *(Cell(np.sort(values), 1) for values in own if len(values) >= ALONE))
        return out


def rules(detector: Detector) -> dict[str, Calibration]:
    """The calibration of a detector by every rule."""
    grouped = detector.calibration_
    fields = (grouped.tables, grouped.fpr)
    return {
        "one threshold, 95 % confidence": replace(grouped, scores=grouped.tables, confidence=0.95, groups=None),
        "one threshold, 80 % confidence": replace(grouped, scores=grouped.tables, confidence=0.8, groups=None),
        "one threshold, on average": replace(grouped, scores=grouped.tables, groups=None),
        "unchanged images alone": grouped.at(conditions=("clean",)),
        "groups, each condition": Strict(*fields, groups=grouped.groups),
        "groups (default)": grouped,
    }


def main() -> None:
    parser = parser_of(__doc__, *FOLDERS)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--heads", type=Path, help="in place of heads that are trained without the network")
    parser.add_argument("--attacks", nargs="+", help="in place of those that suit the network")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--judged", type=int, default=JUDGED, help="clean images under each condition")
    args = parse(
        parser, *FOLDERS, names=["digits"], heads=PRETRAINED, attacks=["pgd:eps=0.2,steps=5"], splits=1, judged=50
    )
    options = (args.cache, args.data, args.nets, args.public)
    record: dict[str, Any] = {"seed": SEED, "fitted": FITTED, "splits": args.splits}
    record["networks"] = {}
    for name in args.names:
        about, heads = network(name, *options[1:]), others_than(name, options, args.heads)
        specs = args.attacks or (MNIST if about.model.channels == 1 else COLOURED)
        shares: dict[str, dict[str, list[float]]] = {}
        for split in range(args.splits):
            train, clean, attacked = pooled(about, 100 + split)
            detector = fit(
                about.model, train.images, train.labels, pretrained=heads, seed=split, accept_weak=True,
                note=lambda text: None,
            )  # fmt: skip
            judged: dict[str, Judgement] = {}
            for kind in detector.calibration_.conditions:
                judged[kind] = detector.judge(CONDITIONS[kind](clean.images[: args.judged], SEED))
            for spec in specs:
                hits = attack_correct_images(
                    about.model, Attack.parse(spec), attacked.images[:ATTACKED], attacked.labels[:ATTACKED], seed=SEED
                )
                if len(hits.rows):
                    judged[f"caught {spec}"] = detector.judge(hits.images)
            for rule, calibration in rules(detector).items():
                for what, found in judged.items():
                    limits = calibration.thresholds(found.predicted, detector.group_of(found))
                    share = float((found.score > limits).mean())
                    shares.setdefault(rule, {}).setdefault(what, []).append(share)
            print(f"{name}: split {split + 1} of {args.splits}", flush=True)
        rows = {
            rule: {
                what: {"mean": round(float(np.mean(v)), 4), "error": round(float(np.std(v) / len(v) ** 0.5), 4)}
                for what, v in by_kind.items()
            }
            for rule, by_kind in shares.items()
        }
        record["networks"][name] = rows
        for rule, row in rows.items():
            print(f"{name}, {rule}:", " ".join(f"{what} {v['mean']:.3f}" for what, v in row.items()), flush=True)
        write_record(args.record, "promise", record, __file__)


if __name__ == "__main__":
    main()
