"""Groups of pictures: a noisy picture is compared with noisy ones, and each group has its own rate."""

import numpy as np
import pytest

from advconn import bundle
from advconn.detector.calibration import Calibration, Cell
from advconn.detector.fitting import fit
from advconn.detector.picture_groups import MAX_GROUPS, learn_groups
from advconn.errors import BundleError

NAMES = ("query.margin", "grain.mean", "pixels.same")


def pictures(rng, count):
    """Features and scores: noise raises the score, the margin does as well but is no picture's own."""
    noisy = rng.random(count) < 0.3
    features = np.stack([rng.standard_normal(count), noisy + 0.1 * rng.random(count), rng.random(count)], 1)
    return features, rng.standard_normal(count) + 3 * noisy, noisy


def test_a_tree_finds_what_raises_the_scores_of_clean_pictures():
    """By the picture's own features alone; it says the same of the same picture, alone or among others."""
    features, scores, noisy = pictures(np.random.default_rng(0), 900)
    groups = learn_groups(features, NAMES, scores)
    assert groups.names == NAMES[1:]
    label = groups.of(features, NAMES)
    assert 2 <= len(np.unique(label)) <= MAX_GROUPS
    assert not set(label[noisy]) & set(label[~noisy])
    assert groups.of(features[5:6, ::-1], NAMES[::-1])[0] == label[5]
    assert learn_groups(features[:100], NAMES, scores[:100]) is None
    assert learn_groups(features[:, :1], NAMES[:1], scores) is None


def test_each_group_has_its_rate_and_quiet_pictures_a_lower_threshold():
    """Over many draws; one threshold for all would spend nothing on the quiet ones."""
    rng = np.random.default_rng(1)
    features, scores, _ = pictures(rng, 2000)
    groups = learn_groups(features, NAMES, scores)
    rates = {True: [], False: []}
    for _ in range(60):
        parts = {name: pictures(rng, 400) for name in ("clean", "blur")}
        labels = {name: groups.of(part[0], NAMES) for name, part in parts.items()}
        calibration = Calibration({name: part[1] for name, part in parts.items()}, 0.05, groups=labels)
        assert len(calibration.by_group) >= 2
        fresh, score, noisy = pictures(rng, 2000)
        label = groups.of(fresh, NAMES)
        flagged = score > calibration.thresholds(np.zeros(2000, int), label)
        np.testing.assert_array_equal(flagged, calibration.p_value(score, None, label) <= calibration.level)
        for kind, rate in rates.items():
            rate.append(flagged[noisy == kind].mean())
    assert 0.02 < np.mean(rates[True]) <= 0.052
    assert 0.03 < np.mean(rates[False]) <= 0.052


def test_a_pooled_cell_counts_the_missing_renditions_of_the_image():
    """By hand: of 96 scores and 4 renditions of the image, one of which is itself."""
    cell = Cell(np.arange(96.0), 4)
    np.testing.assert_allclose(cell.p_value(np.array([95.0, 95.5, -1.0])), [0.05, 0.04, 1.0])
    assert cell.threshold(0.05) == 94.0
    assert cell.p_value(np.array([94.0, 94.5]))[0] > 0.05 >= cell.p_value(np.array([94.5]))[0]
    assert Cell(np.arange(10.0), 4).threshold(0.05) == float("inf")


def test_small_groups_are_merged_and_a_confidence_leaves_them_out():
    """By the number of their images; where one is left, there are none."""
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal(300), np.repeat([1, 2, 3], [150, 140, 10])
    both = {"clean": scores, "blur": scores + 0.1}
    groups = dict.fromkeys(both, labels)
    by_group = Calibration(both, 0.05, groups=groups).by_group
    assert set(by_group) == {1, 2, 3}
    assert by_group[3] is by_group[2]
    assert Calibration(both, 0.05, confidence=0.9, groups=groups).by_group == {}
    thirds = np.repeat([1, 2, 3], [13, 14, 16])  # two of them are enough together, the third alone is not
    small = Calibration({"clean": scores[:43]}, 0.05, groups={"clean": thirds})
    assert np.isfinite(small.thresholds(np.zeros(43, int), thirds)).all()
    few = {"clean": scores[:40]}
    assert Calibration(few, 0.05, groups={"clean": labels[:40]}).by_group == {}


def test_they_travel_with_the_bundle_and_damaged_ones_are_refused(classifier, digits, tmp_path):
    """The same verdicts; a tree that leads back into itself is no tree."""
    from safetensors.numpy import load_file, save_file

    fitted = fit(classifier, digits[0][900:1400], digits[1][900:1400], accept_weak=True, note=lambda text: None)
    assert fitted.groups_ is not None
    bundle.save(fitted, tmp_path / "d")
    other = bundle.load(tmp_path / "d", model=classifier)
    before, after = (d.judge(digits[0][1400:1600]) for d in (fitted, other))
    np.testing.assert_array_equal(before.p_value, after.p_value)
    np.testing.assert_array_equal(before.adversarial, fitted.predict(digits[0][1400:1600]) == 1)
    assert (before.adversarial == (before.p_value <= fitted.calibration_.level)).all()
    tensors = load_file(tmp_path / "d" / "detector.safetensors")
    tensors["groups.left"] = np.zeros_like(tensors["groups.left"])
    from advconn.bundle.restoring import pictures_of

    names = list(fitted.groups_.names)
    with pytest.raises(BundleError, match="damaged"):
        pictures_of(tensors, names, ["clean"], list(map(str, fitted.names_)))
    save_file(tensors, tmp_path / "d" / "detector.safetensors")
    with pytest.raises(BundleError):
        bundle.load(tmp_path / "d", model=classifier)
