"""A companion: a second network, trained against attacks, asked beside the classifier; and heads taught on evasion."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import save_file

from advconn import bundle, models
from advconn.cascade.differentiable_score import adaptive_training_images, differentiable_score
from advconn.cli import main
from advconn.detector.fitting import fit
from advconn.errors import BundleError, DataError, FitError, ModelError
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import feature_table
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.models.margin import margin

MIXTURE = ("pgd:eps=0.2,steps=10", "pgd:eps=0.1,steps=10", "fgsm:eps=0.2")
SIZE = 0.1


@pytest.fixture(scope="module")
def robust(digits, tmp_path_factory):
    """Weights of a network trained on the first 900 digits and their FGSM copies, for seconds."""
    images, labels = digits[0][:900].float() / 255, digits[1][:900]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = compact(10, 1, (8, 16, 32))
        optimizer = torch.optim.Adam(net.parameters(), 5e-3)
        for _ in range(15):
            for rows in torch.randperm(900).split(100):
                leaf = images[rows].clone().requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(net(leaf), labels[rows]), leaf)
                moved = (images[rows] + SIZE * slope.sign()).clamp(0, 1)
                optimizer.zero_grad()
                F.cross_entropy(net(torch.cat([images[rows], moved])), labels[rows].repeat(2)).backward()
                optimizer.step()
    file = tmp_path_factory.mktemp("companion") / "robust.safetensors"
    save_file(net.state_dict(), file)
    return file


@pytest.fixture(scope="module")
def companion(robust):
    return models.load("advconn:compact", robust, size=(8, 8))


@pytest.fixture(scope="module")
def hardened(classifier, companion, digits):
    images, labels = digits
    made = {"attacks": MIXTURE, "per_attack": 100, "evasive": 48}
    return fit(classifier, images[900:1400], labels[900:1400], companion=companion, **made)


def test_its_columns_are_its_log_odds(classifier, companion, digits):
    images = classifier.check(digits[0][1500:1510])
    walk = Connectivity(classifier, companion=companion, families=("companion",))
    columns, names = feature_table(walk.trace(images))
    found = dict(zip(names, columns.T, strict=True))
    label = classifier.predict(images)
    for name, points in (("margin", images), ("mirror", images.flip(3))):
        expected = margin(companion.logits(points), label)
        expected = expected if name == "margin" else expected - margin(companion.logits(images), label)
        torch.testing.assert_close(found[f"companion.{name}"], expected, atol=1e-4, rtol=1e-4)
    loss = F.cross_entropy(companion.logits(images), label, reduction="none")
    torch.testing.assert_close(found["companion.loss"], loss, atol=1e-4, rtol=1e-3)
    bare = Connectivity(classifier, families=("self",))
    assert len(names) == 8
    assert bare.key() != Connectivity(classifier, companion=companion, families=("self",)).key()


def test_it_takes_images_of_its_own_size(classifier, robust, digits):
    images = classifier.check(digits[0][1500:1504])
    larger = models.load("advconn:compact", robust, size=(16, 16))
    assert Connectivity(classifier, companion=larger).beside(images).shape == (4, 2, 10)


def test_another_number_of_classes_is_refused(classifier, digits):
    other = Classifier(compact(5, 1, (8, 16)).eval(), size=(8, 8), channels=1)
    with pytest.raises(ModelError, match="the companion has 5 classes, the classifier 10"):
        fit(classifier, digits[0][900:1400], companion=other)
    with pytest.raises(DataError, match="num_classes is 5, the classifier's 10"):
        Connectivity(classifier, companion=other).transform(digits[0][:4])
    with pytest.raises(DataError, match="needs a companion"):
        Connectivity(classifier, families=("companion",)).transform(digits[0][:4])


def test_a_quick_fit_has_no_use_for_one(classifier, companion, digits):
    with pytest.raises(FitError, match="companion: a quick fit"):
        fit(classifier, digits[0][900:1400], companion=companion, quick=True)


def test_what_evaded_is_taught(hardened, classifier, digits):
    """Images that evade the same detector without a companion are flagged by the hardened one."""
    plain = fit(classifier, digits[0][900:1400], digits[1][900:1400], attacks=MIXTURE, per_attack=100)
    images, labels = digits[0][1400:1700], digits[1][1400:1700]
    evading = adaptive_training_images(plain.cascade_, images, labels, 2 * SIZE)
    assert evading.tried > 200
    missed = evading.images[torch.from_numpy(~plain.judge(evading.images).adversarial)]
    assert len(missed) > 10
    assert hardened.judge(missed).adversarial.mean() >= 0.2
    assert hardened.judge(images).adversarial.mean() < 0.05
    counts = hardened.fitted_.attacks
    assert counts["evasive:eps=25.5/255"][0] == counts["evasive:eps=51/255"][0] > 48
    assert {name.partition(".")[0] for name in hardened.names_} == {
        "query",
        "self",
        "grain",
        "pixels",
        "companion",
        "own",
        "rival",
        "near",
        "complexity",
    }


def test_an_image_must_convince_the_companion_too(hardened, companion, classifier, digits):
    """Its log-odds, the mean of image and mirror, are held against the head's at every stage; attacks follow both."""
    cascade, images = hardened.cascade_, classifier.check(digits[0][1500:1540])
    label = classifier.predict(images)
    both = [margin(companion.logits(x), label).numpy() for x in (images, images.flip(3))]
    scores = cascade.walk(images, full=True).scores
    heads = replace(cascade, gate=None).walk(images, full=True).scores
    expected = np.maximum(heads, np.mean(both, 0)[:, None] - cascade.gate)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    assert (scores > heads).any()
    leaf = images.clone().requires_grad_()
    differentiable_score(cascade, 1.0)(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_it_travels_in_the_bundle(hardened, classifier, companion, digits, tmp_path):
    folder = bundle.save(hardened, tmp_path / "out")
    images = classifier.check(digits[0][1500:1520])
    again = bundle.load(folder, model=classifier)
    np.testing.assert_allclose(again.score_samples(images), hardened.score_samples(images), atol=1e-5)
    assert again.evasive == 48
    assert again.cascade_.gate == hardened.cascade_.gate
    assert again.connectivity.companion.fingerprint == companion.fingerprint
    other = Classifier(compact(10, 1, (8, 16)).eval(), size=(8, 8), channels=1)
    with pytest.raises(BundleError, match="another companion"):
        bundle.load(folder, model=classifier, companion=other)


BESIDE = """
from safetensors.torch import load_file
from advconn.models.architectures import compact

def build():
    net = compact(10, 1, (8, 16, 32))
    net.load_state_dict(load_file({weights!r}))
    return net.eval()
"""


def test_one_that_no_bundle_may_rebuild_is_given(hardened, classifier, companion, net, robust, digits, tmp_path):
    """In Python and on the command line; what is no Classifier is told."""
    walk, state = hardened.connectivity, companion.state
    companion.state = None
    try:
        folder = bundle.save(hardened, tmp_path / "out")
    finally:
        companion.state = state
    with pytest.raises(BundleError, match="holds no companion"):
        bundle.load(folder, model=classifier)
    assert bundle.load(folder, model=classifier, companion=companion).connectivity.settings() == walk.settings()
    with pytest.raises(ModelError, match="companion= takes a Classifier, got Sequential"):
        bundle.load(folder, model=classifier, companion=net)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    for name, weights in (("mine", tmp_path / "w.safetensors"), ("beside", robust)):
        (tmp_path / f"{name}.py").write_text(BESIDE.format(weights=str(weights)))
    np.savez(tmp_path / "some.npz", images=digits[0][1500:1504, 0].numpy())
    line = ["score", str(tmp_path / "some.npz"), "--detector", str(folder), "--model", f"{tmp_path}/mine.py:build"]
    refused = CliRunner().invoke(main, line)
    assert refused.exit_code == 2
    assert "--companion SPEC" in refused.stderr
    done = CliRunner().invoke(main, [*line, "--companion", f"{tmp_path}/beside.py:build"])
    assert done.exit_code in (0, 1), done.output
    without = CliRunner().invoke(
        main, [*line[:2], "--detector", "digits", "--companion", f"{tmp_path}/beside.py:build"]
    )
    assert without.exit_code == 2
    assert "without a companion" in without.stderr


def test_the_command_takes_one(robust, net, digits, tmp_path):
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    np.savez(tmp_path / "clean.npz", images=digits[0][900:1200, 0].numpy(), labels=digits[1][900:1200].numpy())
    line = ["fit", "--model", "advconn:compact", "--weights", tmp_path / "net.safetensors", "--size", "8", "--data"]
    line += [tmp_path / "clean.npz", "--companion", "advconn:compact", "--companion-weights", robust, "--out"]
    line += [tmp_path / "out", "--channels", "1", "--cache", tmp_path / "cache"]
    refused = CliRunner().invoke(main, [*map(str, line), "--quick"])
    assert refused.exit_code == 2
    assert "--companion goes with --full" in refused.output
    more = ["--attack", "pgd:eps=0.2,steps=5", "--attack", "fgsm:eps=0.2", "--limit-attacked", "40"]
    done = CliRunner().invoke(main, [*map(str, line), *more])
    assert done.exit_code == 0, done.output
    assert "evasive:eps=51/255" in done.output
    assert (tmp_path / "out" / "companion.safetensors").is_file()
