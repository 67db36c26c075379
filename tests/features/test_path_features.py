"""Features against values worked out on paper."""

import math

import pytest
import torch

from advconn.features.noise_level import GRAIN, LEVELS, STRUCTURE, _median5, grain
from advconn.features.path_features import Trace, feature_table, own_features, rival_features, self_features

QUERY = torch.tensor([[2.0, 0.0, -1.0]])


def own_trace(margins) -> Trace:
    """Two classes whose margin against class 0 is as given, along each own path (r, s)."""
    values = torch.tensor(margins)
    logits = torch.stack([-values, torch.zeros_like(values)], -1)[None]
    return Trace(query=logits[:, 0, 0], t=torch.linspace(0, 1, values.shape[1]), own=logits)


def test_a_copy_equal_to_the_query_adds_nothing():
    """No rise, no lean, no move; full agreement."""
    columns = self_features(Trace(QUERY, names=("same",), copies=QUERY[:, None]))
    for name in ("rise.same", "lean.same", "energy.same", "move.same", "divergence.mean", "back.mean", "fall", "climb"):
        assert float(columns[name]) == pytest.approx(0, abs=1e-6)
    assert float(columns["agree"]) == 1


def test_the_query_alone_tells_its_margin():
    """By hand: logits 2, 0, -1. Families that were not walked for are left out, though there are logits."""
    columns, names = feature_table(Trace(QUERY))
    read = dict(zip(names, columns[0].tolist(), strict=True))
    assert read["query.margin"] == pytest.approx(math.log(1 + math.exp(-1)) - 2)
    assert read["query.gap"] == 2
    assert set(read) == {"query.margin", "query.energy", "query.entropy", "query.gap"}
    copied = feature_table(Trace(QUERY, names=("same",), copies=QUERY[:, None], families=("self",)))[1]
    assert {name.partition(".")[0] for name in copied} == {"self"}


def test_copies_that_lean_to_another_class_say_so():
    """One of two copies flips to class 1: half agree, and the lean is what the two logits changed by."""
    copies = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 3.0, -1.0]]])
    columns = self_features(Trace(QUERY, names=("a", "b"), copies=copies))
    assert float(columns["agree"]) == 0.5
    assert float(columns["lean.b"]) == pytest.approx(5)
    assert float(columns["climb"]) == pytest.approx(1.5)
    assert float(columns["fall"]) == pytest.approx(1)
    before = math.log(1 + math.exp(-1)) - 2
    after = math.log(math.exp(3) + math.exp(-1))
    assert float(columns["rise.b"]) == pytest.approx(after - before, rel=1e-5)


def test_the_bulge_is_how_far_the_middle_lies_off_the_chord():
    """Half-way margin minus half of the end's rise."""
    start, middle, end = -4.0, 1.0, -2.0
    logits = torch.tensor([[-start, 0.0], [-middle, 0.0], [-end, 0.0]])
    columns = self_features(
        Trace(logits[:1], names=("c",), copies=logits[None, 2:], halves=("c",), midway=logits[None, 1:2])
    )
    assert float(columns["half.c"]) == pytest.approx(5)
    assert float(columns["bulge.c"]) == pytest.approx(4)


def test_own_paths_give_the_barriers_cross_entropy_place_and_gap():
    """Softplus of the highest margin, at its position, over the larger end."""
    columns = own_features(own_trace([[-3.0, 1.0, -1.0], [-3.0, -2.0, -1.0]]))

    def softplus(x):
        return math.log1p(math.exp(x))

    assert float(columns["barrier.max"]) == pytest.approx(softplus(1), rel=1e-5)
    assert float(columns["gap.max"]) == pytest.approx(softplus(1) - softplus(-1), rel=1e-4)
    assert float(columns["gap.min"]) == pytest.approx(0, abs=1e-6)
    assert float(columns["place.min"]) == 0.5
    assert float(columns["connected"]) == 0.5
    assert float(columns["highest.max"]) == pytest.approx(4)


def test_the_tipping_point_is_interpolated():
    """From -3 to 1 over half the way: crossed at three eighths; a path that never tips counts as 1."""
    values = torch.tensor([[-3.0, 1.0, 2.0], [-3.0, -2.0, -1.0]])
    logits = torch.stack([-values, torch.zeros_like(values)], -1)[None]
    trace = Trace(logits[:, 0, 0], t=torch.linspace(0, 1, 3), rival=logits, rivals=torch.tensor([[1, 1]]))
    columns = rival_features(trace)
    assert float(columns["tips.1"]) == pytest.approx(0.375)
    assert float(columns["tips.2"]) == 1


def test_the_table_is_a_pure_function_of_each_row():
    """Rows do not see each other, and the names match the columns."""
    generator = torch.Generator().manual_seed(0)
    trace = Trace(
        torch.randn(6, 4, generator=generator),
        ("a", "b"),
        torch.randn(6, 2, 4, generator=generator),
        t=torch.linspace(0, 1, 5),
        own=torch.randn(6, 3, 5, 4, generator=generator),
    )
    whole, names = feature_table(trace)
    assert whole.shape == (6, len(names))
    assert len(set(names)) == len(names)
    part, _ = feature_table(Trace(trace.query[2:4], trace.names, trace.copies[2:4], t=trace.t, own=trace.own[2:4]))
    torch.testing.assert_close(part, whole[2:4])
    assert bool(whole.isfinite().all())


def test_fine_structure_tells_a_cameras_noise_from_signs_and_from_grey():
    """It goes alike in no two channels, and is spread as Gaussian values are; a pattern of signs is not."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 64, 64)
    gaussian = 0.5 + 8 / 255 * torch.randn(shape, generator=generator)
    signs = 0.5 + 8 / 255 * torch.randn(shape, generator=generator).sign()
    grey = gaussian[:, :1].expand(shape)
    noisy, flat, alike = (dict(zip((*LEVELS, *STRUCTURE), grain(x).T, strict=True)) for x in (gaussian, signs, grey))
    assert noisy["colour"].mean() == pytest.approx(8 * 2**0.5, rel=0.05)
    assert noisy["alike.01"].abs().max() < 0.1
    assert alike["alike.01"].min() > 0.99
    assert noisy["peak.grey"].mean() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.02)
    assert flat["speck.peak"].mean() < noisy["speck.peak"].mean() - 0.05
    assert grain(gaussian[:, :1]).shape == (4, GRAIN)
    assert bool((grain(gaussian[..., :2, :]) == 0).all())


def test_the_median_of_five_is_torchs():
    """Whatever order the five stand in."""
    values = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    five = [values[..., 1:-1, 1:-1], values[..., :-2, 1:-1], values[..., 2:, 1:-1], values[..., 1:-1, :-2]]
    five.append(values[..., 1:-1, 2:])
    assert torch.equal(_median5(values), torch.stack(five).median(0).values)
