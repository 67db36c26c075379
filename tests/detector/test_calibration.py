"""Split-conformal calibration."""

import numpy as np
import pytest

from advconn.detector.calibration import Calibration, min_calibration_size
from advconn.errors import FitError
from advconn.metrics import clopper_pearson_upper


def test_p_values_and_threshold_on_nineteen_scores():
    """0..18 at 10 %: the two highest of twenty ranks are flagged, so a score above 17."""
    seen = Calibration(np.arange(19.0), 0.1)
    assert seen.threshold == 17.0
    assert seen.p_value(np.array([100.0, 18.0, 17.5, 17.0, -1.0])) == pytest.approx([0.05, 0.1, 0.1, 0.15, 1.0])


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (100, 0.05), (999, 0.01), (37, 0.2)])
def test_the_flag_and_the_p_value_agree(n, fpr):
    """score > threshold exactly where p <= fpr, ties included."""
    rng = np.random.default_rng(0)
    seen = Calibration(rng.integers(0, 50, n).astype(float), fpr)
    scores = np.linspace(-1, 51, 209)
    assert ((scores > seen.threshold) == (seen.p_value(scores) <= fpr + 1e-12)).all()


def test_the_false_alarm_rate_holds_on_average():
    """Over 400 draws of 99 calibration scores, the mean rate on new scores is at most what was asked for."""
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=500) > Calibration(rng.normal(size=99), 0.05).threshold).mean() for _ in range(400)]
    assert 0.045 < np.mean(rates) < 0.055


def test_too_few_images_for_the_rate_are_refused():
    """18 cannot calibrate 5 %, 19 can."""
    with pytest.raises(FitError, match="at least 19"):
        Calibration(np.arange(18.0), 0.05)
    assert Calibration(np.arange(19.0), 0.05).threshold == 18.0


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1])
def test_a_rate_outside_0_1_is_refused(bad):
    with pytest.raises(FitError, match="false-alarm rate"):
        Calibration(np.arange(99.0), bad)


@pytest.mark.parametrize(("n", "level"), [(2500, 0.0428), (1000, 0.0390), (500, 0.0339)])
def test_with_confidence_the_level_is_lowered(n, level):
    """Nominal rates by Beta quantiles, worked out apart with R's qbeta and rounded."""
    assert Calibration(np.arange(float(n)), 0.05, 0.95).level == pytest.approx(level, abs=5e-4)


def test_with_confidence_the_realised_rate_holds_in_95_of_100_draws():
    """For normal scores the realised rate is known exactly: how many of 1,000 thresholds have one over 5 %."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    over = [norm.sf(Calibration(rng.normal(size=200), 0.05, 0.95).threshold) > 0.05 for _ in range(1000)]
    assert 0.02 < np.mean(over) <= 0.065


def test_confidence_needs_59_images_for_5_percent():
    """1 - .95^59 = .951, and 1 - .95^58 = .949."""
    assert min_calibration_size(0.05, 0.95) == 59
    with pytest.raises(FitError, match="95% confidence needs at least 59"):
        Calibration(np.arange(58.0), 0.05, 0.95)
    assert Calibration(np.arange(59.0), 0.05, 0.95).threshold == 58.0


def test_p_is_the_largest_over_the_conditions():
    """So the threshold is the highest one, and both agree."""
    clean, jpeg = np.arange(19.0), np.arange(19.0) + 5
    both = Calibration({"clean": clean, "jpeg75": jpeg}, 0.1)
    alone = [Calibration(scores, 0.1) for scores in (clean, jpeg)]
    scores = np.linspace(-1, 30, 63)
    np.testing.assert_array_equal(both.p_value(scores), np.maximum(*(one.p_value(scores) for one in alone)))
    assert both.threshold == 22.0
    assert both.at(conditions=("clean",)).threshold == 17.0
    assert ((scores > both.threshold) == (both.p_value(scores) <= both.level)).all()
    with pytest.raises(FitError, match="same images"):
        Calibration({"clean": clean, "jpeg75": jpeg[:18]}, 0.1)


def test_classes_with_enough_images_have_a_threshold_of_their_own():
    """Class 0 scores 0..99, class 1 scores 1000..1099, class 2 has three images and shares the common one."""
    scores = np.concatenate([np.arange(100.0), 1000 + np.arange(100.0), [1.0, 2.0, 3.0]])
    classes = np.repeat([0, 1, 2], [100, 100, 3])
    seen = Calibration({"clean": scores}, 0.05, None, {"clean": classes})
    assert sorted(seen.by_class) == [0, 1]
    np.testing.assert_array_equal(seen.thresholds(np.array([0, 1, 2])), [95.0, 1095.0, seen.threshold])
    assert seen.p_value(np.array([500.0]), np.array([0]))[0] == pytest.approx(1 / 101)
    assert seen.p_value(np.array([500.0]), np.array([1]))[0] == 1.0


def test_an_upper_bound_on_a_share():
    """No miss among 149 shows 2 % with 95 % confidence, among 148 not (.98^149 = .0493)."""
    assert clopper_pearson_upper(0, 149) < 0.02 < clopper_pearson_upper(0, 148)
    assert clopper_pearson_upper(5, 5) == 1.0
