"""Figures against values worked out on paper."""

import numpy as np
import pytest

from advconn.metrics import auroc, auroc_bootstrap_interval, clopper_pearson, mean_share


def test_auroc_counts_pairs_and_halves_ties():
    """Of six pairs, four are in order and one is a tie."""
    assert auroc(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    assert auroc(np.array([1.0, 2.0]), np.array([3.0])) == 1
    assert np.isnan(auroc(np.array([1.0]), np.array([])))


def test_the_interval_holds_the_figure_and_narrows_with_more_images():
    """A bootstrap of well separated but overlapping scores."""
    rng = np.random.default_rng(0)
    few, many = (auroc_bootstrap_interval(rng.normal(0, 1, n), rng.normal(1, 1, n)) for n in (30, 1000))
    truth = 0.7602  # P(N(1, 2) > 0)
    assert few[0] < truth < few[1]
    assert many[0] < truth < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 3


def test_the_share_has_an_exact_interval():
    """Clopper-Pearson of nothing in 20: (0, 1 - .025^(1/20))."""
    low, high = clopper_pearson(np.zeros(20, dtype=bool))
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert mean_share(np.array([True, False])) == 0.5
    assert np.isnan(mean_share(np.array([])))
