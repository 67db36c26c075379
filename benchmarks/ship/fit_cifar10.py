"""Fit the CIFAR-10 detector that advconn ships, on training images that its classifier was not trained on.

    python -m benchmarks.ship.fit_cifar10 --data DIR --cache DIR --nets DIR [--weights FILE] --out models/cifar10

References are synthesised: no CIFAR-10 image is in the bundle. Attacked images are kept in the cache, so that an
interrupted run goes on and measure/detection.py uses the same ones. Beside the mixture it is fitted on attacks
made on other networks, of train_architectures.py (SPEC from NAME), whose weights are in NETS.

    python -m benchmarks.ship.fit_cifar10 --data DIR --cache DIR --nets DIR --hardened [--companion FILE] \\
        --out models/cifar10-hardened

fits the detector with a companion, of train_robust.py, for the classifier of models/cifar10. Networks that are not
named are those that ship. Its heads are taught on images that evade the shipped detector too, and then on some that
evade the heads so taught.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from advconn import bundle
from advconn.attacks.catalog import MIXTURE
from advconn.bundle.shipped import compact_cifar10
from advconn.cascade.cascade import stage_extractors
from advconn.cascade.differentiable_score import adaptive_training_images
from advconn.cascade.training import TrainingSet
from advconn.data.input_conversion import image_hashes
from advconn.detector.detector import GROUPED, Detector
from advconn.features.connectivity import Connectivity
from advconn.features.references import synthesise
from benchmarks.common.cifar10 import Part, classifier, kept, parts, tables, whole
from benchmarks.common.provenance import machine
from benchmarks.common.training_rows import rows

CHUNK, SIZES = 32, (1, 2, 4, 8)  # of images that evade: how many at once, largest changes in steps of 1/255
EVADING = (range(0, 384, CHUNK), range(384, 896, CHUNK))  # images of the fitting part that each turn is made from


def hardened(cache: Path, detector: Detector, fit: Part, learned: TrainingSet) -> None:
    """Teach heads on these rows, on images that evade the shipped detector and on some that evade those heads."""
    cascade = bundle.load(bundle.default()).cascade_
    companion = detector.connectivity.companion
    connectivities = stage_extractors(detector.connectivity, detector.stages)
    assert companion is not None
    for turn, span in enumerate(EVADING):
        for i in span:
            part = fit.rows(slice(i, i + CHUNK))
            for size in SIZES:
                key = f"evasive {companion.fingerprint if turn else 'shipped'} turn {turn} {i} {size}"
                hits = kept(
                    cache, key, partial(adaptive_training_images, cascade, part.images, part.labels, size / 255, seed=1)
                )
                made = tables(whole(cache, detector.connectivity, "evasive", hits.images), connectivities)
                learned = learned.with_attacked(f"evasive:eps={size}/255", made, hits.rows.numpy() + i, hits.tried)
        print({k: v for k, v in learned.attacks.items() if "evasive" in k}, flush=True)
        if turn < len(EVADING) - 1:
            cascade = detector.fit_cascade(learned).cascade_
    detector.fit_cascade(learned)
    detector.evasive = len(EVADING[0]) * CHUNK


def told(stage: str, done: int, total: int) -> None:
    if done == total:
        print(stage, total, flush=True)


def _trained(network: str, weights: Path | None) -> dict[str, Any]:
    """How a network was trained, as the file beside its weights says, or the card of what ships."""
    if weights is not None:
        return json.loads(weights.with_suffix(".json").read_text())
    folder = bundle.default("cifar10-hardened" if network == "companion" else "cifar10")
    return json.loads((folder / "card.json").read_text())["figures"][network]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "nets", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of the classifier; else that of models/cifar10")
    parser.add_argument("--hardened", action="store_true", help="fit the detector with a companion")
    parser.add_argument("--companion", type=Path, help="its weights; else those in models/cifar10-hardened")
    args = parser.parse_args()

    with_companion = args.hardened or args.companion
    if with_companion and args.weights is None:
        model = compact_cifar10()  # by name: its weights lie in models/cifar10 alone
    else:
        model = classifier(args.weights or bundle.default() / "classifier.safetensors")
    groups = parts(args.data)
    references = kept(args.cache, f"references {model.fingerprint}", lambda: synthesise(model))
    shipped_companion = bundle.default("cifar10-hardened") / "companion.safetensors"
    beside = classifier(args.companion or shipped_companion) if with_companion else None
    detector = Detector(Connectivity(model, references, companion=beside))
    learned = rows(args.cache, args.nets, detector, groups["fit"])
    if beside is None:
        detector.fit_cascade(learned)
    else:
        hardened(args.cache, detector, groups["fit"], learned)
    detector.group_pictures(groups["fit"].images[:GROUPED], told)
    detector.calibrate_on(groups["calibrate"].images, told, groups["calibrate"].labels)
    used = torch.cat([groups["fit"].images, groups["calibrate"].images])
    detector.attacks = MIXTURE  # what others can make again
    detector.fitted_ = replace(detector.fitted_, image_hashes=image_hashes(used))
    network, weights = ("companion", args.companion) if beside else ("classifier", args.weights)
    figures = {network: _trained(network, weights), "machine": machine()}
    print(bundle.save(detector, args.out, figures=figures))


if __name__ == "__main__":
    main()
