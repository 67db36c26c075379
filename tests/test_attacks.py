"""Attacks by name."""

import pytest
import torch

from advconn.attacks import KINDS, MIXTURE, Attack, parse_all, succeeded
from advconn.classifier import Classifier, margin
from advconn.errors import AttackError
from advconn.nets import compact


def test_a_specification_is_read_and_written_back():
    """Fractions, plain numbers, defaults, and a step of a quarter of eps."""
    attack = Attack.parse("pgd:eps=2/255,steps=50")
    assert attack.settings == {"eps": 2 / 255, "steps": 50, "alpha": 0.5 / 255}
    assert str(attack) == "pgd:eps=2/255,steps=50"
    assert Attack.parse(str(attack)) == attack
    assert Attack.parse("cw:kappa=3").settings["c"] == 1.0
    assert [str(a) for a in parse_all(MIXTURE)] == [str(Attack.parse(str(a))) for a in parse_all(MIXTURE)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "no attack named"),
        ("pgd:epsilon=1", "no parameter"),
        ("pgd:eps=a", "not a number"),
        ("pgd:eps=1/0", "not a number"),
        ("pgd:steps=0", "positive"),
        ("fgsm:steps=3", "no parameter"),
        ("pgd:eps", "no parameter"),
    ],
)
def test_what_is_no_attack_is_refused(text, message):
    with pytest.raises(AttackError, match=message):
        Attack.parse(text)


LOW = {"transfer": 0.1, "colour": 0.05, "spsa": 0.3}  # weak on these few pixels
COLOURED = ("autoattack", "tifgsm")  # of four classes, and of three channels: tested elsewhere


@pytest.mark.parametrize("name", [n for n in KINDS if n not in COLOURED])
def test_every_attack_stays_in_its_bounds_and_mostly_succeeds(name, classifier, digits):
    """On digits, at a strength that suits them; the networks of the user are left alone."""
    images, labels = classifier.check(digits[0][900:916]), digits[1][900:916]
    sizes = {
        "deepfool": ":overshoot=0.1",
        "cw": ":steps=40,lr=0.05,c=5",
        "pgd-l2": ":eps=2",
        "square": ":eps=0.3,n_queries=100",
        "low-frequency": ":eps=0.3,grid=4",
        "patch": ":side=4",
        "colour": ":size=0.6",
        "onepixel": ":pixels=6,steps=5",
        "pixle": ":restarts=3",
        "spsa": ":eps=0.3,steps=20,samples=16",
        "spatial": ":rotation=40,shift=3",
        "hopskipjump": ":steps=1",
        "boundary": ":steps=30",
    }
    plain = () if "eps" in KINDS[name].defaults else (name,)
    attack = Attack.parse(name + sizes.get(name, "" if plain else ":eps=0.3"))
    out = attack.run(classifier, images, labels)
    change = out - images
    assert out.shape == images.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    if "eps" in attack.settings:
        size = change.flatten(1).norm(dim=1) if name == "pgd-l2" else change.abs().flatten(1).amax(1)
        assert float(size.max()) <= attack.settings["eps"] + 1e-5
    assert float(succeeded(classifier, out, labels).float().mean()) > LOW.get(name, 0.4)


def test_an_attack_is_seeded_and_leaves_the_global_generator_alone(classifier, digits):
    """The same seed gives the same images, whatever torch's own state."""
    images, labels = classifier.check(digits[0][:8]), digits[1][:8]
    attack = Attack.parse("pgd:eps=0.1")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = attack.run(classifier, images, labels, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(attack.run(classifier, images, labels, seed=3), first)
    assert not torch.equal(attack.run(classifier, images, labels, seed=4), first)


def test_the_stopped_attack_is_no_more_confident_than_it_needs_to_be(classifier, digits):
    """Its mean margin lies nearer to the boundary than that of the same attack run to the end."""
    images, labels = classifier.check(digits[0][900:964]), digits[1][900:964]
    top = {}
    for name in ("pgd", "pgd-stop"):
        out = Attack.parse(f"{name}:eps=0.4,steps=20").run(classifier, images, labels)
        hit = succeeded(classifier, out, labels)
        logits = classifier.logits(out[hit])
        top[name] = float(margin(logits, logits.argmax(1)).mean())
    assert top["pgd-stop"] > top["pgd"] + 0.5


def test_autoattack_of_two_classes_is_refused():
    """torchattacks' targeted part would look for a third wrong class."""
    with torch.random.fork_rng():
        two = Classifier(compact(2, widths=(4, 8)).eval())
    with pytest.raises(AttackError, match="four classes"):
        Attack.parse("autoattack").run(two, torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.long))
