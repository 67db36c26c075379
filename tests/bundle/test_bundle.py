"""A detector as a folder: what comes back, what is refused, and what is never run."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.neural_network import MLPClassifier

from advconn import bundle, models
from advconn.bundle import card_schema as cards
from advconn.cascade.heads import clone_unfitted, default_head
from advconn.detector.detector import Detector
from advconn.errors import BundleError, DataError, FitError
from advconn.features.connectivity import Connectivity
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    """The detector's folder, for a classifier that has to be given."""
    return bundle.save(detector, tmp_path_factory.mktemp("bundles") / "digits")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture(scope="module")
def images(classifier, digits):
    return classifier.check(digits[0][1500:1520])


def test_a_loaded_detector_says_what_the_saved_one_said(saved, detector, classifier, images):
    """Scores, threshold, p-values and the explanation."""
    again = bundle.load(saved, model=classifier)
    np.testing.assert_allclose(again.score_samples(images), detector.score_samples(images), atol=1e-5)
    assert again.calibration_.threshold == pytest.approx(detector.calibration_.threshold)
    assert again.fitted_ == detector.fitted_
    assert again.fitted_.precision == "float32"
    np.testing.assert_array_equal(again.fitted_.image_hashes, detector.fitted_.image_hashes)
    assert len(again.fitted_.image_hashes) > 0
    here, there = detector.judge(images), again.judge(images)
    np.testing.assert_allclose(detector.family_effects(here)["self"], again.family_effects(there)["self"], atol=1e-4)
    assert detector.reasons(here) == again.reasons(there)


def test_a_named_architecture_travels_with_its_weights(net, digits, tmp_path):
    """And is rebuilt without being given."""
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    classifier = models.load("advconn:compact", tmp_path / "w.safetensors", size=(8, 8))
    from advconn.detector.fitting import fit

    detector = fit(
        classifier,
        digits[0][900:1100],
        attacks=("fgsm:eps=0.3",),
        connectivity={"copies": ("flip", "mean3"), "halves": ()},
        accept_weak=True,
    )
    bundle.save(detector, tmp_path / "out")
    again = bundle.load(tmp_path / "out")
    images = digits[0][1200:1210]
    np.testing.assert_allclose(again.score_samples(images), detector.score_samples(images), atol=1e-5)


