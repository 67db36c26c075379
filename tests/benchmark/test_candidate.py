"""Anyone's attack, anyone's detector, anyone's attacked images in the benchmark; what it writes for others to use."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import advconn
from advconn import bundle
from advconn.benchmark.adaptive_evaluation import claimed_robustness, is_credible
from advconn.benchmark.attack_sources import to_attack, to_attacks
from advconn.benchmark.baselines import BASELINES, BY_NAME_ALONE
from advconn.benchmark.candidate import Candidate
from advconn.benchmark.result_types import sentence
from advconn.benchmark.run import Settings
from advconn.benchmark.run import run as benchmark
from advconn.cli import main
from advconn.cli.arguments import other_classifier
from advconn.data.datasets import DIGIT_MIXTURE, unseen_digits
from advconn.errors import AttackError
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.runtime.parallel import Runner

README = (Path(__file__).parents[2] / "README.md").read_text()
THIRD = """
import numpy as np
from pytorch_ood.detector import EnergyBased
from advconn.benchmark import Candidate, Learned


class Energy(Candidate):
    '''pytorch-ood's energy.'''

    name, source = "energy (pytorch-ood)", "Liu et al. 2020"

    def measure(self, images):
        return EnergyBased.score(self.classifier.logits(images)).cpu().double().numpy()[:, None]


