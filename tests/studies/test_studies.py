"""Every study's fast setting on the shipped default for digits: what the papers claim of it holds."""

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from advconn.bundle.loading import load
from advconn.bundle.shipped import default
from advconn.cli import main
from advconn.cli.study import NAMES
from advconn.data.datasets import unseen_digits
from advconn.errors import DataError, PathError
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.paths.space import Space
from advconn.studies import Subject, studies
from advconn.studies.common import blocks
from advconn.studies.percolation import component, threshold


@pytest.fixture(scope="module")
def subject():
    data = unseen_digits()
    classifier = load(default("digits")).classifier
    return Subject(classifier, data.images, data.labels, data.name, attacks=dict(data.attacks))


def run(name, subject):
    """A study's figures; its text says something and its picture can be drawn."""
    found = studies()[name](subject, fast=True)
    assert len(found.text) > 100
    assert found.draw().get_size_inches()[0] > 3
    return json.loads(json.dumps(found.figures))


def test_the_command_knows_every_study():
    """By the same names."""
    assert set(studies()) == set(NAMES)


def test_linear_or_not(subject):
    """No pair is unconnected in any space, and before the last layer all are connected by lines (Table 1)."""
    found = run("linear-or-not", replace(subject, others=[subject.classifier]))
    assert set(found["table"]) == {"pixel", "first block", "last layer"}
    for row in found["table"].values():
        for outcomes in (row["same prediction"], row["cross-entropy under .001"]):
            assert sum(outcomes.values()) == 25
            assert outcomes["none"] == 0
    assert found["table"]["last layer"]["cross-entropy under .001"] == {"line": 25, "curve": 0, "none": 0}
    assert found["table"]["pixel"]["cross-entropy under .001"]["curve"] > 0
    assert found["all pairs"]["parts joined by paths"] == 1
    assert list(found["other networks"].values()) == [found["table"]]


def test_barriers(subject):
    """An adversarial image stands behind a barrier that a real one of its class does not (section 4.2)."""
    kinds = run("barriers", subject)["kinds"]
    assert kinds["real, real"]["barrier"]["auroc"] == 0.5
    assert kinds["real, adversarial unbounded"]["gap"]["auroc"] > 0.7
    assert kinds["real, adversarial cw"]["barrier"]["auroc"] > 0.8
    assert kinds["real, adversarial unbounded"]["barrier"]["n"] >= 50
    saved = kinds["real, adversarial fgsm, jpeg75"]["barrier"]
    assert 2 <= saved["n"] <= kinds["real, adversarial fgsm"]["barrier"]["n"]


def test_bypass(subject):
    """Every level leaves no more pairs with a barrier than the one before; in the end none (section 4.1)."""
    for row in run("bypass", subject)["kinds"].values():
        assert row["with a barrier"] > 0
        assert row["barriers removed by level"] == sorted(row["barriers removed by level"])
        assert row["barriers removed by level"][-1] == 1.0
        assert row["size of B' - B"]["median"] < 0.2


def test_untrained(subject):
    """Synthesised inputs of a class are connected in networks that have learnt nothing (section 4.3)."""
    found = run("untrained", subject)
    assert found["pairs"] >= 4
    assert found["outcomes"]["none"] == 0
    assert found["barrier after bypass"]["median"] <= found["barrier of the line"]["median"]


def test_training(subject):
    """Learning shows in the accuracy, and inputs of a class are connected again once it has begun (appendix F.1)."""
    rows = run("training", subject)["rows"]
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.3
    assert "barrier of the line" in rows[-1]
    for row in rows:
        if "lost" not in row:
            assert row["barrier after bypass"]["mean"] <= row["barrier of the line"]["mean"] + 1e-6


def test_percolation(subject):
    """More classes than one lie above the threshold, and a class met in a plane is nearly one part."""
    found = run("percolation", subject)
    assert found["threshold"] == pytest.approx(threshold(64))
    assert sum(found["shares"]["trained"]) == pytest.approx(1)
    assert sum(v > found["threshold"] for v in found["shares"]["trained"]) > 1
    plane = next(r for r in found["slices"] if r["network"] == "trained" and r["dimensions"] == 2)
    assert plane["share in the largest part"]["mean"] > 0.9


@pytest.mark.parametrize(("dimension", "known"), [(784, 6.388e-4), (3072, 1.62827e-4), (150528, 3.32167e-6)])
def test_the_percolation_threshold(dimension, known):
    """At the sizes of MNIST, CIFAR-10 and ImageNet."""
    assert threshold(dimension) == pytest.approx(known, rel=2e-4)


