"""The detector as a scikit-learn classifier, and its verdicts."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from advconn.attacks.attack import Attack, is_misclassified
from advconn.cascade.cascade import head_log_odds, log_odds
from advconn.detector.detector import Detector
from advconn.errors import FitError
from advconn.features.connectivity import Connectivity


@pytest.fixture(scope="module")
def attacked(classifier, digits):
    """Successful PGD copies of digits that are in no other use."""
    images, labels = classifier.check(digits[0][1400:1600]), digits[1][1400:1600]
    out = Attack.parse("pgd:eps=0.2").run(classifier, images, labels)
    right = classifier.logits(images).argmax(1) == labels
    return out[is_misclassified(classifier, out, labels) & right]


@pytest.fixture(scope="module")
def clean(classifier, digits):
    return classifier.check(digits[0][1600:])


def test_it_tells_attacked_digits_from_clean_ones(detector, clean, attacked):
    """Well above chance on images that it never saw; higher means more adversarial."""
    scores = np.concatenate([detector.score_samples(clean), detector.score_samples(attacked)])
    kinds = np.repeat([0, 1], [len(clean), len(attacked)])
    assert len(attacked) > 50
    assert roc_auc_score(kinds, scores) > 0.9


def test_false_alarms_stay_near_what_was_asked_for(detector, clean):
    """5 % asked; 197 new images, misclassified ones included: 12 % is four standard deviations."""
    assert detector.predict(clean).mean() < 0.12


def test_one_verdict_however_it_is_asked_for(detector, clean, attacked):
    """predict, decision_function, p_value and judge agree."""
    images = torch.cat([clean[:30], attacked[:30]])
    seen = detector.judge(images)
    flags = detector.predict(images) == 1
    assert 5 < flags.sum() < 55
    np.testing.assert_array_equal(flags, detector.decision_function(images) > 0)
    np.testing.assert_array_equal(flags, detector.p_value(images) <= detector.calibration_.level + 1e-12)
    assert detector.calibration_.level <= detector.fpr
    np.testing.assert_array_equal(flags, seen.adversarial)
    np.testing.assert_allclose(seen.score, detector.score_samples(images))
    shares = detector.predict_proba(images)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert shares[30:, 1].mean() > shares[:30, 1].mean()


def test_the_explanation_adds_up_to_the_score_when_one_family_is_replaced(detector, attacked):
    """Each family's part is the score minus that with the family made typical."""
    seen = detector.judge(attacked[:5], full=True)
    last = len(detector.cascade_.connectivities)
    assert (seen.stage == last).any()
    families = detector.family_effects(seen)
    assert set(families) == {"query", "self", "grain", "pixels", "own", "rival", "near", "complexity"}
    i = np.array([str(n).startswith("own.") for n in detector.names_])
    rows = seen.stage == last
    before, after = (
        head_log_odds(detector.head_, f)[rows] for f in (seen.features, np.where(i, detector.typical_, seen.features))
    )
    np.testing.assert_allclose(families["own"][rows], before - after)


def test_a_fit_is_reproducible(classifier, digits, detector, clean):
    """The same images and seed give the same scores."""
    from conftest import MIXTURE

    from advconn.detector.fitting import fit

    again = fit(classifier, digits[0][900:1400], digits[1][900:1400], attacks=MIXTURE, per_attack=150, seed=0)
    np.testing.assert_allclose(again.score_samples(clean[:20]), detector.score_samples(clean[:20]), atol=1e-3)


def given(clean, attacked):
    n = min(len(clean), len(attacked), 90)
    images = torch.cat([clean[:n], attacked[:n]]).numpy()
    return images, np.repeat([0, 1], n), np.tile(np.arange(n), 2)


def test_it_works_in_cross_val_score_and_grid_search(classifier, clean, attacked):
    """With attacked images given, and without the network being copied."""
    images, kinds, groups = given(clean, attacked)
    detector = Detector(
        Connectivity(classifier, copies=("flip", "mean3"), halves=()), head=LogisticRegression(max_iter=500)
    )
    folds = GroupKFold(3)
    scores = cross_val_score(detector, images, kinds, groups=groups, cv=folds, scoring="roc_auc")
    assert scores.mean() > 0.7
    grid = GridSearchCV(
        detector, {"connectivity__halves": [(), ("mean3",)], "head__C": [0.1, 1.0]}, cv=folds, scoring="roc_auc"
    )
    grid.fit(images, kinds, groups=groups)
    assert grid.best_estimator_.classifier is classifier
    assert grid.best_score_ >= scores.mean() - 0.1


def test_a_clone_is_unfitted_and_shares_the_network(detector, classifier):
    """As scikit-learn has it."""
    copy = clone(detector)
    assert copy.classifier is classifier
    assert copy.get_params()["fpr"] == detector.fpr
    with pytest.raises(FitError, match="has not been fitted"):
        copy.predict(torch.zeros(1, 1, 8, 8))


