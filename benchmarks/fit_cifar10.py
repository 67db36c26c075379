"""Fit the CIFAR-10 detector that advconn ships, on training images that its classifier was not trained on.

    python benchmarks/fit_cifar10.py --data DIR --cache DIR --weights models/classifier.safetensors --out models/cifar10

References are synthesised: no CIFAR-10 image is in the bundle. Attacked images are kept in the cache, so that an
interrupted run goes on and benchmarks/detection.py uses the same ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from cifar10 import attacked, classifier, machine, parts

from advconn import bundle
from advconn.attacks import MIXTURE
from advconn.connectivity import Connectivity
from advconn.detector import Detector
from advconn.modes import synthesise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--per-attack", type=int, default=400)
    args = parser.parse_args()

    model, groups = classifier(args.weights), parts(args.data)
    images, kinds, rows = [groups["fit"].images.float() / 255], [0] * len(groups["fit"].images), {}
    for spec in MIXTURE:
        hits = attacked(args.cache, model, "fit", groups["fit"], spec, args.per_attack)
        images.append(hits.images)
        kinds += [1] * len(hits.rows)
        rows[spec] = {"tried": hits.tried, "succeeded": len(hits.rows)}
    images.append(groups["calibrate"].images.float() / 255)
    kinds += [0] * len(groups["calibrate"].images)
    detector = Detector(Connectivity(model, synthesise(model)))
    kept = np.arange(len(kinds)) >= len(kinds) - len(groups["calibrate"].images)
    detector.fit(torch.cat(images), np.array(kinds), kept=kept)
    figures = {
        "classifier": json.loads(args.weights.with_suffix(".json").read_text()),
        "attacks": rows,
        "machine": machine(),
    }
    print(bundle.save(detector, args.out, figures=figures))


if __name__ == "__main__":
    main()
