"""Groups of pictures that are alike: each is compared with clean pictures of its own group (Mondrian conformal).

A group is a function of the picture alone (its noise, its sharpness, its grey levels), never of what a classifier makes
of it, and the tree that finds it is learned from images that are not calibrated on. So the clean images of a group are
exchangeable with each other, and a threshold from them is exact within the group (Vovk et al. 2005, section 4.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PICTURE = ("grain.", "pixels.")  # families of the features that describe the picture alone
MAX_GROUPS = 4
MIN_SHARE = 0.08  # of the pictures that the tree is learned from: no group is smaller
MIN_PICTURES = 300  # a tree is not learned from fewer


@dataclass(frozen=True)
class Groups:
    """A tree from features of a picture to its group; its arrays (m,) are one entry a node.

    Attributes:
        names: of the features that it reads.
        feature: which of these a node compares; -1 in a leaf.
        threshold: up to which a picture goes left.
        left: node of these.
        right: node of the others.
    """

    names: tuple[str, ...]
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def of(self, features: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The group (n,) of each picture: its leaf.

        Args:
            features: (n, d) of the pictures.
            names: (d,) of the features.
        """
        places = {str(name): i for i, name in enumerate(names)}
        values = features[:, [places[name] for name in self.names]].astype(np.float32)
        node = np.zeros(len(values), np.int64)
        for _ in range(len(self.feature)):  # no leaf is deeper
            inner = self.feature[node] >= 0
            if not inner.any():
                break
            rows = np.flatnonzero(inner)
            here = node[rows]
            goes_left = values[rows, self.feature[here]] <= self.threshold[here]
            node[rows] = np.where(goes_left, self.left[here], self.right[here])
        return node


def learn_groups(features: np.ndarray, names: Sequence[str], scores: np.ndarray, seed: int = 0) -> Groups | None:
    """Groups of pictures in which clean scores are alike at their upper end; None of too few or undescribed pictures.

    Args:
        features: (n, d) of clean pictures under all conditions.
        names: (d,) of the features.
        scores: (n,) of the pictures.
        seed: of the tree.
    """
    from sklearn.tree import DecisionTreeRegressor

    chosen = [i for i, name in enumerate(names) if str(name).startswith(PICTURE)]
    usable = np.isfinite(features[:, chosen]).all(1) & np.isfinite(scores)
    if not chosen or usable.sum() < MIN_PICTURES:
        return None
    values, kept = features[usable][:, chosen].astype(np.float32), scores[usable]
    ranks = np.searchsorted(np.sort(kept), kept) / len(kept)
    tree = DecisionTreeRegressor(
        max_leaf_nodes=MAX_GROUPS, min_samples_leaf=int(MIN_SHARE * len(kept)), random_state=seed
    ).fit(values, ranks.clip(0.5))  # the lower half never sets a threshold
    nodes = tree.tree_
    return Groups(
        tuple(str(names[i]) for i in chosen),
        np.where(nodes.children_left < 0, -1, nodes.feature).astype(np.int64),
        nodes.threshold.astype(np.float64),
        nodes.children_left.astype(np.int64),
        nodes.children_right.astype(np.int64),
    )