def test_copies_of_a_calibration_image_are_not_trained_on(classifier, clean, attacked):
    """With groups, clean and attacked copies stay on one side."""
    images, kinds, groups = given(clean, attacked)
    seen = {}

    class Recorder(LogisticRegression):
        def fit(self, X, y):
            seen["rows"] = y
            return super().fit(X, y)

    head = make_pipeline(StandardScaler(), Recorder(max_iter=500))
    detector = Detector(Connectivity(classifier), head=head, calibrate=0.5, stages=None, benign=()).fit(
        images, kinds, groups=groups
    )
    assert (seen["rows"] == 0).sum() == (seen["rows"] == 1).sum() == len(images) // 4
    assert detector.fitted_.calibrate == len(images) // 4


def test_what_cannot_be_fitted_is_refused(classifier, digits, clean, attacked):
    """Too few images for the rate, one class, labels of the wrong length, an attack that never succeeds."""
    walk = Connectivity(classifier, copies=("flip",), halves=())
    images, kinds, _ = given(clean, attacked)
    cases = [
        (Detector(walk), (clean[:20],), {}, "at least 19"),
        (Detector(walk, fpr=0.001), (clean,), {}, "at least 999"),
        (Detector(walk), (images, kinds * 0), {}, "clean .0. and attacked"),
        (Detector(walk), (images, kinds[:-1]), {}, "must be"),
        (Detector(walk, attacks=("pgd:eps=0,steps=1",)), (clean,), {}, "no attack of the mixture succeeded"),
    ]
    for detector, args, options, text in cases:
        with pytest.raises(FitError, match=text):
            detector.fit(*args, **options)


def test_odds_of_several_attacks_are_added_up():
    """Three classes with given logits: log(e^1 + e^2) - 0; two classes: the head's own."""

    class Head:
        def __init__(self, values):
            self.decision_function = lambda columns: np.asarray(values)

    assert log_odds(Head([[0.0, 1.0, 2.0]]), np.zeros((1, 1))) == pytest.approx(np.log(np.e + np.e**2))
    assert log_odds(Head([0.7]), np.zeros((1, 1))) == pytest.approx(0.7)

    class Shares:
        def predict_proba(self, columns):
            return np.array([[0.5, 0.3, 0.2]])

    assert log_odds(Shares(), np.zeros((1, 1))) == pytest.approx(0)


def test_kinds_of_attack_may_be_told_apart(classifier, clean, attacked):
    """y beyond 1 numbers the attacks; the verdict stays 0 or 1."""
    images = torch.cat([clean, attacked])
    y = np.repeat([0, 1, 2], [len(clean), 20, len(attacked) - 20])
    found = Detector(Connectivity(classifier, copies=("flip", "mean3", "left1"), halves=())).fit(images, y)
    assert len(found.head_.classes_) == 3
    assert set(found.predict(images)) == {0, 1}
    assert found.predict_proba(images).shape == (len(images), 2)
    np.testing.assert_allclose(found.predict_proba(images).sum(1), 1)


def test_attacked_copies_under_benign_conditions_are_still_wrong(classifier, digits):
    """In turn noise and light; those that are put right again are left out."""
    from advconn.cascade.attacked_copies import still_misclassified
    from advconn.data.conditions import CONDITIONS

    images, labels = classifier.check(digits[0][1400:1520]), digits[1][1400:1520]
    out = Attack.parse("pgd:eps=0.2").run(classifier, images, labels)
    hit = is_misclassified(classifier, out, labels)
    out, truth = out[hit], labels[hit]
    changed, rows = still_misclassified(classifier, out, truth, ("noise8", "brighter"), 0)
    assert len(changed) == len(rows) > 10
    assert (classifier.logits(classifier.check(changed)).argmax(1) != truth[rows]).all()
    first = CONDITIONS["noise8"]((out[0::2] * 255).round().to(torch.uint8), 0).float() / 255
    assert torch.equal(changed[0], first[int(rows[0]) // 2])
    none, nothing = still_misclassified(classifier, out[:0], truth[:0], ("noise8",), 0)
    assert len(none) == len(nothing) == 0


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"fpr": 2}, "false-alarm rate"),
        ({"fpr": float("nan")}, "false-alarm rate"),
        ({"fpr": 0.001}, "at least"),
        ({"confidence": "none"}, "confidence"),
        ({"conditions": "clean,jpeg75"}, "a sequence"),
        ({"conditions": ()}, "a sequence"),
        ({"conditions": ("noise8",)}, "not calibrated under noise8"),
        ({"fpr": 0.01, "by_class": True}, "calibration images"),
        ({"by_class": True, "confidence": 0.999}, "calibration images"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused_and_nothing_changes(detector, params, says):
    """No rate, no confidence and no condition is weakened without a word."""
    before = detector.get_params(deep=False), detector.calibration_
    with pytest.raises(FitError, match=says):
        detector.set_params(**params)
    assert detector.get_params(deep=False) == before[0]
    assert detector.calibration_ is before[1]


def test_a_judgement_prints_in_a_few_lines(detector, clean):
    """Features, votes and traces are not for the eye."""
    assert len(repr(detector.judge(clean[:30]))) < 20_000
