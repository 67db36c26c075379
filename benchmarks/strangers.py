"""The default fit on networks that nobody here trained, or of kinds that the heads do not know: 500 images, no option.

    python benchmarks/strangers.py --data DIR --cache DIR --nets DIR --public DIR [--record DIR] [NAME ...]

For every network the heads are taught on the others (teach.py; relatives and data sets are left out with it), a
detector is fitted on 500 images, and attacks are made on images in no other use. Told are AUROC and the share caught
at the detector's own threshold, the share of unseen clean images flagged, and seconds. Beside it stands the one-number
detector `logits`: the better of the margin's two sides, with a threshold from the same number of clean images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import SEED, Part, kept, machine
from detection import auroc
from lessons import COLOURED_TEST, Subject, arguments, lessons, subject
from teach import INVERSE_PENALTY, TEACHERS, group, stages_of, taught
from torch import Tensor, nn

from advconn.attacks.attack import Attack, attack_correct_images
from advconn.cascade.pretrained import PretrainedHeads
from advconn.detector.fitting import fit
from advconn.models.classifier import Classifier
from advconn.models.margin import margin

FITTED, CLEAN, ATTACKED = 500, 1000, 100
RELATIVES = dict.fromkeys(("times-10", "times-0.1", "log-softmax", "softmax"), "resnet20") | {"int8": "mnist-mlp"}
NAMES = ("resnet20", "resnet44", "mnist-cnn", "mnist-mlp", "shipped", "robust", "plain", "smooth", "mixed", "sure",
         "grey28", "two", "ensemble", *RELATIVES)  # fmt: skip
MNIST = (
    "pgd:eps=0.1,steps=20", "pgd:eps=0.3,steps=40", "fgsm:eps=0.2", "cw:c=1,kappa=0,lr=0.01,steps=200",
    "square:eps=0.2,n_queries=1000",
)  # fmt: skip


class Wrapped(nn.Module):
    """Networks whose logits are averaged and then changed."""

    def __init__(self, change: Callable[[Tensor], Tensor], *networks: nn.Module) -> None:
        super().__init__()
        self.networks, self.change = nn.ModuleList(networks), change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(torch.stack([network(images) for network in self.networks]).mean(0))


def network(name: str, data: Path, nets: Path, public: Path) -> Subject:
    """One of NAMES; its first images are those that a detector is fitted on."""

    def known(other: str) -> Subject:
        return subject(other, data, nets, public)

    if name == "ensemble":
        both = [known(other) for other in ("smooth", "mixed")]
        module = Wrapped(lambda z: z, *(about.model.module for about in both))
        return Subject(Classifier(module.eval(), size=(32, 32)), both[0].images, (), COLOURED_TEST)
    if name == "int8":
        base = known("mnist-mlp")
        module = torch.ao.quantization.quantize_dynamic(base.model.network, {nn.Linear}, dtype=torch.qint8)
        return Subject(Classifier(module.eval(), size=(28, 28), channels=1), base.images, (), MNIST)
    if name in RELATIVES:
        base = known(RELATIVES[name])
        changes: dict[str, Callable[[Tensor], Tensor]] = {
            "times-10": lambda z: 10 * z, "times-0.1": lambda z: z / 10,
            "log-softmax": lambda z: z.log_softmax(1), "softmax": lambda z: z.softmax(1),
        }  # fmt: skip
        module = Wrapped(changes[name], base.model.module)
        return Subject(Classifier(module.eval(), size=(32, 32)), base.images, (), COLOURED_TEST)
    return known(name)


def relatives(name: str) -> set[str]:
    """Groups that are left out of teaching where this network is judged."""
    return {group(other) for other in (("smooth", "mixed") if name == "ensemble" else (RELATIVES.get(name, name),))}


def others_than(name: str, options: tuple[Path, ...]) -> PretrainedHeads:
    """Heads that were taught without this network and its relatives."""
    names = [other for other in TEACHERS if group(other) not in relatives(name)]

    def teach() -> PretrainedHeads:
        every = lessons(TEACHERS, *options)
        teachers = [every[other] for other in names]
        made = taught(teachers, stages_of(teachers))
        return PretrainedHeads(tuple(made.heads), tuple(made.heads.values()), tuple(made.floors.values()), tuple(names))

    return kept(options[0], f"heads of {names} {INVERSE_PENALTY}", teach)


def pooled(about: Subject, seed: int) -> tuple[Part, Part, Part]:
    """Images to fit on, clean ones to judge, and those to attack: all that are at hand, shuffled once more."""
    whole = Part(*(torch.cat([getattr(part, name) for part in about.images]) for name in ("images", "labels")))
    order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(SEED + seed))
    whole = whole.rows(order)
    attacked = whole.rows(slice(-2 * ATTACKED, None))
    return whole.rows(slice(0, FITTED)), whole.rows(slice(FITTED, FITTED + CLEAN)).rows(slice(None)), attacked


def logits_only(model: Classifier, clean: Part, attacked: Tensor) -> float:
    """AUROC of the query's own margin, on its better side."""

    def margins(images: Tensor) -> np.ndarray:
        logits = torch.cat([model.logits(model.check(x)).cpu() for x in images.split(256)])
        return margin(logits, logits.argmax(1)).double().numpy()

    found = auroc(margins(clean.images), margins(attacked))
    return max(found, 1 - found)


