"""Baselines that compare activations of the query with those of the clean training images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advconn.benchmark.candidate import Candidate, Learned, as_numpy
from advconn.errors import DataError
from advconn.models.classifier import Classifier

MOST_VALUES = 2**16  # of an image at one layer: larger maps are averaged down to as many
MOST_EXACT = 2**12  # values in which distances are computed without a matrix product, whose rounding can be seen


class LayerActivations:
    """Activations at a classifier's convolutions and linear layers, and what the last one is given.

    Args:
        classifier: whose layers are read.
        count: of the layers before the last, evenly spaced; None takes all.
        pooled: averaged over space (over tokens in a transformer), else all their values.
    """

    def __init__(self, classifier: Classifier, count: int | None = None, *, pooled: bool = True) -> None:
        self.classifier, self.pooled = classifier, pooled
        network = classifier.network
        leaves = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        if len(leaves) < 2:
            raise DataError("the model has no two convolutions or linear layers: baselines on its features need them")
        self._last = leaves[-1]
        every = len(leaves) - 1
        index = np.unique(np.linspace(0, every - 1, every if count is None else count).round().astype(int))
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
        reduce = average_over_space if self.pooled else flatten

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            activations.append(reduce(channels_first(module, output.detach().relu())))

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            activations.append(average_over_space(channels_first(module, inputs[0].detach())))

        hooks = [m.register_forward_hook(after) for m in self._inner]
        hooks.append(self._last.register_forward_pre_hook(before))
        try:
            yield activations
        finally:
            for hook in hooks:
                hook.remove()


def channels_first(module: nn.Module, values: Tensor) -> Tensor:
    """Values (n, d, ...) of a layer: a linear one has its channels last."""
    return values.movedim(-1, 1) if isinstance(module, nn.Linear) else values


def average_over_space(values: Tensor) -> Tensor:
    """Channels (n, d) of values (n, d, ...), averaged over all other axes."""
    return (values.flatten(2).mean(2) if values.ndim > 2 else values).float().clone()


def flatten(values: Tensor) -> Tensor:
    """All values (n, d) of values (n, d, ...); of more than MOST_VALUES averages over neighbours in space."""
    if values.ndim > 2 and values[0].numel() > MOST_VALUES:
        places = max(1, MOST_VALUES // values.shape[1])
        if values.ndim == 4:
            side = max(1, int(places**0.5))
            values = F.adaptive_avg_pool2d(values, (min(side, values.shape[2]), min(side, values.shape[3])))
        else:
            values = F.adaptive_avg_pool1d(values.flatten(2), places)
    return values.flatten(1).float().clone()


class ActivationDetector(Candidate):
    """A baseline on activations; it keeps those of the clean training images."""

    layers: ClassVar[int | None] = 1
    pooled: ClassVar[bool] = True
    references: ClassVar[int | None] = None

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        super().__init__(classifier, clean, second)
        self._features = LayerActivations(classifier, self.layers, pooled=self.pooled)

    def activations(self, images: Tensor) -> list[Tensor]:
        """Activations (n, d) of checked images at each layer that is compared."""
        return self._features(images)

    def prepare(self) -> None:
        """The activations of the clean images."""
        self.reference_features = self.activations(self.classifier.check(self.clean[: self.references]))


class Mahalanobis(ActivationDetector, Learned):
    """Distance to the nearest class mean under one covariance at every layer, weighted by a logistic regression.

    Lee et al. also take an input step, whose size they choose among values that include 0; here it is 0. Their means
    are of the true classes of training images; here, of the predicted classes of images that the regression is not
    fitted on.
    """

    name, source = "mahalanobis", "Lee et al., NeurIPS 2018, eq. 2 and algorithm 1 (without input step)"
    layers, binary, apart = None, True, True

    def prepare(self) -> None:
        """Class means and the inverse of the shared covariance of every layer."""
        super().prepare()
        labels = self.classifier.logits(self.classifier.check(self.clean)).argmax(1)
        self._fits = [class_gaussians(values, labels) for values in self.reference_features]

    def measure(self, images: Tensor) -> np.ndarray:
        """The smallest squared distance to a class mean, by layer (n, layers)."""
        columns = [
            mahalanobis_distance(values, *fit) for values, fit in zip(self.activations(images), self._fits, strict=True)
        ]
        return as_numpy(torch.stack(columns, 1))

    def new_head(self) -> Any:
        """Lee et al.'s: a logistic regression, its penalty by cross-validation."""
        return logistic_head()


