"""A detector that catches nothing is not handed over in silence."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from advconn import bundle
from advconn.cli import main
from advconn.detector import trial_attack
from advconn.detector.efficacy import Efficacy
from advconn.detector.fitting import fit
from advconn.detector.guard import Guard
from advconn.errors import AdvconnWarning, FitError

WEAK, STRONG = (Efficacy("pgd:eps=8/255,steps=10", 40, auroc, caught) for auroc, caught in ((0.86, 0.1), (0.999, 1.0)))
FACTORY = """
from safetensors.torch import load_file
from advconn.models.architectures import compact

def build():
    net = compact(10, 1, (8, 16, 32))
    net.load_state_dict(load_file({weights!r}))
    return net.eval()
"""


def measuring(monkeypatch, *found):
    """Let trials find this in turn, and the last for ever after."""
    left = list(found)
    monkeypatch.setattr(trial_attack.Trial, "measure", lambda *_, **__: left.pop(0) if len(left) > 1 else left[0])


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_what_is_measured_is_kept(classifier, digits, tmp_path):
    """One attack, on images in no other use; with what each condition costs."""
    fitted = fit(classifier, digits[0][900:1400], digits[1][900:1400], accept_weak=True, note=lambda text: None)
    found = fitted.fitted_.efficacy
    assert found.attack.startswith("pgd")
    assert trial_attack.MIN_ATTACKED <= found.count <= trial_attack.MAX_ATTACKED
    assert found.auroc > 0.9
    assert set(found.prices) == set(fitted.calibration_.conditions) - {"clean"}
    assert all(price >= 0 for price in found.prices.values())
    bundle.save(fitted, tmp_path / "d")
    card = json.loads((tmp_path / "d" / "card.json").read_text())["efficacy"]
    assert (card["attack"], card["count"], card["weak"]) == (found.attack, found.count, found.weak)
    assert bundle.load(tmp_path / "d", model=classifier).fitted_.efficacy == found
    assert bundle.load(bundle.default()).fitted_.efficacy is None


def test_a_trial_that_would_take_too_long_says_nothing(classifier, digits):
    detector = bundle.load(bundle.default("digits"))
    some = digits[0][1500:1540], digits[1][1500:1540]
    assert trial_attack.Trial(*some, seconds=0).measure(detector) is None
    found = trial_attack.Trial(*some, seconds=60).measure(detector)
    assert found.count >= trial_attack.MIN_ATTACKED
    assert found.auroc > 0.9


def test_a_weak_quick_fit_attacks_and_then_fits_its_own_heads(classifier, digits, monkeypatch):
    """Each remedy is named with its time, and what it reached is measured again; the best is kept."""
    data, said = (digits[0][900:1200], digits[1][900:1200]), []
    measuring(monkeypatch, WEAK, STRONG)
    moved = fit(classifier, *data, note=said.append)
    assert moved.fitted_.pretrained
    assert moved.fitted_.attacks
    assert moved.fitted_.efficacy == STRONG
    assert any("catches only 10%" in text and "about" in text for text in said)
    assert any("now it catches 100%" in text for text in said)


def test_what_stays_weak_is_refused(classifier, digits, monkeypatch):
    """Unless the caller accepts it."""
    data = digits[0][900:1200], digits[1][900:1200]
    monkeypatch.setattr("advconn.detector.refinement.MAX_SECONDS", 0.0)  # no remedy is affordable
    measuring(monkeypatch, WEAK)
    said = []
    with pytest.raises(FitError, match=r"catches only 10% of 40 images.*accept"):
        fit(classifier, *data, note=said.append)
    assert sum("left to --full" in text for text in said) == 2
    weak = fit(classifier, *data, note=said.append, accept_weak=True)
    with pytest.warns(AdvconnWarning, match="this detector is weak"):
        Guard(weak)


def test_the_command_refuses_or_marks_it(net, digits, tmp_path, monkeypatch):
    """Status 2 and nothing written; accepted, the card, `advconn card` and every later verdict say it first."""
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "mine.py").write_text(FACTORY.format(weights=str(tmp_path / "w.safetensors")))
    np.savez(tmp_path / "d.npz", images=digits[0][900:1200, 0].numpy(), labels=digits[1][900:1200].numpy())
    np.savez(tmp_path / "few.npz", images=digits[0][1200:1204, 0].numpy())
    monkeypatch.setattr("advconn.detector.refinement.MAX_SECONDS", 0.0)
    measuring(monkeypatch, WEAK)
    given = ("--model", f"{tmp_path}/mine.py:build", "--size", "8", "--channels", "1")
    line = ("fit", *given, "--data", tmp_path / "d.npz", "--out", tmp_path / "out")
    out = run(*line)
    assert out.exit_code == 2, out.output
    assert "--accept-weak" in out.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    out = run(*line, "--accept-weak")
    assert out.exit_code == 0, out.output
    assert json.loads((tmp_path / "out" / "card.json").read_text())["efficacy"]["weak"] is True
    page = run("card", tmp_path / "out").output
    assert page.index("WEAK") < page.index("Classifier")
    assert "caught 10% of 40" in page
    out = run("score", "--detector", tmp_path / "out", *given[:2], "--format", "json", "--header", tmp_path / "few.npz")
    assert "this detector is weak" in out.stderr.splitlines()[0]
    assert "caught only 10%" in json.loads(out.stdout.splitlines()[0])["header"]["weak"]
    out = run("score", "--detector", tmp_path / "out", *given[:2], tmp_path / "few.npz")
    assert "this detector is weak" in out.stdout


@pytest.mark.parametrize(("name", "says"), [("cifar10", "not measured"), ("digits", "caught 95%")])
def test_the_card_of_a_shipped_detector_is_printed(name, says):
    out = run("card", name)
    assert out.exit_code == 0, out.output
    for title in ("Classifier", "Fit", "Guarantee", "Efficacy"):
        assert f"\n{title}\n" in out.output
    assert says in out.output


def test_the_card_of_no_detector_is_refused(tmp_path):
    out = run("card", tmp_path)
    assert out.exit_code == 2
    assert "no detector here" in out.output


def test_a_dear_condition_is_named_and_left_out_where_the_user_named_none(classifier, digits, monkeypatch):
    data = digits[0][900:1200], digits[1][900:1200]
    measuring(monkeypatch, Efficacy("pgd", 40, 0.99, 1.0, {"blur": 0.4, "gamma": 0.15}))
    said = []
    fitted = fit(classifier, *data, note=said.append)
    assert "blur" not in fitted.calibration_.conditions
    assert "gamma" in fitted.calibration_.conditions
    assert any("blur costs 40 points" in text and "not guaranteed under blur" in text for text in said)
    kept = fit(classifier, *data, note=said.append, conditions=("clean", "blur", "gamma"))
    assert kept.calibration_.conditions == ("clean", "blur", "gamma")
    assert any("--conditions clean leaves" in text for text in said)
