"""Heads that were taught on other networks' clean and attacked images, and serve a network that they have never seen.

What carries them over is the standardisation: every feature is measured in the spread of the network's own clean images
from their median, bounded (scaling.BoundedScaler), and at a temperature at which every network is equally confident
(models.margin.temperature_of). So a fit makes no attack and needs no gradient, and a few hundred clean images are
enough. How they were trained is in benchmarks/ship/teach.py, what they reach on networks left out in README.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from advconn.cascade.cascade import Cascade, head_log_odds
from advconn.cascade.early_exit import exits_at
from advconn.cascade.head_files import load as load_head
from advconn.cascade.scaling import LARGEST, BoundedScaler
from advconn.errors import BundleError, FitError
from advconn.features.connectivity import Connectivity
from advconn.files import shipped_path
from advconn.runtime.forward_passes import gradients_enabled

CARD = "card.json"
UNTAUGHT = "no head was trained for these copies and stages: attack the classifier instead (quick=False, --full)"
LEAST = 20  # clean images that a median and a spread are taken of
PULL = 30.0  # towards what was taught, as benchmarks/measure/refine.py found
TINY = 1e-9  # floor of a feature that no teaching network has
FLOOR_SHARE = 0.1  # of the median spread over the teaching networks: no feature's scale is smaller, see BoundedScaler


@dataclass(frozen=True)
class PretrainedHeads:
    """Heads of standardised features, one for each kind of stage.

    Attributes:
        names: for each head the names (d,) of the columns that it takes.
        heads: fitted scikit-learn classifiers of features from a BoundedScaler.
        floors: for each head the smallest scale (d,) of its features, from the networks that it was taught on.
        networks: that they were taught on.
        attacks: that they were taught on.
    """

    names: tuple[tuple[str, ...], ...]
    heads: tuple[Any, ...]
    floors: tuple[np.ndarray, ...]
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
            attacked: features (m, d) at each stage of its attacked images, which move the heads, see `refine_head`.

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
            scale, head = BoundedScaler(self.floors[k]).fit(clean[stage]), self.heads[k]
            if len(attacked):
                head = refine_head(head, *(scale.transform(table[stage]) for table in (clean, attacked)))
            heads.append(make_pipeline(scale, head))
        scores = np.stack([head_log_odds(head, table) for head, table in zip(heads, clean, strict=True)], 1)
        return Cascade(connectivities, tuple(self.names[k] for k in chosen), tuple(heads), exits_at(scores, shares))


def floors_of(spreads: np.ndarray) -> np.ndarray:
    """The smallest scale (d,) of features, from their spreads (networks, d) on networks that heads are taught on.

    Where a feature varies on none of them it is 1.
    """
    varies = np.where(spreads > 0, spreads, np.nan)
    known = ~np.isnan(varies).all(0)
    out = np.ones(spreads.shape[1])
    out[known] = FLOOR_SHARE * np.nanmedian(varies[:, known], axis=0)
    return out


@lru_cache(maxsize=1)
def _shipped_floors() -> dict[str, float]:
    """The floors of the heads that ship, by the name of the feature: the smallest where heads differ."""
    out: dict[str, float] = {}
    heads = load()
    for names, floors in zip(heads.names, heads.floors, strict=True):
        for name, floor in zip(names, floors.tolist(), strict=True):
            out[name] = min(floor, out.get(name, floor))
    return out


def floor_of(names: Sequence[str]) -> np.ndarray:
    """The smallest scale (d,) of features by name, for heads of a classifier's own; nearly 0 of unknown ones."""
    floors = _shipped_floors()
    return np.array([floors.get(str(name), TINY) for name in names])


def refine_head(head: Any, clean: np.ndarray, attacked: np.ndarray) -> Any:
    """A taught head that was moved by bounded features of a classifier's own images.

    It has the largest likelihood of which is which, less PULL / 2 times the squared distance of its weights, in
    deviations of their features, from those that were taught: the fewer images, the less it moves.

    Args:
        head: a logistic regression.
        clean: features (n, d) of clean images.
        attacked: features (m, d) of attacked ones.
    """
    features = np.concatenate([clean, attacked])
    rows = torch.from_numpy(features)
    kinds = torch.from_numpy(np.repeat([0.0, 1.0], [len(clean), len(attacked)]))
    spread = torch.from_numpy(features.std(0))
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

    with gradients_enabled():
        optimizer.step(loss)
    out = copy.deepcopy(head)
    out.coef_, out.intercept_ = weight.detach().numpy(), bias.detach().numpy()
    return out


def load(folder: Path | None = None) -> PretrainedHeads:
    """The heads in a folder, those that ship unless told.

    Raises:
        BundleError: missing or damaged files.
    """
    folder = shipped_path("pretrained") if folder is None else folder
    try:
        card = json.loads((folder / CARD).read_text())
        names = tuple(tuple(map(str, columns)) for columns in card["names"])
        floors = tuple(np.array(values, dtype=np.float64) for values in card["floors"])
        networks, attacks = (tuple(map(str, card[key])) for key in ("networks", "attacks"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder}: no readable heads here ({type(error).__name__}); install advconn again"
        ) from error
    widths = [len(LARGEST) * len(columns) for columns in names]
    heads = tuple(load_head(folder / f"head-{k + 1}.skops", width) for k, width in enumerate(widths))
    return PretrainedHeads(names, heads, floors, networks, attacks)
