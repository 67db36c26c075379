"""Minimum-energy paths against saddles known to ten digits, against ASE, and by invariance."""

import landscapes
import pytest
import torch

from advconn.errors import PathError
from advconn.paths.elastic_band import relax_band
from advconn.paths.path import Path, profile, straight

MULLER_BROWN = landscapes.muller_brown, *landscapes.MULLER_BROWN_MINIMA[:2, None]
KNOWN = {
    "Müller-Brown": (*MULLER_BROWN, landscapes.MULLER_BROWN_SADDLES[0, 2]),
    "LEPS and a Gaussian": (landscapes.leps, *landscapes.LEPS_MINIMA[:, None], landscapes.LEPS_HEIGHTS[0]),
    "Himmelblau": (
        landscapes.himmelblau, *landscapes.HIMMELBLAU_MINIMA[2:, None], landscapes.HIMMELBLAU_SADDLES[2, 3]
    ),
    "Wolfe-Quapp": (landscapes.wolfe_quapp, *landscapes.WOLFE_QUAPP_MINIMA[:, None], landscapes.WOLFE_QUAPP_SADDLE),
}  # fmt: skip


def band(energy, start, end, **options):
    return relax_band(energy, straight(start, end), **({"pivots": 21, "steps": 800, "rate": 0.3} | options))


@pytest.mark.parametrize("name", KNOWN)
def test_a_climbing_band_finds_the_saddle(name):
    """Its highest point is the saddle to seven digits."""
    energy, start, end, height = KNOWN[name]
    found = band(energy, start, end, method="neb", climb=True)
    assert found.barrier.item() == pytest.approx(height, rel=1e-7)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("method", ["string", "neb"])
def test_the_dense_scan_reads_the_saddle_off_without_climbing(name, method):
    """Twenty-one pivots and a scan between them come within three thousandths."""
    energy, start, end, height = KNOWN[name]
    assert band(energy, start, end, method=method).barrier.item() == pytest.approx(height, rel=3e-3)


def test_a_finer_string_comes_closer():
    """Four digits on Müller-Brown with 61 pivots."""
    found = band(*MULLER_BROWN, pivots=61, steps=1500)
    assert found.barrier.item() == pytest.approx(KNOWN["Müller-Brown"][-1], abs=5e-3)


def test_a_band_finds_the_barrier_next_to_it_and_not_the_lowest():
    """Himmelblau: from the straight line 178.337, from a line through the other two minima 104.015."""
    minima = landscapes.HIMMELBLAU_MINIMA
    around = relax_band(
        landscapes.himmelblau, Path(minima[None, [2, 1, 0, 3]]), method="neb", climb=True, pivots=21, steps=800,
        rate=0.3,
    )  # fmt: skip
    assert around.barrier.item() == pytest.approx(landscapes.HIMMELBLAU_SADDLES[1, 2], rel=1e-7)


@pytest.mark.parametrize("method", ["string", "neb"])
def test_the_half_circle_is_found(method):
    """Unit circle, length pi; one-sided tangents turn by half a spacing h: at slope 1, stiffness 8, off by h / 16."""
    start = Path(torch.tensor([[[1.0, 0.0], [0.0, 0.5], [-1.0, 0.0]]], dtype=torch.float64))
    found = relax_band(landscapes.half_circle, start, method=method, pivots=21, steps=800, rate=0.3)
    radius = found.path.knots.norm(dim=2)
    torch.testing.assert_close(radius, torch.ones_like(radius), atol=1.2 * torch.pi / 22 / 16, rtol=0)
    assert found.path.length().item() == pytest.approx(torch.pi, rel=1e-2)
    assert found.barrier.item() == pytest.approx(1.0, abs=1e-3)


def test_the_scan_sees_what_the_pivots_do_not():
    """Between eight pivots of a line over Müller-Brown stands more than on any of them."""
    found = band(*MULLER_BROWN, pivots=8, steps=0)
    on_pivots = landscapes.muller_brown(found.path.knots).max().item()
    assert found.barrier.item() > on_pivots + 1
    seen = profile(found.path, landscapes.muller_brown, 9 * 8 + 1)
    assert found.barrier.item() == seen.barrier.item()
    assert found.place.item() == seen.place.item()


