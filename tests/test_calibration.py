"""Split-conformal calibration."""

import numpy as np
import pytest

from advconn.calibration import Calibration
from advconn.errors import FitError


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
