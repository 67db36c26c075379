"""What the heads of a cascade are taught on, and teaching them: one head a stage, and where images leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import Attack
from advconn.cascade.attacked_copies import AttackAugmenter, features_of
from advconn.cascade.cascade import Cascade, head_log_odds
from advconn.cascade.differentiable_score import adaptive_training_images
from advconn.cascade.early_exit import EarlyExitMisses, choose_exits
from advconn.data.conditions import CONDITIONS, usable
from advconn.errors import FitError
from advconn.features.connectivity import Connectivity

FOLDS = 3
Tables = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class TrainingSet:
    """Rows to learn from.

    Attributes:
        features: (n, d) for each stage.
        kinds: (n,) 0 clean, 1 and more the attacks.
        groups: (n,) which image each is a copy of.
        benign: (n,) clean but changed by a benign condition.
        attacks: how many of each were tried and succeeded.
    """

    features: Tables
    kinds: np.ndarray
    groups: np.ndarray
    benign: np.ndarray
    attacks: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def plain(self) -> np.ndarray:
        """(n,) clean and unchanged."""
        return (self.kinds == 0) & ~self.benign

    def with_corrupted(self, features: Tables, groups: np.ndarray) -> TrainingSet:
        """With these clean rows under benign conditions."""
        return self._with(features, 0, groups, benign=True)

    def with_attacked(self, name: str, features: Tables, groups: np.ndarray, tried: int) -> TrainingSet:
        """With these rows of a further attack, all of which succeeded; more of one that is there already are added.

        Args:
            name: of the attack.
            features: (m, d) for each stage.
            groups: (m,) which image each is a copy of.
            tried: number of images that were attacked.
        """
        if not len(groups):
            return self
        kind = list(self.attacks).index(name) + 1 if name in self.attacks else int(self.kinds.max(initial=0)) + 1
        before = self.attacks.get(name, (0, 0))
        attacks = self.attacks | {name: (before[0] + tried, before[1] + len(groups))}
        return replace(self._with(features, kind, groups, benign=False), attacks=attacks)

    def _with(self, features: Tables, kind: int, groups: np.ndarray, *, benign: bool) -> TrainingSet:
        """With these rows, all of one kind."""
        if not features:
            return self
        return replace(
            self,
            features=tuple(np.concatenate(pair) for pair in zip(self.features, features, strict=True)),
            kinds=np.concatenate([self.kinds, np.full(len(groups), kind)]),
            groups=np.concatenate([self.groups, groups]),
            benign=np.concatenate([self.benign, np.full(len(groups), benign)]),
        )

    def drop_non_finite(self) -> TrainingSet:
        """Without the rows that have a feature which is not finite."""
        return self.only(np.logical_and.reduce([np.isfinite(table).all(1) for table in self.features]))

    def only(self, rows: np.ndarray) -> TrainingSet:
        """These rows of it."""
        features = tuple(table[rows] for table in self.features)
        return TrainingSet(features, self.kinds[rows], self.groups[rows], self.benign[rows], self.attacks)


def training_set_of(
    features: Tables, kinds: np.ndarray, groups: np.ndarray | None = None, **others: Any
) -> TrainingSet:
    """Rows of which none is under a benign condition.

    Args:
        features: (n, d) for each stage.
        kinds: (n,) 0 clean, 1 and more the attacks.
        groups: (n,) which image each is a copy of; every one an image of its own unless told.
        others: `attacks` of TrainingSet.
    """
    names = np.arange(len(kinds)) if groups is None else np.asarray(groups)
    return TrainingSet(features, np.asarray(kinds), names, np.zeros(len(kinds), bool), **others)


def build_training_set(
    images: Tensor, labels: Tensor | None, attacks: Sequence[Attack], maker: AttackAugmenter
) -> TrainingSet:
    """Clean images and their successfully attacked copies, by which attack, and what succeeded.

    Args:
        images: clean ones (n, c, h, w).
        labels: true classes (n,), or None: the predictions stand in.
        attacks: in order.
        maker: what makes the copies and their features.

    Raises:
        AttackError: an attack needs a gradient that nothing gives.
    """
    for attack in attacks:
        maker.source(attack)
    tables, groups = [maker.features(images, "walk")], [np.arange(len(images))]
    kinds, counts = [np.zeros(len(images), int)], {}
    for i, (attack, made) in enumerate(zip(attacks, maker.walked(images, labels, attacks), strict=True)):
        counts[str(attack)] = (made.tried, made.succeeded)
        tables.append(made.features)
        groups.append(made.rows)
        kinds.append(np.full(len(made.rows), i + 1))
    features = tuple(np.concatenate(parts) for parts in zip(*tables, strict=True))
    return training_set_of(features, np.concatenate(kinds), np.concatenate(groups), attacks=counts)


def with_adaptive(
    rows: TrainingSet, cascade: Cascade, images: Tensor, labels: Tensor | None, sizes: Sequence[float], count: int,
    turn: int, maker: AttackAugmenter,
) -> TrainingSet:  # fmt: skip
    """Rows with images that evade a cascade.

    Args:
        rows: what they are added to.
        cascade: what they evade.
        images: clean ones (n, c, h, w) that they are made from.
        labels: true classes (n,), or None: the predictions stand in.
        sizes: largest changes (Linf), in [0, 1]; copies are made within each.
        count: number of images that are taken.
        turn: which images, from 0: others every time, as long as there are any.
        maker: what makes the features.
    """
    order = np.random.default_rng(maker.seed).permutation(len(images))
    mine = torch.from_numpy(np.take(order, np.arange(turn * count, (turn + 1) * count), mode="wrap"))[: len(images)]
    some = images[mine]
    truth = maker.classifier.predict(some) if labels is None else labels[mine]
    for eps in sizes:

        def make(eps: float = eps) -> tuple[Tables, np.ndarray, int]:
            hits = adaptive_training_images(
                cascade, some, truth, eps, seed=maker.seed + turn, progress=maker.runner.progress
            )
            name = f"walk evasive {255 * eps:g}/255"
            return (
                features_of(maker.connectivities, hits.images, name, maker.runner.progress),
                hits.rows.numpy(),
                hits.tried,
            )

        key = (
            maker.key,
            cascade.heads,
            cascade.exits,
            cascade.gate,
            some.cpu().numpy(),
            truth.cpu().numpy(),
            eps,
            maker.seed,
            turn,
        )
        features, kept, tried = maker.runner.store.get("evasive", key, make)
        rows = rows.with_attacked(f"evasive:eps={255 * eps:g}/255", features, mine.numpy()[kept], tried)
    return rows


def corrupted_features(
    images: Tensor, groups: np.ndarray, names: Sequence[str], maker: AttackAugmenter, seed: int
) -> tuple[Tables, np.ndarray]:
    """Features of images, each under one of the benign conditions in turn, and their groups.

    Args:
        images: clean ones (n, c, h, w) uint8.
        groups: (n,) which image each is a copy of.
        names: of the conditions.
        maker: what makes the features.
        seed: of what the conditions draw.
    """
    kinds = usable(names, images.shape[1])
    parts = [np.arange(len(images))[i :: len(kinds)] for i in range(min(len(kinds), len(images)))]
    if not parts:
        return (), groups[:0]
    made = [
        maker.features(CONDITIONS[kind](images[part], seed), f"walk {kind}")
        for kind, part in zip(kinds, parts, strict=False)
    ]
    return tuple(np.concatenate(tables) for tables in zip(*made, strict=True)), groups[np.concatenate(parts)]


def train_cascade(
    connectivities: tuple[Connectivity, ...],
    rows: TrainingSet,
    new_head: Callable[[int], Any],
    shares: Sequence[float],
    fpr: float,
    seed: int,
) -> tuple[Cascade, EarlyExitMisses | None]:
    """A cascade, and of several stages which attacked images leave it early.

    Args:
        connectivities: what each stage walks.
        rows: what is learned from.
        new_head: gives an unfitted head for a stage, from 0.
        shares: of clean images that go on, in (0, 1], for all stages but the last.
        fpr: false-alarm rate, in (0, 1), see early_exit.choose_exits.
        seed: of the folds by which it is seen who may leave.

    Raises:
        FitError: no attacked image.
    """
    if len(np.unique(rows.kinds)) < 2:
        raise FitError("no attacked image to learn from: no attack of the mixture succeeded")
    names = tuple(tuple(map(str, connectivity.get_feature_names_out())) for connectivity in connectivities)
    heads = tuple(new_head(k).fit(table, rows.kinds) for k, table in enumerate(rows.features))
    if len(connectivities) == 1:
        return Cascade(connectivities, names, heads, ()), None
    scores = _held_out(rows, new_head, seed)
    finite = ~np.isnan(scores).any(1)
    clean, attacked = finite & rows.plain, finite & (rows.kinds > 0)
    if not clean.any() or not attacked.any():  # too few to tell who may leave: everyone goes on
        return Cascade(connectivities, names, heads, (-np.inf,) * (len(connectivities) - 1)), EarlyExitMisses(0, 0, {})
    called = list(rows.attacks) or [str(kind) for kind in range(1, int(rows.kinds.max()) + 1)]
    kinds = [called[kind - 1] for kind in rows.kinds[attacked]]
    limits, missed = choose_exits(scores[clean], scores[attacked], kinds, shares, fpr)
    return Cascade(connectivities, names, heads, limits), missed


def _held_out(rows: TrainingSet, new_head: Callable[[int], Any], seed: int) -> np.ndarray:
    """Scores (n, stages) by heads that were fitted on other images than those they judge; NaN where none could be."""
    groups, inverse = np.unique(rows.groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(groups))[inverse] % FOLDS
    scores = np.full((len(rows.kinds), len(rows.features)), np.nan)
    for part in range(FOLDS):
        mine, others = fold == part, fold != part
        if mine.any() and (rows.kinds[others] == 0).any() and (rows.kinds[others] > 0).any():
            for k, table in enumerate(rows.features):
                scores[mine, k] = head_log_odds(new_head(k).fit(table[others], rows.kinds[others]), table[mine])
    return scores
