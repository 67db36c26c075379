"""What a taught head learns from: clean and attacked images of several networks, walked by every stage, kept.

    python -m benchmarks.common.lessons --data DIR --cache DIR --nets DIR --public DIR [NAME ...]

A lesson is one network. NETS holds weights of train_architectures.py (plain, half18, vit6) and small.py; PUBLIC is a
folder with networks.py and weights that others trained; the shipped classifier, its companion (`robust`) and the
digits' come with advconn; EfficientNet-Lite0 and -Lite1 on photographs are photographs.py's. Images of a lesson: 100 to
choose references among, 300 to learn from (with their attacked copies), others to test on, and others that are
attacked; the network was trained on none of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advconn import bundle, models
from advconn.attacks.attack import Attack, compatible_attacks, parse_all
from advconn.cascade.attacked_copies import AttackAugmenter, features_of
from advconn.cascade.cascade import STAGES, stage_extractors
from advconn.cascade.training import TrainingSet, build_training_set, corrupted_features
from advconn.data.conditions import BENIGN
from advconn.data.datasets import DIGIT_MIXTURE, TRAIN_END, digits
from advconn.data.input_conversion import as_bytes
from advconn.data.laundering import parse_laundering
from advconn.features.connectivity import Connectivity
from advconn.features.references import choose
from advconn.models.classifier import Classifier
from advconn.models.margin import temperature_of
from advconn.runtime.progress import ignore_progress
from benchmarks.common.cifar10 import CLASSES, Part, kept, parts, read
from benchmarks.common.families import WIDE
from benchmarks.common.families import network as large
from benchmarks.common.photographs import LEARN, TEST, flickr, lite
from benchmarks.common.provenance import SEED
from benchmarks.common.small import SMALL, TRAINED, images_of, trained

PUBLIC = ("resnet20", "resnet44")
PHOTOGRAPHS = {"photographs": 0, "lite1": 1}  # EfficientNet-Lite of this number
LARGE = ("shipped", "robust", "plain", "half18", "vit6")
TOY = ("digits", "digits-mlp")
EIGHT = (  # of pictures of 8 x 8 pixels
    *DIGIT_MIXTURE,
    "deepfool",
    "mifgsm:eps=26/255",
    "low-frequency:eps=77/255,grid=3",
    "noise:eps=77/255,tries=20",
    "universal:eps=51/255",
    "patch:side=3",
    "square:eps=51/255,n_queries=300",
    "transfer:eps=51/255",
    "ead",
    "fmn-l0",
    "saltpepper",
    "pgd-jpeg:eps=51/255,quality=60",
)
DRAWN = (  # of pictures of strokes, which only large changes harm
    *(f"pgd:eps={e},steps=20" for e in ("0.3", "0.2", "0.1", "0.05")),
    "pgd:alpha=0.15,eps=0.3,steps=2",
    "pgd-l2:eps=3,steps=20",
    "pgd-l2:eps=1.5,steps=20",
    "pgd-stop:eps=0.3,steps=40",
    "pgd-stop:eps=0.15,steps=40",
    "cw:kappa=0,lr=0.02,steps=100",
    "cw:kappa=3,lr=0.02,steps=100",
    *(f"fgsm:eps={e}" for e in ("0.3", "0.2", "0.1")),
    *(f"square:eps={e},n_queries=500" for e in ("0.3", "0.2", "0.1")),
    "deepfool",
    "mifgsm:eps=0.2",
    "low-frequency:eps=0.4,grid=7",
    "noise:eps=0.4,tries=20",
    "universal:eps=0.25",
    "patch:side=8",
    "transfer:eps=0.3",
    "fmn-l0",
    "saltpepper",
    "pgd-jpeg:eps=0.2,quality=60",
)
EIGHT_TEST = (
    "pgd:eps=51/255,steps=10",
    "pgd:eps=26/255,steps=20",
    "cw:c=1,kappa=0,lr=0.05,steps=50",
    "deepfool",
    "fgsm:eps=51/255",
    "square:eps=51/255,n_queries=500",
    "pgd-jpeg:eps=51/255,quality=75",
)
DRAWN_TEST = (
    "pgd:eps=0.1,steps=20",
    "pgd:eps=0.3,steps=40",
    "fgsm:eps=0.2",
    "cw:c=1,kappa=0,lr=0.01,steps=200",
    "square:eps=0.2,n_queries=1000",
    "deepfool",
    "pgd-jpeg:eps=0.2,quality=75",
)
COLOURED_TEST = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "cw:c=1,kappa=0,steps=100",
    "fgsm:eps=8/255",
    "deepfool",
    "square:eps=8/255,n_queries=500",
    "pgd-jpeg:eps=8/255,quality=75",
)
PHOTOGRAPHED = tuple(spec for spec in LEARN if " from " not in spec and not spec.startswith("tifgsm"))
PHOTOGRAPHED_TEST = (*TEST[:-1], "pgd-jpeg:eps=8/255,quality=75")
SAVED = ("pgd", "fgsm", "pgd-jpeg")  # attacks whose copies are tested on as files show them, too
SAVED_AS = ("jpeg90", "jpeg75", "webp80")
SAVED_MARK = " saved as "
REFERENCES, LEARNED = 100, 300
FEW = dict.fromkeys(PHOTOGRAPHS, (8, 24))  # images attacked by each attack, to learn from and to test on


@dataclass(frozen=True)
class Lesson:
    """Of a network: what to learn from, by stage (three without references), and clean and attacked test images.

    learn: rows to learn from, of which `attacks` names the kinds. clean: features (n, d) by stage of test images.
    attacked: the same of each attack. first: stage that a quick fit begins with, from 0.
    """

    learn: TrainingSet
    clean: tuple[np.ndarray, ...]
    attacked: dict[str, tuple[np.ndarray, ...]]
    names: tuple[tuple[str, ...], ...]
    first: int = 0


def mlp() -> nn.Module:
    """Two hidden layers on the digits' pixels, trained on the same digits as the shipped digits' network."""
    torch.manual_seed(0)
    images, labels = digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    x, y = images[:TRAIN_END].float() / 255, labels[:TRAIN_END]
    for _ in range(60):
        for rows in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


@dataclass(frozen=True)
class Subject:
    """A network, images that it was not trained on, and the attacks that suit these.

    images: to learn from, to test on, to be attacked for tests.
    """

    model: Classifier
    images: tuple[Part, Part, Part]
    learned: tuple[str, ...]
    tested: tuple[str, ...]
    first: int = 0


def subject(name: str, data: Path, nets: Path, public: Path) -> Subject:
    """One of PUBLIC, LARGE, TOY or small.py's."""
    if name in TOY:
        shipped = bundle.load(bundle.default("digits")).classifier
        model = shipped if name == "digits" else Classifier(mlp(), size=(8, 8), channels=1)
        part = Part(*digits()).rows(slice(TRAIN_END, None))
        return Subject(model, _shared(part, 300, 450), EIGHT, EIGHT_TEST, first=2)
    if name in SMALL:
        small = SMALL[name]
        part = images_of(small.data, data).rows(slice(TRAINED[small.data], None))
        drawn = small.data in ("mnist", "digits28")
        few = small.data == "digits28"
        images = _shared(part, 250 if few else 500, 400) if drawn else _shared(part, 700, 1000)
        attacks = (DRAWN, DRAWN_TEST) if drawn else (WIDE, COLOURED_TEST)
        model = trained(name, nets, data)
        suited = [
            tuple(spec for spec in compatible_attacks(model, some) if not _fails(spec, model)) for some in attacks
        ]
        return Subject(model, images, *suited)
    if name in PUBLIC:
        test = read(data / "test.npz")
        order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(SEED + 2))
        sys.path.insert(0, str(public))
        import networks

        model = Classifier(getattr(networks, name)(), size=(32, 32), class_names=CLASSES)
        return Subject(model, _shared(test.rows(order), 1000, 1500), WIDE, COLOURED_TEST)
    if name in PHOTOGRAPHS:
        model = lite(PHOTOGRAPHS[name])
        images = tuple(Part(p.images, p.labels) for p in flickr(model, public.parent / "nips2017"))
        return Subject(model, images, PHOTOGRAPHED, PHOTOGRAPHED_TEST)
    groups = parts(data)
    if name == "robust":
        state = bundle.default("cifar10-hardened") / "companion.safetensors"
        model = models.load("advconn:compact", state, **_preprocessing())
    else:
        model = large(name, nets)
    learn = groups["fit"].rows(slice(0, REFERENCES + LEARNED))
    return Subject(model, (learn, groups["clean"].rows(slice(0, 700)), groups["attack"]), WIDE, COLOURED_TEST)


