"""What a fit decides before it begins is told, done and kept."""

import json

import numpy as np
import pytest
import torch
from brought import images, trained

from advconn import bundle
from advconn.cascade.cascade import STAGES
from advconn.detector.fit_plan import FitPlan
from advconn.detector.fitting import fit
from advconn.detector.guard import Verdict
from advconn.errors import FitError
from advconn.models.classifier import Classifier


@pytest.fixture(scope="module")
def classifier():
    return Classifier(trained(), size=16)


def quiet(text):
    """Nobody listens."""


def test_the_plan_is_told_followed_and_kept(classifier, tmp_path):
    """No image is in two uses, and the card gives back what was decided."""
    x, y = images(n=400)
    plans = []
    detector = fit(classifier, x, y, conditions=("clean", "jpeg90"), accept_weak=True, note=quiet, on_plan=plans.append)
    plan = plans[0]
    assert plan.pretrained
    assert plan.attacks == ()
    assert plan.conditions == ("clean", "jpeg90")
    assert sum(plan.images.values()) <= len(x)
    assert plan.images["train"] == detector.fitted_.train
    assert plan.images["calibrate"] == detector.fitted_.calibrate == len(detector.clean_["clean"])
    assert str(plan.images["calibrate"]) in str(plan)
    assert detector.fitted_.plan in plans
    bundle.save(detector, tmp_path / "d")
    card = json.loads((tmp_path / "d" / "card.json").read_text())
    assert card["fitted"]["plan"]["images"] == dict(plan.images)
    assert bundle.load(tmp_path / "d", model=classifier).fitted_.plan == detector.fitted_.plan
    assert bundle.read_card(bundle.default())["fitted"]["plan"] is None  # put together by a script


def test_a_plan_goes_through_json_unchanged():
    plan = FitPlan(
        pretrained=False, refine=0, stages=STAGES, images={"train": 3, "calibrate": 4, "trial": 5, "references": 6},
        held_out=0.4, attacks=("fgsm", "pgd"), per_attack=7, evasive=8, benign=("clean",), conditions=("clean",),
        fpr=0.05, confidence=0.95,
    )  # fmt: skip
    assert FitPlan.from_dict(json.loads(json.dumps(plan.to_dict())), STAGES) == plan
    assert "2 attacks" in str(plan)
    assert "95% confidence" in str(plan)


def test_images_to_calibrate_on_may_have_labels_of_their_own(classifier):
    """Then, and only then, it is told which of them the classifier gets wrong."""
    x, y = images(n=600)
    some = {"conditions": ("clean",), "accept_weak": True, "note": quiet}
    apart, labels = x[200:], y[200:].clone()
    unsure = classifier.logits(classifier.check(apart)).softmax(1).amax(1).cpu()
    worst = unsure <= unsure.quantile(0.2)
    labels[worst] = (labels[worst] + 1) % classifier.num_classes
    known = fit(classifier, x[:200], y[:200], apart=apart, apart_labels=labels, **some)
    unknown = fit(classifier, x[:200], y[:200], apart=apart, **some)
    alone = fit(classifier, x[:200], apart=apart, apart_labels=labels, **some)
    assert known.doubt_ is not None
    assert unknown.doubt_ is None
    assert alone.doubt_ is not None
    assert known.fitted_.plan.images["calibrate"] == len(known.clean_["clean"]) == 400
    with pytest.raises(FitError, match="apart_labels"):
        fit(classifier, x[:200], y[:200], apart_labels=labels, **some)
    with pytest.raises(FitError, match="a label in apart_labels is"):
        fit(classifier, x[:200], y[:200], apart=apart, apart_labels=labels + 9 - labels.min(), **some)
    assert np.array_equal(known.clean_["clean"], unknown.clean_["clean"], equal_nan=True)


def test_a_verdict_with_a_column_exchanged_keeps_its_doubt():
    verdict = Verdict(*(torch.zeros(2) for _ in range(4)), doubtful=torch.ones(2, dtype=torch.bool))
    assert verdict._replace(score=torch.ones(2)).doubtful is verdict.doubtful
