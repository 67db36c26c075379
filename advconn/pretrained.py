"""Heads that were taught on other networks' clean and attacked images, and serve a network that they have never seen.

What carries them over is the standardisation: every feature is held against the network's own clean images, as their
median and spread have it. So no attack is made on it, no gradient is asked for, and a few hundred clean images are
enough. How they were taught is in benchmarks/teach.py, what they reach on networks left out in README.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from advconn.connectivity import Connectivity
from advconn.errors import BundleError, FitError
from advconn.exits import exits_at
from advconn.files import shipped
from advconn.heads import load as load_head
from advconn.margins import with_gradients
from advconn.stages import Cascade, scored

CARD = "card.json"
UNTAUGHT = "no head was taught for these copies and stages: attack the classifier instead (quick=False, --full)"
LEAST = 20  # clean images that a median and a spread are taken of
PULL = 30.0  # towards what was taught, as benchmarks/refine.py found
LARGEST = 3.0  # of a standardised feature while heads are taught: what is far out weighs no more
FAR = 10.0  # the same while they are moved
INNER = (0.16, 0.84)  # quantiles that are two standard deviations apart where values are Gaussian


@dataclass(frozen=True)
class Pretrained:
    """Heads of standardised features, one for each kind of stage.

    Attributes:
        names: for each head the names (d,) of the columns that it takes.
        heads: fitted scikit-learn classifiers.
        networks: that they were taught on.
        attacks: that they were taught on.
    """

    names: tuple[tuple[str, ...], ...]
    heads: tuple[Any, ...]
    networks: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()

    def serving(self, connectivities: Sequence[Connectivity]) -> tuple[int, ...]:
        """Which head serves each of these stages, up to the first that none was taught for."""
        out: list[int] = []
        for connectivity in connectivities:
            columns = tuple(map(str, connectivity.get_feature_names_out()))
            if columns not in self.names:
                break
            out.append(self.names.index(columns))
        return tuple(out)

    def cascade(
        self,
        connectivities: tuple[Connectivity, ...],
        clean: Sequence[np.ndarray],
        shares: Sequence[float],
        attacked: Sequence[np.ndarray] = (),
    ) -> Cascade:
        """The stages of a classifier, standardised by features of its clean images.

        Args:
            connectivities: what each stage walks.
            clean: features (n, d) at each stage of clean images.
            shares: of clean images that go on, for all stages but the last.
            attacked: features (m, d) at each stage of its attacked images, which move the heads, see `moved`.

        Raises:
            FitError: too few images, or stages that no head was taught for.
        """
        chosen = self.serving(connectivities)
        if len(chosen) < len(connectivities):
            raise FitError(UNTAUGHT)
        if len(clean[0]) < LEAST:
            raise FitError(f"{len(clean[0])} clean images to standardise by: expected {LEAST} or more")
        from sklearn.pipeline import make_pipeline

        heads = []
        for stage, k in enumerate(chosen):
            scale, head = standard(clean[stage]), self.heads[k]
            if len(attacked):
                head = moved(head, *(scale.transform(table[stage]) for table in (clean, attacked)))
            heads.append(make_pipeline(scale, head))
        scores = np.stack([scored(head, table) for head, table in zip(heads, clean, strict=True)], 1)
        return Cascade(connectivities, tuple(self.names[k] for k in chosen), tuple(heads), exits_at(scores, shares))


def standard(clean: np.ndarray) -> Any:
    """A fitted StandardScaler that subtracts the medians of features (n, d) and divides by their spread.

    The spread is half the distance of their 16th and 84th percentiles; where that is next to nothing, the standard
    deviation; where that is nothing, 1.
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(clean)
    low, high = np.quantile(clean, INNER, axis=0)
    deviation, spread = clean.std(0), (high - low) / 2
    scaler.mean_ = np.median(clean, axis=0)
    scaler.scale_ = np.where(spread > 1e-3 * deviation, spread, np.where(deviation > 0, deviation, 1.0))
    scaler.var_ = scaler.scale_**2
    return scaler


def moved(head: Any, clean: np.ndarray, attacked: np.ndarray) -> Any:
    """A taught head that was moved by standardised features of a classifier's own images.

    It has the largest likelihood of which is which, less PULL / 2 times the squared distance of its weights, in
    deviations of their features, from those that were taught: the fewer images, the less it moves.

    Args:
        head: a logistic regression.
        clean: features (n, d) of clean images.
        attacked: features (m, d) of attacked ones.
    """
    features = np.concatenate([clean, attacked]).clip(-FAR, FAR)
    rows = torch.from_numpy(features)
    kinds = torch.from_numpy(np.repeat([0.0, 1.0], [len(clean), len(attacked)]))
    spread = torch.from_numpy(features.clip(-LARGEST, LARGEST).std(0))
    start = [torch.from_numpy(np.ascontiguousarray(values)) for values in (head.coef_, head.intercept_)]
    weight, bias = (values.clone().requires_grad_() for values in start)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        logits = rows @ weight.T + bias
        odds = logits[:, 1:].logsumexp(1) - logits[:, 0]
        value = F.binary_cross_entropy_with_logits(odds, kinds, reduction="sum")
        value = value + PULL / 2 * ((weight - start[0]) * spread).square().sum()
        value.backward()
        return value

    with with_gradients():
        optimizer.step(loss)
    out = copy.deepcopy(head)
    out.coef_, out.intercept_ = weight.detach().numpy(), bias.detach().numpy()
    return out


def load(folder: Path | None = None) -> Pretrained:
    """The heads in a folder, those that ship unless told.

    Raises:
        BundleError: missing or damaged files.
    """
    folder = shipped("pretrained") if folder is None else folder
    try:
        card = json.loads((folder / CARD).read_text())
        names = tuple(tuple(map(str, columns)) for columns in card["names"])
        networks, attacks = (tuple(map(str, card[key])) for key in ("networks", "attacks"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder}: no readable heads here ({type(error).__name__}); install advconn again"
        ) from error
    heads = tuple(load_head(folder / f"head-{k + 1}.skops", len(columns)) for k, columns in enumerate(names))
    return Pretrained(names, heads, networks, attacks)
