"""The call inside an inference pipeline."""

import copy
import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from advconn.detector.detector import Detector
from advconn.detector.guard import Guard
from advconn.errors import AdvconnWarning, DataError, FitError, ModelError
from advconn.features.connectivity import Connectivity


@pytest.fixture(scope="module")
def guard(detector):
    return Guard(detector)


@pytest.fixture(scope="module")
def images(classifier, digits):
    return classifier.check(digits[0][1500:1540])


def agree(a, b):
    torch.testing.assert_close(a.logits, b.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a.score, b.score, atol=1e-3, rtol=0)
    assert torch.equal(a.flag, b.flag)


def test_it_gives_the_classifiers_logits_and_the_detectors_verdict(guard, detector, classifier, images):
    """Nothing of its own."""
    verdict = guard(images)
    torch.testing.assert_close(verdict.logits, classifier.logits(images), atol=1e-4, rtol=1e-4)
    assert verdict.flag.tolist() == (detector.predict(images) == 1).tolist()
    assert verdict.flag.dtype == torch.bool
    torch.testing.assert_close(verdict.p_value, torch.from_numpy(detector.p_value(images)))


def test_the_same_answers_at_every_batch_size(guard, images):
    """One at a time, in sevens, and all at once."""
    whole = guard(images)
    for size in (1, 7):
        parts = [guard(chunk) for chunk in images.split(size)]
        agree(type(whole)(*map(torch.cat, zip(*parts, strict=True))), whole)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_same_answers_in_every_mode(guard, images, mode):
    """Images that ask for gradients too."""
    whole = guard(images)
    with mode():
        agree(guard(images.clone().requires_grad_(mode is torch.enable_grad)), whole)


def test_the_same_answers_under_autocast(guard, images):
    """Scores are calibrated in float32, so it stays there."""
    whole = guard(images)
    with torch.autocast("cpu", torch.bfloat16):
        agree(guard(images), whole)


def test_the_same_answers_in_threads(guard, images):
    """Eight at once."""
    whole = guard(images)
    with ThreadPoolExecutor(4) as pool:
        for verdict in pool.map(lambda _: guard(images), range(8)):
            agree(verdict, whole)


def test_it_cannot_be_put_in_training_mode(guard):
    """A pipeline's train() passes over it."""
    assert not torch.nn.Sequential(guard).train()[0].training


def test_bad_images_and_unfitted_detectors_are_refused(guard, classifier, images):
    """In one line each."""
    with pytest.raises(FitError, match="has not been fitted"):
        Guard(Detector(Connectivity(classifier)))
    with pytest.raises(DataError, match="8 x 8"):
        guard(torch.zeros(1, 1, 9, 9))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        guard(images * 255)


def test_an_image_that_holds_nan_is_flagged_and_takes_no_other_with_it(guard, images):
    """With a warning; the watch does not see it."""
    spoilt = images.clone()
    spoilt[3, 0, 2, 2], spoilt[5, 0, 0, 0] = torch.nan, torch.inf
    before = guard.watch.count
    with pytest.warns(AdvconnWarning, match="2 of 40 images hold NaN"):
        verdict = guard(spoilt)
    assert guard.watch.count == before + 38
    assert verdict.flag[[3, 5]].all()
    assert verdict.score[[3, 5]].isinf().all()
    assert verdict.logits[[3, 5]].isnan().all()
    rest = [i for i in range(40) if i not in (3, 5)]
    agree(type(verdict)(*(part[rest] for part in verdict)), type(verdict)(*(part[rest] for part in guard(images))))


def test_it_leaves_torchs_own_state_alone(guard, images):
    """Gradients stay enabled and the global generator where it was."""
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    guard(images)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.is_grad_enabled()


def test_a_bound_on_the_stages_bounds_the_cost(detector, images):
    """max_stage=1 asks four forwards of every image, with a threshold of its own; no such stage is refused."""
    from advconn.runtime.forward_passes import count_passes

    with count_passes() as cost:
        verdict = Guard(detector, max_stage=1)(images)
    assert (cost.forwards, cost.gradients) == (4 * len(images), 0)
    assert float(verdict.score.max()) < 1
    assert "at most 1" in repr(Guard(detector, max_stage=1))
    with pytest.raises(FitError, match="max_stage"):
        Guard(detector, max_stage=9)


def test_a_threshold_of_ones_own(detector, images):
    """Above every score nothing is flagged, under them all everything."""
    assert not Guard(detector, threshold=1e9)(images).flag.any()
    assert Guard(detector, threshold=-1e9)(images).flag.all()


def test_the_watch_warns_once_that_images_changed(detector, images):
    """Noise for images: flags rise, and the guard says why the rate no longer holds."""
    guard = Guard(detector)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdvconnWarning)
        guard(images[:8])
    noise = torch.rand(200, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    with pytest.warns(AdvconnWarning, match="no longer look like"):
        guard(noise)
    assert guard.watch.spoke_at is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdvconnWarning)
        guard(noise)


def test_a_guard_moves_as_modules_do(guard, images):
    """A copy judges alike; what would lose or hide the detector is refused with the way to go."""
    other = copy.deepcopy(guard)
    assert other.detector is not guard.detector
    torch.testing.assert_close(other(images).score, guard(images).score)
    assert other.to("cpu")(images).flag.equal(guard(images).flag)
    for refused in (lambda: torch.save(guard, io.BytesIO()), lambda: pickle.dumps(guard), guard.state_dict):
        with pytest.raises(ModelError, match=r"advconn\.save\(guard\.detector, folder\)"):
            refused()
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2), guard)
    assert set(whole.state_dict()) == {"0.weight", "0.bias"}
    whole.load_state_dict(whole.state_dict())
