"""Heads that were taught on other networks."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from advconn import bundle
from advconn.attacks.attack import Attack, is_misclassified
from advconn.attacks.strength import images_per_attack
from advconn.cascade import pretrained
from advconn.cascade.cascade import STAGES, log_odds
from advconn.data.labels import memorisation_warning
from advconn.detector.detector import Detector
from advconn.detector.fitting import fit
from advconn.detector.trial_attack import Trial, is_effective
from advconn.errors import BundleError, FitError
from advconn.features.connectivity import Connectivity
from advconn.models.classifier import Classifier
from advconn.runtime.forward_passes import count_passes


def test_a_quick_fit_makes_no_attack_and_asks_for_few_gradients(classifier, digits):
    """It tells attacked images, on a network that the heads have never seen, and flags few clean ones."""
    images, labels = digits
    with count_passes() as cost:
        detector = fit(classifier, images[900:1300], labels[900:1300], quick=True, note=lambda text: None)
    assert detector.fitted_.pretrained
    assert detector.fitted_.attacks == {}
    assert cost.gradients <= 15 * 400  # bypass alone
    clean, truth = classifier.check(images[1300:1700]), labels[1300:1700]
    out = Attack.parse("cw:lr=0.05,steps=40,c=5").run(classifier, clean, truth)
    hits = is_misclassified(classifier, out, truth) & (classifier.predict(clean) == truth)
    assert float(detector.predict(clean).mean()) < 0.12
    scores = np.concatenate([detector.scores(clean), detector.scores(out[hits])])
    assert roc_auc_score(np.repeat([0, 1], [len(clean), int(hits.sum())]), scores) > 0.93


def test_a_function_without_gradients_is_fitted_too(classifier, digits):
    """By the stages of copies alone."""
    blind = Classifier.from_callable(lambda x: classifier.logits(x).detach(), num_classes=10, size=(8, 8), channels=1)
    with count_passes() as cost:
        detector = fit(blind, digits[0][900:1300], digits[1][900:1300], quick=True, note=lambda text: None)
    assert cost.gradients == 0
    assert len(detector.cascade_.connectivities) == 1  # on so few pixels all copies are walked at once
    assert 0 <= float(detector.predict(digits[0][1300:1400]).mean()) < 0.2


def test_two_classes_have_no_third_one_to_walk_to(digits):
    """The stage of paths is left out, and that is said."""
    torch.manual_seed(0)
    images, labels = digits[0], (digits[1] > 4).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[:900].float() / 255), labels[:900]).backward()
        optimizer.step()
    said = []
    two = Classifier(net.eval(), size=(8, 8), channels=1)
    detector = fit(two, images[900:1300], labels[900:1300], quick=True, note=said.append)
    assert len(detector.cascade_.connectivities) == 1
    assert any("no head was trained" in text for text in said)


def test_it_is_saved_and_loaded_and_says_the_same(classifier, digits, tmp_path):
    """With the mark that its heads are of other networks."""
    detector = fit(classifier, digits[0][900:1300], digits[1][900:1300], quick=True, note=lambda text: None)
    bundle.save(detector, tmp_path / "d")
    other = bundle.load(tmp_path / "d", model=classifier)
    assert other.fitted_.pretrained
    np.testing.assert_array_equal(other.scores(digits[0][:40]), detector.scores(digits[0][:40]))
    assert json.loads((tmp_path / "d" / "card.json").read_text())["fitted"]["pretrained"] is True


def test_what_no_head_was_taught_for_is_refused(classifier, digits):
    """Other copies, too few images, a folder without heads: each in one line."""
    with pytest.raises(FitError, match="no head was trained"):
        fit(classifier, digits[0][900:1300], digits[1][900:1300], quick=True, connectivity={"copies": ("flip",)})
    few = Detector(Connectivity(classifier), pretrained=pretrained.load(), stages=STAGES[:-1], fpr=0.2, calibrate=0.8)
    with pytest.raises(FitError, match="to standardise by"):
        few.fit(digits[0][900:940])


def test_heads_that_are_given_are_taken(classifier, digits):
    """In place of those that ship: the same ones give the same scores, others give others."""
    x, y = digits[0][900:1300], digits[1][900:1300]
    shipped = pretrained.load()
    usual = fit(classifier, x, y, quick=True, note=lambda text: None)
    same = fit(classifier, x, y, pretrained=shipped, note=lambda text: None)
    np.testing.assert_array_equal(usual.scores(x[:20]), same.scores(x[:20]))
    heads = tuple(copy.deepcopy(head) for head in shipped.heads)
    for head in heads:
        head.coef_ = head.coef_ / 2
    other = fit(classifier, x, y, pretrained=replace(shipped, heads=heads), note=lambda text: None)
    assert not np.array_equal(usual.scores(x[:20]), other.scores(x[:20]))


def test_options_of_attacks_are_refused_where_none_is_made(classifier, digits):
    """Not dropped without a word."""
    with pytest.raises(FitError, match="attacks, head: a quick fit makes no attack"):
        fit(classifier, digits[0][900:1300], quick=True, attacks=("fgsm",), head=object())


def test_damaged_heads_are_told(tmp_path):
    with pytest.raises(BundleError, match="no readable heads"):
        pretrained.load(tmp_path)


def test_pictures_of_ordinary_size_leave_early(monkeypatch):
    """All four stages; grey ones of 8 pixels begin at the third."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 3)).eval()
    images = torch.rand(240, 3, 32, 32)
    model = Classifier(net, size=(32, 32))
    monkeypatch.setattr(Trial, "measure", lambda *_, **__: None)  # whatever it catches on such a network
    detector = fit(model, images, quick=True, fpr=0.1, note=lambda text: None)
    assert [len(walk.copies) for walk in detector.cascade_.connectivities][:3] == [3, 7, 30]
    assert np.isfinite(detector.cascade_.exits).all()