def class_gaussians(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means (classes, d) of the classes that occur, and the inverse (d, d) of their shared covariance.

    Args:
        values: (n, d) activations.
        labels: (n,) classes.
    """
    values = values.double()
    kinds, rows = labels.unique(return_inverse=True)
    means = torch.stack([values[rows == k].mean(0) for k in range(len(kinds))])
    centred = values - means[rows]
    return means, torch.linalg.pinv(centred.T @ centred / len(values), hermitian=True)


def mahalanobis_distance(values: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """The smallest squared distance (n,) of activations (n, d) to a mean.

    Args:
        values: (n, d) activations.
        means: (classes, d).
        precision: (d, d) inverse covariance.
    """
    apart = values.double()[:, None] - means
    return ((apart @ precision) * apart).sum(2).amin(1)


class LastLayerMahalanobis(ActivationDetector):
    """Distance to the nearest class mean in the last hidden layer, under one covariance: made for foreign data."""

    name, source = "mahalanobis-ood", "Lee et al., NeurIPS 2018, as pytorch-ood has it"

    def prepare(self) -> None:
        """Fit pytorch-ood's detector on the last hidden layer."""
        from pytorch_ood.detector import Mahalanobis as OODMahalanobis

        super().prepare()
        labels = self.classifier.logits(self.classifier.check(self.clean)).argmax(1)
        self._model = OODMahalanobis(None)  # a class that is never predicted has no mean: the others are numbered anew
        self._model.fit_features(self.reference_features[-1], labels.unique(return_inverse=True)[1])

    def measure(self, images: Tensor) -> np.ndarray:
        """pytorch-ood's score."""
        return as_numpy(self._model.predict_features(self.activations(images)[-1])[:, None])


class KNN(ActivationDetector):
    """Distance to the k-th nearest clean image in the normalised last hidden layer."""

    name, source = "knn", "Sun et al., ICML 2022"

    def measure(self, images: Tensor) -> np.ndarray:
        """The distance to the tenth nearest."""
        distance = torch.cdist(F.normalize(self.activations(images)[-1]), F.normalize(self.reference_features[-1]))
        return as_numpy(distance.kthvalue(min(10, distance.shape[1]), dim=1).values[:, None])


class MultiLID(ActivationDetector, Learned):
    """Log-ratios of the distances to the nearest clean images at every layer to the softmax, not averaged; a forest.

    Fitted apart from those images: an attacked copy whose original is among its neighbours is told by that alone.
    """

    name, source = "multi-lid", "Lorenz et al., VISAPP 2023, arXiv 2212.06776 (k 20, 300 trees)"
    layers, pooled, nearest, apart = None, False, 20, True
    references = 300

    def activations(self, images: Tensor) -> list[Tensor]:
        """Every convolution's and linear layer's values, the logits and the softmax."""
        logits = self.classifier.logits(images)
        return [*self._features(images)[:-1], logits, logits.softmax(1)]

    def measure(self, images: Tensor) -> np.ndarray:
        """log(d_i / d_k) for the k nearest at each layer."""
        return as_numpy(torch.cat([self._ratios(f, i) for i, f in enumerate(self.activations(images))], 1))

    def _ratios(self, activations: Tensor, layer: int) -> Tensor:
        return neighbour_log_ratios(activations, self.reference_features[layer], self.nearest)

    def new_head(self) -> Any:
        """Lorenz et al.'s: a forest of 300 trees."""
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(300, random_state=0)


def neighbour_log_ratios(values: Tensor, references: Tensor, nearest: int) -> Tensor:
    """log(d_i / d_k), (n, k - 1), of the distances to the k nearest references, the farthest left out.

    Args:
        values: (n, d) activations.
        references: (m, d) activations; one that equals the query is no neighbour of it.
        nearest: k; at most m - 1.
    """
    middle = references.mean(0)
    exact = "donot_use_mm_for_euclid_dist" if values.shape[1] <= MOST_EXACT else "use_mm_for_euclid_dist"
    distance = torch.cdist(values - middle, references - middle, compute_mode=exact)
    distance = torch.where(distance == 0, torch.inf, distance)
    near = distance.topk(min(nearest, distance.shape[1] - 1), dim=1, largest=False).values
    return torch.log((near / near[:, -1:]).nan_to_num(1).clamp(1e-9, 1))[:, :-1]


class LID(MultiLID):
    """Local intrinsic dimensionality at every layer to the softmax: the maximum-likelihood estimate; a regression."""

    name, source = "lid", "Ma et al., ICLR 2018, eq. 4 (k 20, all layers)"
    binary = True

    def measure(self, images: Tensor) -> np.ndarray:
        """-1 / mean log-ratio at each layer."""
        ratios = [self._ratios(f, i).mean(1) for i, f in enumerate(self.activations(images))]
        return as_numpy(torch.stack([-1 / r.clamp(max=-1e-6) for r in ratios], 1))

    def new_head(self) -> Any:
        """Ma et al.'s: a logistic regression, its penalty by cross-validation."""
        return logistic_head()


def logistic_head() -> Any:
    """A logistic regression of features in [0, 1] of the training rows, its penalty by cross-validation."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    return make_pipeline(MinMaxScaler(), LogisticRegressionCV(Cs=6, cv=3, max_iter=2000))


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
        inner, last = self._both(self.activations(images))
        return np.asarray(((self._model.predict(inner) - last) ** 2).mean(1, keepdims=True))

    @staticmethod
    def _both(features: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        return as_numpy(torch.cat(features[:-1], 1)), as_numpy(features[-1])
