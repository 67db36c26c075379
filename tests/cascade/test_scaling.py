"""Bounded standardisation: no image, however far out, is worth more than a known share of a verdict."""

import numpy as np
import pytest
import torch
from torch import nn

from advconn import bundle
from advconn.cascade import pretrained
from advconn.cascade.cascade import log_odds
from advconn.cascade.head_files import load as load_head
from advconn.cascade.head_files import save as save_head
from advconn.cascade.heads import default_head, largest_share
from advconn.cascade.scaling import COARSE, FINE, BoundedScaler
from advconn.detector.fitting import fit
from advconn.errors import BundleError
from advconn.models.classifier import Classifier
from advconn.models.margin import LEAD, temperature_of


def test_columns_are_scaled_by_the_clean_rows_spread():
    """A column that hardly moves is divided by its deviation, one that does not at all by 1 or by its floor."""
    rng = np.random.default_rng(0)
    table = np.stack([5 + 3 * rng.standard_normal(4000), np.r_[np.zeros(3900), np.ones(100)], np.full(4000, 2.0)], 1)
    scaler = BoundedScaler().fit(table)
    columns = scaler.transform(table)
    assert columns.shape == (4000, 6)
    np.testing.assert_allclose(np.median(columns, 0), 0, atol=1e-12)
    low, high = np.quantile(table[:, 0], (0.16, 0.84))
    np.testing.assert_allclose(scaler.scale_, [(high - low) / 2, table[:, 1].std(), 1.0])
    assert (BoundedScaler(np.array([1.0, 20.0, 3.0])).fit(table).scale_ == [scaler.scale_[0], 20.0, 3.0]).all()
    kinds = np.repeat([0, 1], 2000)
    np.testing.assert_array_equal(BoundedScaler().fit(table, kinds).center_, np.median(table[:2000], axis=0))
    assert list(scaler.get_feature_names_out(["a", "b", "c"])) == [
        "a.fine", "b.fine", "c.fine", "a.coarse", "b.coarse", "c.coarse"
    ]  # fmt: skip


def test_both_columns_keep_the_order_and_have_a_bound():
    scaler = BoundedScaler().fit(np.random.default_rng(0).standard_normal((999, 1)))
    far = np.array([-1e300, -100.0, -3.0, -1.0, 0.0, 1.0, 3.0, 100.0, 1e9])[:, None]
    fine, coarse = scaler.transform(far).T
    assert (np.diff(fine) >= 0).all()
    assert (np.diff(coarse) >= 0).all()
    assert np.abs(fine).max() == 1
    assert np.abs(coarse).max() == COARSE
    z = (far[2:7, 0] - scaler.center_[0]) / scaler.scale_[0]
    np.testing.assert_allclose(coarse[2:7], z)
    np.testing.assert_allclose(fine[2:7], np.tanh(z / FINE))


@pytest.mark.parametrize("stage", range(len(pretrained.load().heads)))
def test_no_single_feature_of_a_taught_head_decides_without_bound(stage):
    """A clean image is made extreme in each feature in turn: its log-odds move by no more than the head's bound."""
    heads, rng = pretrained.load(), np.random.default_rng(stage)
    count = len(heads.names[stage])
    clean = rng.standard_normal((200, count)) * 1e-6 * heads.floors[stage]  # so sure that its features hardly vary
    from sklearn.pipeline import make_pipeline

    head = make_pipeline(BoundedScaler(heads.floors[stage]).fit(clean), heads.heads[stage])
    bound = largest_share(head)
    assert bound.shape == (count,)
    plain = log_odds(head, clean[:1])
    for far in (1e12, -1e12):
        extreme = np.repeat(clean[:1], count, axis=0)
        np.fill_diagonal(extreme, far)
        assert (np.abs(log_odds(head, extreme) - plain) <= bound + 1e-9).all()
    assert np.abs(log_odds(head, clean) - plain).max() < 1e-3  # floors: such a spread says nothing


def test_own_heads_are_bounded_too(tmp_path):
    """Those of a full fit; and they are saved, loaded, and checked."""
    rng = np.random.default_rng(0)
    features, kinds = rng.standard_normal((300, 4)), np.repeat([0, 1, 2], 100)
    features[kinds > 0] += 2
    head = default_head(0, np.full(4, 0.5)).fit(features, kinds)
    far = features[:1].copy()
    far[0, 2] = -1e15
    assert abs(log_odds(head, far) - log_odds(head, features[:1]))[0] <= largest_share(head)[2]
    save_head(head, tmp_path / "head.skops")
    np.testing.assert_array_equal(log_odds(load_head(tmp_path / "head.skops", 4), features), log_odds(head, features))
    with pytest.raises(BundleError, match="shape"):
        load_head(tmp_path / "head.skops", 5)


class Scaled(nn.Module):
    """A network whose logits are multiplied."""

    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x):
        return self.net(x) * self.factor


def test_detection_does_not_depend_on_the_temperature(net, digits):
    """Logits times 10 and .1: the same scores and verdicts."""
    images, labels = digits
    judged = []
    for factor in (1.0, 10.0, 0.1):
        model = Classifier(Scaled(net, factor).eval(), size=(8, 8), channels=1)
        fitted = fit(model, images[900:1200], labels[900:1200], accept_weak=True, note=lambda text: None)
        judged.append(fitted.judge(images[1200:1300]))
    for other in judged[1:]:
        np.testing.assert_allclose(other.score, judged[0].score, atol=0.02)
        assert (other.adversarial == judged[0].adversarial).mean() > 0.98


def test_the_temperature_brings_the_median_lead_to_one_value():
    logits = torch.tensor([[4.0, 1.0, 0.0], [0.0, 9.0, 4.0], [20.0, 0.0, 0.0]])
    assert temperature_of(logits) == pytest.approx(5.0 / LEAD)
    assert temperature_of(10 * logits) == pytest.approx(50.0 / LEAD)
    assert temperature_of(torch.zeros(3, 2)) == temperature_of(torch.zeros(0, 2)) == 1.0
    assert temperature_of(torch.tensor([[float("inf"), 0.0]])) == 1.0


def test_the_temperature_travels_with_the_bundle(classifier, digits, tmp_path):
    fitted = fit(classifier, digits[0][900:1200], digits[1][900:1200], accept_weak=True, note=lambda text: None)
    assert fitted.connectivity.temperature != 1.0
    bundle.save(fitted, tmp_path / "d")
    assert bundle.load(tmp_path / "d", model=classifier).connectivity.temperature == fitted.connectivity.temperature
    assert bundle.load(bundle.default()).connectivity.temperature == 1.0