class Binary(Learned):
    '''ART's detector: a network of its own that is shown images, trained here on the columns that it gives.'''

    name, source = "binary (ART)", "Metzen et al. 2017"

    def measure(self, images):
        return images.flatten(1).cpu().double().numpy()

    def fit(self, columns, kinds):
        import torch
        from art.defences.detector.evasion import BinaryInputDetector
        from art.estimators.classification import PyTorchClassifier

        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(columns.shape[1], 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        inner = PyTorchClassifier(
            net, torch.nn.CrossEntropyLoss(), input_shape=columns.shape[1:], nb_classes=2, optimizer=optimizer
        )
        self.found = BinaryInputDetector(inner)
        self.found.fit(columns.astype(np.float32), np.eye(2)[(kinds > 0).astype(int)], batch_size=32, nb_epochs=20)
        return self

    def score(self, columns):
        logits = self.found.detector.predict(columns.astype(np.float32))
        return (logits[:, 1] - logits[:, 0]).astype(np.float64)
"""


WRONG = """
from advconn.benchmark import Candidate


class Nothing(Candidate):
    name = "nothing"


class Raises(Candidate):
    name = "raises"

    def measure(self, images):
        raise KeyError("oops")


class Nan(Candidate):
    name = "nan"

    def measure(self, images):
        return images.flatten(1)[:, :2].double().numpy() * float("nan")


class Tall(Nan):
    name = "tall"

    def measure(self, images):
        return images.flatten(1)[:, :2].double().numpy()

    def score(self, columns):
        return columns[:, :1]
"""


def shown(name):
    """The code of a file that the README shows."""
    return next(b for b in re.findall(r"```python\n(.*?)```", README, re.S) if b.startswith(f"# {name}"))


@pytest.fixture(scope="module")
def shipped():
    """The digits detector, as it ships."""
    return bundle.load(bundle.default("digits"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 digits, a file of an attack, one of a detector."""
    root, data = tmp_path_factory.mktemp("open"), unseen_digits()
    images = data.images[:300].permute(0, 2, 3, 1).numpy()
    np.savez(root / "digits.npz", images=images, labels=data.labels[:300].numpy())
    broken = "\n\ndef broken():\n    made = Step()\n    made.size = 'much'\n    return made\n"
    broken += "\n\nclass Loud(Step):\n    def run(self, classifier, images, labels, *, seed):\n"
    broken += "        return 255 * images\n\n\nloud = Loud\n"
    np.savez(root / "few.npz", images=images[:50])
    np.savez(root / "turned.npz", images=images[::-1], labels=data.labels[:300].numpy()[::-1])
    (root / "wrong.py").write_text(WRONG)
    (root / "mine.py").write_text(shown("my_attack.py") + broken)
    (root / "detector.py").write_text(shown("my_detector.py"))
    (root / "third.py").write_text(THIRD)
    return root


def run(folder, *args, command="benchmark"):
    least = ["--detector", bundle.default("digits"), "--data", folder / "digits.npz", "--baseline", "energy"]
    least += ["--limit", 20, "--cache", folder / "cache"]
    given = [command, *(least if command == "benchmark" else ()), *args]
    return CliRunner().invoke(main, list(map(str, given)), catch_exceptions=False)


def test_an_attack_and_a_detector_of_ones_own(folder):
    """By file and name; they stand in the results like all others."""
    out = run(folder, "--attack", f"{folder}/mine.py:make", "--baseline", f"{folder}/detector.py:Spread",
              "--attack", "fgsm:eps=51/255", "--out", folder / "own")  # fmt: skip
    assert out.exit_code == 0, out.output
    rows = json.loads((folder / "own" / "results.json").read_text())["rows"]
    at = {(r["detector"], r["attack"]): r for r in rows}
    assert {name for name, _ in at} == {"advconn (as given)", "advconn", "energy", "spread"}
    mine, theirs = at["advconn", "one step"], at["advconn", "fgsm:eps=51/255"]
    assert mine["success"] == pytest.approx(theirs["success"])
    assert mine["auroc"] == pytest.approx(theirs["auroc"], abs=0.05)
    assert mine["family"] == "given"
    assert 0 <= at["advconn (as given)", "one step"]["restored"] <= 1


@pytest.mark.parametrize(
    ("package", "name", "kind"), [("pytorch_ood", "energy (pytorch-ood)", "Energy"), ("art", "binary (ART)", "Binary")]
)
def test_detectors_of_other_packages(folder, package, name, kind):
    """In a few lines each; where pytorch-ood's energy is one-sided, ours is two-sided."""
    pytest.importorskip("pytorch_ood")
    pytest.importorskip(package)
    out = run(folder, "--attack", "fgsm:eps=51/255", "--baseline", f"{folder}/third.py:{kind}", "--out", folder / kind)
    assert out.exit_code == 0, out.output
    rows = json.loads((folder / kind / "results.json").read_text())["rows"]
    assert next(r for r in rows if r["detector"] == name)["auroc"] > {"Energy": 0.5, "Binary": 0.8}[kind]


@pytest.mark.parametrize(
    "spec",
    [
        "torchattacks:FGSM(eps=51/255)",
        "foolbox:LinfFastGradientAttack(epsilons=51/255)",
        "art:FastGradientMethod(eps=51/255)",
    ],
)
def test_attacks_of_other_libraries(spec, shipped):
    """The same attack is the same images."""
    if not spec.startswith("torchattacks"):
        pytest.importorskip(spec.partition(":")[0])
    model, data = shipped.classifier, unseen_digits()
    clean, labels = model.check(data.images[:20]), data.labels[:20]
    ours = to_attack("fgsm:eps=51/255").run(model, clean, labels)
    assert float((to_attack(spec).run(model, clean, labels) - ours).abs().mean()) < 0.01


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--attack", "FILE/mine.py:nothing"], "no callable 'nothing'"),
        (["--attack", "FILE/mine.py:broken"], "one step: fails (TypeError"),
        (["--attack", "FILE/detector.py:Spread"], "Spread"),
        (["--baseline", "FILE/mine.py:make"], "expected a class of advconn.benchmark.Candidate's"),
        (["--attack", "torchattacks:Nothing()"], "no attack 'Nothing'"),
        (["--attack", "foolbox:LinfPGD(1)"], "expected foolbox:CLASS(key=value, ...)"),
        (["--attack", "fgsm", "--save", "scores"], "--save goes with --out"),
        (["--attack", "fgsm", "--save", "all", "--out", "FILE/x"], "expected some of scores,split,images"),
        (["--attacked", "FILE/digits.npz", "--data", "FILE/nothing.npz"], "nothing.npz"),
        (["--attacked", "FILE/few.npz"], "50 rows, and --data has 300"),
        (["--attacked", "FILE/turned.npz"], "labels are others than --data's"),
        (["--attack", "FILE/mine.py"], "name what gives the attack"),
        (["--attack", "FILE/mine.py:loud"], "expected floats in [0, 1] (divide bytes by 255)"),
        (["--attack", "fgsm", "--baseline", "FILE/wrong.py:Nothing"], "with a name and `measure`"),
        (["--attack", "fgsm", "--baseline", "FILE/wrong.py:Raises"], "raises: measure: fails (KeyError: 'oops')"),
        (["--attack", "fgsm", "--baseline", "FILE/wrong.py:Nan"], "nan: measure gives NaN for 25 of 25 images"),
        (["--attack", "fgsm", "--baseline", "FILE/wrong.py:Tall"], "tall: score gives (25, 1); expected (25,)"),
    ],
)
def test_what_does_not_fit_gets_one_line(folder, args, says):
    """And exit status 2."""
    out = run(folder, *[a.replace("FILE", str(folder)) for a in args])
    assert out.exit_code == 2
    assert says in " ".join(out.output.splitlines()[-3:])


