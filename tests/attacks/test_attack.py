"""Attacks by name."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from advconn.attacks.attack import Attack, is_misclassified, parse_all
from advconn.attacks.catalog import FAMILIES, KINDS, MIXTURE
from advconn.attacks.surrogate import train_surrogate
from advconn.errors import AttackError
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from advconn.runtime.forward_passes import count_passes


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
        ("pgd:eps=a", "must be a number"),
        ("pgd:eps=1/0", "must be a number"),
        ("pgd:steps=0", "positive"),
        ("fgsm:steps=3", "no parameter"),
        ("pgd:eps", "no parameter"),
        ("pgd:target=dog", "target is random or least-likely"),
        ("square:target=random", "no parameter 'target=random'"),
        ("deepfool:target=random", "no parameter 'target=random'"),
    ],
)
def test_what_is_no_attack_is_refused(text, message):
    with pytest.raises(AttackError, match=message):
        Attack.parse(text)


def test_pgd_through_jpeg_survives_what_plain_pgd_does_not():
    """Saved at the quality that it was made for, it still fools the network; so it does at others, made for any."""
    from advconn import bundle
    from advconn.data.laundering import parse_laundering

    classifier = bundle.load(bundle.default()).classifier
    cat = PIL.Image.open(Path(__file__).parents[1] / "images" / "cat.png").convert("RGB").resize((40, 40))
    array = torch.from_numpy(np.array(cat)).permute(2, 0, 1)
    shifted = torch.stack([array[:, y : y + 32, x : x + 32] for y in (0, 4, 8) for x in (0, 4, 8)])
    images = classifier.check(shifted)
    labels = classifier.predict(images)
    fooled = {}
    for spec in ("pgd:eps=4/255", "pgd-jpeg:eps=4/255,quality=30", "pgd-jpeg-eot:eps=4/255,samples=2"):
        out = Attack.parse(spec).run(classifier, images, labels, seed=0)
        assert float((out - images).abs().max()) <= 4 / 255 + 1e-6
        saved = parse_laundering("jpeg30").change((255 * out).round().to(torch.uint8), 0)
        fooled[spec] = float(is_misclassified(classifier, saved, labels).float().mean())
    plain, aware, any_quality = fooled.values()
    assert aware > plain
    assert any_quality >= plain
    with pytest.raises(AttackError, match="from 1 to 100"):
        Attack.parse("pgd-jpeg:quality=101")


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
    assert float(is_misclassified(classifier, out, labels).float().mean()) > LOW.get(name, 0.4)


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
        hit = is_misclassified(classifier, out, labels)
        logits = classifier.logits(out[hit])
        top[name] = float(margin(logits, logits.argmax(1)).mean())
    assert top["pgd-stop"] > top["pgd"] + 0.5


def test_autoattack_of_two_classes_is_refused():
    """torchattacks' targeted part would look for a third wrong class."""
    with torch.random.fork_rng():
        two = Classifier(compact(2, widths=(4, 8)).eval())
    with pytest.raises(AttackError, match="four classes"):
        Attack.parse("autoattack").run(two, torch.rand(2, 3, 16, 16), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("name", ["onepixel:pixels=3,steps=2", "pixle:restarts=2", "saltpepper:steps=20"])
def test_an_attack_that_draws_with_numpy_is_seeded_too(name, classifier, digits):
    """The same seed gives the same images, and NumPy's own generator goes on as if nothing had been drawn."""
    images, labels = classifier.check(digits[0][900:908]), digits[1][900:908]
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = Attack.parse(name).run(classifier, images, labels, seed=3)
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(Attack.parse(name).run(classifier, images, labels, seed=3), first)


def test_every_attack_has_a_family_and_every_family_an_attack():
    assert {kind.family for kind in KINDS.values()} == set(FAMILIES)
    assert Attack.parse("square:eps=4/255").family == "score"


def test_identifiers_are_those_of_atlas():
    """A copy of MITRE ATLAS's techniques that craft adversarial data, and of what each means."""
    atlas = {"AML.T0043.000": "white-box", "AML.T0043.001": "black-box", "AML.T0043.002": "black-box, transfer"}
    for name, kind in KINDS.items():
        assert kind.nist.startswith(atlas[kind.atlas]), name
    assert KINDS["pgd"].atlas == "AML.T0043.000"
    assert KINDS["square"].nist == "black-box, score-based"
    decision = {name for name, kind in KINDS.items() if kind.nist == "black-box, decision-based"}
    assert decision == {"noise", "boundary", "hopskipjump", "saltpepper", "spatial"}
    assert KINDS["transfer"].atlas == "AML.T0043.002"


SURROGATE = """
import torch
from torch import nn

def factory():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_transfer_takes_another_network(classifier, digits, tmp_path):
    """Its gradients are the surrogate's: the guarded classifier is not asked for one."""
    (tmp_path / "other.py").write_text(SURROGATE)
    attack = Attack.parse(f"transfer:eps=0.2,surrogate={tmp_path}/other.py:factory")
    assert Attack.parse(str(attack)) == attack
    images, labels = classifier.check(digits[0][900:916]), digits[1][900:916]
    with count_passes() as cost:
        source = attack.source(classifier, images)
        assert cost.forwards == cost.gradients == 0
    assert source.num_classes == 10
    out = attack.run(classifier, images, labels)
    assert float((out - images).abs().max()) <= 0.2 + 1e-6
    blind = Classifier.from_callable(lambda x: classifier.logits(x).detach(), num_classes=10, size=(8, 8), channels=1)
    assert torch.equal(attack.run(blind, images, labels), out)


@pytest.mark.parametrize("name", ["pgd", "mifgsm", "bim"])
def test_a_targeted_attack_reaches_its_class(name, classifier, digits):
    """The least likely one; a random one is another for other images; what the label is never is the target."""
    x, y = digits[0][1500:1530], digits[1][1500:1530]
    clean = classifier.check(x)
    rest = classifier.logits(clean).scatter(1, y[:, None], torch.inf)
    aimed = Attack.parse(f"{name}:eps=0.3,target=least-likely,steps=20").run(classifier, x, y)
    assert (classifier.predict(aimed) == rest.argmin(1)).float().mean() > 0.6
    free = Attack.parse(f"{name}:eps=0.3,steps=20").run(classifier, x, y)
    drawn = Attack.parse(f"{name}:eps=0.3,steps=20,target=random").run(classifier, x, y)
    changed = (classifier.predict(drawn) != classifier.predict(free)).float().mean()
    assert changed > 0.5  # a random class is rarely the one that is nearest
    assert (classifier.predict(drawn) != rest.argmin(1)).float().mean() > 0.5


def test_a_surrogate_of_other_classes_is_refused(classifier, digits, tmp_path):
    """Before anything is attacked, with both numbers."""
    (tmp_path / "other.py").write_text(SURROGATE.replace("Linear(64, 10)", "Linear(64, 3)"))
    attack = Attack.parse(f"transfer:surrogate={tmp_path}/other.py:factory")
    with pytest.raises(AttackError, match="the surrogate has 3 classes, the classifier 10"):
        attack.run(classifier, classifier.check(digits[0][:4]), digits[1][:4])


def test_an_attack_that_is_named_twice_is_made_once(classifier, digits):
    """As a classifier without gradients may be suited by the same noise at every step; a fit takes it."""
    from advconn.detector.fitting import fit

    assert [str(a) for a in parse_all(["fgsm", "noise:eps=0.25", "fgsm"])] == ["fgsm", "noise:eps=0.25"]
    twice = ("fgsm:eps=0.3", "fgsm:eps=0.3", "noise:eps=0.5,tries=5", "noise:eps=0.5,tries=5")
    detector = fit(classifier, digits[0][900:1100], digits[1][900:1100], attacks=twice, conditions=("clean",))
    assert list(detector.fitted_.attacks) == ["fgsm:eps=0.3", "noise:eps=0.5,tries=5"]


def test_weights_need_a_surrogate():
    with pytest.raises(AttackError, match="weights go with surrogate"):
        Attack.parse("transfer:weights=a.pt")


def test_an_imitation_answers_as_the_classifier_does(classifier, digits):
    """On images that it was not trained on, far more often than by chance; it asks for each image once."""
    images = classifier.check(digits[0][900:1300])
    with count_passes() as cost:
        made = train_surrogate(classifier, images, steps=120)
        assert cost.forwards == len(images)
        assert cost.gradients == 0
    other = classifier.check(digits[0][1300:1500])
    assert float((made.predict(other) == classifier.predict(other)).float().mean()) > 0.6


def test_what_a_library_cannot_attack_is_told_in_one_line(classifier, digits):
    """torchattacks' TI-FGSM is made for three channels."""
    with pytest.raises(AttackError, match="tifgsm: torchattacks fails on this classifier's images of 1 x 8 x 8"):
        Attack.parse("tifgsm").run(classifier, classifier.check(digits[0][:4]), digits[1][:4])


def test_smooth_and_coloured_perturbations_are_what_they_say(classifier, digits):
    """A grid of one value moves every pixel alike; a colour change of one channel is a gain and a shift."""
    images, labels = classifier.check(digits[0][900:904] // 2 + 60), digits[1][900:904]
    change = Attack.parse("low-frequency:eps=0.1,grid=1").run(classifier, images, labels) - images
    assert float((change.flatten(1).amax(1) - change.flatten(1).amin(1)).max()) < 1e-5
    out = Attack.parse("colour:size=0.1").run(classifier, images, labels)
    for x, y in zip(images.flatten(1), out.flatten(1), strict=True):
        fit = torch.stack([x, torch.ones_like(x)], 1)
        left = torch.linalg.lstsq(fit, y[:, None]).solution
        assert float((fit @ left - y[:, None]).abs().max()) < 1e-4


def test_a_patch_changes_a_square_alone(classifier, digits):
    images, labels = classifier.check(digits[0][900:904]), digits[1][900:904]
    change = (Attack.parse("patch:side=3").run(classifier, images, labels) - images).abs().amax(1) > 1e-6
    for moved in change:
        rows, columns = moved.nonzero(as_tuple=True)
        assert int(rows.max() - rows.min()) < 3
        assert int(columns.max() - columns.min()) < 3
