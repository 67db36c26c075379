"""Stages: what each connectivities, one score over all of them, and where images leave."""

import numpy as np
import pytest
import torch

from advconn.cascade.cascade import NEAR, STAGES, Stage, continue_rates, run_extractor, stage_extractors
from advconn.cascade.early_exit import cascade_score, choose_exits
from advconn.detector.detector import Detector
from advconn.errors import DataError, FitError
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import feature_table
from advconn.runtime.forward_passes import count_passes


def test_each_stage_goes_on_where_the_one_before_it_ended(detector, classifier, digits):
    """The trace of the last stage, walked in stages, is the one walked at once; no copy is asked for twice."""
    images = classifier.check(digits[0][1500:1506])
    connectivities = stage_extractors(detector.connectivity, STAGES)
    trace = None
    with count_passes() as staged:
        for walk in connectivities:
            trace = run_extractor(walk, images, trace)
    with count_passes() as whole:
        once = connectivities[-1].trace(images)
    torch.testing.assert_close(feature_table(trace)[0], feature_table(once)[0], atol=1e-4, rtol=1e-4)
    assert (staged.forwards, staged.gradients) == (whole.forwards, whole.gradients)


def test_the_first_stage_costs_four_forwards_and_the_copies_are_those_of_the_whole_walk(detector):
    """The query and three copies; the last self stage has every copy."""
    connectivities = stage_extractors(detector.connectivity, STAGES)
    assert len(connectivities) == len(STAGES)
    assert 1 + len(connectivities[0].copies) + len(connectivities[0].halves) == 4
    assert set(connectivities[-2].copies) == set(detector.connectivity.copies)
    copies, paths = ("query", "self", "grain", "pixels"), ("own", "rival", "near", "complexity")
    assert connectivities[-2].active_families == copies
    assert connectivities[-1].active_families == (*copies, *paths)
    gradients = sum(2**level * (NEAR["steps"] + 1) for level in range(NEAR["levels"]))
    assert gradients <= 16


def test_without_references_or_gradients_there_is_no_stage_for_them(classifier, detector):
    """Self stages alone; own and rival paths without bypass."""
    assert all(
        walk.active_families == ("query", "self", "grain", "pixels")
        for walk in stage_extractors(Connectivity(classifier), STAGES)
    )
    from advconn.models.classifier import Classifier

    function = Classifier.from_callable(
        lambda x: classifier.logits(torch.as_tensor(x)), num_classes=10, size=(8, 8), channels=1
    )
    walk = Connectivity(function, detector.connectivity.references)
    families = ("query", "self", "grain", "pixels", "own", "rival", "near")
    assert stage_extractors(walk, STAGES)[-1].active_families == families


def test_a_connectivity_with_other_copies_has_stages_of_its_own(classifier):
    """What it does not walk is in no stage; None is the whole walk."""
    walk = Connectivity(classifier, copies=("flip", "zoom92", "mean3"), halves=("mean3",))
    assert [w.copies for w in stage_extractors(walk, STAGES)] == [("zoom92",), ("zoom92", "flip", "mean3")]
    assert stage_extractors(walk, STAGES)[-1].halves == ("mean3",)
    assert stage_extractors(walk, None) == (walk,)
    with pytest.raises(DataError, match="one stage or more"):
        stage_extractors(walk, ())
    with pytest.raises(DataError, match="share"):
        stage_extractors(walk, (Stage(share=0.0),))


def test_one_score_orders_by_stage_first():
    """Exits at 0: the first image leaves at once, the second at the second stage, the third goes to the end."""
    nan = np.nan
    scores = np.array([[-2.0, nan, nan], [9.0, -1.0, nan], [0.5, 0.5, -3.0], [0.5, 0.5, 4.0], [np.inf, nan, nan]])
    score, stage = cascade_score(scores, (0.0, 0.0))
    np.testing.assert_array_equal(stage, [1, 2, 3, 3, 1])
    np.testing.assert_allclose(score, [1 / 6, 1.25, 2.125, 2.9, np.inf])
    score, stage = cascade_score(scores, (0.0, 0.0), most=1)
    np.testing.assert_array_equal(stage, 1)
    np.testing.assert_allclose(score[:4], [1 / 6, 0.95, 2 / 3, 2 / 3])
    alone, _ = cascade_score(scores[:, :1], ())
    np.testing.assert_array_equal(alone, scores[:, 0])


