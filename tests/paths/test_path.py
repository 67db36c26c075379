"""Geometry of paths and what is read off them."""

import math

import landscapes
import pytest
import torch

from advconn.paths import path as paths
from advconn.paths.path import Path, Profile, profile, straight

KNOTS = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 10.0]]], dtype=torch.float64)


def test_a_path_is_at_its_knots_and_linear_in_between():
    """Each segment takes an equal share of t."""
    at = Path(KNOTS).at(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    expected = torch.tensor([[[0, 0], [1.5, 2], [3, 4], [3, 7], [3, 10]]], dtype=torch.float64)
    torch.testing.assert_close(at, expected)


def test_length_is_the_sum_of_the_segments():
    """A 3-4-5 triangle and a leg of 6."""
    assert Path(KNOTS).length().item() == pytest.approx(11.0)


def test_reversal_mirrors_the_profile():
    """Walked from the other end, the energies come in the opposite order and the barrier stays."""
    path = Path(KNOTS)
    there, back = profile(path, landscapes.ring), profile(path.reversed(), landscapes.ring)
    torch.testing.assert_close(there.energies, back.energies.flip(1))
    torch.testing.assert_close(there.barrier, back.barrier)
    torch.testing.assert_close(there.place, 1 - back.place)


def test_barrier_gap_place_and_area_of_a_known_profile():
    """A triangle of height 2 over ends at 0 and 1."""
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    seen = Profile(t, torch.tensor([[0.0, 1.0, 2.0, 1.5, 1.0]], dtype=torch.float64))
    assert seen.barrier.item() == 2.0
    assert seen.place.item() == 0.5
    assert seen.gap.item() == 1.0
    assert seen.area.item() == pytest.approx(1.25)


def test_a_chord_of_the_ring_has_its_known_barrier():
    """A chord whose half-angle is th rises to sin(th)^4 at its middle."""
    half = math.pi / 5
    path = straight(landscapes.on_circle(half), landscapes.on_circle(-half))
    assert profile(path, landscapes.ring, 33).barrier.item() == pytest.approx(math.sin(half) ** 4, rel=1e-12)


def test_a_linear_softmax_has_no_barrier_between_two_points_of_a_class():
    """Its cross-entropy is convex on every segment, so no point exceeds the larger end."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    ends = torch.randn(2, 50, 6, generator=generator, dtype=torch.float64)
    seen = profile(straight(ends[0], ends[1]), lambda p: -(p @ weights).log_softmax(-1)[..., 1], 33)
    assert float(seen.gap.max()) <= 1e-12


def test_paths_in_a_batch_do_not_see_each_other():
    """A batch gives what its paths give alone."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 7, 2, generator=generator, dtype=torch.float64)
    together = profile(straight(a, b), landscapes.muller_brown).energies
    alone = [profile(straight(a[i : i + 1], b[i : i + 1]), landscapes.muller_brown).energies for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_many_paths_are_profiled_a_few_at_a_time(monkeypatch):
    """The same energies, each with its own row of the landscape, and never more points at once than told."""

    class Rows:
        def __init__(self, heights, seen):
            self.heights, self.seen = heights, seen

        def __call__(self, points):
            self.seen.append(points.numel())
            return points.square().sum(-1) + self.heights[:, None]

        def rows(self, index):
            return Rows(self.heights[index], self.seen)

    ends = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    landscape = Rows(torch.arange(20.0), seen)
    whole = paths.profile(paths.straight(*ends), landscape, 9)
    monkeypatch.setattr(paths, "LARGEST", 9 * 5 * 3)
    parts = paths.profile(paths.straight(*ends), landscape, 9)
    torch.testing.assert_close(parts.energies, whole.energies)
    assert seen[0] == 20 * 9 * 5
    assert max(seen[1:]) == 9 * 5 * 3
