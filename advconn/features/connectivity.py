"""Connectivity: images to a table of features, by walking from every image to its modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from advconn.data.input_conversion import as_tensor
from advconn.errors import DataError
from advconn.features.noise_level import GRAIN, grain
from advconn.features.path_features import FEATURES, Trace, feature_table
from advconn.features.pixel_features import NEAR, PIXELS, nearness, pixels
from advconn.features.references import References
from advconn.features.transforms import COPIES, transform_named
from advconn.models.classifier import Classifier
from advconn.models.margin import MarginLandscape, margin, margin_of_loss
from advconn.paths.bypass import DELTA, SLACK, Detour, bypass
from advconn.paths.path import Profile, path_positions, straight
from advconn.paths.space import PIXEL, Space
from advconn.runtime.forward_passes import batch_limit

BARE = frozenset({"query", "self", "grain", "pixels", "companion"})  # families that need no references
LARGEST = 2**21  # values of the images walked from at once
HALVES: tuple[str, ...] = ("mean3", "median3", "rescale50", "left1", "down1")


class Connectivity(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer from images (n, c, h, w) in [0, 1] to features (n, d). Stateless: nothing is learned.

    Args:
        classifier: the model that the images are shown to.
        references: images that own and rival paths lead to; without them no such path is walked.
        families: some of FEATURES; None takes all that the other arguments allow but 'grain', 'pixels', 'near' and
            'complexity'.
        copies: names in COPIES.
        halves: those of them whose path is read half-way too.
        per_class: references of the predicted class walked to.
        rivals: next classes, one reference each.
        samples: positions on every own, rival and latent path, both ends included.
        layer: whose outputs the family 'latent' walks between, by its name in the module.
        levels: of bypass, for the family 'complexity'.
        steps: of every bypass.
        nearest: take the references nearest to the query in pixels (L2) instead of each class's first.
        batch_size: images walked from at once, on a GPU forward_passes.ON_A_GPU times as many; memory grows with
            it alone.
        companion: a second network of the same classes, trained against attacks, that the images are shown to too.
        temperature: what the classifier's logits are divided by before features are read and barriers are gone round,
            above 0 (Guo et al. 2017); models.margin.temperature_of brings networks of any confidence to one scale.

    Example:
        >>> classifier = Classifier(torch.nn.Flatten().eval(), size=4)
        >>> Connectivity(classifier, copies=("flip",), halves=()).transform(torch.rand(5, 3, 4, 4)).shape
        (5, 36)
    """

    def __init__(
        self,
        classifier: Classifier,
        references: References | None = None,
        families: Sequence[str] | None = None,
        copies: Sequence[str] = tuple(COPIES),
        halves: Sequence[str] = HALVES,
        per_class: int = 3,
        rivals: int = 2,
        samples: int = 5,
        layer: str | None = None,
        levels: int = 2,
        steps: int = 5,
        nearest: bool = False,
        batch_size: int = 32,
        companion: Classifier | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.classifier = classifier
        self.references = references
        self.families = families
        self.copies = copies
        self.halves = halves
        self.per_class = per_class
        self.rivals = rivals
        self.samples = samples
        self.layer = layer
        self.levels = levels
        self.steps = steps
        self.nearest = nearest
        self.batch_size = batch_size
        self.companion = companion
        self.temperature = temperature

    def fit(self, X: Any = None, y: Any = None) -> Connectivity:
        """Does nothing: there is nothing to learn."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def active_families(self) -> tuple[str, ...]:
        """The families that are walked."""
        if self.families is None:
            second = () if self.companion is None else ("companion",)
            if self.references is None:
                return ("query", "self", *second)
            latent = () if self.layer is None else ("latent",)
            return ("query", "self", *second, "own", "rival", *latent)
        unknown = set(self.families) - set(FEATURES)
        if unknown or not self.families:
            raise DataError(f"no family {', '.join(sorted(unknown))!r}: expected some of {', '.join(FEATURES)}")
        if self.references is None and set(self.families) - BARE:
            raise DataError(f"every family but {', '.join(sorted(BARE))} needs references: choose or synthesise them")
        if "companion" in self.families and self.companion is None:
            raise DataError("the family companion needs a companion: give a second network of the same classes")
        if "complexity" in self.families and not self.classifier.differentiable:
            raise DataError("the family complexity needs gradients, and this classifier gives none: leave it out")
        if "latent" in self.families and self.layer is None:
            raise DataError("the family latent needs a layer to walk after: give its name in the module")
        return tuple(f for f in FEATURES if f in self.families)

    def settings(self) -> dict[str, Any]:
        """What a walk depends on besides its networks and its references; how many at once is no part of that."""
        apart = ("classifier", "references", "batch_size", "companion")
        return {name: value for name, value in self.get_params(deep=False).items() if name not in apart}

    def key(self) -> tuple[Any, ...]:
        """What the features of an image depend on besides the image: weights, preprocessing, references, settings."""
        images = None if self.references is None else self.references.images.cpu().numpy()
        settings = sorted(map(str, self.settings().items()))
        second = () if self.companion is None else (self.companion.fingerprint, str(self.companion.preprocessing))
        return self.classifier.fingerprint, str(self.classifier.preprocessing), images, settings, *second

    def transform(self, X: Any) -> np.ndarray:
        """Features (n, d) of images (n, c, h, w): a float tensor or array in [0, 1], or uint8."""
        rows = [feature_table(trace)[0] for trace in self.traces(X)]
        return torch.cat(rows).double().cpu().numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, 'family.name'; no network is asked."""
        return np.asarray(feature_table(self._blank_trace())[1], dtype=object)

    def _blank_trace(self) -> Trace:
        """A trace of one image in which everything is 0: its features have the names of any other's."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device="cpu")

        families, classes = self.active_families, self.classifier.num_classes
        copies = tuple(self.copies) if "self" in families else ()
        halves = tuple(name for name in self.halves if name in copies)
        rivals, t = min(self.rivals, classes - 1), path_positions(self.samples, zeros(1))
        path = zeros(1, 1, len(t), classes)
        parts: dict[str, Any] = {
            "names": copies,
            "copies": zeros(1, len(copies), classes) if copies else None,
            "halves": halves,
            "midway": zeros(1, len(halves), classes) if halves else None,
            "grain": zeros(1, GRAIN),
            "pixels": zeros(1, len(PIXELS)),
            "near": zeros(1, len(NEAR)),
            "companion": zeros(1, 2, classes),
            "own": path,
            "latent": path,
            "rival": zeros(1, rivals, len(t), classes),
            "rivals": torch.zeros((1, rivals), dtype=torch.int64, device="cpu"),
            "detour": Detour(straight(zeros(1, 1), zeros(1, 1)), zeros(1, self.levels + 1), *(zeros(1),) * 6),
        }
        return Trace(query=zeros(1, classes), t=t, families=families, **parts)

    def traces(self, X: Any, start: Trace | None = None) -> Iterator[Trace]:
        """The traces of images, `batch_size` at a time; no gradient leads back to the images. `start`: see `trace`."""
        images = as_tensor(X).detach()
        rows = torch.arange(len(images), dtype=torch.int64, device="cpu" if start is None else start.query.device)
        size = self.together(images)
        for chunk, indices in zip(images.split(size), rows.split(size), strict=True):
            yield self.trace(chunk, None if start is None else start.rows(indices))

    def together(self, images: Tensor) -> int:
        """How many of the images (n, c, h, w) are walked from at once."""
        return batch_limit(self.classifier.device, self.batch_size, LARGEST, images[:1].numel())

    def trace(self, images: Tensor, start: Trace | None = None) -> Trace:
        """Walk from images (n, c, h, w) to their modes and keep the logits met; differentiable where images are.

        `start`: a trace of the same images; the copies in it, and the queries, are not asked for again.
        """
        images = self.classifier.check(images)
        if not len(images):
            raise DataError("no images to walk from")
        wanted = images.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(wanted), torch.autocast(images.device.type, enabled=False):
            return self._trace(images, start)

    def _trace(self, images: Tensor, start: Trace | None) -> Trace:
        families = self.active_families
        wanted = tuple(self.copies) if "self" in families else ()
        halves = tuple(name for name in self.halves if name in wanted)
        logits = self._stops(images, {} if start is None else start.stops(), wanted, halves)
        parts: dict[str, Any] = {"families": families, "query": logits["query"], "temperature": self.temperature}
        if wanted:
            parts |= {"names": wanted, "copies": torch.stack([logits[name] for name in wanted], 1)}
        if halves:
            parts |= {"halves": halves, "midway": torch.stack([logits[f"half {name}"] for name in halves], 1)}
        if "grain" in families:
            parts["grain"] = grain(images) if start is None or start.grain is None else start.grain
        if "pixels" in families:
            parts["pixels"] = pixels(images) if start is None or start.pixels is None else start.pixels
        if "companion" in families:
            said = None if start is None else start.companion
            parts["companion"] = self.beside(images) if said is None else said
        if set(families) - BARE:
            parts |= self._walks(images, logits["query"], families)
        return Trace(**parts)

    def _stops(
        self, images: Tensor, earlier: dict[str, Tensor], wanted: Sequence[str], halves: Sequence[str]
    ) -> dict[str, Tensor]:
        """Logits (n, k) at queries, copies and half-way, by name, asked for in batches; those in `earlier` stand."""
        new = {name for name in wanted if name not in earlier}
        half = {name for name in halves if f"half {name}" not in earlier}
        by_name, names = dict(earlier), [] if "query" in earlier else ["query"]
        stops = [] if "query" in earlier else [images]
        for name in [*wanted, None]:
            if name is None or (stops and len(stops) * len(images) >= self.classifier.batch_size):
                if stops:
                    logits = self.classifier.logits(torch.cat(stops))
                    by_name |= dict(zip(names, logits.view(len(stops), len(images), -1), strict=True))
                names, stops = [], []
            if name in new or name in half:
                copy = transform_named(str(name))(images)
                if name in new:
                    names, stops = [*names, str(name)], [*stops, copy]
                if name in half:
                    names, stops = [*names, f"half {name}"], [*stops, torch.lerp(images, copy, 0.5)]
        return by_name

    def beside(self, images: Tensor) -> Tensor:
        """The companion's logits (n, 2, k) at images (n, c, h, w) and at their mirror images.

        Raises:
            DataError: no companion, or one of other classes or channels.
        """
        network, own = self.companion, self.classifier
        if network is None:
            raise DataError("the family companion needs a companion: give a second network of the same classes")
        for what in ("num_classes", "channels"):
            if getattr(network, what) != getattr(own, what):
                value, wanted = getattr(network, what), getattr(own, what)
                raise DataError(f"the companion's {what} is {value}, the classifier's {wanted}: they must be the same")
        size = network.preprocessing.size
        if size is not None and tuple(images.shape[2:]) != tuple(size):
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        points = torch.cat([images, images.flip(3)]).to(network.device)
        return network.logits(points).to(own.device).view(2, len(images), -1).transpose(0, 1)

    def _walks(self, images: Tensor, query: Tensor, families: tuple[str, ...]) -> dict[str, Any]:
        """Own and rival paths in one batch; the logits at the queries and at the references are not asked for again."""
        references = self._references()
        anchors, ends = references.images.to(images), references.logits.to(query)
        order = query.topk(min(self.rivals + 1, query.shape[1]), dim=1).indices
        same = self.anchors(images, order[:, :1], self.per_class)
        own = same if {"own", "complexity"} & set(families) else same[:, :0]
        rival = self.anchors(images, order[:, 1:], 1) if "rival" in families else same[:, :0]
        chosen = torch.cat([own, rival], 1)
        n, m = chosen.shape
        starts = images[:, None].expand(-1, m, -1, -1, -1).flatten(0, 1)
        path = straight(starts, anchors[chosen.flatten()])
        t = path_positions(self.samples, images)
        points = path.at(t[1:-1]).flatten(0, 1)
        inner = self.classifier.logits(points) if m else query[:0]
        first, last = query[:, None, None].expand(-1, m, 1, -1), ends[chosen][:, :, None]
        logits = torch.cat([first, inner.view(n, m, self.samples - 2, query.shape[1]), last], 2)
        parts: dict[str, Any] = {"t": t}
        if "near" in families:
            parts["near"] = nearness(images, references, order[:, :2])
        if "latent" in families:
            parts["latent"] = self._latent(images, anchors[same.flatten()], same.shape[1], t)
        if "own" in families:
            parts["own"] = logits[:, : own.shape[1]]
        if "rival" in families:
            parts |= {"rival": logits[:, own.shape[1] :], "rivals": order[:, 1:]}
        if "complexity" in families:
            rows = torch.arange(n * m, dtype=torch.int64, device=images.device).view(n, m)[:, : own.shape[1]].flatten()
            label = order[:, 0].repeat_interleave(own.shape[1])
            scan = Profile(t, margin(logits[:, : own.shape[1]].flatten(0, 1) / self.temperature, label[:, None]))
            parts["detour"] = self._detour(path.start[rows], path.end[rows], label, scan)
        return parts

    def landscape(self, labels: Tensor) -> MarginLandscape:
        """The margin against `labels` (n,), one a row, of logits divided by the temperature."""
        return MarginLandscape(lambda points: self.classifier.logits(points) / self.temperature, labels)

    def _references(self) -> References:
        if self.references is None:
            raise DataError("own and rival paths need references: choose or synthesise them")
        return self.references

    def anchors(self, images: Tensor, classes: Tensor, count: int) -> Tensor:
        """Indices (n, q * count) of references: the first of each class, or the nearest in pixels.

        Args:
            images: (n, c, h, w) that paths begin at.
            classes: (n, q) that they lead to.
            count: references of each.
        """
        references = self._references()
        index = references.by_class.to(images.device)[classes]
        if self.nearest:
            anchors = references.images.to(images).flatten(1)
            distance = torch.cdist(images.flatten(1), anchors).gather(1, index.flatten(1)).view(index.shape)
            index = index.gather(2, distance.argsort(dim=2, stable=True))
        return index[:, :, :count].flatten(1)

    def _latent(self, images: Tensor, anchors: Tensor, per_query: int, t: Tensor) -> Tensor:
        """Logits (n, r, s, k) between a layer's outputs at n images and at the n * r anchors."""
        space = _space(self.classifier, self.layer or PIXEL)
        starts = space.points(images).repeat_interleave(per_query, 0)
        points = straight(starts, space.points(anchors)).at(t)
        return space.logits(points.flatten(0, 1)).view(len(images), per_query, len(t), -1)

    def _detour(self, start: Tensor, end: Tensor, label: Tensor, scan: Profile) -> Detour:
        """Bypass of barriers whose cross-entropy exceeds the larger end's by more than DELTA."""
        ends = F.softplus(torch.maximum(scan.energies[:, 0], scan.energies[:, -1]))
        ceiling = margin_of_loss(ends.double() + DELTA).to(start.dtype)
        settings: dict[str, Any] = {"levels": self.levels, "steps": self.steps, "samples": self.samples}
        return bypass(self.landscape(label), start, end, ceiling, target=ceiling - SLACK, scan=scan, **settings)


@lru_cache(maxsize=4)
def _space(classifier: Classifier, layer: str) -> Space:
    """Kept: to cut a network takes longer than to walk a few paths."""
    return Space(classifier, layer)
