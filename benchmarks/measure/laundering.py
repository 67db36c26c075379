"""Attacked, then saved: what a detector still catches, what it then flags of clean images, and whom it doubts.

    python -m benchmarks.measure.laundering --data DIR --cache DIR --nets DIR [--detector DIR] [--record DIR]
    python -m benchmarks.measure.laundering --photographs DIR --cache DIR [--detector DIR] [--record DIR]

Claim: at the threshold that ships, on test images in no other use, the shares caught in README. Attacked images are
saved in each way of laundering.LAUNDERINGS; only those that still fool the classifier count, and their share is told.
Clean images are saved the same ways. Qualities that are tested are in no fit. Of every row it is told how many images
the detector doubts (Judgement.doubtful).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.attacks.attack import SuccessfulAttacks
from advconn.data.laundering import LAUNDERINGS
from advconn.detector.detector import Detector
from advconn.metrics import auroc, clopper_pearson
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import Part, parts
from benchmarks.common.families import FROM, hits_of
from benchmarks.common.photographs import RAW, SAVED, Photographs, flickr, saved
from benchmarks.common.photographs import hits_of as hits_of_photographs
from benchmarks.common.provenance import SEED, write_record

WAYS = (RAW, *LAUNDERINGS)
SMALL = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=16/255,steps=10",
    "fgsm:eps=8/255",
    "cw:c=1,kappa=0,steps=100",
    f"{FROM} plain",
    f"{FROM} half18",
    "pgd-jpeg:eps=8/255,quality=75",
    "pgd-jpeg-eot:eps=8/255",
)
LARGE = (
    *SAVED,
    "pgd-jpeg:eps=8/255,quality=75",
    "pgd:eps=8/255,steps=20,target=random",  # as the data set's own targets are drawn
    "pgd:eps=8/255,steps=20,target=least-likely",
)


def clean_rows(
    detector: Detector, part: Part | Photographs, ways: Sequence[str]
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Clean images flagged and doubted by way of saving: all, those classified right, and the others; raw scores."""
    rows, raw = [], np.zeros(0)
    for way in ways:
        judgement = detector.judge(saved(part.images, way))
        raw = judgement.score if way == RAW else raw
        right = judgement.predicted == part.labels.numpy()
        row: dict[str, Any] = {"saved_as": way}
        for name, mine in (("all", np.ones(len(right), bool)), ("right", right), ("wrong", ~right)):
            row |= {f"n_{name}": int(mine.sum()), f"flagged_{name}": float(judgement.adversarial[mine].mean())}
            if judgement.doubtful is not None:
                row[f"doubtful_{name}"] = float(judgement.doubtful[mine].mean())
        row["forwards"] = float((judgement.forwards + 3 * judgement.gradients).mean())
        rows.append(row)
        print(row, flush=True)
    return rows, raw


def attacked_rows(
    detector: Detector, spec: str, hits: SuccessfulAttacks, labels: Tensor, clean: np.ndarray, ways: Sequence[str]
) -> list[dict[str, Any]]:
    """Survivors of an attack by way of saving: their share, AUROC against raw clean scores, caught, doubted."""
    rows = []
    for way in ways:
        shown = saved(hits.images.float(), way)
        fooled = detector.classifier.predict(shown) != labels[hits.rows]
        row: dict[str, Any] = {"attack": spec, "saved_as": way, "n": int(fooled.sum()), "of": len(fooled)}
        if fooled.any():
            judgement = detector.judge(shown[fooled])
            low, high = clopper_pearson(judgement.adversarial)
            row |= {"caught": float(judgement.adversarial.mean()), "caught_low": low, "caught_high": high}
            row["auroc"] = round(auroc(clean, judgement.score), 4)
            if judgement.doubtful is not None:
                row["doubtful"] = float(judgement.doubtful.mean())
                row["caught_or_doubtful"] = float((judgement.doubtful | judgement.adversarial).mean())
        rows.append(row | {"tried": hits.tried})
        print(row, flush=True)
    return rows


def main() -> None:
    parser = parser_of(__doc__, "cache", "data", "nets")
    parser.add_argument("--photographs", type=Path, help="nips2017's folder: measure the photographs' detector on it")
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--limit", type=int, default=150, help="successful copies of each attack")
    parser.add_argument("--attacks", nargs="+", help="in place of those that suit the images")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="of saving; raw comes first")
    parser.add_argument("--clean", type=int, default=1000, help="clean images")
    parser.add_argument("--subject", default="laundering", help="of the record: a variant has a name of its own")
    args = parse(parser, "cache", limit=2, clean=10, ways=[RAW, "jpeg75"], attacks=SMALL[:1], photographs=None)
    part: Part | Photographs
    clean: Part | Photographs
    if args.photographs is None:
        detector = bundle.load(args.detector or bundle.default())
        groups = parts(args.data)
        part, clean = groups["attack"], groups["clean"].rows(slice(0, args.clean))

        def copies(spec: str) -> SuccessfulAttacks:
            return hits_of(args.cache, args.nets, "shipped", "attack", groups["attack"], spec, 2 * args.limit)
    else:
        detector = bundle.load(args.detector or bundle.default("imagenet"))
        model, (_, _, test) = detector.classifier, flickr(detector.classifier, args.photographs)
        part = clean = test
        order = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(SEED))

        def copies(spec: str) -> SuccessfulAttacks:
            return hits_of_photographs(args.cache, model, test, spec, order[: args.limit], "flickr test")

    flagged, scores = clean_rows(detector, clean, args.ways)
    attacked = []
    for spec in args.attacks or (SMALL if args.photographs is None else LARGE):
        hits = copies(spec)
        few = SuccessfulAttacks(hits.images[: args.limit], hits.rows[: args.limit], hits.tried)
        attacked += attacked_rows(detector, spec, few, part.labels, scores, args.ways)
    level = detector.calibration_
    record = {
        "claim": __doc__.strip().split("\n")[0],
        "detector": args.detector.name if args.detector else None,
        "seed": SEED,
        "fpr": level.fpr,
        "doubt": detector.doubt_,
        "fingerprint": detector.classifier.fingerprint,
        "clean": flagged,
        "attacked": attacked,
    }
    write_record(args.record, args.subject, record, __file__)


if __name__ == "__main__":
    main()
