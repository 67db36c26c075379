"""Where the classifier is more often wrong than right."""

import numpy as np
import pytest
import torch
from brought import fit, images, trained

import advconn
from advconn.detector.doubt import FEWEST, certainty, doubt_threshold
from advconn.features.path_features import Trace
from advconn.models.classifier import Classifier


def test_certainty_on_paper():
    """The mean over the image and two copies of the probability of the image's class: (.6 + .2 + .1) / 3."""
    shares = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]).log()
    trace = Trace.__new__(Trace)
    object.__setattr__(trace, "query", shares[:1])
    object.__setattr__(trace, "copies", shares[None, 1:])
    assert certainty(trace)[0] == pytest.approx(0.3)
    object.__setattr__(trace, "copies", None)
    assert certainty(trace)[0] == pytest.approx(0.6)


def test_the_cut_is_where_more_than_half_are_wrong():
    """Of certain images none is wrong, of unsure ones four of five; few errors give no cut."""
    values = np.linspace(0, 1, 500)
    wrong = (values < 0.4) & (np.arange(500) % 5 > 0)
    assert doubt_threshold(values, wrong) == pytest.approx(0.4, abs=0.02)
    assert doubt_threshold(values, np.arange(500) < FEWEST - 1) is None
    assert doubt_threshold(values, np.arange(500) % 3 == 0) is None


def test_doubt_changes_no_verdict_and_is_kept_with_the_detector(tmp_path):
    """Calibrated with labels of which some are wrong: another word beside the same verdict."""
    classifier = Classifier(trained(), size=16)
    detector = fit(classifier)
    x = images(n=300)[0]
    before = detector.judge(x)
    shares = certainty_of(detector, x)
    labels = torch.from_numpy(before.predicted)
    unsure = shares < np.quantile(shares, 0.2)
    labels[torch.from_numpy(unsure)] += 1
    detector.calibrate_on(x, labels=labels)
    assert detector.doubt_ == pytest.approx(shares[unsure].max())
    after = detector.judge(x)
    assert np.array_equal(after.score, before.score)
    assert np.array_equal(after.doubtful, after.certainty <= detector.doubt_)
    verdict = advconn.Guard(detector)(x[:8].float() / 255)
    assert len(verdict) == 4
    assert np.array_equal(verdict.doubtful.numpy(), after.doubtful[:8])
    assert len(advconn.Guard(detector)(x[:0].float()).doubtful) == 0
    advconn.save(detector, tmp_path / "d")
    loaded = advconn.load(tmp_path / "d", model=classifier)
    assert loaded.doubt_ == detector.doubt_
    detector.doubt_ = None
    assert advconn.Guard(detector)(x[:2].float() / 255).doubtful is None


def certainty_of(detector, x):
    """Of every image, as the detector sees it."""
    return detector.judge(x).certainty