def test_images_that_were_attacked_elsewhere(folder):
    """By row of an array, and by name of a file; only those whose prediction changed count."""
    made = run(folder, folder / "digits.npz", "--detector", bundle.default("digits"), "--attack", "pgd:eps=51/255",
               "--out", folder / "pgd.npz", command="attack")  # fmt: skip
    data = np.load(folder / "digits.npz")
    model = bundle.load(bundle.default("digits")).classifier
    if made.exit_code:  # the command writes folders: make the array by hand
        clean = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
        hits = to_attack("pgd:eps=51/255").run(model, model.check(clean), torch.from_numpy(data["labels"]))
        bytes_ = (hits * 255).round().byte().permute(0, 2, 3, 1).numpy()
        np.savez(folder / "pgd.npz", images=bytes_)
    out = run(folder, "--attacked", folder / "pgd.npz", "--out", folder / "ready")
    assert out.exit_code == 0, out.output
    record = json.loads((folder / "ready" / "results.json").read_text())
    assert [a["attack"] for a in record["attacks"]] == ["pgd.npz"]
    assert record["attacks"][0]["linf"] == pytest.approx(51, abs=1)
    assert record["rows"][0]["auroc"] > 0.9
    for i in range(100, 160):
        for name, values in (("clean", data["images"]), ("made", np.load(folder / "pgd.npz")["images"])):
            place = folder / name / str(data["labels"][i])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values[i, :, :, 0]).save(place / f"{i}.png")
    for i in range(160, 300):
        place = folder / "clean" / str(data["labels"][i])
        Image.fromarray(data["images"][i, :, :, 0]).save(place / f"{i}.png")
    again = run(folder, "--data", folder / "clean", "--attacked", folder / "made", "--out", folder / "named")
    assert again.exit_code == 0, again.output
    rows = json.loads((folder / "named" / "results.json").read_text())
    assert rows["attacks"][0]["tried"] <= 60
    assert rows["attacks"][0]["succeeded"] > 10


def test_scores_split_and_images_are_written_for_others(folder):
    """No row in two parts; a threshold of zero gives back the rows' figures."""
    out = run(folder, "--attack", "fgsm:eps=51/255", "--out", folder / "saved", "--save", "scores,split,images")
    assert out.exit_code == 0, out.output
    scores, split, images = (np.load(folder / "saved" / f"{n}.npz") for n in ("scores", "split", "images"))
    rows = json.loads((folder / "saved" / "results.json").read_text())["rows"]
    for r in rows:
        found = scores[f"{r['detector']}/{r['attack']}"]
        assert (found > 0).mean() == pytest.approx(r["tpr"])
        assert (scores[f"{r['detector']}/clean"] > 0).mean() == pytest.approx(r["fpr"])
    parts = [split[name] for name in ("train", "calibrate", "test")]
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    attacked = images["rows of fgsm:eps=51/255"]
    assert np.isin(attacked, split["test"]).all()
    assert len(images["fgsm:eps=51/255"]) == len(attacked) == rows[0]["n_attacked"]


