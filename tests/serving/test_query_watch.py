"""Clients that ask about many nearly equal pictures."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from advconn.errors import DataError
from advconn.serving.query_watch import QueryWatch, is_movement, views_of


def pictures(n, side=32, seed=0):
    """Smooth pictures (n, 3, side, side) uint8, no two alike."""
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def probes(picture, n, size=8, seed=1):
    """Copies of one picture with noise, as an attack asks about."""
    noise = torch.randint(-size, size + 1, (n, *picture.shape), generator=torch.Generator().manual_seed(seed))
    return (picture.int() + noise).clamp(0, 255).to(torch.uint8)


def test_probes_are_a_walk_and_other_pictures_are_none():
    watch = QueryWatch(window=50, alert=10)
    assert not watch.see(pictures(60), "honest").near.any()
    seen = watch.see(probes(pictures(1, seed=9)[0], 20), "attacker")
    assert not seen.near[0]
    assert seen.near.sum() >= 15  # by chance a few look like a movement
    assert seen.walks.tolist() == (np.cumsum(seen.near) >= 10).tolist()
    assert seen.began
    assert not watch.see(probes(pictures(1, seed=9)[0], 2, seed=3), "attacker").began  # told once
    assert not watch.see(pictures(2), "honest").walks.any()  # each client by itself


def test_a_walk_ends_with_its_window():
    watch = QueryWatch(window=20, alert=10)
    assert watch.see(probes(pictures(1)[0], 20)).walks[-1]
    assert not watch.see(pictures(20, seed=5)).walks[-1]


def test_the_same_picture_again_does_not_count():
    """A client that tries again is no attacker."""
    again = pictures(1).expand(40, -1, -1, -1)
    assert not QueryWatch(alert=2).see(again).near.any()


@pytest.mark.parametrize("kind", ["float", "large", "grey"])
def test_any_images_are_looked_at(kind):
    picture = pictures(1, side=96 if kind == "large" else 32)[0]
    some = probes(picture, 15)
    some = some.float() / 255 if kind == "float" else some[:, :1] if kind == "grey" else some
    assert QueryWatch(alert=5).see(some).walks[-1]


def test_movements_explain_frames_and_not_probes():
    """A shifted picture is a movement of it, a picture with noise is none."""
    picture = pictures(1, side=40)[0]
    old, new = (views_of(picture[None, :, i : i + 32, i : i + 32])[0].astype(np.float32) for i in (3, 4))
    assert is_movement(old, new)
    noisy = views_of(probes(picture[:, 3:35, 3:35], 20))
    assert sum(is_movement(old, one) for one in noisy) <= 2


def test_memory_is_bounded():
    """In clients and in views."""
    watch = QueryWatch(memory=4, clients=3)
    for name in "abcdef":
        watch.see(pictures(10), name)
    assert list(watch._clients) == ["d", "e", "f"]
    assert {len(known.views) for known in watch._clients.values()} == {4}


@pytest.mark.parametrize("wrong", [{"alert": 0}, {"alert": 101}, {"memory": 0}, {"distance": 1.0}, {"clients": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(DataError, match="QueryWatch: expected"):
        QueryWatch(**wrong)


def test_pictures_that_hold_nan_are_looked_at_too():
    broken = torch.full((3, 3, 16, 16), torch.nan)
    assert np.array_equal(QueryWatch().see(broken).near, [False, False, False])


def test_values_beyond_all_bounds_do_no_harm():
    """Nothing that a client sends makes a later query fail."""
    watch = QueryWatch()
    watch.see(torch.full((1, 3, 32, 32), 3e38))
    watch.see(torch.full((1, 3, 32, 32), torch.inf))
    assert not watch.see(pictures(3)).near.any()


def test_repetitions_do_not_hide_a_walk():
    """They stand between probes, and count as nothing."""
    watch = QueryWatch(window=20, alert=10)
    picture = pictures(1)[0]
    for probe in probes(picture, 20):
        watch.see(picture.expand(9, -1, -1, -1))
        walks = watch.see(probe[None]).walks[-1]
    assert walks
