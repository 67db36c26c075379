"""Features: what the logits kept along a query's paths say, by name. A pure function of the trace.

Every family is one function from a Trace to columns (n,). margin is the log-odds margin against the query's predicted
class (negative where that class wins), energy is the logits' logsumexp.

query       the query's own logits, before any path
own         straight paths to reference images of the predicted class (Vrabel et al. 2025; Gu & Borovykh 2023)
rival       straight paths to reference images of the classes that come next
self        paths to label-preserving copies of the query, read at their ends and on the way
latent      own's features on straight paths between a layer's outputs (Gu & Borovykh 2023)
companion   what a second network, trained against attacks, says of the predicted class, at the query and its mirror
grain       noise levels of the query's pixels, for what its copies show is to be held against them (Immerkaer 1996)
pixels      how many of the query's pixels are black, white, like their neighbours, and how they are spread
near        how far the nearest references are in pixels: of the predicted class, of the next, of any other
complexity  bypass of the own paths' barriers: secondary barriers, bends, length (Vrabel et al. 2025, section 4)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advconn.features.noise_level import LEVELS, STRUCTURE
from advconn.features.pixel_features import NEAR, PIXELS
from advconn.models.margin import margin
from advconn.paths.bypass import Detour
from advconn.paths.path import Profile

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Trace:
    """Logits (..., k) kept along the paths from n queries. What was not asked for is None.

    Attributes:
        query: (n, k) at the queries.
        names: of the m copies.
        copies: (n, m, k) at the ends of the paths to the copies.
        halves: names of the h copies whose paths are read half-way.
        midway: (n, h, k) half-way to these.
        t: positions (s,) in [0, 1] on the paths to references, both ends included.
        own: (n, r, s, k) on paths to r references of the predicted class.
        rival: (n, q, s, k) on paths to one reference of each of the q next classes.
        rivals: (n, q) these classes.
        latent: as own, between the outputs of a layer.
        grain: (n, GRAIN) noise levels and fine structure of the query itself.
        pixels: (n, PIXELS) what the query's own pixels are, see pixels.pixels.
        near: (n, NEAR) distances to references, see pixels.nearness.
        companion: (n, 2, k) a second network's logits at the query and at its mirror image.
        detour: bypass of the n * r own paths.
        families: whose features are read; unless told those of everything that is here.
        temperature: what the classifier's logits are divided by before they are read.
    """

    query: Tensor
    names: tuple[str, ...] = ()
    copies: Tensor | None = None
    halves: tuple[str, ...] = ()
    midway: Tensor | None = None
    t: Tensor | None = None
    own: Tensor | None = None
    rival: Tensor | None = None
    rivals: Tensor | None = None
    latent: Tensor | None = None
    grain: Tensor | None = None
    pixels: Tensor | None = None
    near: Tensor | None = None
    companion: Tensor | None = None
    detour: Detour | None = None
    families: tuple[str, ...] = ()
    temperature: float = 1.0

    @property
    def predicted(self) -> Tensor:
        """The class that each query is given, (n,)."""
        return self.query.argmax(1)

    def stops(self) -> dict[str, Tensor]:
        """The logits (n, k) at the queries, at their copies and half-way, by name."""
        stops = {"query": self.query}
        if self.copies is not None:
            stops |= dict(zip(self.names, self.copies.unbind(1), strict=True))
        if self.midway is not None:
            stops |= {f"half {name}": logits for name, logits in zip(self.halves, self.midway.unbind(1), strict=True)}
        return stops

    def tempered(self) -> Trace:
        """The same, the classifier's logits divided by the temperature."""
        if self.temperature == 1.0:
            return self
        logits = {name: getattr(self, name) for name in ("query", "copies", "midway", "own", "rival", "latent")}
        return replace(self, temperature=1.0, **{k: v / self.temperature for k, v in logits.items() if v is not None})

    def rows(self, index: Tensor) -> Trace:
        """The traces of these queries, as walked before any bypass."""
        own: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("t", "detour")}
        kept: dict[str, Any] = {k: v[index] for k, v in own.items() if isinstance(v, Tensor)}
        return replace(self, **kept, detour=None)


def concat_traces(traces: Sequence[Trace]) -> Trace:
    """Traces of consecutive batches as one."""
    return replace(_joined(list(traces)), t=traces[0].t)


def _joined(values: list[Any]) -> Any:
    first = values[0]
    if is_dataclass(first) and not isinstance(first, type):
        return type(first)(**{f.name: _joined([getattr(v, f.name) for v in values]) for f in fields(first)})
    return torch.cat(values) if isinstance(first, Tensor) else first


def _spread_of(columns: Columns, name: str, values: Tensor) -> None:
    """Mean, deviation, smallest and largest of values (n, m)."""
    columns[f"{name}.mean"] = values.mean(1)
    columns[f"{name}.sd"] = values.std(1, correction=0)
    columns[f"{name}.min"] = values.amin(1)
    columns[f"{name}.max"] = values.amax(1)


