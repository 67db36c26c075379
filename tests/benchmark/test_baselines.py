"""Baselines' formulas against independent few-line computations, on small tensors."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from advconn import bundle
from advconn.benchmark.baselines.feature_squeezing import median2
from advconn.benchmark.baselines.lid_and_mahalanobis import (
    LID,
    LayerActivations,
    average_over_space,
    channels_first,
    class_gaussians,
    flatten,
    mahalanobis_distance,
    neighbour_log_ratios,
)
from advconn.benchmark.baselines.noise import NOISES, NoiseLogOdds
from advconn.benchmark.baselines.transformations import DEGREES, SHIFTS, RawTransformations, Transformations, turn
from advconn.data.datasets import digits


@pytest.fixture(scope="module")
def classifier():
    return bundle.load(bundle.default("digits")).classifier


def test_lid_is_the_maximum_likelihood_estimate():
    """-(1 / k sum log(d_i / d_k))^-1 over scikit-learn's neighbours; a query among the references is not its own."""
    generator = np.random.default_rng(0)
    points, queries = generator.normal(size=(50, 6)), generator.normal(size=(8, 6))
    k = 10
    distances = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(queries)[0]
    wanted = np.log(distances[:, :-1] / distances[:, -1:])
    found = neighbour_log_ratios(torch.from_numpy(queries), torch.from_numpy(points), k).numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(wanted), rtol=1e-6)
    inside = neighbour_log_ratios(torch.from_numpy(points[:3]), torch.from_numpy(points), k).numpy()
    others = NearestNeighbors(n_neighbors=k + 1).fit(points).kneighbors(points[:3])[0][:, 1:]
    np.testing.assert_allclose(np.sort(inside), np.sort(np.log(others[:, :-1] / others[:, -1:])), rtol=1e-6)


def test_lid_of_every_layer_is_told(classifier):
    """Minus one over the mean log-ratio at each convolution, linear layer, the logits and the softmax."""
    images = digits()[0]
    lid = LID(classifier, images[600:700])
    lid.prepare()
    query = classifier.check(images[1000:1003])
    columns = lid.measure(query)
    logits = classifier.logits(query)
    near = (
        NearestNeighbors(n_neighbors=lid.nearest).fit(lid.reference_features[-2].numpy()).kneighbors(logits.numpy())[0]
    )
    wanted = -1 / np.log(near[:, :-1] / near[:, -1:]).mean(1)
    np.testing.assert_allclose(columns[:, -2], wanted, rtol=1e-4)
    assert columns.shape == (3, len(lid.reference_features))


def test_mahalanobis_by_hand():
    """Two classes: (x - mean)^T C^-1 (x - mean) with the covariance about the classes' own means."""
    generator = np.random.default_rng(1)
    values = generator.normal(size=(40, 3)) @ np.diag([1, 2, 3])
    labels = np.repeat([0, 4], 20)
    values[20:] += 5
    means, precision = class_gaussians(torch.from_numpy(values), torch.from_numpy(labels))
    centred = np.concatenate([values[:20] - values[:20].mean(0), values[20:] - values[20:].mean(0)])
    inverse = np.linalg.inv(centred.T @ centred / 40)
    query = generator.normal(size=(5, 3))
    wanted = [min((q - m) @ inverse @ (q - m) for m in (values[:20].mean(0), values[20:].mean(0))) for q in query]
    np.testing.assert_allclose(mahalanobis_distance(torch.from_numpy(query), means, precision).numpy(), wanted)


def test_maps_are_averaged_over_space_and_tokens_over_tokens():
    """Never over channels; large maps are averaged down when all their values are taken."""
    maps, tokens = torch.rand(2, 3, 4, 5), torch.rand(2, 7, 3)
    assert torch.allclose(average_over_space(maps), maps.mean((2, 3)))
    assert torch.allclose(average_over_space(channels_first(torch.nn.Linear(3, 3), tokens)), tokens.mean(1))
    assert channels_first(torch.nn.Linear(3, 3), torch.rand(2, 16, 16, 3)).shape == (2, 3, 16, 16)
    assert flatten(torch.rand(1, 1000, 500)).shape[1] <= 2**16
    assert torch.equal(flatten(maps), maps.flatten(1))
    assert flatten(torch.rand(1, 64, 64, 64)).shape == (1, 64 * 32 * 32)


def test_all_layers_are_read(classifier):
    """Every convolution and linear layer but the last, and what that is given."""
    images = classifier.check(digits()[0][1000:1003])
    layers = [m for m in classifier.network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    found = LayerActivations(classifier, pooled=False)(images)
    assert len(found) == len(layers)
    with torch.no_grad():
        logits = layers[-1](found[-1])
    assert torch.equal(logits.argmax(1), classifier.logits(images).argmax(1))


def test_the_median_is_the_third_of_four():
    """Of the pixel, and of those above and to the left."""
    picture = torch.tensor([[1.0, 5.0, 2.0], [4.0, 3.0, 9.0]])[None, None]
    assert median2(picture)[0, 0].tolist() == [[1.0, 5.0, 5.0], [4.0, 4.0, 5.0]]


def test_noise_moves_log_odds_as_roth_et_al_have_it(classifier):
    """(f_y(x + n) - f_c(x + n)) - (f_y(x) - f_c(x)), by kind and level, over draws that are the same for all images."""
    detector = NoiseLogOdds(classifier, digits()[0][600:700])
    images = classifier.check(digits()[0][1000:1004])
    columns = detector.measure(images)
    assert columns.shape == (4, 1 + 9 * 10)
    generator = torch.Generator().manual_seed(1000)
    draws = [NOISES["normal"](tuple(images.shape[1:]), generator) for _ in range(detector.draws)]
    clean = classifier.logits(images)
    label = clean.argmax(1)
    wanted = 0
    for grain in draws:
        noisy = classifier.logits((images + 0.003 * grain).clamp(0, 1))
        wanted = (
            wanted + (noisy - noisy[torch.arange(4), label][:, None]) - (clean - clean[torch.arange(4), label][:, None])
        )
    np.testing.assert_allclose(columns[:, 1:11], (wanted / detector.draws).numpy(), atol=1e-5)
    assert (columns[:, 0] == label.numpy()).all()
    fitted = detector.fit(columns, np.zeros(4, int))
    z = (detector._by_noise(columns) - fitted.middle[label]) / np.maximum(fitted.spread[label], 1e-9)
    mean = z.mean(1)
    mean[np.arange(4), label] = -math.inf
    np.testing.assert_allclose(detector.score(columns), mean.max(1))


def test_turned_copies(classifier):
    """By 90 degrees a square is transposed and mirrored; logits stand in the query's order, or as they are."""
    picture = torch.rand(1, 1, 8, 8)
    assert torch.allclose(turn(picture, 90), picture.rot90(1, (2, 3)), atol=1e-5) or torch.allclose(
        turn(picture, 90), picture.rot90(-1, (2, 3)), atol=1e-5
    )
    images = classifier.check(digits()[0][1000:1003])
    logits = classifier.logits(images)
    count = len(DEGREES) * len(SHIFTS) ** 2
    assert count == 45
    raw, ordered = (
        kind(classifier, digits()[0][:20]).measure(images).reshape(3, 45, 10)
        for kind in (RawTransformations, Transformations)
    )
    middle = 2 * 9 + 4  # not turned, not shifted
    np.testing.assert_allclose(raw[:, middle], logits.numpy(), atol=1e-5)
    assert (np.diff(ordered[:, middle]) <= 1e-6).all()
    np.testing.assert_allclose(np.sort(ordered[:, 0]), np.sort(raw[:, 0]), atol=1e-5)
