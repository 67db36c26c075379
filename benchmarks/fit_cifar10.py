"""Fit the CIFAR-10 detector that advconn ships, on training images that its classifier was not trained on.

    python benchmarks/fit_cifar10.py --data DIR --cache DIR --weights models/classifier.safetensors --out models/cifar10

References are synthesised: no CIFAR-10 image is in the bundle. Attacked images are kept in the cache, so that an
interrupted run goes on and benchmarks/detection.py uses the same ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cifar10 import attacked, classifier, kept, machine, parts, taught, walked
from detection import everything, stacked
from torch import Tensor

from advconn import bundle
from advconn.attacks import MIXTURE
from advconn.connectivity import Connectivity
from advconn.detector import Detector, marks
from advconn.modes import synthesise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()

    model, groups = classifier(args.weights), parts(args.data)
    references = kept(args.cache, f"references {model.fingerprint}", lambda: synthesise(model))
    detector = Detector(Connectivity(model, references))

    def features(name: str, images: Tensor) -> np.ndarray:
        return everything(walked(args.cache, detector.connectivity, name, images))

    rows, attacks = [features("fit", groups["fit"].images)], {}
    for spec in MIXTURE:
        hits = attacked(args.cache, model, "fit", groups["fit"], spec, taught(spec))
        attacks[spec] = (hits.tried, len(hits.rows))
        rows.append(features(spec, hits.images))
    detector.fit_features(*stacked(rows), features("calibrate", groups["calibrate"].images), attacks)
    used = torch.cat([groups["fit"].images, groups["calibrate"].images])
    detector.fitted_ = replace(detector.fitted_, seen=marks(used))
    figures = {
        "classifier": json.loads(args.weights.with_suffix(".json").read_text()),
        "machine": machine(),
    }
    print(bundle.save(detector, args.out, figures=figures))


if __name__ == "__main__":
    main()