def test_exits_let_the_wanted_share_go_on_and_no_more_attacks_leave_than_allowed():
    """1,000 clean scores 0..999 in both stages. Attacks at 2000 never leave; at 0 all would."""
    clean = np.repeat(np.arange(1000.0)[:, None], 2, 1)
    far = np.full((400, 2), 2000.0)
    at, missed = choose_exits(clean, far, ["pgd"] * 400, [0.25], 0.05)
    assert at == (749.0,)
    assert (missed.count, missed.of, missed.by_attack) == (0, 400, {"pgd": (0, 400)})
    assert missed.at_most < 0.02
    sly = np.column_stack([np.linspace(0, 999, 400), np.full(400, 2000.0)])  # found by the last stage alone
    at, missed = choose_exits(clean, sly, ["cw"] * 400, [0.25], 0.05)
    assert missed.at_most <= 0.02
    assert at[0] < 20
    at, _ = choose_exits(clean, far[:20], ["pgd"] * 20, [0.25], 0.05)
    assert at == (-np.inf,)  # too few attacks to show anything: everyone goes on


def test_verdicts_are_the_same_in_full_and_cheap_images_are_cheap(detector, classifier, digits):
    """`full` walks every stage for what it shows; without it an image that leaves early costs four forwards."""
    images = classifier.check(digits[0][1500:1560])
    quick, full = detector.judge(images), detector.judge(images, full=True)
    np.testing.assert_array_equal(quick.adversarial, full.adversarial)
    np.testing.assert_array_equal(quick.stage, full.stage)
    np.testing.assert_allclose(quick.score, full.score, atol=1e-4)
    assert np.isfinite(full.barrier).all()
    assert np.isfinite(full.secondary_barriers).all()
    np.testing.assert_array_equal(np.isnan(quick.barrier), quick.stage < len(detector.cascade_.connectivities))
    early = quick.stage == 1
    if early.any():
        np.testing.assert_allclose(quick.forwards[early], 4)
    assert quick.total_cost.forwards == pytest.approx(quick.forwards.sum())
    # 36 of copies, 3 and 6 on the paths, scans of two and of four segments; a top point and two of the next level
    assert full.total_cost.forwards <= (36 + 9 + 2 * 5 + 4 * 5) * len(images)
    assert full.total_cost.gradients <= (5 + 2 * 5) * len(images)


def test_a_bound_on_the_stages_has_a_threshold_of_its_own(detector, classifier, digits):
    """Of the same calibration images, cut off at that stage; so the rate stays, and no image costs more."""
    images = classifier.check(digits[0][1400:1600])
    seen = detector.judge(images, max_stage=1)
    np.testing.assert_allclose(seen.forwards, 4)
    assert seen.adversarial.mean() < 0.12
    assert detector.calibration(1).threshold < detector.calibration_.threshold
    for wrong in (0, len(detector.cascade_.connectivities) + 1):
        with pytest.raises(FitError, match="max_stage"):
            detector.judge(images[:1], max_stage=wrong)


def test_without_stages_it_is_one_walk(classifier, digits):
    """stages=None: every image pays the same, and the score is the head's log-odds."""
    from conftest import MIXTURE

    from advconn.detector.fitting import fit

    images, labels = digits
    few = {"attacks": MIXTURE[:2], "per_attack": 60, "accept_weak": True}
    one = fit(classifier, images[900:1300], labels[900:1300], stages=None, **few)
    seen = one.judge(images[1500:1510])
    assert set(seen.stage) == {1}
    assert list(one.names_) == list(one.connectivity.get_feature_names_out())
    np.testing.assert_allclose(seen.forwards, 1 + 30 + 5 + 5 * 3, atol=1e-9)
    assert isinstance(one, Detector)


def test_shares_go_with_the_stages_that_are_walked(classifier, detector):
    """The first two stages bring nothing new here: the share of the third is that of the first that is left."""
    walk = Connectivity(classifier, detector.connectivity.references, copies=("flip", "mean3"), halves=())
    assert len(stage_extractors(walk, STAGES)) == 2
    assert continue_rates(walk, STAGES) == (STAGES[2].share,)
    assert continue_rates(walk, None) == ()
    assert continue_rates(detector.connectivity, STAGES) == tuple(stage.share for stage in STAGES[:-1])
