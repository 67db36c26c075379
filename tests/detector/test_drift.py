"""The watch on a stream of scores."""

import copy
import pickle

import numpy as np

from advconn.detector.calibration import Calibration
from advconn.detector.drift import Watch


def test_it_stays_quiet_on_streams_like_the_calibration():
    """At most one stream of a hundred: of 300 of 400 images, ties included, 8 would be five standard deviations off."""
    rng = np.random.default_rng(0)
    spoke = 0
    for i in range(300):
        draw = rng.normal(size=600).round(i % 3)
        spoke += Watch(Calibration(draw[:200], 0.05), seed=i).see(draw[200:])
    assert spoke <= 8


def test_it_speaks_once_when_the_scores_rise():
    """After 500 quiet images, within 60 of those whose scores are two standard deviations higher; then no more."""
    rng = np.random.default_rng(0)
    watch = Watch(Calibration(rng.normal(size=500), 0.05))
    assert not watch.see(rng.normal(size=500))
    assert watch.see(rng.normal(size=60) + 2)
    assert 500 < watch.spoke_at < 560
    spoke, count = watch.spoke_at, watch.count
    assert not watch.see(rng.normal(size=60) + 2)
    assert (watch.spoke_at, watch.count) == (spoke, count)
    assert f"after {watch.spoke_at} images" in watch.sentence()


def test_a_condition_that_was_calibrated_on_is_no_alarm():
    """A stream from the second condition alone is what was promised for; one beyond both is not."""
    rng = np.random.default_rng(0)
    seen = Calibration({"clean": rng.normal(size=300), "jpeg75": rng.normal(size=300) + 1}, 0.05)
    assert not Watch(seen).see(rng.normal(size=400) + 1)
    assert Watch(seen).see(rng.normal(size=400) + 3)


def test_lower_scores_are_no_alarm():
    """The promise is about too many flags."""
    rng = np.random.default_rng(0)
    assert not Watch(Calibration(rng.normal(size=300), 0.05)).see(rng.normal(size=2000) - 3)


def test_it_can_be_copied_and_pickled():
    """A guard holds one."""
    watch = Watch(Calibration(np.arange(100.0), 0.05))
    for again in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        again.see(np.array([1.0]))
        assert (again.count, watch.count) == (1, 0)