def with_head(head, detector, classifier, digits):
    clean = classifier.check(digits[0][900:1000])
    attacked = (clean + 0.3 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    return Detector(detector.connectivity, head=head).fit(torch.cat([clean, attacked]), np.repeat([0, 1], 100))


def test_a_network_as_head_travels_too(detector, classifier, digits, images, tmp_path):
    """With its optimiser."""
    found = with_head(MLPClassifier((8,), max_iter=50), detector, classifier, digits)
    again = bundle.load(bundle.save(found, tmp_path / "out"), model=classifier)
    np.testing.assert_allclose(again.score_samples(images), found.score_samples(images), atol=1e-5)


def test_trees_are_refused_when_saved(detector, classifier, digits, tmp_path):
    """A forged node table would be walked by compiled code without a check."""
    found = with_head(ExtraTreesClassifier(10), detector, classifier, digits)
    with pytest.raises(BundleError, match="cannot be saved safely"):
        bundle.save(found, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_no_file_in_it_is_a_pickle(saved):
    """Nothing that pickle would read."""
    for file in saved.iterdir():
        with pytest.raises(
            (pickle.UnpicklingError, UnicodeDecodeError, EOFError, ValueError, KeyError, IndexError, AttributeError)
        ):
            pickle.loads(file.read_bytes())


@pytest.mark.parametrize("name", [bundle.CARD, bundle.TENSORS, bundle.HEAD])
@pytest.mark.parametrize("damage", ["truncate", "edit", "remove"])
def test_a_damaged_file_is_refused(folder, classifier, name, damage):
    """Truncated, edited or missing, in one line that names it."""
    file = folder / name
    data = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        middle = len(data) // 2
        file.write_bytes(
            data[:middle] if damage == "truncate" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        )
    with pytest.raises(BundleError) as caught:
        bundle.load(folder, model=classifier)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def rewrite(folder, change):
    """Edit the card as someone would who also mends its hashes."""
    card = json.loads((folder / bundle.CARD).read_text())
    change(card)
    card["files"] = {p.name: cards.sha256(p) for p in folder.iterdir() if p.name != bundle.CARD}
    card["card"] = cards.digest(card)
    (folder / bundle.CARD).write_text(json.dumps(card))


def test_a_bundle_never_names_code_to_run(folder, tmp_path):
    """A card that names a file or a module as its classifier is refused before anything is imported."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef build(): pass\n")
    for name in (f"{tmp_path}/evil.py:build", "os:getcwd"):
        rewrite(folder, lambda card, name=name: card["classifier"].update(name=name))
        with pytest.raises(BundleError, match="does not load by itself"):
            bundle.load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_head_of_foreign_types_is_refused(folder, classifier):
    """skops would have to be told to trust it."""
    from skops.io import dump

    dump(Path_like(), folder / bundle.HEAD)
    rewrite(folder, lambda card: None)
    with pytest.raises(BundleError, match="does not load"):
        bundle.load(folder, model=classifier)


class Path_like:
    """A type that no head is made of."""

    def __init__(self) -> None:
        self.x = 1


def test_cards_of_another_kind_are_refused(folder, classifier):
    """Another format, or one that lacks what it must say."""
    rewrite(folder, lambda card: card.update(format=99))
    with pytest.raises(BundleError, match="format"):
        bundle.load(folder, model=classifier)
    rewrite(folder, lambda card: (card.update(format=bundle.FORMAT), card.pop("calibration")))
    with pytest.raises(BundleError, match="does not describe"):
        bundle.load(folder, model=classifier)


def test_other_weights_or_no_classifier_are_refused(saved, net):
    """The fingerprint is checked; without a classifier it says what to give."""
    other = compact(10, 1, (8, 16, 32)).eval()
    with pytest.raises(BundleError, match="other weights"):
        bundle.load(saved, model=Classifier(other, size=(8, 8), channels=1))
    with pytest.raises(BundleError, match="--model"):
        bundle.load(saved)


def test_a_folder_is_written_whole_or_not_at_all(detector, saved, tmp_path, monkeypatch):
    """No overwriting, no half-written folder, no unfitted detector."""
    with pytest.raises(DataError, match="not empty"):
        bundle.save(detector, saved)
    with pytest.raises(FitError):
        bundle.save(Detector(detector.connectivity), tmp_path / "unfitted")
    monkeypatch.setattr("advconn.bundle.saving._card", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bundle.save(detector, tmp_path / "failed")
    assert list(tmp_path.iterdir()) == []


def test_another_normalisation_is_another_classifier(saved, net):
    """The same weights behind another mean and deviation are refused, for the scores would be of other inputs."""
    with pytest.raises(BundleError, match="fitted with mean"):
        bundle.load(saved, model=Classifier(net, size=(8, 8), channels=1, mean=(0.1,), std=(0.3,)))


def test_a_loaded_detector_was_made_with_the_same_arguments(classifier, digits, tmp_path):
    """All of them, so that refitting a clone of it is the same fit."""
    images, labels = digits
    given = {"attacks": ("fgsm:eps=51/255", "pgd:eps=51/255,steps=5"), "per_attack": 70, "calibrate": 0.45, "seed": 3}
    given |= {"fpr": 0.1, "benign": ("sharpen",), "conditions": ("clean", "gamma"), "confidence": 0.8, "by_class": True}
    made = Detector(Connectivity(classifier), stages=None, head=default_head(7), **given)
    made.fit(images[900:1300], labels=labels[900:1300])
    loaded = bundle.load(bundle.save(made, tmp_path / "detector"), model=classifier)
    for name, value in made.get_params(deep=False).items():
        if name == "connectivity":
            assert loaded.connectivity.settings() == value.settings()
        elif name == "head":
            assert str(loaded.head) == str(value)
        else:
            assert getattr(loaded, name) == value, name
    again = clone(loaded).fit(images[900:1300], labels=labels[900:1300])
    assert again.calibration_.threshold == made.calibration_.threshold


def test_a_head_of_another_version_is_copied_without_what_it_lacks():
    """Parameters that one version of scikit-learn writes and another asks for."""
    head = default_head(3).fit([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    vars(head[-1]).pop("tol")
    again = clone_unfitted(head)
    assert (again[-1].C, again[-1].random_state) == (0.1, 3)
    assert again[-1].tol > 0
    assert not hasattr(again[-1], "coef_")