def test_half_planes_are_one_part_each():
    """A linear classifier's two classes in any slice."""

    class Half(torch.nn.Module):
        def forward(self, x):
            value = x.flatten(1).sum(1, keepdim=True) - 24
            return torch.cat([value, -value], 1)

    images = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    rows = component(Classifier(Half().eval(), size=(4, 4)), images, 3, 6, 0)
    assert [r["parts"] for r in rows] == [1, 1]
    assert [r["largest"] for r in rows] == [1.0, 1.0]


def test_architectures(subject, net):
    """A row for every classifier that is given; of a trained one an attacked image stands out, of a raw one none."""
    other = Classifier(net, size=(8, 8), channels=1)
    found = run("architectures", replace(subject, others=(other,)))
    trained, _ = found["classifiers"].values()
    assert trained["kinds"]["real, adversarial cw"]["barrier"]["auroc"] > 0.8


def test_images_of_one_class_and_few_images(subject):
    """No misclassified image has a partner: none is looked at. Under 20 images: refused."""
    ones = subject.classifier.logits(subject.classifier.check(subject.images)).argmax(1).cpu() == 1
    rows = (ones & (subject.labels == 1)).nonzero()[:24, 0]
    found = run("linear-or-not", replace(subject, images=subject.images[rows], labels=subject.labels[rows]))
    assert found["misclassified"]["pairs"] == 0
    assert found["pairs"] == 12
    for name in ("training", "barriers"):
        with pytest.raises(DataError, match="20 or more"):
            run(name, replace(subject, images=subject.images[:5], labels=subject.labels[:5]))


def test_the_layers_looked_at(subject):
    """The first block, and what the last layer is given, whatever function it comes out of; or why there is none."""

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc1, self.fc2 = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(144, 8), torch.nn.Linear(8, 10)

        def forward(self, x):
            return self.fc2(self.fc1(self.conv(x).relu().flatten(1)).relu())

    class Bad(Plain):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    assert blocks(subject.classifier) == {"first block": "stage1", "last layer": "head:input"}
    plain = Classifier(Plain().eval(), size=(8, 8), channels=1)
    assert blocks(plain) == {"first block": "conv", "last layer": "fc2:input"}
    images = plain.check(subject.images[:4])
    space = Space(plain, "fc2:input")
    assert float(space.points(images).min()) == 0
    torch.testing.assert_close(space.logits(space.points(images)), plain.logits(images))
    with pytest.raises(PathError, match="cannot be traced"):
        blocks(Classifier(Bad().eval(), size=(8, 8), channels=1))


def test_the_command_writes_a_folder(tmp_path, monkeypatch):
    """Results, picture and text; on digits where there is no network, and that is said."""
    monkeypatch.setenv("ADVCONN_DATA", str(tmp_path / "file" / "x"))
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["study", "percolation", "--fast", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "digits" in result.output
    assert sorted(p.name for p in out.iterdir()) == ["figure.png", "results.json", "text.md"]
    assert json.loads((out / "results.json").read_text())["figures"]["dimension"] == 64
    assert Image.open(out / "figure.png").size[0] > 300
    again = CliRunner().invoke(main, ["study", "percolation", "--fast", "--out", str(out)])
    assert again.exit_code == 2
    assert "not empty" in again.output


def test_a_model_needs_data():
    """In one line."""
    result = CliRunner().invoke(main, ["study", "barriers", "--model", "torchvision:resnet18"])
    assert result.exit_code == 2
    assert "--data is needed" in result.output


def test_too_few_images_are_refused(subject):
    """Ten images are no study."""
    from dataclasses import replace

    from advconn.errors import DataError

    few = replace(subject, images=subject.images[:10], labels=subject.labels[:10])
    with pytest.raises(DataError, match="20 or more"):
        studies()["barriers"](few, fast=True)


def test_a_network_that_gives_one_class_only_is_told(subject):
    """Nothing to pair: an untrained network's barriers."""
    from dataclasses import replace

    torch.manual_seed(0)
    flat = Classifier(compact(10, 1, (8, 16, 32)).eval(), size=(8, 8), channels=1)
    found = studies()["barriers"](replace(subject, classifier=flat, labels=None), fast=True)
    assert "real, real" in found.figures["kinds"]
