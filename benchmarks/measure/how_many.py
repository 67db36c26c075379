"""How many clean images does a default fit need? 60, 100, 200, 500 and 2,000, on networks that were left out.

    python -m benchmarks.measure.how_many --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

Several fits of each size on other images (heads taught without the network, see strangers.py), judged on the same 1,000
clean images and attacked ones: AUROC, share caught, share of clean images flagged, seconds, and their spread.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advconn.attacks.attack import Attack, attack_correct_images
from advconn.detector.fitting import fit
from advconn.errors import FitError
from advconn.metrics import auroc
from benchmarks.common.arguments import FOLDERS, parse, parser_of
from benchmarks.common.cifar10 import Part
from benchmarks.common.left_out import ATTACKED, CLEAN, MNIST, PRETRAINED, network, others_than
from benchmarks.common.provenance import SEED, write_record

NAMES, SIZES = ("resnet20",), {60: 4, 100: 4, 200: 3, 500: 3, 2000: 1}
COLOURED = ("pgd:eps=8/255,steps=10", "cw:c=1,kappa=0,steps=100", "fgsm:eps=8/255")


def main() -> None:
    parser = parser_of(__doc__, *FOLDERS)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--heads", type=Path, help="in place of heads that are trained without the network")
    parser.add_argument("--attacks", nargs="+", help="in place of those that suit the network")
    args = parse(parser, *FOLDERS, names=["digits"], heads=PRETRAINED, attacks=["pgd:eps=0.2,steps=5"], sizes=[100])
    options = (args.cache, args.data, args.nets, args.public)
    record: dict[str, Any] = {"seed": SEED, "fits": {size: SIZES[size] for size in args.sizes}, "networks": {}}
    for name in args.names:
        about, heads = network(name, *options[1:]), others_than(name, options, args.heads)
        model = about.model
        specs = args.attacks or (MNIST if model.channels == 1 else COLOURED)
        whole = Part(*(torch.cat([getattr(part, field) for part in about.images]) for field in ("images", "labels")))
        whole = whole.rows(torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(SEED + 7)))
        most = min(CLEAN, len(whole.labels) // 2)
        attacked, clean = whole.rows(slice(0, ATTACKED)), whole.rows(slice(ATTACKED, ATTACKED + most))
        rest = whole.rows(slice(ATTACKED + most, None))
        hits = {
            s: attack_correct_images(model, Attack.parse(s), attacked.images, attacked.labels, seed=SEED) for s in specs
        }
        rows = record["networks"][name] = {}
        for size in args.sizes:
            runs: list[dict[str, float]] = []
            if size > len(rest.labels):
                continue
            for seed in range(SIZES[size]):
                order = torch.randperm(len(rest.labels), generator=torch.Generator().manual_seed(seed))[:size]
                part, started = rest.rows(order), time.perf_counter()
                try:
                    detector = fit(
                        model, part.images, part.labels, pretrained=heads, seed=seed, accept_weak=True,
                        note=lambda text: None,
                    )  # fmt: skip
                except FitError as error:
                    print(f"{name}, {size} images: {error}", flush=True)
                    continue
                seconds, judgement = time.perf_counter() - started, detector.judge(clean.images)
                run = {"seconds": seconds, "flagged": float(judgement.adversarial.mean())}
                for spec, made in hits.items():
                    found = detector.judge(made.images)
                    run |= {f"auroc {spec}": auroc(judgement.score, found.score)}
                    run |= {f"caught {spec}": float(found.adversarial.mean())}
                runs.append(run)
            if not runs:
                continue
            rows[size] = {
                key: {"mean": round(float(np.mean([r[key] for r in runs])), 4),
                      "deviation": round(float(np.std([r[key] for r in runs])), 4)}
                for key in runs[0]
            } | {"fits": len(runs)}  # fmt: skip
            cells = " ".join(f"{key} {v['mean']:.3f}" for key, v in rows[size].items() if isinstance(v, dict))
            print(f"{name}, {size} images: {cells}", flush=True)
            write_record(args.record, "how-many", record, __file__)


if __name__ == "__main__":
    main()