def judged(name: str, options: tuple[Path, ...], seed: int = 0) -> dict[str, Any]:
    """All figures of a network."""
    _, data, nets, public = options
    about = network(name, data, nets, public)
    model, specs = about.model, MNIST if about.model.channels == 1 and name != "grey28" else about.tested
    train, clean, attacked = pooled(about, seed)
    clean = clean.rows(slice(0, len(clean.labels) - max(0, FITTED + len(clean.labels) + 2 * ATTACKED - _count(about))))
    heads, notes = others_than(name, options), []
    started = time.perf_counter()
    detector = fit(model, train.images, train.labels, pretrained=heads, accept_weak=True, seed=seed, note=notes.append)
    seconds = time.perf_counter() - started
    judgement = detector.judge(clean.images)
    wrong = judgement.predicted != clean.labels.numpy()
    flagged = judgement.adversarial
    out: dict[str, Any] = {
        "accuracy": round(1 - float(wrong.mean()), 4),
        "seconds": round(seconds, 1),
        "n_clean": len(clean.labels),
        "flagged": round(float(flagged.mean()), 4),
        "flagged_right": round(float(flagged[~wrong].mean()), 4),
        "forwards": round(float(judgement.forwards.mean()), 1),
        "groups": len(set(map(id, detector.calibration_.by_group.values()))),
        "notes": [note for note in notes if "accuracy" not in note],
        "attacks": {},
    }
    for spec in specs:
        if not model.differentiable and Attack.parse(spec).needs_gradient:
            continue
        hits = attack_correct_images(
            model, Attack.parse(spec), attacked.images[:ATTACKED], attacked.labels[:ATTACKED], seed=SEED
        )
        if not len(hits.rows):
            continue
        found = detector.judge(hits.images)
        out["attacks"][spec] = {
            "auroc": round(auroc(judgement.score, found.score), 4),
            "caught": round(float(found.adversarial.mean()), 4),
            "logits_auroc": round(logits_only(model, clean, hits.images), 4),
            "n": len(hits.rows),
            "success": round(len(hits.rows) / max(hits.tried, 1), 3),
        }
    return out


def _count(about: Subject) -> int:
    return sum(len(part.labels) for part in about.images)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    options = (args.cache, args.data, args.nets, args.public)
    record: dict[str, Any] = {"machine": machine(), "seed": SEED, "fitted": FITTED, "networks": {}}
    file = None if args.record is None else args.record / "results.json"
    if file is not None and file.exists():
        record["networks"] = json.loads(file.read_text())["networks"]
    for name in args.names:
        record["networks"][name] = row = judged(name, options)
        cells = " ".join(f"{s.split(',')[0]} {v['auroc']:.3f}/{v['caught']:.2f}" for s, v in row["attacks"].items())
        print(f"{name}: {row['seconds']} s, clean flagged {row['flagged']:.3f}, {cells}", flush=True)
        if file is not None:
            args.record.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
