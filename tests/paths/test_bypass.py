"""Bypass against landscapes whose barriers are known at every level."""

import math

import landscapes
import pytest
import torch

from advconn.paths.bypass import bypass, bypass_segment
from advconn.paths.path import profile, straight

DELTA = 1e-3


def around(angle: float = math.pi - 1e-9, **options):
    """Bypass between two points of the unit circle, aiming at its bottom."""
    start, end = landscapes.on_circle(angle), landscapes.on_circle(0.0)
    level = torch.full((1,), DELTA, dtype=torch.float64)
    settings = {"levels": 4, "steps": 60, "samples": 17} | options
    return bypass(landscapes.ring, start, end, level, target=torch.zeros_like(level), **settings)


def test_the_ring_takes_four_levels_and_fifteen_bends():
    """Secondary barriers sin^4(pi / 2^(k+1)) = 1, .25, .0214, .00145, 9e-5: all of the first four stand above delta."""
    detour = around(math.pi - 1e-3)
    assert detour.barriers.tolist() == [[1, 2, 4, 8, 0]]
    assert detour.bends.item() == 15
    assert bool(detour.converged.all())
    assert detour.residual.item() == pytest.approx(math.sin(math.pi / 32) ** 4, rel=0.02)


def test_the_length_of_the_rings_detour_is_known():
    """Sixteen chords of a half circle: 16 sin(pi / 32) over the diameter's 1."""
    assert around(math.pi - 1e-3).length_ratio.item() == pytest.approx(16 * math.sin(math.pi / 32), rel=1e-3)


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_the_rings_barrier_at_every_level(level):
    """The largest energy left after each level is the next of the known series."""
    half = math.pi / 2 ** (level + 1)
    assert around(math.pi - 1e-3, levels=level).residual.item() == pytest.approx(math.sin(half) ** 4, rel=0.02)


def test_displacement_on_the_ring_is_known():
    """|B' - B| over the first chord is tan(pi/4)/2 = 1/2."""
    assert around(math.pi - 1e-3, levels=1).displacement.item() == pytest.approx(0.5, rel=1e-2)


def test_antipodes_are_stuck_and_not_converged():
    """At the centre of the ring the slope vanishes: that is told, and never called connected."""
    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    level = torch.full((1,), DELTA, dtype=torch.float64)
    detour = bypass(landscapes.ring, start, -start, level, samples=17)
    assert bool(detour.stuck.all())
    assert not bool(detour.converged.any())


def test_the_displacement_is_orthogonal_to_the_segment():
    """In 40 dimensions, the moved point stays in the hyperplane to rounding."""
    space = landscapes.Embedded(landscapes.muller_brown, 40)
    a, c = (space.lift(landscapes.MULLER_BROWN_MINIMA[i : i + 1]) for i in (0, 1))
    seen = profile(straight(a, c), space, 33)
    top = torch.lerp(a, c, seen.place[:, None])
    target = torch.full((1,), -40.0, dtype=torch.float64)
    moved = bypass_segment(space, a, c, top, target, torch.zeros(1, dtype=torch.long), 50)
    along = ((moved.points - top) * (c - a)).sum() / (c - a).norm()
    assert abs(float(along)) < 1e-9
    assert float(moved.displacement) > 0.05


def test_muller_brown_is_connected_above_its_saddle_and_not_below():
    """MA and MB are joined by a detour just above the saddle at -40.665; under it no path exists."""
    minima = landscapes.MULLER_BROWN_MINIMA
    reach = {}
    for name, height in (("above", -40.0), ("below", -41.5)):
        level = torch.full((1,), height, dtype=torch.float64)
        detour = bypass(
            landscapes.muller_brown, minima[:1], minima[1:2], level, target=level - 5, levels=5, steps=80, samples=65
        )
        reach[name] = detour
    assert reach["below"].residual.item() > landscapes.MULLER_BROWN_SADDLES[0, 2] - 1e-6
    assert not bool(reach["below"].converged)
    assert bool(reach["above"].converged)


def test_an_embedding_in_many_dimensions_changes_nothing():
    """The ring's counts are those of the plane."""
    space = landscapes.Embedded(landscapes.ring, 60)
    start, end = space.lift(landscapes.on_circle(math.pi - 1e-3)), space.lift(landscapes.on_circle(0.0))
    level = torch.full((1,), DELTA, dtype=torch.float64)
    detour = bypass(space, start, end, level, target=torch.zeros_like(level), levels=4, steps=60, samples=17)
    assert detour.barriers.tolist() == [[1, 2, 4, 8, 0]]
    assert detour.length_ratio.item() == pytest.approx(16 * math.sin(math.pi / 32), rel=1e-3)


def test_a_linear_softmax_needs_no_detour():
    """Convex losses have no barrier above the larger end: no gradient is spent and the path stays straight."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def loss(points):
        return -(points @ weights).log_softmax(-1)[..., 1]

    a, c = torch.randn(2, 20, 6, generator=generator, dtype=torch.float64)
    level = torch.maximum(loss(a[:, None]), loss(c[:, None]))[:, 0] + DELTA
    detour = bypass(loss, a, c, level)
    assert int(detour.barriers.sum()) == 0
    assert float(detour.gradients.sum()) == 0
    torch.testing.assert_close(detour.length_ratio, torch.ones(20, dtype=torch.float64))


def pairs():
    """Twelve chords of the ring, of different lengths."""
    angles = torch.linspace(0.3, 3.0, 12, dtype=torch.float64)
    start = torch.stack([angles.cos(), angles.sin()], 1)
    return start, landscapes.on_circle(0.0).repeat(12, 1), torch.full((12,), DELTA, dtype=torch.float64)


def test_order_and_size_of_the_batch_do_not_matter():
    """A shuffled batch and single pairs give the same detours."""
    a, c, level = pairs()
    whole = bypass(landscapes.ring, a, c, level, samples=9)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    shuffled = bypass(landscapes.ring, a[order], c[order], level[order], samples=9)
    torch.testing.assert_close(shuffled.path.knots, whole.path.knots[order])
    assert shuffled.barriers.tolist() == whole.barriers[order].tolist()
    single = bypass(landscapes.ring, a[5:6], c[5:6], level[5:6], samples=9)
    torch.testing.assert_close(single.path.knots, whole.path.knots[5:6])


def test_reversal_gives_the_mirrored_detour():
    """From the other end, the same bends in the opposite order."""
    a, c, level = pairs()
    there = bypass(landscapes.ring, a, c, level, levels=2, samples=9)
    back = bypass(landscapes.ring, c, a, level, levels=2, samples=9)
    torch.testing.assert_close(there.path.knots, back.path.knots.flip(1))
    assert there.barriers.tolist() == back.barriers.tolist()