def _fails(spec: str, model: Classifier) -> bool:
    """Whether an attack's library is made for colour images alone."""
    return model.channels == 1 and spec.split(":")[0] in ("tifgsm", "colour", "spatial")


def _preprocessing() -> dict[str, object]:
    loaded = bundle.load(bundle.default("cifar10-hardened")).connectivity.companion
    assert loaded is not None
    about = loaded.preprocessing
    return {"size": about.size, "mean": about.mean, "std": about.std, "class_names": CLASSES}


def _shared(part: Part, test: int, attacked: int) -> tuple[Part, Part, Part]:
    """The first of these images to learn from, then so many to test on and to attack."""
    start = REFERENCES + LEARNED
    end = start + test
    return part.rows(slice(0, start)), part.rows(slice(start, end)), part.rows(slice(end, end + attacked))


def lesson(cache: Path, name: str, made: Callable[[], Subject], few: int = 16, test: int = 60) -> Lesson:
    """The lesson of a network; `few` and `test`: images attacked by each attack, to learn from and to test on."""
    return kept(cache, f"lesson {name} {few} {test} {BENIGN}", lambda: _made(name, made(), few, test))


def _made(name: str, about: Subject, few: int, test: int) -> Lesson:
    model, (learn, clean, attacked) = about.model, about.images
    started = time.time()
    first = learn.images[:REFERENCES]
    rest = learn.rows(slice(0 if model.num_classes > REFERENCES else REFERENCES, None))
    many = model.num_classes > REFERENCES  # more classes than images to choose references among
    references = None if many else choose(model, model.check(first), learn.labels[:REFERENCES])
    cold = temperature_of(torch.cat([model.logits(model.check(x)).cpu() for x in learn.images.split(256)]))
    connectivities = stage_extractors(Connectivity(model, references, temperature=cold), STAGES)
    maker = AttackAugmenter(connectivities, few, BENIGN, SEED)
    right = (model.predict(clean.images) == clean.labels).float().mean()
    print(f"{name}: accuracy {float(right):.3f}, temperature {cold:.3g}", flush=True)
    rows = build_training_set(rest.images, rest.labels, parse_all(about.learned), maker)
    rows = rows.with_corrupted(
        *corrupted_features(rest.images, np.arange(len(rest.images)), BENIGN, maker, SEED)
    ).drop_non_finite()
    print(f"{name}: {len(rows.kinds)} rows to learn from, {time.time() - started:.0f} s", flush=True)

    def walked(x: Tensor) -> tuple[np.ndarray, ...]:
        return features_of(connectivities, model.check(x), "", ignore_progress)

    by_attack = {}
    for spec in about.tested:
        hits = replace(maker, per_attack=test).attacked(
            attacked.images, attacked.labels, Attack.parse(spec), seed=SEED + 1
        )
        if not len(hits.rows):
            continue
        by_attack[spec] = walked(hits.images)
        for way in SAVED_AS if spec.split(":")[0] in SAVED else ():
            changed = model.check(parse_laundering(way).change(as_bytes(hits.images), SEED))
            survive = model.predict(changed) != attacked.labels[hits.rows]
            if survive.any():
                by_attack[f"{spec}{SAVED_MARK}{way}"] = walked(changed[survive])
                print(f"{name}: {spec}: {int(survive.sum())} of {len(survive)} survive {way}", flush=True)
    names = tuple(tuple(map(str, c.get_feature_names_out())) for c in connectivities)
    print(f"{name}: {time.time() - started:.0f} s", flush=True)
    return Lesson(rows, walked(clean.images), by_attack, names, about.first)


@once
def lessons(
    names: tuple[str, ...], cache: Path, data: Path, nets: Path, public: Path, attacked: int | None = None
) -> dict[str, Lesson]:
    """The lessons of these networks, made where they are not kept yet; `attacked`: images of each attack, not FEW."""
    out: dict[str, Lesson] = {}
    for name in names:
        few, test = FEW.get(name, (16, 60)) if attacked is None else (attacked, attacked)
        out[name] = lesson(cache, name, lambda name=name: subject(name, data, nets, public), few, test)
    return out


def arguments(about: str) -> argparse.ArgumentParser:
    """What all scripts on these lessons are told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "nets", "public"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    torch.set_num_threads(1)
    from benchmarks.common.lessons import (
        lessons as make,  # by the module's own name, under which the cache's files find their class
    )

    make(tuple(args.names), args.cache, args.data, args.nets, args.public)


if __name__ == "__main__":
    main()
