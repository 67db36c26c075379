"""What a taught head learns from: clean and attacked images of several networks, walked by every stage, kept.

A lesson is one network: CIFAR-10 at 32 pixels (benchmarks/families.py), scikit-learn's digits at 8, photographs at 224
(benchmarks/photographs.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cifar10 import SEED, kept, parts, tables, taught, whole
from families import BRIEF, TEST, WIDE, hits_of, network, tried, walk_of
from torch import Tensor, nn

from advconn import bundle
from advconn.attacks import Attack, parse_all
from advconn.classifier import Classifier
from advconn.conditions import BENIGN, CONDITIONS
from advconn.connectivity import Connectivity
from advconn.datasets import DIGIT_MIXTURE, FIT_END, TRAIN_END, digits
from advconn.given import as_bytes
from advconn.kinds import MIXTURE
from advconn.making import Maker, features_of, still_wrong
from advconn.modes import choose
from advconn.progress import silent
from advconn.stages import STAGES, connectivities_of
from advconn.teaching import Taught, attacked_rows, spoilt

DIGITS = (
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
)
DIGIT_TEST = (
    "pgd:eps=51/255,steps=10",
    "pgd:eps=26/255,steps=20",
    "cw:c=1,kappa=0,lr=0.05,steps=50",
    "deepfool",
    "fgsm:eps=51/255",
    "square:eps=51/255,n_queries=500",
)
TOY = ("digits", "digits-mlp")


@dataclass(frozen=True)
class Lesson:
    """Of a network: what to learn from, by stage (three without references), and clean and attacked test images.

    learn: rows to learn from, of which `attacks` names the kinds. clean: features (n, d) by stage of test images.
    attacked: the same of each attack. first: stage that a quick fit begins with, from 0.
    """

    learn: Taught
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


def toy(cache: Path, name: str) -> Lesson:
    """The lesson of a network of digits."""
    if name == "digits":
        model = bundle.load(bundle.default("digits")).connectivity.classifier
    else:
        model = Classifier(mlp(), size=(8, 8), channels=1)
    images, labels = digits()
    given, truth = images[TRAIN_END:FIT_END], labels[TRAIN_END:FIT_END]
    references = choose(model, model.check(given[:100]), truth[:100])
    connectivities = connectivities_of(Connectivity(model, references), STAGES)
    maker = Maker(connectivities, 80, BENIGN)

    def learn() -> Taught:
        rows = attacked_rows(given[100:], truth[100:], parse_all(DIGITS), maker)
        few = as_bytes(given[100:])
        return rows.and_benign(*spoilt(few, np.arange(len(few)), BENIGN, maker, SEED)).sound()

    def walked(x: Tensor) -> tuple[np.ndarray, ...]:
        return features_of(connectivities, x, "", silent)

    def test() -> tuple[tuple[np.ndarray, ...], dict[str, tuple[np.ndarray, ...]]]:
        by_attack = {}
        for spec in DIGIT_TEST:
            hits = replace(maker, per_attack=150).attacked(images[1400:], labels[1400:], Attack.parse(spec), seed=SEED)
            by_attack[spec] = walked(hits.images)
        return walked(images[FIT_END:1400]), by_attack

    names = _names(connectivities)
    clean, attacked = kept(cache, f"test {model.fingerprint} {DIGIT_TEST} {names[-1]}", test)
    learned = kept(cache, f"learn {model.fingerprint} {DIGITS} {names[-1]}", learn)
    return Lesson(learned, clean, attacked, names, first=2)


def _names(connectivities: tuple[Connectivity, ...]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(map(str, connectivity.get_feature_names_out())) for connectivity in connectivities)


def cifar(
    cache: Path,
    data: Path,
    nets: Path,
    name: str,
    few: int = 40,
    clean: int = 300,
    test: int = 0,
    wide: tuple[str, ...] = WIDE,
) -> Lesson:
    """The lesson of a CIFAR-10 network, as far as families.py has made it.

    few, clean: images attacked by each, and clean ones, to learn from; test: images attacked by each to test on.
    """
    model, groups = network(name, nets), parts(data)
    connectivity = walk_of(cache, model)
    connectivities = connectivities_of(connectivity, STAGES)

    def features(what: str, images: Tensor) -> tuple[np.ndarray, ...]:
        return tables(whole(cache, connectivity, what, images), connectivities)

    fit, shipped = groups["fit"], name == "shipped"
    base = fit.images if shipped else fit.images[:clean]
    stage_tables, kinds, rows = [_first(features("clean", base), clean)], [np.zeros(clean, int)], [np.arange(clean)]
    attacks: dict[str, tuple[int, int]] = {}
    for spec in wide:
        limit = few if not shipped else taught(spec) if spec in MIXTURE else 250
        hits = hits_of(cache, nets, name, "fit", fit, spec, limit)
        if len(hits.rows) < 2:
            continue
        attacks[spec] = (hits.tried, len(hits.rows))
        changed, index = still_wrong(model, hits.images, fit.labels[hits.rows], BENIGN, SEED)
        taken = [(features(spec, hits.images), hits.rows)]
        if len(changed):
            taken.append((features(f"{spec}, changed", changed), hits.rows[index]))
        for table, which in zip(taken, (few, few // 3), strict=False):
            stage_tables.append(_first(table[0], which))
            rows.append(table[1].numpy()[:which])
            kinds.append(np.full(len(rows[-1]), list(attacks).index(spec) + 1))
    learn = Taught(_stacked(stage_tables), *(np.concatenate(v) for v in (kinds, rows)), np.zeros(0, bool), attacks)
    learn = replace(learn, benign=np.zeros(len(learn.kinds), bool))
    share = -(-clean // len(BENIGN))
    parts_of = [np.arange(len(base))[i :: len(BENIGN)][:share] for i in range(len(BENIGN))]
    changed = [
        _first(features(kind, CONDITIONS[kind](base[i :: len(BENIGN)], SEED)), share) for i, kind in enumerate(BENIGN)
    ]
    order = np.concatenate(parts_of)
    learn = learn.and_benign(_stacked(changed), order).sound()
    attacked = {}
    for spec in (TEST if shipped else BRIEF) if test else ():
        if spec.endswith(f" from {name}") or (spec.endswith(" from half18") and not (nets / "half18.json").exists()):
            continue
        hits = hits_of(cache, nets, name, "attack", groups["attack"], spec, tried(name, spec, test))
        if len(hits.rows):
            attacked[spec] = features(spec, hits.images)
    plain = features("clean", groups["clean"].images[: 2000 if name == "shipped" else 300])
    return Lesson(learn, plain, attacked, _names(connectivities))


def photographs(cache: Path) -> Lesson:
    """The lesson of EfficientNet-Lite0, as photographs.py has made it: it walks no paths."""
    learned, attacks, clean, attacked, names = torch.load(cache / "photographs.pt", weights_only=False)
    return Lesson(Taught(*learned, attacks=attacks), clean, attacked, names)


def _first(arrays: tuple[np.ndarray, ...], count: int) -> tuple[np.ndarray, ...]:
    return tuple(table[:count] for table in arrays)


def _stacked(parts: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