def test_ase_relaxes_the_same_band():
    """ASE's nudged elastic band with improved tangents and a climbing image: same saddle, same pivots."""
    pytest.importorskip("ase")
    import numpy as np
    from ase import Atoms
    from ase.calculators.calculator import Calculator, all_changes
    from ase.mep import NEB
    from ase.optimize import FIRE

    class Plane(Calculator):
        implemented_properties = ("energy", "forces")

        def calculate(self, atoms=None, properties=(), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            place = torch.tensor(atoms.positions[0, :2]).requires_grad_()
            energy = landscapes.muller_brown(place) / 100
            (slope,) = torch.autograd.grad(energy, place)
            self.results = {"energy": energy.item(), "forces": np.array([[*(-slope).tolist(), 0.0]])}

    start, end = landscapes.MULLER_BROWN_MINIMA[:2]
    images = []
    for t in torch.linspace(0, 1, 9):
        atoms = Atoms("H", positions=[[*torch.lerp(start, end, t.double()).tolist(), 0.0]])
        atoms.calc = Plane()
        images.append(atoms)
    oracle = NEB(images, k=0.1, climb=True, method="improvedtangent", allow_shared_calculator=False)
    FIRE(oracle, logfile=None).run(fmax=1e-4, steps=500)
    theirs = max(image.get_potential_energy() for image in images) * 100
    ours = band(*MULLER_BROWN, method="neb", climb=True, pivots=7, steps=1500)
    assert ours.barrier.item() == pytest.approx(theirs, abs=1e-3)
    top = ours.path.knots[0, landscapes.muller_brown(ours.path.knots)[0].argmax()]
    their_top = max(images, key=lambda image: image.get_potential_energy()).positions[0, :2]
    assert torch.dist(top, torch.tensor(their_top)).item() < 1e-4


@pytest.mark.parametrize("method", ["string", "neb"])
def test_an_embedding_in_many_dimensions_changes_nothing(method):
    """Thirty dimensions: the same barrier and length as in the plane."""
    space = landscapes.Embedded(landscapes.muller_brown, 30, kappa=200.0)
    start, end = (space.lift(landscapes.MULLER_BROWN_MINIMA[i : i + 1]) for i in (0, 1))
    there, plane = band(space, start, end, method=method), band(*MULLER_BROWN, method=method)
    torch.testing.assert_close(there.barrier, plane.barrier, rtol=0, atol=1e-6)
    torch.testing.assert_close(there.length_ratio, plane.length_ratio, rtol=0, atol=1e-6)


def chords():
    angles = torch.linspace(0.5, 2.8, 6, dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1), landscapes.on_circle(0.0).repeat(6, 1)


@pytest.mark.parametrize("method", ["string", "neb"])
def test_order_and_size_of_the_batch_do_not_matter(method):
    """A shuffled batch and single pairs give the same bands, also where some are done before others."""
    start, end = chords()
    level = torch.full((6,), 1e-3, dtype=torch.float64)

    def go(rows):
        return relax_band(
            landscapes.ring,
            straight(start[rows], end[rows]),
            method=method,
            ceiling=level[rows],
            target=level[rows] / 2,
        )

    whole, order = go(torch.arange(6)), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(go(order).path.knots, whole.path.knots[order])
    torch.testing.assert_close(go(order).gradients, whole.gradients[order])
    torch.testing.assert_close(go(torch.tensor([3])).path.knots, whole.path.knots[3:4])


def test_reversal_gives_the_mirrored_band():
    """From the other end, the same pivots in the opposite order."""
    start, end = chords()
    there = relax_band(landscapes.ring, straight(start, end), steps=100)
    back = relax_band(landscapes.ring, straight(end, start), steps=100)
    torch.testing.assert_close(there.path.knots, back.path.knots.flip(1))


def test_pairs_under_their_level_cost_nothing():
    """A segment without a barrier is left as it is: no gradient."""
    start, end = chords()
    found = relax_band(landscapes.ring, straight(start, end), ceiling=torch.full((6,), 2.0, dtype=torch.float64))
    assert found.gradients.tolist() == [0.0] * 6
    torch.testing.assert_close(found.length_ratio, torch.ones(6, dtype=torch.float64))


def test_gradients_are_counted():
    """Nine pivots for seven steps, where nothing rests."""
    start, end = chords()
    assert relax_band(landscapes.ring, straight(start, end), pivots=9, steps=7).gradients.tolist() == [63.0] * 6


def test_a_path_that_grows_without_end_stops():
    """A slope that pushes the middle away for ever: the cap on the length holds, and that is told."""

    def cliff(points):
        return -points[..., 1] * (1 - points[..., 0] ** 2)

    end = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = relax_band(cliff, straight(-end, end), steps=2000, rate=1.0, check=1)
    assert found.stopped.tolist() == [True]
    assert found.gradients.item() < 2000
    free = relax_band(cliff, straight(-end, end), steps=300, rate=1.0, check=1, longest=1e9)
    assert free.stopped.tolist() == [False]


def test_ends_and_flat_ground_stay():
    """On a flat landscape a band with targets does not move at all."""
    start, end = chords()
    target = torch.full((6,), 1.0, dtype=torch.float64)
    found = relax_band(lambda p: 0 * p.sum(-1), straight(start, end), target=target)
    torch.testing.assert_close(found.path.start, start)
    torch.testing.assert_close(found.path.end, end)
    torch.testing.assert_close(found.length_ratio, torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"method": "spline"}, {"pivots": 0}, {"climb": True}])
def test_what_makes_no_sense_is_refused(options):
    """In one line."""
    start, end = chords()
    with pytest.raises(PathError):
        relax_band(landscapes.ring, straight(start, end), **options)
