"""Attacked copies of clean images and their features: made once, kept, and spread over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import Attack, SuccessfulAttacks, attack_correct_images, concat_hits
from advconn.data.conditions import CONDITIONS
from advconn.errors import AttackError
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import Trace, columns_of
from advconn.models.classifier import Classifier
from advconn.runtime.parallel import Runner
from advconn.runtime.progress import Progress


@dataclass(frozen=True)
class AttackFeatures:
    """What an attack gave.

    Attributes:
        tried: number of images that were attacked.
        succeeded: number of them on which it succeeded.
        features: a table for each walk, of the copies it succeeded on, and of these under benign conditions.
        rows: which image each row of the tables is a copy of.
    """

    tried: int
    succeeded: int
    features: tuple[np.ndarray, ...]
    rows: np.ndarray


@dataclass(frozen=True)
class AttackAugmenter:
    """How attacked copies are made.

    Attributes:
        connectivities: what makes features, one table each; their classifier is attacked.
        per_attack: at most so many images are attacked by each attack.
        benign: conditions that attacked copies are put under, in turn, so that these do not hide them.
        seed: of every attack.
        surrogate: see Detector.fit.
        runner: where the work is spread and kept.
    """

    connectivities: tuple[Connectivity, ...]
    per_attack: int = 1000
    benign: tuple[str, ...] = ()
    seed: int = 0
    surrogate: Classifier | None = None
    runner: Runner = field(default_factory=Runner)

    def walked(self, images: Tensor, labels: Tensor | None, attacks: Sequence[Attack]) -> Iterator[AttackFeatures]:
        """What each attack gave.

        Args:
            images: clean ones (n, c, h, w).
            labels: true classes (n,), or None: the predictions stand in.
            attacks: in order.
        """
        calls = [(images, labels, attack, i) for i, attack in enumerate(attacks)]
        runner = self.runner.carrying(self.classifier)
        if runner.alone:
            yield from (self._made_by(*call) for call in calls)
            return
        quiet = replace(self, runner=Runner(store=self.runner.store))
        for done, made in enumerate(runner.spread(quiet._made_by, calls)):
            self.runner.progress("attacks", done + 1, len(calls))
            yield made

    @property
    def classifier(self) -> Classifier:
        """The classifier that is attacked."""
        return self.connectivities[0].classifier

    def _made_by(self, images: Tensor, labels: Tensor | None, attack: Attack, i: int) -> AttackFeatures:
        seed = self.seed * 1000 + i

        def make() -> AttackFeatures:
            hits = self.attacked(images, labels, attack, seed=seed)
            truth = self.classifier.predict(images[hits.rows]) if labels is None else labels[hits.rows]
            changed, kept = still_misclassified(self.classifier, hits.images, truth, self.benign, seed)
            every = torch.cat([hits.images, changed])
            features = features_of(self.connectivities, every, f"walk {attack}", self.runner.progress)
            return AttackFeatures(hits.tried, len(hits.rows), features, torch.cat([hits.rows, hits.rows[kept]]).numpy())

        if self.runner.store.folder is None:
            return make()
        other = None if self.surrogate is None else f"{self.surrogate.fingerprint} {self.surrogate.preprocessing}"
        truth = None if labels is None else labels.cpu().numpy()
        key = (self.key, images.cpu().numpy(), truth, str(attack), seed, self.per_attack, self.benign, other)
        return self.runner.store.get("attack", key, make)

    @property
    def key(self) -> tuple[Any, ...]:
        """What the features depend on besides the images."""
        return tuple(connectivity.key() for connectivity in self.connectivities)

    def features(self, images: Tensor, stage: str) -> tuple[np.ndarray, ...]:
        """Features (n, d) of images by each walk, kept too."""

        def make() -> tuple[np.ndarray, ...]:
            return features_of(self.connectivities, images, stage, self.runner.progress)

        if self.runner.store.folder is None:
            return make()
        return self.runner.store.get("walk", (self.key, images.cpu().numpy()), make)

    def source(self, attack: Attack) -> Classifier:
        """The classifier that an attack is made on.

        Raises:
            AttackError: it needs gradients, and neither the classifier nor a surrogate gives any.
        """
        classifier = self.classifier
        if not attack.needs_gradient or classifier.differentiable:
            return classifier
        if self.surrogate is None or not self.surrogate.differentiable:
            raise AttackError(
                f"{attack} needs gradients, and this classifier gives none: fit with attacks that need none "
                "(square, noise), or give a surrogate (--surrogate SPEC): another network of the same classes, to make "
                "it on"
            )
        return self.surrogate

    def attacked(self, images: Tensor, labels: Tensor | None, attack: Attack, *, seed: int) -> SuccessfulAttacks:
        """Successful copies of at most `per_attack` images, see attack.attack_correct_images.

        Args:
            images: clean ones (n, c, h, w).
            labels: true classes (n,), or None: the predictions stand in.
            attack: by which they are attacked.
            seed: of the images drawn, and of the attack.
        """
        order = torch.randperm(
            len(images), generator=torch.Generator(device="cpu").manual_seed(seed), dtype=torch.int64, device="cpu"
        )
        chosen, size = order[: self.per_attack], 64
        source = attack.source(self.source(attack), images[chosen], seed=seed)
        parts = []
        for i, rows in enumerate(chosen.split(size)):
            truth = None if labels is None else labels[rows]
            hits = attack_correct_images(self.classifier, attack, images[rows], truth, seed=seed + i, source=source)
            parts.append((hits, rows))
            self.runner.progress(f"attack {attack}", min((i + 1) * size, len(chosen)), len(chosen))
        return concat_hits(parts, images)


def still_misclassified(
    classifier: Classifier, images: Tensor, truth: Tensor, names: Sequence[str], seed: int
) -> tuple[Tensor, Tensor]:
    """Every attacked image, under one benign condition in turn, if it is still misclassified; and their rows.

    Args:
        classifier: which was attacked.
        images: attacked ones (n, c, h, w) in [0, 1].
        truth: true classes (n,).
        names: of the conditions.
        seed: of what they draw.
    """
    every = torch.arange(len(images), dtype=torch.int64, device="cpu")
    out, rows = [images[:0]], [every[:0]]
    for i, name in enumerate(names):
        part = every[i :: len(names)]
        if len(part):
            changed = CONDITIONS[name]((images[part] * 255).round().to(torch.uint8), seed).to(images.dtype) / 255
            wrong = classifier.predict(changed) != truth[part].cpu()
            out.append(changed[wrong])
            rows.append(part[wrong])
    return torch.cat(out), torch.cat(rows)


def features_of(
    connectivities: Sequence[Connectivity], images: Tensor, stage: str, progress: Progress
) -> tuple[np.ndarray, ...]:
    """Features (n, d) of images by each walk, of which every one goes on where the one before it ended.

    Args:
        connectivities: what makes them, one table each.
        images: (n, c, h, w).
        stage: name that `progress` is told.
        progress: told (stage, done, total).
    """
    rows: list[list[np.ndarray]] = [[] for _ in connectivities]
    images, done = images.detach(), 0
    for chunk in images.split(connectivities[-1].together(images)) if len(images) else ():
        trace: Trace | None = None
        for connectivity, out in zip(connectivities, rows, strict=True):
            trace = connectivity.trace(chunk, trace)
            out.append(columns_of(trace))
        done += len(chunk)
        progress(stage, done, len(images))
    empty = (
        (np.zeros((0, len(connectivity.get_feature_names_out()))) for connectivity in connectivities)
        if not len(images)
        else ()
    )
    return tuple(empty) or tuple(map(np.concatenate, rows))