def query_features(trace: Trace) -> Columns:
    """What can be read off the query's own logits: how far its class leads, their strength, their entropy."""
    first, second = trace.query.topk(2, dim=1).values.unbind(1)
    return {
        "margin": margin(trace.query, trace.predicted),
        "energy": trace.query.logsumexp(1),
        "entropy": torch.special.entr(trace.query.softmax(1)).sum(1),
        "gap": first - second,
    }


def self_features(trace: Trace) -> Columns:
    """Where the copies lean: each copy's rise of the margin and of the class they lean to, and their consensus."""
    if trace.copies is None:
        return {}
    query, copies, label = trace.query, trace.copies, trace.predicted
    start = margin(query, label)
    rise = margin(copies, label[:, None]) - start[:, None]
    energy = copies.logsumexp(2) - query.logsumexp(1)[:, None]
    move = (copies - query[:, None]).norm(dim=2) / query.shape[1] ** 0.5
    shares = copies.softmax(2)
    before = query.softmax(1)
    other = shares.mean(1).scatter(1, label[:, None], -1).argmax(1)
    lean = _class(copies, other) - _class(copies, label) - (_class(query, other) - _class(query, label))[:, None]
    divergence = (shares * (copies.log_softmax(2) - query.log_softmax(1)[:, None])).sum(2)
    back = (before[:, None] * (query.log_softmax(1)[:, None] - copies.log_softmax(2))).sum(2)
    columns: Columns = {}
    for i, name in enumerate(trace.names):
        columns[f"rise.{name}"] = rise[:, i]
        columns[f"lean.{name}"] = lean[:, i]
        columns[f"energy.{name}"] = energy[:, i]
        columns[f"move.{name}"] = move[:, i]
    for name, values in (("rise", rise), ("lean", lean), ("move", move), ("divergence", divergence), ("back", back)):
        _spread_of(columns, name, values)
    agree = copies.argmax(2) == label[:, None]
    columns["agree"] = agree.float().mean(1)
    columns["agree.other"] = (copies.argmax(2) == other[:, None]).float().mean(1)
    columns["share"] = _class(shares, label).mean(1)
    columns["share.other"] = _class(shares, other).mean(1)
    columns["share.sd"] = _class(shares, label).std(1, correction=0)
    columns["entropy"] = torch.special.entr(shares.mean(1)).sum(1)
    columns["fall"] = _class(query, label) - _class(copies, label).mean(1)
    columns["climb"] = _class(copies, other).mean(1) - _class(query, other)
    if trace.midway is not None:
        ends = torch.stack([rise[:, trace.names.index(name)] for name in trace.halves], 1)
        half = margin(trace.midway, label[:, None]) - start[:, None]
        for i, name in enumerate(trace.halves):
            columns[f"half.{name}"] = half[:, i]
            columns[f"bulge.{name}"] = half[:, i] - ends[:, i] / 2
    return columns


def _class(logits: Tensor, label: Tensor) -> Tensor:
    """The entry of class label (n,) in (n, k) or (n, m, k)."""
    index = label if logits.ndim == 2 else label[:, None].expand(logits.shape[:2])
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _curve(columns: Columns, values: Tensor) -> None:
    """Mean over the paths, at every position between the ends, of values (n, r, s)."""
    for i in range(1, values.shape[2] - 1):
        columns[f"curve.{i}"] = values[:, :, i].mean(1)
    _spread_of(columns, "highest", values.amax(2))
    _spread_of(columns, "area", values.mean(2))


def own_features(trace: Trace) -> Columns:
    """Margin and cross-entropy along the way to images of the predicted class: barrier, gap, place, area, curve."""
    return _to_own_class(trace, trace.own)


def grain_features(trace: Trace) -> Columns:
    """Noise levels of the query, their logarithms, and its fine structure."""
    if trace.grain is None:
        return {}
    levels = dict(zip(LEVELS, trace.grain[:, : len(LEVELS)].unbind(1), strict=True))
    logs = {f"log.{name}": values.log1p() for name, values in levels.items()}
    return levels | logs | dict(zip(STRUCTURE, trace.grain[:, len(LEVELS) :].unbind(1), strict=True))


def pixels_features(trace: Trace) -> Columns:
    """What the query's own pixels are."""
    return {} if trace.pixels is None else dict(zip(PIXELS, trace.pixels.unbind(1), strict=True))


def near_features(trace: Trace) -> Columns:
    """How far the nearest references are."""
    return {} if trace.near is None else dict(zip(NEAR, trace.near.unbind(1), strict=True))


