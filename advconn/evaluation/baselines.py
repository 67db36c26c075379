"""Detectors to compare with, behind one interface: columns measured on images, fitted on columns, scored.

Every one is trained and thresholded on exactly the images that advconn is; higher score = more adversarial. A one-sided
score of its paper keeps its side; what is trained is trained on the same mixture of attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advconn import modes
from advconn.classifier import Classifier, margin
from advconn.connectivity import Connectivity
from advconn.detector import default_head, log_odds
from advconn.errors import AttackError, DataError
from advconn.features import Trace, table
from advconn.modes import Copy, References


class Baseline:
    """A detector of images by columns (n, d).

    Args:
        classifier: the model under attack.
        clean: images (n, c, h, w) of the training part, uint8: what a baseline compares with.
        labels: their predicted classes (n,).
        second: another classifier of the same classes, where a baseline needs one.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        self.classifier, self.clean, self.second = classifier, clean, second

    def prepare(self) -> None:
        """What is computed once, before images are measured in parallel. Raises ImportError where a package lacks."""

    def measure(self, images: Tensor) -> np.ndarray:
        """Columns (n, d) of checked images (n, c, h, w)."""
        raise NotImplementedError

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Learn from columns of kinds (n,): 0 clean, 1 and more the attacks. Nothing to learn unless overridden."""
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Scores (n,)."""
        return columns[:, 0]


class Trained(Baseline):
    """A baseline whose columns go to the head that advconn uses."""

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Fit the head on all attacks of the mixture."""
        self.head = default_head().fit(columns, kinds)
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Log-odds of any attack."""
        return log_odds(self.head, columns)


class MaxSoftmax(Baseline):
    """How unsure the classifier is: the margin of its own prediction, monotone in the maximum softmax probability."""

    name, source = "max-softmax", "Hendrycks & Gimpel, ICLR 2017"

    def measure(self, images: Tensor) -> np.ndarray:
        """The margin, which does not saturate as the probability does."""
        logits = self.classifier.logits(images)
        return _numpy(margin(logits, logits.argmax(1))[:, None])


class Energy(Baseline):
    """Distance of the logits' logsumexp from its clean median: two-sided, since attacks raise it or lower it."""

    name, source = "energy", "Liu et al., NeurIPS 2020 (two-sided here)"

    def measure(self, images: Tensor) -> np.ndarray:
        """The energy."""
        return _numpy(self.classifier.logits(images).logsumexp(1)[:, None])

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Remember the clean median."""
        self.middle = float(np.median(columns[kinds == 0]))
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """Distance from it."""
        return np.abs(columns[:, 0] - self.middle)


class LogitsOnly(Trained):
    """Everything that can be read off the query's own logits: what is left to learn without any path."""

    name, source = "logits-only", "control"

    def measure(self, images: Tensor) -> np.ndarray:
        """Margin, energy, entropy, gap and the sorted logits."""
        return _numpy(logits_columns(self.classifier.logits(images)))


def logits_columns(logits: Tensor) -> Tensor:
    """Margin, energy, entropy, gap between the first two, and the (up to ten) highest logits: (n, d)."""
    columns, names = table(Trace(logits, ("query",), logits[:, None]))
    keep = [names.index(f"self.{n}") for n in ("margin", "energy", "entropy.query", "gap")]
    return torch.cat([columns[:, keep], logits.topk(min(10, logits.shape[1]), dim=1).values], 1)


class Squeezing(Baseline):
    """Largest L1 distance between the softmax of the query and of squeezed copies (bits, median, mean)."""

    name, source = "feature-squeezing", "Xu et al., NDSS 2018 (mean in place of non-local means)"
    squeezers: ClassVar[tuple[Copy, ...]] = (modes.bits(5), modes.median3, modes.mean3)

    def measure(self, images: Tensor) -> np.ndarray:
        """The largest distance, or the mean one."""
        return _numpy(self.distances(images))

    def distances(self, images: Tensor) -> Tensor:
        """The same (n, 1), differentiable where images are."""
        before, copies = self._shares(images, self.squeezers)
        return (copies - before[:, None]).abs().sum(2).amax(1, keepdim=True)

    def _shares(self, images: Tensor, made: tuple[Copy, ...]) -> tuple[Tensor, Tensor]:
        """Softmax of the images (n, k) and of their copies (n, m, k)."""
        stops = torch.stack([images, *(copy(images) for copy in made)], 1)
        logits = self.classifier.logits(stops.flatten(0, 1)).view(len(images), len(made) + 1, -1)
        shares = logits.softmax(2)
        return shares[:, 0], shares[:, 1:]


