"""What the CIFAR-10 scripts share: who uses which image, attacked images kept in a cache, and traces of them.

Training images: all but the last 5,000 (in training.split's order) train the classifier. Of those, half fit a
detector (with their attacked copies) and half calibrate it. Test images are used for figures alone: the first CLEAN of
them as they are, others attacked. No image is in two uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from advconn import models
from advconn.attacks.attack import Attack, SuccessfulAttacks
from advconn.cascade.attacked_copies import AttackAugmenter
from advconn.cascade.cascade import NEAR
from advconn.features.connectivity import Connectivity
from advconn.features.noise_level import grain
from advconn.features.path_features import Trace, concat_traces, feature_table
from advconn.models.classifier import Classifier
from benchmarks.common.provenance import SEED
from benchmarks.common.training import MEAN, STD, split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLEAN = 2000
TAUGHT = {"cw:kappa=0,steps=100": 1200, "square:eps=8/255,n_queries=500": 1200}  # images attacked by each; others 400
TAUGHT |= dict.fromkeys(
    ("tifgsm:eps=8/255", "low-frequency:eps=16/255", "pixle", "noise:eps=16/255,tries=20", "transfer:eps=8/255"), 250
)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Part:
    """Images (n, 3, 32, 32) uint8 and their labels."""

    images: Tensor
    labels: Tensor

    def rows(self, index: Tensor | slice) -> Part:
        return Part(self.images[index], self.labels[index])


def read(path: Path) -> Part:
    with np.load(path) as data:
        return Part(torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data["labels"]))


def parts(data: Path) -> dict[str, Part]:
    """fit, calibrate, clean, attack: disjoint."""
    train, test = read(data / "train.npz"), read(data / "test.npz")
    held = train.rows(torch.from_numpy(split(len(train.labels))[1]))
    order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(SEED))
    half, clean = len(held.labels) // 2, min(CLEAN, len(test.labels) // 2)
    return {
        "fit": held.rows(slice(0, half)),
        "calibrate": held.rows(slice(half, None)),
        "clean": test.rows(order[:clean]),
        "attack": test.rows(order[clean:]),
    }


def classifier(weights: Path) -> Classifier:
    return models.load("advconn:compact", weights, size=(32, 32), mean=MEAN, std=STD, class_names=CLASSES)


def kept(folder: Path, key: str, make: Callable[[], T]) -> T:
    """What `make` gives, kept in a file of the cache under its key."""
    file = folder / (hashlib.sha256(key.encode()).hexdigest()[:20] + ".pt")
    if file.exists():
        return torch.load(file, weights_only=False)  # written by this script in a folder of the user's own
    folder.mkdir(parents=True, exist_ok=True)
    out = make()
    partial = file.with_suffix(".partial")
    torch.save(out, partial)
    partial.rename(file)
    return out


def taught(spec: str) -> int:
    """How many images of the fitting part an attack of the mixture is tried on."""
    return TAUGHT.get(spec, 400)


def attacked(cache: Path, model: Classifier, name: str, part: Part, spec: str, limit: int) -> SuccessfulAttacks:
    """Successful copies of at most `limit` images of a part, as a detector makes them."""
    key = f"attacked {model.fingerprint} {name} {spec} {limit}"

    def make() -> SuccessfulAttacks:
        started = time.time()
        maker = AttackAugmenter((Connectivity(model),), per_attack=limit)
        seed = int(hashlib.sha256(spec.encode()).hexdigest()[:6], 16)
        hits = maker.attacked(part.images, part.labels, Attack.parse(spec), seed=seed)
        print(f"{name:10} {spec:32} {len(hits.rows):5} of {hits.tried} in {time.time() - started:.0f} s", flush=True)
        return hits

    return kept(cache, key, make)


def walked(cache: Path, connectivity: Connectivity, name: str, images: Tensor) -> Trace:
    """The trace of many images in one."""
    plain = {"layer": None, "nearest": False}  # as they always were, until they were options
    settings = {k: v for k, v in connectivity.settings().items() if k not in plain or v != plain[k]}
    digest = hashlib.sha256(images.contiguous().numpy().tobytes())
    if connectivity.references is not None:
        digest.update(connectivity.references.images.numpy().tobytes())
    key = f"walked {connectivity.classifier.fingerprint} {sorted(settings.items())} {digest.hexdigest()}"

    def make() -> Trace:
        started = time.time()
        out = concat_traces(list(connectivity.traces(images)))
        if out.detour is not None:  # without the detours' paths, which are large
            out = dataclasses.replace(out, detour=dataclasses.replace(out.detour, path=None))
        print(f"walked from {len(images):5} {name:42} in {time.time() - started:.0f} s", flush=True)
        return out

    return kept(cache, key, make)


def whole(cache: Path, connectivity: Connectivity, name: str, images: Tensor) -> Trace:
    """All that any stage reads of many images: every copy, noise levels, paths to the nearest references and bypass."""
    near = Connectivity(
        connectivity.classifier, connectivity.references, families=("grain", "own", "rival", "complexity"), **NEAR
    )
    paths = walked(cache, near, name, images)
    fields = {field: getattr(paths, field) for field in ("t", "own", "rival", "rivals", "detour")}
    fields["families"] = ()  # of everything that is here, not only of what was walked first
    if connectivity.companion is not None:
        fields["companion"] = beside(cache, connectivity, name, images)
    # cheap: never kept
    fields["grain"] = torch.cat([grain(connectivity.classifier.check(x)).cpu() for x in images.split(256)])
    return dataclasses.replace(walked(cache, connectivity, name, images), **fields)


def beside(cache: Path, connectivity: Connectivity, name: str, images: Tensor) -> Tensor:
    """The companion's logits at many images."""
    assert connectivity.companion is not None
    digest = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()

    def make() -> Tensor:
        return torch.cat([connectivity.beside(connectivity.classifier.check(x)).clone() for x in images.split(256)])

    return kept(cache, f"beside {connectivity.companion.fingerprint} {digest}", make)


def tables(trace: Trace, connectivities: tuple[Connectivity, ...]) -> tuple[np.ndarray, ...]:
    """Features (n, d) of a whole trace, as each stage sees them."""
    return tuple(feature_table(cut(trace, connectivity))[0].double().numpy() for connectivity in connectivities)


def cut(trace: Trace, connectivity: Connectivity) -> Trace:
    """The part of a whole trace that a stage walks."""
    copies, halves = (
        [getattr(trace, n).index(c) for c in m]
        for n, m in (("names", connectivity.copies), ("halves", connectivity.halves))
    )
    kept = {"names": connectivity.copies, "copies": trace.copies[:, copies], "halves": connectivity.halves}
    kept |= {"midway": trace.midway[:, halves] if halves else None, "families": connectivity.active_families}
    if "own" not in connectivity.active_families:
        kept |= dict.fromkeys(("t", "own", "rival", "rivals", "detour"))
    return dataclasses.replace(trace, **kept)


def everything(trace: Trace) -> np.ndarray:
    """All features of a trace."""
    return feature_table(trace)[0].double().numpy()


def stacked(tables: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of clean images first, then of each attack, and which is which: 0 clean, 1 and more the attacks."""
    return np.concatenate(tables), np.repeat(np.arange(len(tables)), [len(t) for t in tables])