def companion_features(trace: Trace) -> Columns:
    """Whether the companion finds the predicted class plausible, and which class it would rather have."""
    if trace.companion is None:
        return {}
    label, second = trace.query.topk(2, dim=1).indices.unbind(1)
    shares = trace.companion.log_softmax(2)
    own = margin(trace.companion, label[:, None])
    columns: Columns = {"margin": own[:, 0], "loss": F.softplus(own[:, 0])}
    columns["mirror"] = own[:, 1] - own[:, 0]
    columns["worst"] = F.softplus(own).amax(1)
    columns["rank"] = trace.companion[:, 0].amax(1) - _class(trace.companion[:, 0], label)
    columns["second"] = _class(shares[:, 0], second) - _class(shares[:, 0], label)
    columns["entropy"] = torch.special.entr(shares[:, 0].exp()).sum(1)
    columns["divergence"] = -(trace.query.softmax(1) * shares[:, 0]).sum(1)
    return columns


def latent_features(trace: Trace) -> Columns:
    """The same along the way between a layer's outputs."""
    return _to_own_class(trace, trace.latent)


def _to_own_class(trace: Trace, logits: Tensor | None) -> Columns:
    """Columns of logits (n, r, s, k) on paths to references of the predicted class."""
    if logits is None or trace.t is None:
        return {}
    n, r = logits.shape[:2]
    values = margin(logits, trace.predicted[:, None, None])
    columns: Columns = {"margin": values[:, 0, 0]}
    _curve(columns, values - values[:, :, :1])
    loss = Profile(trace.t, F.softplus(values).flatten(0, 1))
    for name, column in (("barrier", loss.barrier), ("gap", loss.gap), ("place", loss.place), ("loss", loss.area)):
        _spread_of(columns, name, column.view(n, r))
    energy = logits.logsumexp(3)
    dip = (energy - torch.lerp(energy[:, :, :1], energy[:, :, -1:], trace.t)).amin(2)
    _spread_of(columns, "dip", dip)
    columns["connected"] = (loss.gap < 1e-3).float().view(n, r).mean(1)
    return columns


def rival_features(trace: Trace) -> Columns:
    """Margin on the way to images of the next classes, and how early the prediction tips."""
    if trace.rival is None or trace.t is None or trace.rivals is None:
        return {}
    values = margin(trace.rival, trace.predicted[:, None, None])
    columns: Columns = {}
    _curve(columns, values - values[:, :, :1])
    tips = _crossing(values, trace.t)
    _spread_of(columns, "tips", tips)
    for i in range(values.shape[1]):
        columns[f"tips.{i + 1}"] = tips[:, i]
    against = margin(trace.rival, trace.rivals[:, :, None])
    columns["rivals"] = against.amin(2).mean(1)
    return columns


def _crossing(values: Tensor, t: Tensor) -> Tensor:
    """First position (linear in between) where values (n, r, s) turn positive; 1 where they never do: (n, r)."""
    above = values > 0
    first = torch.where(above.any(2), above.float().argmax(2), values.shape[2] - 1).clamp_min(1)
    high = values.gather(2, first[..., None])[..., 0]
    low = values.gather(2, first[..., None] - 1)[..., 0]
    share = (-low / (high - low).clamp_min(1e-9)).clamp(0, 1)  # both equal: any value, which is not used
    crossing = t[first - 1] + share * (t[first] - t[first - 1])
    return torch.where(above.any(2), crossing, torch.ones_like(crossing))


def complexity_features(trace: Trace) -> Columns:
    """What going round the barriers takes, over the references: secondary barriers, bends, displacement, length."""
    if trace.detour is None:
        return {}
    detour, n = trace.detour, len(trace.query)
    columns: Columns = {}
    for i in range(detour.barriers.shape[1]):
        columns[f"barriers.{i}"] = detour.barriers[:, i].float().view(n, -1).mean(1)
    _spread_of(columns, "bends", detour.bends.float().view(n, -1))
    _spread_of(columns, "displacement", detour.displacement.view(n, -1))
    _spread_of(columns, "length", detour.length_ratio.view(n, -1))
    columns["residual"] = detour.residual.view(n, -1).mean(1)
    columns["unconverged"] = (~detour.converged).float().view(n, -1).mean(1)
    return columns


FEATURES: Mapping[str, Callable[[Trace], Columns]] = MappingProxyType(
    {
        "query": query_features,
        "self": self_features,
        "grain": grain_features,
        "pixels": pixels_features,
        "companion": companion_features,
        "own": own_features,
        "rival": rival_features,
        "near": near_features,
        "latent": latent_features,
        "complexity": complexity_features,
    }
)


def columns_of(trace: Trace) -> np.ndarray:
    """The features (n, d) of a trace, in float64."""
    return feature_table(trace)[0].double().cpu().numpy()


def feature_table(trace: Trace) -> tuple[Tensor, list[str]]:
    """The columns (n, d) of a trace's families and their names, 'family.name'."""
    trace = trace.tempered()
    read = [family for family in FEATURES if not trace.families or family in trace.families]
    columns = {f"{family}.{name}": c for family in read for name, c in FEATURES[family](trace).items()}
    return torch.stack(list(columns.values()), 1), list(columns)
