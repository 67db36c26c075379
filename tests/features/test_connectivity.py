"""The walk from images to features."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from advconn.errors import DataError
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import FEATURES, feature_table
from advconn.features.references import References, choose
from advconn.paths.space import Space
from advconn.runtime.forward_passes import count_passes

EVERY = ("query", "self", "own", "rival", "latent", "complexity")


@pytest.fixture(scope="module")
def clean(classifier, digits):
    return classifier.check(digits[0][1400:1420])


@pytest.fixture(scope="module")
def references(classifier, digits):
    return choose(classifier, classifier.check(digits[0][:400]), digits[1][:400])


@pytest.fixture(scope="module")
def walk(classifier, references):
    return Connectivity(classifier, references, families=EVERY, layer="stage1")


def test_names_and_columns_match_and_every_family_is_there(walk, clean):
    """One name a column, by family."""
    table, names = walk.transform(clean), walk.get_feature_names_out()
    assert table.shape == (20, len(names))
    assert {name.split(".")[0] for name in names} == set(EVERY)
    assert np.isfinite(table).all()


def test_order_and_size_of_the_batch_do_not_matter(walk, clean):
    """Beyond the rounding of float32, which may turn a count of barriers that stand at the threshold."""
    whole = walk.transform(clean)
    counted = np.array([str(n).startswith("complexity.") for n in walk.get_feature_names_out()])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for other, expected in (
        (walk.transform(clean[order]), whole[order]),
        (clone(walk).set_params(batch_size=1).transform(clean), whole),
    ):
        np.testing.assert_allclose(other[:, ~counted], expected[:, ~counted], atol=2e-3)
        assert np.isclose(other[:, counted], expected[:, counted], atol=2e-3).mean() > 0.97


def test_arrays_bytes_and_tensors_are_the_same_images(walk, digits, clean):
    """uint8, float arrays and float tensors."""
    np.testing.assert_array_equal(walk.transform(digits[0][1400:1420].numpy()), walk.transform(clean))
    np.testing.assert_array_equal(walk.transform(clean.numpy()), walk.transform(clean))


def test_the_trace_keeps_the_logits_of_the_path(walk, classifier, references, clean):
    """Own paths start at the query, end at references of its class, and pass half-way between."""
    seen = Connectivity(classifier, references, families=("own",), samples=3).trace(clean)
    torch.testing.assert_close(seen.own[:, :, 0], classifier.logits(clean)[:, None].expand(-1, 3, -1))
    assert (seen.own[:, :, -1].argmax(-1) == seen.predicted[:, None]).all()
    anchor = references.images[references.by_class[seen.predicted[4], 2]]
    half = classifier.logits((clean[4:5] + anchor[None]) / 2)
    torch.testing.assert_close(seen.own[4, 2, 1], half[0], atol=1e-4, rtol=1e-4)


def test_latent_paths_run_between_the_outputs_of_a_layer(classifier, references, clean):
    """At their ends the network's own logits; on the way, the rest of the network at points between; differentiable."""
    walk = Connectivity(classifier, references, layer="stage1", samples=3)
    assert walk.active_families == ("query", "self", "own", "rival", "latent")
    images = clean.clone().requires_grad_()
    seen = walk.trace(images)
    torch.testing.assert_close(seen.latent[:, :, [0, 2]], seen.own[:, :, [0, 2]], atol=1e-3, rtol=1e-3)
    space = Space(classifier, "stage1")
    anchor = references.images[references.by_class[seen.predicted[4], 2]]
    half = space.logits((space.points(clean[4:5]) + space.points(anchor[None])) / 2)
    torch.testing.assert_close(seen.latent[4, 2, 1].detach(), half[0], atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(seen.latent[:, :, 1].sum(), images)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    alone = Connectivity(classifier, references, families=("latent",), layer="stage1", samples=3).trace(clean)
    torch.testing.assert_close(alone.latent, seen.latent.detach())
    assert alone.own is None


def test_rivals_are_the_next_classes(classifier, references, clean):
    """In the order of the query's logits, never its own class."""
    seen = Connectivity(classifier, references, families=("rival",), rivals=4).trace(clean)
    order = seen.query.argsort(dim=1, descending=True)
    assert torch.equal(seen.rivals, order[:, 1:5])
    assert torch.equal(seen.rival[:, :, -1].argmax(-1), seen.rivals)


def test_the_forwards_spent_are_those_expected(classifier, references, clean):
    """Query, copies, half-ways, and the inner samples of own and rival paths; not a forward more."""
    walk = Connectivity(
        classifier, references, copies=("flip", "mean3"), halves=("mean3",), per_class=5, rivals=3, samples=6
    )
    with count_passes() as cost:
        walk.transform(clean)
    assert cost.forwards == 20 * (1 + 2 + 1 + (5 + 3) * 4)
    assert cost.gradients == 0


def test_bypass_spends_gradients_only_where_a_barrier_stands(classifier, references, clean):
    """A pair without a barrier costs none."""
    walk = Connectivity(classifier, references, families=("complexity",))
    with count_passes() as cost:
        detour = walk.trace(clean).detour
    assert cost.gradients == int(detour.gradients.sum())
    assert float(detour.gradients[detour.barriers[:, 0] == 0].sum()) == 0


def test_without_references_only_the_self_family_is_walked(classifier, clean):
    """And asking for another raises."""
    assert {n.split(".")[0] for n in Connectivity(classifier).get_feature_names_out()} == {"query", "self"}
    with pytest.raises(DataError, match="needs references"):
        Connectivity(classifier, families=("own",)).transform(clean)


def test_what_cannot_be_walked_is_refused(classifier, references, clean):
    """Unknown families and copies, no images, a class without references."""
    partial = References(references.images[:5], references.logits[:5])
    cases = [
        (Connectivity(classifier, references, families=("rumour",)), clean, "no family"),
        (Connectivity(classifier, references, families=("latent",)), clean, "needs a layer"),
        (Connectivity(classifier, copies=("mirror",), halves=()), clean, "no copy named"),
        (Connectivity(classifier), clean[:0], "no images"),
        (Connectivity(classifier, partial), clean, "9 of 10 classes have no reference"),
        (Connectivity(classifier), np.zeros((2, 1, 8, 8), np.int64), "int64"),
    ]
    for walk, images, text in cases:
        with pytest.raises(DataError, match=text):
            walk.transform(images)


def test_a_clone_shares_the_network(walk, classifier):
    """Nothing is copied."""
    assert clone(walk).classifier is classifier


@pytest.mark.parametrize(
    "options",
    [{}, {"families": ("query",)}, {"families": ("self", "grain"), "copies": ("flip", "mean3"), "halves": ("mean3",)},
     {"families": ("own", "rival", "near", "pixels"), "samples": 7, "rivals": 20, "per_class": 1},
     {"families": tuple(FEATURES), "layer": "stage1", "levels": 1}],
)  # fmt: skip
def test_names_are_known_without_asking_a_network(options, classifier, references, clean, monkeypatch):
    """The same as those of a table that was walked."""
    walk = Connectivity(classifier, references, companion=classifier, **options)
    names = feature_table(walk.trace(clean[:2]))[1]
    monkeypatch.setattr(type(classifier), "logits", lambda *given: pytest.fail("a network was asked"))
    assert list(walk.get_feature_names_out()) == names
