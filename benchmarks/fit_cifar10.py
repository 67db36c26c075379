"""Fit the CIFAR-10 detector that advconn ships, on training images that its classifier was not trained on.

    python benchmarks/fit_cifar10.py --data DIR --cache DIR --nets DIR --weights FILE --out models/cifar10

References are synthesised: no CIFAR-10 image is in the bundle. Attacked images are kept in the cache, so that an
interrupted run goes on and benchmarks/detection.py uses the same ones. Beside the mixture it is fitted on attacks made
on other networks, of train_architectures.py (SPEC from NAME), whose weights are in NETS.

    python benchmarks/fit_cifar10.py --data DIR --cache DIR --nets DIR --companion FILE --out models/cifar10-hardened

fits the detector with a companion, of train_robust.py, for the classifier of models/cifar10. Its heads are taught on
images that evade the shipped detector too, and then on some that evade the heads so taught.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Container
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cifar10 import SEED, Part, classifier, kept, machine, parts, tables, taught, whole
from families import hits_of
from torch import Tensor

from advconn import bundle
from advconn.attacks.catalog import MIXTURE
from advconn.bundle import shipped
from advconn.cascade.augmentation import still_misclassified
from advconn.cascade.cascade import stage_extractors
from advconn.cascade.differentiable import adaptive_training_images
from advconn.cascade.training import TrainingSet
from advconn.cascade.training import training_set_of as taught_rows
from advconn.data.conditions import BENIGN, CONDITIONS
from advconn.data.inputs import image_hashes
from advconn.detector.detector import Detector
from advconn.features.connectivity import Connectivity
from advconn.features.references import synthesise

TRANSFERRED = {"transfer:eps=8/255 from plain": 250} | {  # and on how many images each is tried
    f"{spec} from {name}": 500
    for name in ("half18", "vit6")
    for spec in ("pgd:eps=8/255,steps=10", "mifgsm:eps=8/255,steps=10", "pgd:eps=6/255,steps=20")
}
CHUNK, SIZES = 32, (1, 2, 4, 8)  # of images that evade: how many at once, largest changes in steps of 1/255
EVADING = (range(0, 384, CHUNK), range(384, 896, CHUNK))  # images of the fitting part that each turn is made from
FITTED_ON = (*MIXTURE, *TRANSFERRED)


def rows(cache: Path, nets: Path, detector: Detector, fit: Part, without: Container[str] = ()) -> TrainingSet:
    """Clean images, their attacked copies (but for the attacks left out), and clean ones under benign conditions."""
    connectivities, model = stage_extractors(detector.connectivity, detector.stages), detector.classifier

    def features(name: str, images: Tensor) -> tuple[np.ndarray, ...]:
        return tables(whole(cache, detector.connectivity, name, images), connectivities)

    n = len(fit.images)
    parts, kinds, groups, attacks = [features("fit", fit.images)], [np.zeros(n, int)], [np.arange(n)], {}
    for spec in [spec for spec in FITTED_ON if spec not in without]:
        hits = hits_of(cache, nets, "shipped", "fit", fit, spec, TRANSFERRED.get(spec) or taught(spec))
        attacks[spec] = (hits.tried, len(hits.rows))
        changed, kept_rows = still_misclassified(model, hits.images, fit.labels[hits.rows], BENIGN, SEED)
        parts += [features(spec, hits.images), features(f"{spec}, changed", changed)]
        kinds.append(np.full(len(hits.rows) + len(changed), len(attacks)))
        groups += [hits.rows.numpy(), hits.rows[kept_rows].numpy()]
    learned = taught_rows(stacked(parts), np.concatenate(kinds), np.concatenate(groups), attacks=attacks)
    spoilt = [features(kind, CONDITIONS[kind](fit.images[i :: len(BENIGN)], SEED)) for i, kind in enumerate(BENIGN)]
    return learned.with_corrupted(
        stacked(spoilt), np.concatenate([np.arange(n)[i :: len(BENIGN)] for i in range(len(BENIGN))])
    )


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
            rows_of = f"{len(learned.kinds)} rows, {float(learned.features[0].sum())!r}"
            key = f"taught {companion.fingerprint} {rows_of}"
            cascade = kept(cache, key, lambda rows=learned: detector.fit_cascade(rows).cascade_)
    detector.fit_cascade(learned)
    detector.evasive = len(EVADING[0]) * CHUNK


def stacked(parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Tables by stage of several sets of images as one of each stage."""
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def told(stage: str, done: int, total: int) -> None:
    if done == total:
        print(stage, total, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "nets", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="of the classifier; else that of models/cifar10")
    parser.add_argument("--companion", type=Path, help="weights of a companion")
    args = parser.parse_args()

    model = classifier(args.weights) if args.weights else shipped.NETWORKS[shipped.CIFAR10](None)
    groups, about = parts(args.data), args.companion or args.weights
    references = kept(args.cache, f"references {model.fingerprint}", lambda: synthesise(model))
    beside = classifier(args.companion) if args.companion else None
    detector = Detector(Connectivity(model, references, companion=beside))
    learned = rows(args.cache, args.nets, detector, groups["fit"])
    if beside is None:
        detector.fit_cascade(learned)
    else:
        hardened(args.cache, detector, groups["fit"], learned)
    detector.calibrate_on(groups["calibrate"].images, told)
    used = torch.cat([groups["fit"].images, groups["calibrate"].images])
    detector.attacks = MIXTURE  # what others can make again
    detector.fitted_ = replace(detector.fitted_, image_hashes=image_hashes(used))
    figures = {
        "companion" if beside else "classifier": json.loads(about.with_suffix(".json").read_text()),
        "machine": machine(),
    }
    print(bundle.save(detector, args.out, figures=figures))


if __name__ == "__main__":
    main()
