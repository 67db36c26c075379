"""Baselines that compare activations of the query with those of the clean training images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advconn.benchmark.candidate import Candidate, Learned, as_numpy
from advconn.errors import DataError
from advconn.models.classifier import Classifier


class LayerActivations:
    """Activations at some of a classifier's layers, averaged over space: the last hidden one, and others before it."""

    def __init__(self, classifier: Classifier, count: int = 4) -> None:
        self.classifier = classifier
        network = classifier.network
        leaves = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if len(leaves) < 2:
            raise DataError("the model has no two convolutions or linear layers: baselines on its features need them")
        self._last = leaves[-1]
        index = np.unique(np.linspace(0, len(leaves) - 2, count).round().astype(int))
        self._inner = [leaves[i] for i in index]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """For checked images, activations (n, d) at each inner layer and, last, what the last layer is given."""
        out: list[list[Tensor]] = []
        for chunk in images.split(self.classifier.batch_size):
            with self._watched() as activations:
                self.classifier.logits(chunk)
            out.append([values[: len(chunk)] for values in activations])  # batches may be padded
        return [torch.cat(parts) for parts in zip(*out, strict=True)]

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        activations: list[Tensor] = []

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            activations.append(_pooled(output.detach().relu()))

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            activations.append(_pooled(inputs[0].detach()))

        hooks = [m.register_forward_hook(after) for m in self._inner]
        hooks.append(self._last.register_forward_pre_hook(before))
        try:
            yield activations
        finally:
            for hook in hooks:
                hook.remove()


def _pooled(values: Tensor) -> Tensor:
    flat = values.flatten(2).mean(2) if values.ndim > 2 else values
    return flat.float().clone()


class ActivationDetector(Candidate):
    """A baseline on activations; it keeps those of the clean training images."""

    layers: ClassVar[int] = 1

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        super().__init__(classifier, clean, second)
        self._features = LayerActivations(classifier, self.layers)

    def prepare(self) -> None:
        """The activations of the clean images."""
        images = self.classifier.check(self.clean)
        self.reference_features = self._features(images)


class Mahalanobis(ActivationDetector):
    """Distance to the nearest class mean in the last hidden layer, under one covariance."""

    name, source = "mahalanobis", "Lee et al., NeurIPS 2018 (pytorch-ood)"

    def prepare(self) -> None:
        """Fit pytorch-ood's detector on the last hidden layer."""
        from pytorch_ood.detector import Mahalanobis as OODMahalanobis

        super().prepare()
        labels = self.classifier.logits(self.classifier.check(self.clean)).argmax(1)
        self._model = OODMahalanobis(None)  # a class that is never predicted has no mean: the others are numbered anew
        self._model.fit_features(self.reference_features[-1], labels.unique(return_inverse=True)[1])

    def measure(self, images: Tensor) -> np.ndarray:
        """pytorch-ood's score."""
        return as_numpy(self._model.predict_features(self._features(images)[-1])[:, None])


class KNN(ActivationDetector):
    """Distance to the k-th nearest clean image in the normalised last hidden layer."""

    name, source = "knn", "Sun et al., ICML 2022"

    def measure(self, images: Tensor) -> np.ndarray:
        """The distance to the tenth nearest."""
        distance = torch.cdist(F.normalize(self._features(images)[-1]), F.normalize(self.reference_features[-1]))
        return as_numpy(distance.kthvalue(min(10, distance.shape[1]), dim=1).values[:, None])


class MultiLID(ActivationDetector, Learned):
    """Log-ratios of the distances to the nearest clean images at every layer, not averaged.

    Fitted apart from those images: an attacked copy whose original is among its neighbours is told by that alone.
    """

    name, source = "multi-lid", "Lorenz et al., ICCV workshops 2023"
    layers, nearest, apart = 4, 10, True

    def measure(self, images: Tensor) -> np.ndarray:
        """log(d_i / d_k) for the k nearest at each layer."""
        return as_numpy(torch.cat([self._ratios(f, i) for i, f in enumerate(self._features(images))], 1))

    def _ratios(self, activations: Tensor, layer: int) -> Tensor:
        distance = torch.cdist(activations, self.reference_features[layer], compute_mode="donot_use_mm_for_euclid_dist")
        itself = distance < 1e-4 * activations.norm(dim=1, keepdim=True)
        distance = torch.where(itself, torch.inf, distance)  # an image is not its own neighbour
        near = distance.topk(min(self.nearest, distance.shape[1] - 1), dim=1, largest=False).values
        return torch.log((near / near[:, -1:]).clamp(1e-9, 1))[:, :-1]


class LID(MultiLID):
    """Local intrinsic dimensionality at every layer: the maximum-likelihood estimate from the nearest clean images."""

    name, source = "lid", "Ma et al., ICLR 2018"

    def measure(self, images: Tensor) -> np.ndarray:
        """-1 / mean log-ratio at each layer."""
        ratios = [self._ratios(f, i).mean(1) for i, f in enumerate(self._features(images))]
        return as_numpy(torch.stack([-1 / r.clamp(max=-1e-6) for r in ratios], 1))


class LayerRegression(ActivationDetector):
    """How badly the last hidden layer is predicted from earlier ones by a network fitted on clean images."""

    name, source = "layer-regression", "Mumcu & Yilmaz 2024 (MLP on pooled activations)"
    layers = 3

    def prepare(self) -> None:
        """Fit the network."""
        from sklearn.neural_network import MLPRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        super().prepare()
        self._model = make_pipeline(
            StandardScaler(),
            MLPRegressor(hidden_layer_sizes=(128,), alpha=0.1, max_iter=500, early_stopping=True, random_state=0),
        ).fit(*self._both(self.reference_features))

    def measure(self, images: Tensor) -> np.ndarray:
        """Mean squared error of the prediction."""
        inner, last = self._both(self._features(images))
        return np.asarray(((self._model.predict(inner) - last) ** 2).mean(1, keepdims=True))

    @staticmethod
    def _both(features: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        return as_numpy(torch.cat(features[:-1], 1)), as_numpy(features[-1])
