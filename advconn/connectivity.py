"""Connectivity: images to a table of features, by walking from every image to its modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from advconn import copies
from advconn.bypass import DELTA, SLACK, Detour, bypass
from advconn.classifier import Classifier, level
from advconn.copies import Copy
from advconn.errors import DataError
from advconn.features import FEATURES, Trace, table
from advconn.modes import References
from advconn.paths import positions, straight
from advconn.space import PIXEL, Space

COPIES: Mapping[str, Copy] = MappingProxyType(
    {
        "blur4": copies.blur(0.4),
        "blur5": copies.blur(0.5),
        "mean3": copies.mean3,
        "median3": copies.median3,
        "rescale50": copies.rescale(0.5),
        "bits5": copies.bits(5),
        "noise2": copies.noise(0.02, 2),
        "noise3": copies.noise(0.03, 3),
        "noise3b": copies.noise(0.03, 14),
        "noise12": copies.noise(0.12, 18),
        "pale": copies.saturation(0.5),
        "strong": copies.contrast(1.3),
        "strongest": copies.contrast(1.6),
        "strong+down1": copies.both(copies.contrast(1.3), copies.shift(1, 0)),
        "left1": copies.shift(0, -1),
        "right1": copies.shift(0, 1),
        "up1": copies.shift(-1, 0),
        "down1": copies.shift(1, 0),
        "aside1": copies.shift(1, 1),
        "aside1b": copies.shift(-1, -1),
        "left2": copies.shift(0, -2),
        "zoom108": copies.zoom(1.08),
        "zoom92": copies.zoom(0.92),
        "zoom85": copies.zoom(0.85),
        "shear": copies.shear(0.12),
        "flip": copies.flip,
        "flip+up1": copies.both(copies.flip, copies.shift(-1, 0)),
        "flip+down1": copies.both(copies.flip, copies.shift(1, 0)),
        "flip+rotate": copies.both(copies.flip, copies.rotate(6)),
        "flip+unrotate": copies.both(copies.flip, copies.rotate(-6)),
    }
)
LARGEST = 2**26  # values in the copies of the images walked from at once
HALVES: tuple[str, ...] = ("mean3", "median3", "rescale50", "left1", "down1")


class Connectivity(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A scikit-learn transformer from images (n, c, h, w) in [0, 1] to features (n, d). Stateless: nothing is learned.

    Args:
        classifier: the model that the images are shown to.
        references: images that own and rival paths lead to; without them only the self family is walked.
        families: of 'self', 'own', 'rival', 'latent', 'complexity'; None takes self, with references own and rival,
            and with a layer latent.
        copies: names in COPIES. halves: those of them whose path is read half-way too.
        per_class: references of the predicted class walked to. rivals: next classes, one reference each.
        samples: positions on every own, rival and latent path, both ends included.
        layer: whose outputs the family 'latent' walks between, by its name in the module.
        levels, steps: of bypass, for the family 'complexity'.
        batch_size: images walked from at once; memory grows with it, not with the number of images.
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
        batch_size: int = 32,
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
        self.batch_size = batch_size

    def fit(self, X: Any = None, y: Any = None) -> Connectivity:
        """Does nothing: there is nothing to learn."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def walked(self) -> tuple[str, ...]:
        """The families that are walked."""
        if self.families is None:
            if self.references is None:
                return ("self",)
            return ("self", "own", "rival") if self.layer is None else ("self", "own", "rival", "latent")
        unknown = set(self.families) - set(FEATURES)
        if unknown or not self.families:
            raise DataError(f"no family {', '.join(sorted(unknown))!r}: expected some of {', '.join(FEATURES)}")
        if self.references is None and set(self.families) != {"self"}:
            raise DataError("every family but self needs references: choose or synthesise them")
        if "complexity" in self.families and not self.classifier.differentiable:
            raise DataError("the family complexity needs gradients, and this classifier gives none: leave it out")
        if "latent" in self.families and self.layer is None:
            raise DataError("the family latent needs a layer to walk after: give its name in the module")
        return tuple(f for f in FEATURES if f in self.families)

    def key(self) -> tuple[Any, ...]:
        """What the features of an image depend on besides the image: weights, preprocessing, references, settings."""
        params = {
            k: v for k, v in self.get_params(deep=False).items() if k not in ("classifier", "references", "batch_size")
        }
        images = None if self.references is None else self.references.images.cpu().numpy()
        return self.classifier.fingerprint, str(self.classifier.preprocessing), images, sorted(map(str, params.items()))

    def transform(self, X: Any) -> np.ndarray:
        """Features (n, d) of images (n, c, h, w): a float tensor or array in [0, 1], or uint8."""
        rows = [table(trace)[0] for trace in self.traces(X)]
        return torch.cat(rows).double().cpu().numpy()

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, 'family.name'."""
        near = (32, 32) if self.references is None else self.references.images.shape[2:]
        size = self.classifier.preprocessing.size or near
        grey = torch.full((1, self.classifier.channels, *size), 0.5, dtype=torch.float32, device="cpu")
        return np.asarray(table(self.trace(grey))[1], dtype=object)

    def traces(self, X: Any) -> Iterator[Trace]:
        """The traces of images, `batch_size` at a time; no gradient leads back to the images."""
        images = as_tensor(X).detach()
        values = images[:1].numel() * (1 + len(self.copies) + len(self.halves))
        for chunk in images.split(max(1, min(self.batch_size, LARGEST // max(values, 1)))):
            yield self.trace(chunk)

    def trace(self, images: Tensor) -> Trace:
        """Walk from images (n, c, h, w) to their modes and keep the logits met; differentiable where images are."""
        images = self.classifier.check(images)
        if not len(images):
            raise DataError("no images to walk from")
        wanted = images.requires_grad and torch.is_grad_enabled()
        with torch.set_grad_enabled(wanted), torch.autocast(images.device.type, enabled=False):
            return self._trace(images)

    def _trace(self, images: Tensor) -> Trace:
        walked = self.walked
        n = len(images)
        wanted = self.copies if "self" in walked else ()
        halves = tuple(name for name in self.halves if name in wanted)
        copies = {name: _copy(name)(images) for name in wanted}
        stops = [images, *copies.values(), *((images + copies[name]) / 2 for name in halves)]
        logits = self.classifier.logits(torch.stack(stops, 1).flatten(0, 1)).view(n, len(stops), -1)
        parts: dict[str, Any] = {"query": logits[:, 0]}
        if wanted:
            m = len(wanted)
            parts |= {"names": tuple(wanted), "copies": logits[:, 1 : m + 1]}
            parts |= {"halves": halves, "midway": logits[:, m + 1 :]} if halves else {}
        if set(walked) - {"self"}:
            parts |= self._walks(images, logits[:, 0], walked)
        return Trace(**parts)

    def _walks(self, images: Tensor, query: Tensor, walked: tuple[str, ...]) -> dict[str, Any]:
        """Own and rival paths in one batch; the logits at the queries and at the references are not asked for again."""
        if self.references is None:
            raise DataError("own and rival paths need references")
        anchors, ends = self.references.images.to(images), self.references.logits.to(query)
        index = self.references.by_class.to(images.device)
        order = query.topk(min(self.rivals + 1, query.shape[1]), dim=1).indices
        same = index[order[:, 0], : self.per_class]
        own = same if {"own", "complexity"} & set(walked) else same[:, :0]
        rival = index[order[:, 1:], 0] if "rival" in walked else index[order[:, :0], 0]
        chosen = torch.cat([own, rival], 1)
        n, m = chosen.shape
        starts = images[:, None].expand(-1, m, -1, -1, -1).flatten(0, 1)
        path = straight(starts, anchors[chosen.flatten()])
        t = positions(self.samples, images)
        points = path.at(t[1:-1]).flatten(0, 1)
        inner = self.classifier.logits(points) if m else query[:0]
        first, last = query[:, None, None].expand(-1, m, 1, -1), ends[chosen][:, :, None]
        logits = torch.cat([first, inner.view(n, m, self.samples - 2, query.shape[1]), last], 2)
        parts: dict[str, Any] = {"t": t}
        if "latent" in walked:
            parts["latent"] = self._latent(images, anchors[same.flatten()], same.shape[1], t)
        if "own" in walked:
            parts["own"] = logits[:, : own.shape[1]]
        if "rival" in walked:
            parts |= {"rival": logits[:, own.shape[1] :], "rivals": order[:, 1:]}
        if "complexity" in walked:
            rows = torch.arange(n * m, dtype=torch.int64, device=images.device).view(n, m)[:, : own.shape[1]].flatten()
            parts["detour"] = self._detour(path.start[rows], path.end[rows], order[:, 0], own.shape[1])
        return parts

    def _latent(self, images: Tensor, anchors: Tensor, per_query: int, t: Tensor) -> Tensor:
        """Logits (n, r, s, k) between a layer's outputs at n images and at the n * r anchors."""
        space = _space(self.classifier, self.layer or PIXEL)
        starts = space.points(images).repeat_interleave(per_query, 0)
        points = straight(starts, space.points(anchors)).at(t)
        return space.logits(points.flatten(0, 1)).view(len(images), per_query, len(t), -1)

    def _detour(self, start: Tensor, end: Tensor, label: Tensor, per_query: int) -> Detour:
        """Bypass of barriers whose cross-entropy exceeds the larger end's by more than DELTA."""
        landscape = self.classifier.landscape(label.repeat_interleave(per_query))
        ends = F.softplus(landscape(torch.stack([start, end], 1))).amax(1)
        height = level(ends.double() + DELTA).to(start.dtype)
        settings = {"levels": self.levels, "steps": self.steps, "samples": self.samples}
        return bypass(landscape, start, end, height, target=height - SLACK, **settings)


@lru_cache(maxsize=4)
def _space(classifier: Classifier, layer: str) -> Space:
    """Kept: to cut a network takes longer than to walk a few paths."""
    return Space(classifier, layer)


def _copy(name: str) -> Copy:
    if name not in COPIES:
        raise DataError(f"no copy named {name!r}: expected some of {', '.join(COPIES)}")
    return COPIES[name]


def as_tensor(images: Any) -> Tensor:
    """Images given as a tensor or as an array of any strides and byte order, as a tensor.

    Raises:
        DataError: anything else.
    """
    if isinstance(images, Tensor):
        return images
    array = native(images)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"expected images as uint8 or as floats in [0, 1], got {array.dtype}")
    return torch.from_numpy(array)


def native(values: Any) -> np.ndarray:
    """As an array that torch takes: contiguous, writable, in this machine's byte order."""
    array = np.asarray(values)
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return plain if plain.flags.writeable else plain.copy()