def test_a_few_attacked_images_move_the_heads(classifier, digits):
    """Towards this classifier; many more of them move them farther, and none not at all."""
    rng = np.random.default_rng(0)
    taught = LogisticRegression().fit(rng.normal(size=(300, 4)) + np.eye(4)[0], np.repeat([0, 1, 2], 100))
    clean, attacked = rng.normal(size=(400, 4)), rng.normal(size=(400, 4)) + 2 * np.eye(4)[3]

    def far(count: int) -> float:
        return float(np.abs(pretrained.refine_head(taught, clean[:count], attacked[:count]).coef_ - taught.coef_).max())

    assert 0 < far(4) < far(40) < far(400)
    odds = log_odds(pretrained.refine_head(taught, clean, attacked), np.concatenate([clean, attacked]))
    assert roc_auc_score(np.repeat([0, 1], 400), odds) > 0.85
    images, labels = digits
    said = {"note": lambda text: None, "attacks": ("fgsm:eps=51/255", "pgd:eps=51/255,steps=5")}
    detector = fit(classifier, images[900:1200], labels[900:1200], refine=30, **said)
    assert detector.fitted_.pretrained
    assert [tried for tried, _ in detector.fitted_.attacks.values()] == [15, 15]
    with pytest.raises(FitError, match="give no quick=False"):
        fit(classifier, images[900:1200], labels[900:1200], refine=30, quick=False)


def test_images_that_look_like_training_images_are_told(classifier, digits):
    """Where the accuracy is known, and where there is no mistake at all."""
    assert memorisation_warning(99, 100) is None
    assert "may have been trained on them" in memorisation_warning(100, 100)
    assert memorisation_warning(85, 100, 0.8) is None
    assert "80.0% were to be expected" in memorisation_warning(92, 100, 0.8)
    said = []
    fit(classifier, digits[0][:300], digits[1][:300], accuracy=0.9, note=said.append)
    assert any("trained on them" in line for line in said)


def test_a_full_fit_attacks_every_image_by_a_part_of_the_mixture():
    """About seven attacks an image, forty images an attack at least, all of them where the attacks are few."""
    assert images_per_attack(144, 21) == 48
    assert images_per_attack(60, 21) == 40
    assert images_per_attack(30, 21) == 30
    assert images_per_attack(300, 4) == 300


@pytest.mark.parametrize("name", ["cifar10", "cifar10-hardened", "digits", "imagenet"])
def test_every_shipped_detector_can_be_calibrated_anew(name):
    """By an attack of its mixture, whatever else it was fitted on."""
    detector = bundle.load(bundle.default(name))
    size = detector.classifier.preprocessing.size
    images = torch.rand(2, detector.classifier.channels, *size)
    assert is_effective(detector, images, None)[0].name == "pgd"
