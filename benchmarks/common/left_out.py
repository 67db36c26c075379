"""Networks on which default fits are tried, with heads trained without them and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from advconn import bundle
from advconn.cascade import pretrained
from advconn.cascade.pretrained import PretrainedHeads
from advconn.models.classifier import Classifier
from benchmarks.common.cifar10 import Part, kept
from benchmarks.common.heads import INVERSE_PENALTY, TEACHERS, group, stages_of, taught
from benchmarks.common.lessons import COLOURED_TEST, Subject, lessons, subject
from benchmarks.common.provenance import SEED

FITTED, CLEAN, ATTACKED = 500, 1000, 100
PRETRAINED = bundle.default("pretrained")
RELATIVES = dict.fromkeys(("times-10", "times-0.1", "log-softmax", "softmax"), "resnet20") | {"int8": "mnist-mlp"}
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


def others_than(name: str, options: tuple[Path, ...], folder: Path | None = None) -> PretrainedHeads:
    """Heads that were taught without this network and its relatives; those in a folder, where one is given."""
    if folder is not None:
        return pretrained.load(folder)
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