def test_repeats_and_tables(folder):
    """Mean and spread over seeds; Markdown, LaTeX and CSV hold the same."""
    args = ["--attack", "fgsm:eps=51/255", "--repeats", 2, "--out", folder / "twice", "--table", "csv"]
    out = run(folder, *args)
    assert out.exit_code == 0, out.output
    table = list(csv.DictReader(io.StringIO(out.stdout)))
    both = [json.loads((folder / "twice" / f"seed-{k}" / "results.json").read_text())["rows"] for k in (0, 1)]
    figures = [rows[0]["auroc"] for rows in both]
    assert (table[0]["detector"], table[0]["attack"]) == (both[0][0]["detector"], "fgsm:eps=51/255")
    assert float(table[0]["auroc"]) == pytest.approx(np.mean(figures), abs=1e-5)
    assert float(table[0]["auroc_sd"]) == pytest.approx(np.std(figures, ddof=1), abs=1e-5)
    assert table[0]["repeats"] == "2"
    assert both[0][0]["n_clean"] == both[1][0]["n_clean"]
    latex = run(folder, "--attack", "fgsm:eps=51/255", "--table", "latex").stdout
    assert latex.startswith("\\begin{tabular}{lr}")
    assert r"advconn (as given) &" in latex


def test_an_attack_that_never_succeeds_is_told_and_stops_nothing(folder):
    """Beside one that does, and alone; its figures are left open."""
    out = run(folder, "--attack", "pgd:eps=0.0004", "--attack", "fgsm:eps=51/255", "--out", folder / "none")
    assert out.exit_code == 0, out.output
    rows = json.loads((folder / "none" / "results.json").read_text())["rows"]
    at = {(r["detector"], r["attack"]): r for r in rows}
    assert at["advconn", "pgd:eps=0.0004"]["auroc"] is None or at["advconn", "pgd:eps=0.0004"]["n_attacked"] > 0
    assert at["advconn", "fgsm:eps=51/255"]["auroc"] > 0.8
    alone = run(folder, "--attack", "pgd:eps=0.00004", "--out", folder / "alone")
    assert alone.exit_code == 0, alone.output
    assert "succeeded on 0 of" in alone.output


def test_runs_side_by_side(folder):
    """Of the same images; those of others are refused."""
    run(folder, "--attack", "fgsm:eps=51/255", "--out", folder / "one")
    run(folder, "--attack", "bim:eps=51/255", "--out", folder / "two")
    both = run(folder, folder / "one", folder / "two", command="compare")
    assert both.exit_code == 0, both.output
    assert "bim:eps=51/255" in both.stdout.splitlines()[0]
    assert f"{folder / 'two'}: energy" in both.stdout
    other = json.loads((folder / "two" / "results.json").read_text())
    other["settings"]["data_sha256"] = "0" * 64
    (folder / "other.json").write_text(json.dumps(other))
    refused = run(folder, folder / "one", folder / "other.json", command="compare")
    assert refused.exit_code == 2
    assert "other images" in refused.output
    nothing = run(folder, folder / "cache", command="compare")
    assert nothing.exit_code == 2
    assert "no results" in nothing.output


def test_baselines_are_listed():
    """By name, with what they do and where they come from."""
    out = CliRunner().invoke(main, ["benchmark", "--list-baselines"])
    assert out.exit_code == 0
    assert all(any(line.startswith(name) for line in out.stdout.splitlines()) for name in (*BASELINES, *BY_NAME_ALONE))