class FlipShift(Squeezing):
    """Mean L1 distance of the softmax between the query and its mirrored and shifted copies."""

    name, source = "flip-shift", "Tian et al., AAAI 2018 (transformations' consistency)"
    squeezers: ClassVar[tuple[Copy, ...]] = (
        modes.flip,
        *(modes.shift(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx),
    )

    def distances(self, images: Tensor) -> Tensor:
        """The mean distance (n, 1)."""
        before, copies = self._shares(images, self.squeezers)
        return (copies - before[:, None]).abs().sum(2).mean(1, keepdim=True)


class NoisyOdds(Baseline):
    """How far noise moves the log-odds of any class against the predicted one, standardised by the clean class pair."""

    name, source = "noise-log-odds", "Roth et al., ICML 2019 (one noise level, 10 draws)"
    draws, scale = 10, 0.03

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        super().__init__(classifier, clean, second)
        self._made = tuple(modes.noise(self.scale, 1000 + i) for i in range(self.draws))

    def measure(self, images: Tensor) -> np.ndarray:
        """Predicted class, then the mean move of the log-odds of every class against it."""
        logits = self.classifier.logits(images)
        stops = torch.stack([copy(images) for copy in self._made], 1).flatten(0, 1)
        noisy = self.classifier.logits(stops).view(len(images), self.draws, -1)
        label = logits.argmax(1)
        before = logits - logits.gather(1, label[:, None])
        after = noisy - noisy.gather(2, label[:, None, None].expand(-1, self.draws, 1))
        return _numpy(torch.cat([label[:, None].float(), after.mean(1) - before], 1))

    def fit(self, columns: np.ndarray, kinds: np.ndarray) -> Baseline:
        """Mean and deviation for every clean pair of classes, shrunk to those of all pairs where there are few."""
        label, moves = columns[kinds == 0, 0].astype(int), columns[kinds == 0, 1:]
        k = moves.shape[1]
        middle, spread = np.full((k, k), moves.mean()), np.full((k, k), moves.std())
        for c in np.unique(label):
            rows = moves[label == c]
            weight = len(rows) / (len(rows) + 10)
            middle[c] = weight * rows.mean(0) + (1 - weight) * middle[c]
            spread[c] = weight * rows.std(0) + (1 - weight) * spread[c]
        self.middle, self.spread = middle, spread
        return self

    def score(self, columns: np.ndarray) -> np.ndarray:
        """The largest standardised move to another class."""
        label = columns[:, 0].astype(int)
        moves = (columns[:, 1:] - self.middle[label]) / np.maximum(self.spread[label], 1e-9)
        moves[np.arange(len(label)), label] = -np.inf
        return moves.max(1)


class Mixup(Baseline):
    """How little of the predicted class is left where the query is mixed half and half with images of that class."""

    name, source = "mixup-inference", "Pang et al., ICLR 2020 (MI-PL, as a detector)"
    mixes = 5

    def prepare(self) -> None:
        """Keep a few clean images of every class that they are predicted as."""
        images = self.classifier.check(self.clean)
        labels = self.classifier.logits(images).argmax(1)
        kept = torch.cat([(labels == c).nonzero()[: self.mixes, 0] for c in labels.unique()])
        self._kept = images[kept], labels[kept]

    def measure(self, images: Tensor) -> np.ndarray:
        """Mean margin of the prediction over the mixes; with other classes where its own has too few images."""
        anchors, labels = self._kept
        label = self.classifier.logits(images).argmax(1)
        order = (labels[None] != label[:, None]).float().argsort(dim=1, stable=True)[:, : self.mixes]
        mixed = (images[:, None] + anchors[order]) / 2
        after = self.classifier.logits(mixed.flatten(0, 1)).view(len(images), order.shape[1], -1)
        return _numpy(margin(after, label[:, None]).mean(1)[:, None])


class Layers:
    """Activations at some of a classifier's layers, averaged over space: the last hidden one, and others before it."""

    def __init__(self, classifier: Classifier, count: int = 4) -> None:
        self.classifier = classifier
        network = classifier._network
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
            with self._watched() as seen:
                self.classifier.logits(chunk)
            out.append(seen)
        return [torch.cat(parts) for parts in zip(*out, strict=True)]

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []

        def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.append(_pooled(output.detach().relu()))

        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(_pooled(inputs[0].detach()))

        hooks = [m.register_forward_hook(after) for m in self._inner]
        hooks.append(self._last.register_forward_pre_hook(before))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()


def _pooled(values: Tensor) -> Tensor:
    flat = values.flatten(2).mean(2) if values.ndim > 2 else values
    return flat.float().clone()


class OnFeatures(Baseline):
    """A baseline on activations; it keeps those of the clean training images."""

    layers: ClassVar[int] = 1

    def __init__(self, classifier: Classifier, clean: Tensor, second: Classifier | None = None) -> None:
        super().__init__(classifier, clean, second)
        self._features = Layers(classifier, self.layers)

    def prepare(self) -> None:
        """The activations of the clean images."""
        images = self.classifier.check(self.clean)
        self.known = self._features(images)


class Mahalanobis(OnFeatures):
    """Distance to the nearest class mean in the last hidden layer, under one covariance."""

    name, source = "mahalanobis", "Lee et al., NeurIPS 2018 (pytorch-ood)"

    def prepare(self) -> None:
        """Fit pytorch-ood's detector on the last hidden layer."""
        from pytorch_ood.detector import Mahalanobis as Found

        super().prepare()
        labels = self.classifier.logits(self.classifier.check(self.clean)).argmax(1)
        self._found = Found(None)  # a class that is never predicted has no mean: the others are numbered anew
        self._found.fit_features(self.known[-1], labels.unique(return_inverse=True)[1])

    def measure(self, images: Tensor) -> np.ndarray:
        """pytorch-ood's score."""
        return _numpy(self._found.predict_features(self._features(images)[-1])[:, None])


class Neighbours(OnFeatures):
    """Distance to the k-th nearest clean image in the normalised last hidden layer."""

    name, source = "knn", "Sun et al., ICML 2022"

    def measure(self, images: Tensor) -> np.ndarray:
        """The distance to the tenth nearest."""
        distance = torch.cdist(F.normalize(self._features(images)[-1]), F.normalize(self.known[-1]))
        return _numpy(distance.kthvalue(min(10, distance.shape[1]), dim=1).values[:, None])


class MultiLID(OnFeatures, Trained):
    """Log-ratios of the distances to the nearest clean images at every layer, not averaged."""

    name, source = "multi-lid", "Lorenz et al., ICCV workshops 2023"
    layers, nearest = 4, 10

    def measure(self, images: Tensor) -> np.ndarray:
        """log(d_i / d_k) for the k nearest at each layer."""
        return _numpy(torch.cat([self._ratios(f, i) for i, f in enumerate(self._features(images))], 1))

    def _ratios(self, found: Tensor, layer: int) -> Tensor:
        distance = torch.cdist(found, self.known[layer])
        distance = torch.where(distance < 1e-6, torch.inf, distance)  # an image is not its own neighbour
        near = distance.topk(min(self.nearest, distance.shape[1] - 1), dim=1, largest=False).values
        return torch.log((near / near[:, -1:]).clamp(1e-9, 1))[:, :-1]


class LID(MultiLID):
    """Local intrinsic dimensionality at every layer: the maximum-likelihood estimate from the nearest clean images."""

    name, source = "lid", "Ma et al., ICLR 2018"

    def measure(self, images: Tensor) -> np.ndarray:
        """-1 / mean log-ratio at each layer."""
        ratios = [self._ratios(f, i).mean(1) for i, f in enumerate(self._features(images))]
        return _numpy(torch.stack([-1 / r.clamp(max=-1e-6) for r in ratios], 1))


class LayerRegression(OnFeatures):
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
        ).fit(*self._both(self.known))

    def measure(self, images: Tensor) -> np.ndarray:
        """Mean squared error of the prediction."""
        inner, last = self._both(self._features(images))
        return np.asarray(((self._model.predict(inner) - last) ** 2).mean(1, keepdims=True))

    @staticmethod
    def _both(features: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        return _numpy(torch.cat(features[:-1], 1)), _numpy(features[-1])


class SecondModel(Baseline):
    """How little a second model believes in the class that the first one predicts."""

    name, source = "second-model", "PID, 2025"

    def measure(self, images: Tensor) -> np.ndarray:
        """The second model's margin against the first one's prediction."""
        if self.second is None:
            raise DataError("the baseline second-model needs another classifier: give one")
        label = self.classifier.logits(images).argmax(1)
        return _numpy(margin(self.second.logits(images), label)[:, None])


class PaperBarrier(Baseline):
    """Mean height of the cross-entropy barrier on straight paths to references of the predicted class."""

    name, source = "paper-barrier", "Vrabel et al., ICLR 2025"
    references: References

    def prepare(self) -> None:
        """Choose three references of every class among the clean images."""
        self.references = modes.choose(self.classifier, self.classifier.check(self.clean), None, 3)
        if self.references.missing:
            raise DataError("paper-barrier: a class has no reference among the training images")

    def measure(self, images: Tensor) -> np.ndarray:
        """The mean barrier over three references, nine samples each."""
        walk = Connectivity(self.classifier, self.references, families=("own",), samples=9)
        names = list(walk.get_feature_names_out())
        return np.asarray(walk.transform(images)[:, [names.index("own.barrier.mean")]])


def _numpy(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().double().numpy())


BASELINES: Mapping[str, Callable[..., Baseline]] = {
    made.name: made
    for made in (
        MaxSoftmax, Energy, LogitsOnly, Squeezing, FlipShift, NoisyOdds, Mixup, Mahalanobis, Neighbours, LID, MultiLID,
        LayerRegression, SecondModel, PaperBarrier,
    )
}  # fmt: skip


def smooth_score(baseline: Baseline) -> Callable[[Tensor], Tensor]:
    """A baseline's score as a differentiable function of images: of those that read the logits or squeezed copies.

    Raises:
        AttackError: it has no gradient.
    """
    classifier = baseline.classifier
    if isinstance(baseline, MaxSoftmax):
        return lambda images: _own_margin(classifier.logits(images))
    if isinstance(baseline, Energy):
        return lambda images: (classifier.logits(images).logsumexp(1) - baseline.middle).abs()
    if isinstance(baseline, LogitsOnly):
        odds = linear_odds(baseline.head, classifier.device)
        if odds is not None:
            return lambda images: odds(logits_columns(classifier.logits(images)))
    if isinstance(baseline, Squeezing):
        return lambda images: baseline.distances(images)[:, 0]
    raise AttackError(f"{baseline.name} has no gradient to follow")


def _own_margin(logits: Tensor) -> Tensor:
    return margin(logits, logits.argmax(1))


def linear_odds(head: Any, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """The log-odds of any attack as a function of columns (n, d), of a StandardScaler and a LogisticRegression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if not isinstance(head, Pipeline) or len(head) != 2:
        return None
    scaler, model = head[0], head[1]
    if not isinstance(scaler, StandardScaler) or not isinstance(model, LogisticRegression):
        return None
    values = (scaler.mean_, scaler.scale_, model.coef_, model.intercept_)
    middle, spread, weight, bias = (torch.from_numpy(v).float().to(device) for v in values)

    def odds(columns: Tensor) -> Tensor:
        found = (columns - middle) / spread @ weight.T + bias
        return found[:, 0] if found.shape[1] == 1 else found[:, 1:].logsumexp(1) - found[:, 0]

    return odds