def test_what_other_libraries_draw_is_seeded(shipped):
    """ART draws with NumPy: the same seed is the same images, another is others."""
    pytest.importorskip("art")
    model, data = shipped.classifier, unseen_digits()
    clean, labels = model.check(data.images[:4]), data.labels[:4]
    made = to_attack(
        "art:ProjectedGradientDescent(eps=0.2, eps_step=0.01, max_iter=1, num_random_init=1, verbose=False)"
    )
    first, again, other = (made.run(model, clean, labels, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_objects_go_in_as_they_are(shipped):
    """In Python there is no file; two of one name are refused."""

    class Still:
        name = "nothing"

        def run(self, classifier, images, labels, *, seed):
            noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
            return (images + 0.3 * noise).clamp(0, 1)

    class Mean(Candidate):
        name = "mean"

        def measure(self, images):
            return images.mean((1, 2, 3)).double().numpy()[:, None]

    images = unseen_digits()
    settings = Settings((Still(), "fgsm:eps=51/255"), ("energy", Mean), DIGIT_MIXTURE[:2], limit=20)
    report = benchmark(images, shipped, settings, Runner())
    assert {r.attack for r in report.rows} == {"nothing", "fgsm:eps=51/255"}
    assert {r.detector for r in report.rows} >= {"mean", "energy"}
    assert next(r for r in report.rows if r.attack == "nothing").family == "given"
    with pytest.raises(AttackError, match="two attacks are called"):
        to_attacks((Still(), type("Other", (Still,), {"size": 1})()))
    with pytest.raises(AttackError, match="no attack: it needs"):
        to_attack(object())


@pytest.mark.parametrize("name", BASELINES)
def test_a_key_holds_every_parameter(name, shipped, classifier):
    """Another value is another key; so are other images compared with, and another second classifier."""
    model, images = shipped.classifier, unseen_digits().images[:60]
    made = BASELINES[name](model, images)
    plain = {k: v for k, v in made.parameters().items() if k != "name"}
    key = made.key()
    assert key == BASELINES[name](model, images).key()
    for parameter, value in plain.items():
        other = type(name, (BASELINES[name],), {"__module__": BASELINES[name].__module__})(model, images)
        changed = (*value, 1.0) if isinstance(value, tuple) else (value or 0) + 1 if value != str(value) else "another"
        setattr(other, parameter, changed)
        assert other.key() != key, parameter
    assert BASELINES[name](model, images[:59]).key() != key
    assert BASELINES[name](model, images, classifier).key() != key


def test_a_key_holds_every_setting_of_a_walk(shipped):
    """The one list of them: what a walk depends on changes its key."""
    walk = shipped.connectivity
    other = {"families": ("self",), "copies": walk.copies[:3], "halves": (), "per_class": 2, "rivals": 1, "samples": 7,
             "layer": "head", "levels": 1, "steps": 2, "nearest": not walk.nearest, "temperature": 2.0}  # fmt: skip
    assert set(other) == set(walk.settings())
    for name, value in other.items():
        changed = type(walk)(walk.classifier, walk.references, **walk.settings() | {name: value})
        assert repr(changed.key()) != repr(walk.key()), name


def test_what_a_figure_claims():
    """Of 100 right images 20 get by at 5 % false alarms: 75 are claimed to be robust; more than is known is marked."""
    assert claimed_robustness(0.2, 1.0) == pytest.approx(0.75)
    assert claimed_robustness(0.2, 0.9) == pytest.approx(0.675)
    assert claimed_robustness(0.99, 1.0) == 0
    assert is_credible(0.73, 8.0)
    assert not is_credible(0.75, 8.0)
    assert is_credible(0.9, 0.5)
    assert not is_credible(0.95, 0.5)


def test_what_a_report_tells(shipped):
    """One sentence, costs with the dearest attack, false alarms by class, families in and out of training."""
    settings = Settings(("pgd:eps=51/255", "universal:eps=51/255"), ("energy",), DIGIT_MIXTURE[:2], limit=40)
    report = benchmark(unseen_digits(), shipped, settings, Runner())
    seen = {r.attack: r.in_training for r in report.rows}
    assert seen == {"pgd:eps=51/255": True, "universal:eps=51/255": False}
    text = sentence(report)
    assert "digits" in text
    assert "best baseline, energy" in text
    ours = [e for e in report.expenses if e.detector == "advconn (as given)"]
    assert ours[0].images == "clean"
    assert ours[1].forwards + 3 * ours[1].gradients > ours[0].forwards + 3 * ours[0].gradients
    assert ours[0].largest >= ours[0].forwards
    images = {a.images for a in report.alarms if a.condition == "clean" and a.detector == "energy"}
    assert "all" in images
    assert {a.condition for a in report.alarms} >= {"clean", "jpeg75", "blur", "brighter"}
    for a in report.alarms:
        assert a.low <= a.fpr <= a.high


def test_what_contributing_names_is_there():
    """Modules, folders, tables and tests by name."""
    import importlib

    root = Path(__file__).parents[2]
    text = (root / "CONTRIBUTING.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ") and "what |" not in line]
    assert len(rows) >= 6
    for name in re.findall(r"`([^`]+)`", "".join("|".join(row) for row in rows)):
        if name.startswith("tests/") or name.endswith("/"):
            assert (root / name).exists() or (root / "advconn" / name).is_dir(), name
        else:
            parts = name.split(".")
            found = getattr(advconn, parts[0]) if name[0].isupper() else importlib.import_module(f"advconn.{parts[0]}")
            for part in parts[1:]:
                if not hasattr(found, part):
                    importlib.import_module(f"{found.__name__}.{part}")
                found = getattr(found, part)


def test_a_row_that_some_repeats_lack_says_so():
    """Its figures are of the others alone."""
    from advconn.benchmark.report.tables import print_tables

    def run(*names):
        rows = [{"detector": name, "attack": "fgsm", "auroc": 0.9, "tpr": 0.5} for name in names]
        return [{"rows": rows, "settings": {"data_sha256": "a", "test_sha256": "b"}}]

    table = print_tables("md", {"seed-0": run("mine", "paper-barrier"), "seed-1": run("mine")}, spread=True)
    assert "| paper-barrier (1 of 2 runs) | 0.900 / 0.500 |" in table
    assert "| mine | 0.900 ± 0.000 / 0.500 ± 0.000 |" in table


BESIDE = """
from safetensors.torch import load_file
from advconn import bundle
from advconn.models.architectures import compact

def scaled():
    net = compact(10, 1, {widths})
    net.load_state_dict(load_file(bundle.default("digits") / bundle.WEIGHTS))
    return net.eval()

def another():
    return compact(10, 1, {widths}).eval()
"""


def test_a_second_model_is_asked_as_the_first_and_must_agree(folder):
    """One whose weights are those of nobody is refused; one that says nothing of its scale gets the classifier's."""
    state = load_file(bundle.default("digits") / bundle.WEIGHTS)
    widths = (state["stem.weight"].shape[0], *(v.shape[0] for k, v in sorted(state.items()) if "widen.weight" in k))
    (folder / "beside.py").write_text(BESIDE.format(widths=widths))
    line = ("--attack", "fgsm:eps=51/255", "--baseline", "second-model")
    done = run(folder, *line, "--second", f"{folder}/beside.py:scaled")
    assert done.exit_code == 0, done.output
    assert "agrees with the classifier on 100% of" in done.stderr
    both = run(folder, *line, *(["--second", f"{folder}/beside.py:scaled"] * 2), "--table", "csv")
    assert both.exit_code == 0, both.output
    assert {"second-model", "second-model-2"} <= set(re.split(r"[,\n]", both.stdout))
    uneven = run(folder, *line, "--second", f"{folder}/beside.py:scaled", *["--second-weights", __file__] * 2)
    assert uneven.exit_code == 2
    assert "one for each --second" in uneven.output
    refused = CliRunner().invoke(
        main, ["benchmark", "--detector", str(bundle.default("digits")), "--data", str(folder / "digits.npz"),
               "--baseline", "second-model", "--second", f"{folder}/beside.py:another"],
    )  # fmt: skip
    assert refused.exit_code == 2
    assert "as by chance" in refused.output


def test_what_a_second_network_does_not_reveal_is_the_first_ones(tmp_path):
    """mean and std, of an architecture that knows none."""
    net = compact(10, 3, (8, 16, 32)).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    first = Classifier(net, size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    images = torch.rand(60, 3, 32, 32)
    other = other_classifier("companion", "advconn:compact", tmp_path / "w.safetensors", first, images)
    assert (other.preprocessing.mean, other.preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert torch.equal(other.predict(images), first.predict(images))
