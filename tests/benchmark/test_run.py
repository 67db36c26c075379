"""The benchmark end to end on the digits that ship: protocol, baselines, attack that knows the detector, page."""

import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from sklearn.ensemble import ExtraTreesClassifier

from advconn import bundle
from advconn.attacks.adaptive import WAYS, evade
from advconn.attacks.attack import Attack, SuccessfulAttacks, parse_all
from advconn.attacks.catalog import MIXTURE
from advconn.benchmark import feature_tables
from advconn.benchmark.adaptive_evaluation import AdaptiveBudget, evade_images
from advconn.benchmark.attack_sources import to_attacks
from advconn.benchmark.barrier_controls import controls
from advconn.benchmark.baselines import BASELINES
from advconn.benchmark.baselines.advconn import AdvconnAsGiven, AdvconnRefitted, differentiable_score_of
from advconn.benchmark.baselines.logits import MaxSoftmax
from advconn.benchmark.feature_tables import FeatureTables, ImageSetKey
from advconn.benchmark.fitted_detector import FittedDetector, fit_and_threshold
from advconn.benchmark.planted_examples import plant
from advconn.benchmark.report.folder import save
from advconn.benchmark.report.tables import benchmark_tables
from advconn.benchmark.run import Settings, make_splits, unseen
from advconn.benchmark.run import run as benchmark
from advconn.benchmark.splits import BenchmarkData, split
from advconn.cli import main
from advconn.data.datasets import DIGIT_MIXTURE, digits, unseen_digits
from advconn.detector.detector import Detector
from advconn.errors import AttackError, FitError
from advconn.metrics import auroc, mcnemar_p_value
from advconn.models.classifier import untrained
from advconn.runtime.cache import DiskCache
from advconn.runtime.parallel import Runner, cluster

KEYS = {
    "detector", "attack", "family", "in_training", "auroc", "auroc_low", "auroc_high", "tpr", "fpr", "success",
    "n_clean", "n_attacked", "restored", "forwards", "gradients", "milliseconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped():
    """The digits detector, as it ships."""
    return bundle.load(bundle.default("digits"))


@pytest.fixture(scope="module")
def images():
    """Digits that neither the classifier nor its detector has seen."""
    return unseen_digits()


@pytest.fixture(scope="module")
def attacked(shipped, images):
    """Successful copies of the first 150 of them, by name."""
    model = shipped.classifier
    clean, labels = model.check(images.images[:150]), images.labels[:150]
    out = {}
    for name in ("pgd", "cw", "fgsm"):
        made = Attack.parse(images.attacks[name]).run(model, clean, labels)
        out[name] = made[model.logits(made).argmax(1) != labels]
    return out


def test_no_image_is_in_two_parts():
    """And a limit keeps at most a quarter more of each, but enough for the rate."""
    parts = split(500, None, 0.05, 0)
    assert [len(p) for p in (parts.train, parts.calibrate, parts.test)] == [200, 150, 150]
    assert len(torch.cat([parts.train, parts.calibrate, parts.test]).unique()) == 500
    assert len(split(500, 40, 0.05, 0).test) == 50
    assert len(split(500, 10, 0.05, 0).calibrate) == 20
    with pytest.raises(FitError, match="calibrat"):
        split(40, None, 0.05, 0)


FINDS = {
    "max-softmax": ("cw", 0.8),
    "energy": ("pgd", 0.6),
    "logits-only": ("cw", 0.9),
    "noise-log-odds": ("pgd", 0.7),
    "flip-shift": ("cw", 0.6),
    "mahalanobis": ("pgd", 0.8),
    "mahalanobis-ood": ("pgd", 0.7),
    "transformations": ("cw", 0.9),
    "transformations-raw": ("pgd", 0.8),
    "spectrum": ("fgsm", 0.9),
    "knn": ("pgd", 0.65),
    "lid": ("pgd", 0.8),
    "multi-lid": ("pgd", 0.8),
    "layer-regression": ("pgd", 0.75),
    "second-model": ("cw", 0.95),
    "feature-squeezing": ("cw", 0.7),
    "mixup-inference": ("cw", 0.8),
    "paper-barrier": ("cw", 0.8),
}


@pytest.mark.parametrize("name", FINDS)
def test_a_baseline_finds_what_its_paper_says(name, shipped, images, attacked, classifier):
    """On the attack it is made for it is well above chance, on images that it has not been fitted on."""
    if name == "mahalanobis-ood":
        pytest.importorskip("pytorch_ood")
    attack, bound = FINDS[name]
    model = shipped.classifier
    baseline = BASELINES[name](model, images.images[400:], classifier)
    baseline.prepare()
    clean = baseline.measure(model.check(images.images[150:275]))
    hits = {k: baseline.measure(v) for k, v in attacked.items()}
    halves = {k: (h[: len(h) // 2], h[len(h) // 2 :]) for k, h in hits.items()}
    kinds = np.repeat(np.arange(len(hits) + 1), [len(clean), *(len(a) for a, _ in halves.values())])
    baseline.fit(np.concatenate([clean, *(a for a, _ in halves.values())]), kinds)
    fresh = baseline.score(baseline.measure(model.check(images.images[275:400])))
    assert auroc(fresh, baseline.score(halves[attack][1])) > bound


def test_the_threshold_is_set_on_the_calibration_part_alone(shipped, images):
    """One in twenty of it is above; a detector as given keeps its own."""
    model = shipped.classifier
    bench = BenchmarkData(model, images.images[:500], images.labels[:500], runner=Runner())
    hits = bench.attack("train", to_attacks(("pgd:eps=51/255",)), 100)
    sets = {ImageSetKey("train"): bench.part("train"), ImageSetKey("calibrate"): bench.part("calibrate")}
    sets |= {ImageSetKey("train", name): found.images for name, found in hits.items()}
    ours, given = AdvconnRefitted(shipped, bench.part("train")), AdvconnAsGiven(shipped, bench.part("train"))
    found = feature_tables.measure([ours, given], sets, Runner())
    frozen = fit_and_threshold(ours, found["advconn"], hits, bench, 0.05)
    assert 0.03 < frozen.flags(found["advconn"].clean("calibrate")).mean() <= 0.05
    as_given = fit_and_threshold(given, found["advconn (as given)"], hits, bench, 0.05)
    assert as_given.calibration.threshold == shipped.calibration_.threshold
    assert {where.part for where in found["advconn (as given)"].columns} == {"calibrate"}  # it has nothing to learn


@pytest.mark.parametrize("fpr", [0.05, 0.01])
def test_a_detector_as_given_flags_what_it_flags(fpr):
    """Each image by the threshold of its own group of pictures, at any rate."""
    detector = bundle.load(bundle.default())
    smooth = F.interpolate(torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(0)), size=32, mode="bicubic")
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
    images = torch.cat([smooth, smooth + 0.03 * noise, smooth + 0.1 * noise]).clamp(0, 1)
    candidate = AdvconnAsGiven(detector, images)
    given = FittedDetector(candidate, candidate.calibrated(np.zeros(0), fpr), FeatureTables({}))
    columns = feature_tables.FeatureTable(candidate.measure(detector.classifier.check(images)))
    assert len(np.unique(given.candidate.thresholds(columns.values, given.calibration))) > 1
    detector.set_params(fpr=fpr)
    expected = detector.judge(images).adversarial
    assert 0 < expected.sum() < len(images)
    np.testing.assert_array_equal(given.flags(columns), expected)


def test_the_differentiable_score_is_the_detectors_own(shipped, images):
    """The attack that knows it follows the real thing."""
    clean = shipped.classifier.check(images.images[:60])
    leaf = clean.clone().requires_grad_()
    score = differentiable_score_of(shipped)(leaf)
    (slope,) = torch.autograd.grad(score.sum(), leaf)
    assert float(slope.abs().amax((1, 2, 3)).min()) > 0
    seen, over = shipped.judge(clean), score.detach().numpy() > shipped.calibration_.threshold
    assert over[seen.adversarial].all()
    assert not over[seen.stage < len(shipped.cascade_.connectivities)].any()


def test_the_differentiable_score_of_one_stage_is_the_score_itself(images, shipped):
    """Without stages there is nothing else to it."""
    walk, rows = shipped.connectivity, images.images[:150]
    model = walk.classifier
    hits = Attack.parse("pgd:eps=51/255").run(model, model.check(rows), images.labels[:150])
    columns = np.concatenate([walk.transform(rows), walk.transform(hits)])
    whole = Detector(walk, stages=None).fit_features(
        columns, np.repeat([0, 1], 150), walk.transform(images.images[150:300])
    )
    found = differentiable_score_of(whole)(model.check(images.images[300:320])).detach().numpy()
    np.testing.assert_allclose(found, whole.score_samples(images.images[300:320]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_attack_that_knows_breaks_a_threshold_that_defends_nothing(way, shipped, images):
    """Maximum softmax probability: misclassified with confidence, within eps, inside the box."""
    model = shipped.classifier
    clean, labels = model.check(images.images[:40]), images.labels[:40]
    right = model.logits(clean).argmax(1) == labels
    clean, labels = clean[right], labels[right]
    score = MaxSoftmax(model, images.images[400:]).follow(0.0, clean)
    threshold = float(np.median(score(clean).numpy()))
    found = evade(model, score, clean, labels, threshold, eps=0.2, way=way, steps=30, restarts=1)
    assert (found.score <= threshold).mean() > 0.7
    hit = torch.from_numpy(np.isfinite(found.score))
    assert float((found.images - clean).abs().max()) <= 0.2 + 1e-6
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 1
    assert bool((model.logits(found.images[hit]).argmax(1) != labels[hit]).all())


def test_what_has_no_gradient_says_so(shipped, images):
    """kNN is no function that the attack can follow."""
    with pytest.raises(AttackError, match="no gradient"):
        BASELINES["knn"](shipped.classifier, images.images[400:]).follow(0.0, images.images[:2])


def test_clean_pairs_of_a_class_have_lower_barriers_than_of_two(shipped, images, attacked):
    """What connectivity says of images that no one attacked; a network drawn anew has other parameters."""
    model = shipped.classifier
    clean = model.check(images.images[:100])
    rows = controls(clean.numpy(), attacked["cw"][:50].numpy(), images.labels[:50].numpy(), 0, model)
    at = {(r.network, r.pairs): r for r in rows}
    same, other = at["trained", "clean to clean, same class"], at["trained", "clean to clean, another class"]
    assert same.auroc == 0.5
    assert other.auroc > 0.95
    assert other.median_barrier > 100 * same.median_barrier
    assert at["trained", "attacked to clean, predicted class"].auroc > 0.7
    assert at["trained", "attacked to clean, true class"].auroc > 0.9
    assert ("untrained", "attacked to clean, predicted class") in at
    assert untrained(model).fingerprint != model.fingerprint


@pytest.fixture(scope="module")
def small(images):
    """Few of them, with strengths that suit."""
    return replace(images, images=images.images[:300], labels=images.labels[:300])


def settings(**changes):
    """The least that is a benchmark."""
    least = {"attacks": ("pgd:eps=51/255",), "baselines": ("energy",), "mixture": DIGIT_MIXTURE[:3], "limit": 20}
    return Settings(**least | changes)


def test_neighbours_are_compared_with_other_images_than_those_fitted_on(shipped, small, monkeypatch):
    """An attacked copy whose original is among its neighbours would be told by that alone."""
    fitted = {}

    def watched(candidate, measured, taught, bench, fpr):
        class Watched(type(candidate)):
            def fit(self, columns, kinds):
                fitted[self.name] = int((kinds == 0).sum()), int((kinds > 0).sum()), len(self.clean)
                return super().fit(columns, kinds)

        if candidate.fits:
            candidate.__class__ = Watched
        return fit_and_threshold(candidate, measured, taught, bench, fpr)

    monkeypatch.setattr("advconn.benchmark.run.fit_and_threshold", watched)
    report = benchmark(small, shipped, settings(baselines=("energy", "lid")), Runner())
    train = report.settings["parts"]["train"]
    assert fitted["energy"][0] == fitted["energy"][2] == train
    assert fitted["lid"][0] + fitted["lid"][2] == train
    assert fitted["lid"][1] < fitted["energy"][1]


def test_saved_copies_are_judged_beside_the_others(shipped, small, tmp_path):
    """Every detector on the same survivors, which still fool the classifier; in the files, on the page and printed."""
    ways = ("jpeg75", "noise4")
    report = benchmark(small, shipped, settings(save_as=ways), Runner())
    names = dict.fromkeys(r.detector for r in report.rows)
    assert [(r.detector, r.saved_as) for r in report.saved] == [(name, way) for name in names for way in ways]
    (raw,) = {r.n_attacked for r in report.rows}
    for r in report.saved:
        assert r.attack == report.rows[0].attack
        assert 0 < r.n_attacked <= raw
        assert r.success == pytest.approx(r.n_attacked / raw)
    ours = {r.attack: r for r in report.rows if r.detector == "advconn (as given)"}
    for r in report.rows:
        mine, theirs = (report.scores[name][r.attack] > 0 for name in ("advconn (as given)", r.detector))
        assert r.mcnemar_p == mcnemar_p_value(mine, theirs)
        assert r.mcnemar_p == 1 or r is not ours[r.attack]
        assert np.isnan(r.tpr_at_01)  # a thousand clean images and more tell such a rate, and there are fewer
    assert {"jpeg75", "noise4"} <= {a.condition for a in report.alarms}
    save(report, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {r["saved_as"] for r in record["rows"]} == {""}
    assert {r["saved_as"] for r in record["saved"]} == set(ways)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Attacked images that were saved" in page
    assert any(table.title.endswith("saved copies") for table in benchmark_tables(report))
    hits = SuccessfulAttacks(small.images[:0].float(), torch.zeros(0, dtype=torch.long), 0)
    bench = make_splits(small, shipped, settings(), Runner(), (), lambda text: None)
    assert len(bench.survivors(hits, "jpeg75").rows) == 0


def test_the_papers_setting_trains_on_the_tested_attack_alone(shipped, small, tmp_path):
    """Rows of what learns, for each attack; a detector of that attack alone is no worse on it than chance."""
    asked = ("pgd:eps=51/255", "fgsm:eps=51/255")
    report = benchmark(small, shipped, settings(attacks=asked, baselines=("energy", "lid"), published=True), Runner())
    assert {(r.detector, r.attack) for r in report.published} == {(d, a) for d in ("advconn", "lid") for a in asked}
    assert {r.setting for r in report.published} == {"published"}
    assert {r.setting for r in report.rows} == {"used"}
    used = {(r.detector, r.attack): r for r in report.rows}
    assert all(r.n_attacked == used[r.detector, r.attack].n_attacked for r in report.published)
    assert min(r.auroc for r in report.published if r.detector == "advconn") > 0.9
    save(report, tmp_path / "out")
    assert "As published" in (tmp_path / "out" / "report.html").read_text()
    assert any("as published" in table.title for table in benchmark_tables(report))


def test_images_that_the_detector_was_fitted_on_are_left_out(shipped, small):
    """And those that are there twice; it says so."""
    said = []
    known = digits()[0][700:703]
    pixels = torch.cat([known, small.images[:50], small.images[:2]])
    data = replace(small, images=pixels, labels=torch.zeros(len(pixels), dtype=torch.long))
    left, rows = unseen(data, shipped, said.append)
    assert torch.equal(left.images, small.images[:50])
    assert torch.equal(pixels[rows], left.images)
    assert len(left.labels) == 50
    assert said[0].startswith("3 of 55")
    assert said[1].startswith("2 of 55")


def test_the_adaptive_rows_hold_what_the_detectors_say_themselves(shipped, small, tmp_path):
    """Of every detector with a gradient and at every eps; kept for a second run."""
    effort = AdaptiveBudget(limit=6, eps=(0.1, 0.4), steps=6, restarts=1)
    wanted = settings(baselines=("energy", "flip-shift", "knn"), effort=effort)
    report = benchmark(small, shipped, wanted, Runner(store=DiskCache(tmp_path)))
    rows = report.evasions
    assert {r.detector for r in rows} == {"advconn (as given)", "energy", "flip-shift"}
    assert len(rows) == 3 * 2 * (len(WAYS) + 1)
    for r in rows:
        assert r.sr50 <= r.sr5 <= r.success
        assert r.sr5_low <= r.sr5 <= r.sr5_high
        assert 0 <= r.planted_found <= r.planted <= 16
        assert r.too_weak == (None if not r.planted else r.planted_found < 0.9 * r.planted)
        assert r.claimed == pytest.approx(max(0, report.settings["accuracy"] * (0.95 - r.sr5)))
    best = [r for r in rows if r.way == "best of all" and r.detector == "energy"]
    assert best[0].sr5 < best[1].sr5
    again = benchmark(small, shipped, wanted, Runner(store=DiskCache(tmp_path)))
    assert again.evasions == rows


def test_a_head_without_a_gradient_is_judged_itself(shipped, small):
    """The attack follows an imitation; whether it got away is asked of the head."""
    walk = shipped.connectivity
    model = walk.classifier
    clean = walk.transform(small.images)
    hits = walk.transform(Attack.parse("pgd:eps=51/255").run(model, model.check(small.images), small.labels))
    columns = np.concatenate([clean[:150], hits[:150]])
    trees = Detector(walk, ExtraTreesClassifier(50, random_state=0), stages=None)
    trees.fit_features(columns, np.repeat([0, 1], 150), clean[150:])
    with pytest.raises(AttackError, match="all alike"):
        differentiable_score_of(trees, lambda: hits[:20])
    one = FittedDetector(AdvconnAsGiven(trees, small.images), trees.calibration_, FeatureTables({}))
    follow, at = differentiable_score_of(trees, lambda: columns), trees.calibration_.threshold
    right = (model.logits(model.check(small.images)).argmax(1).cpu() == small.labels).nonzero()[:12, 0]
    pixels, labels = small.images[right], small.labels[right]
    lowest = evade_images(pixels.numpy(), labels.numpy(), 0.2, "lagrangian", 10, 1, 0, (one, follow, at))
    made = evade(model, follow, model.check(pixels), labels, at, eps=0.2, way="lagrangian", steps=10, restarts=1)
    wrong = np.isfinite(made.score)
    assert wrong.any()
    scores = trees.score_samples(made.images[wrong])
    for column, rate in enumerate((0.05, 0.5)):
        np.testing.assert_allclose(lowest[wrong, column], scores - trees.calibration_.at(fpr=rate).threshold, atol=1e-6)
    assert np.isinf(lowest[~wrong]).all()


def test_a_cluster_of_two_gives_the_same_figures(shipped, small, monkeypatch):
    """Dask's workers, found as the environment names them."""
    distributed = pytest.importorskip("distributed")
    import dask

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as here:
        monkeypatch.setitem(dask.config.config, "scheduler-address", here.scheduler_address)
        with cluster("dask", 1):
            far = benchmark(small, shipped, settings(), Runner(backend="dask"))
            assert len(distributed.get_client().scheduler_info()["workers"]) == 2
    near = benchmark(small, shipped, settings(), Runner())
    shown = [[repr(replace(r, milliseconds=0)) for r in report.rows] for report in (far, near)]  # nan is itself
    assert shown[0] == shown[1]


def run(*args):
    return CliRunner().invoke(main, ["benchmark", *map(str, args)], catch_exceptions=False)


def test_the_command_end_to_end(tmp_path, images):
    """Rows, table, page; the second run of the same command takes what the first has left."""
    data = tmp_path / "digits.npz"
    np.savez(data, images=images.images[:300].permute(0, 2, 3, 1).numpy(), labels=images.labels[:300].numpy())
    args = ["--detector", bundle.default("digits"), "--data", data, "--attack", "pgd:eps=51/255", "--limit", 30]
    args += ["--baseline", "energy", "--baseline", "lid", "--cache", tmp_path / "cache", "--leave-one-out"]
    first = run(*args, "--out", tmp_path / "a")
    assert first.exit_code == 0, first.output
    record = json.loads((tmp_path / "a" / "results.json").read_text())
    assert {r["detector"] for r in record["rows"]} == {"advconn (as given)", "advconn", "energy", "lid"}
    assert all(set(r) >= KEYS for r in record["rows"])
    ours = record["rows"][0]
    assert ours["auroc"] > 0.9
    assert ours["n_attacked"] <= 30
    known = {Attack.parse(spec).family for spec in MIXTURE if not spec.startswith("tifgsm")}
    assert {r["without"] for r in record["left"]} <= known
    assert {"linf", "minimum"} <= {r["without"] for r in record["left"]}
    assert {r["detector"] for r in record["left"]} == {"advconn", "lid"}  # those that learn
    with (tmp_path / "a" / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(record["rows"])
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("<tr class=") >= 2 * len(record["rows"])
    assert page.count("<strong>advconn") == 1
    assert {p.name for p in (tmp_path / "a" / "figures").iterdir()} >= {"roc.svg", "roc.pdf", "cost.svg"}
    assert not re.search(r"(src|href)=.?https?:", page)
    second = run(*args, "--out", tmp_path / "b")
    again = json.loads((tmp_path / "b" / "results.json").read_text())
    assert second.exit_code == 0
    assert again["rows"] == record["rows"]


def test_attacks_are_listed_with_their_parameters():
    """By family: name, parameters, source; every command that takes attacks shows the same."""
    out = run("--list-attacks").output
    assert re.search(
        r"^minimum: .*\n  cw +c=1, kappa=0, steps=100, lr=0.01 +AML.T0043.000, white-box; Carlini.*\(needs gradients\)",
        out,
        re.M,
    )
    for command in ("attack", "fit"):
        assert CliRunner().invoke(main, [command, "--list-attacks"]).output == out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--baseline", "nothing"], "no baseline 'nothing'"),
        (["--model", "advconn:compact"], "--data is needed"),
        (["--attack", "pgd:strength=2", "--data", "DATA", "--detector", "DIGITS"], "no parameter"),
        (["--attack", "pgd:eps=nan"], "must be a number"),
        (["--attack", "pgd:steps=2.5"], "whole number"),
        (["--attack", "pgd:eps=8"], "8/255"),
        (["--fpr", "0", "--limit", "20", "--data", "DATA", "--detector", "DIGITS"], "must lie in (0, 1)"),
        (["--fpr", "nan", "--limit", "20", "--data", "DATA", "--detector", "DIGITS"], "must lie in (0, 1)"),
        (["--attack", "fgsm", "--data", "WRONG", "--detector", "DIGITS"], "no more than chance"),
        (["--attack", "fgsm", "--data", "WRONG", "--detector", "DIGITS", "--accept-accuracy"], "nothing to attack"),
    ],
)
def test_bad_arguments_get_one_line(args, says, tmp_path, images):
    """And exit status 2."""
    data = tmp_path / "digits.npz"
    np.savez(data, images=images.images[:100].permute(0, 2, 3, 1).numpy())
    wrong = tmp_path / "wrong.npz"
    np.savez(
        wrong, images=images.images[:100].permute(0, 2, 3, 1).numpy(), labels=(images.labels[:100] + 1).numpy() % 10
    )
    names = {"DATA": str(data), "WRONG": str(wrong), "DIGITS": str(bundle.default("digits"))}
    out = run(*[names.get(a, a) for a in args])
    assert out.exit_code == 2
    assert says in " ".join(out.output.splitlines()[-2:])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_opens_in_a_browser_without_a_word(tmp_path, images):
    """No console message, and the table has a row for every detector."""
    data = tmp_path / "digits.npz"
    np.savez(data, images=images.images[:300].permute(0, 2, 3, 1).numpy(), labels=images.labels[:300].numpy())
    args = ["--detector", bundle.default("digits"), "--data", data, "--attack", "fgsm:eps=51/255", "--limit", 20]
    out = run(*args, "--baseline", "energy", "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert out.exit_code == 0, out.output
    page = (tmp_path / "out" / "report.html").read_text()
    acts = """<script>
      const head = document.querySelectorAll("#results thead th")[1];
      head.click();
      const rows = () => [...document.querySelectorAll("#results tbody tr")];
      const rising = rows().map(row => parseFloat(row.cells[1].textContent));
      head.click();
      const falling = rows().map(row => parseFloat(row.cells[1].textContent));
      const box = document.querySelector("input.filter");
      box.value = "energy"; box.dispatchEvent(new Event("input"));
      const left = [...document.querySelectorAll("#rows tbody tr")].filter(row => !row.hidden).length;
      document.title = JSON.stringify({rising, falling, left});
    </script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", acts + "</body>"))
    seen = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
         (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in seen.stderr
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", seen.stdout, re.S)[1]))
    assert len(found["rising"]) == 3
    assert found["rising"] == sorted(found["rising"])
    assert found["falling"] == sorted(found["rising"], reverse=True)
    assert found["left"] == 1


def test_what_is_planted_is_there_and_a_weak_attack_misses_it(classifier, digits):
    """Planted points are accepted and of the other class; the image itself is not; one step finds fewer than many."""
    images = classifier.check(digits[0][1500:1508])
    eps = 0.2

    def accepts(points):
        return np.ones(len(points), bool)

    planted = plant(classifier, accepts, images, eps)
    count = len(planted.images)
    assert count >= 6
    rows = torch.arange(count)
    assert (planted.logits(planted.images, rows).argmax(1) == 0).all()
    none = plant(classifier, lambda points: np.zeros(len(points), bool), images, eps)
    assert none is None
    found = []
    for steps in (1, 40):
        made = evade(
            classifier, lambda x: x.flatten(1).sum(1) * 0 - 1, planted.images, planted.labels, 0.0, eps=eps,
            way="lagrangian", steps=steps, restarts=1, batch_size=3, logits=planted.logits,
        )  # fmt: skip
        assert (made.images - planted.images).abs().max() <= eps + 1e-6
        found.append(int((planted.logits(made.images, rows).argmax(1) == 1).sum()))
    assert found[1] == count
    assert found[0] <= found[1]


def test_the_papers_barrier_costs_what_its_paths_take(shipped, images):
    """Three references at seven inner samples each, and the image itself; nothing for the names of features."""
    from advconn.benchmark.baselines.barrier import PaperBarrier
    from advconn.runtime.forward_passes import count_passes

    model = shipped.classifier
    made = PaperBarrier(model, images.images[:400])
    made.prepare()
    with count_passes() as cost:
        made.measure(model.check(images.images[400:410]))
    assert cost.forwards == 10 * 22


def test_a_preset_stands_for_what_was_not_asked_for():
    """An attack that is named stays; the folder holds a table for a paper."""
    from advconn.cli.benchmark import CARD, CARD_WAYS, BenchmarkOptions

    plain = {field.name: None for field in fields(BenchmarkOptions)}
    plain |= {"attacks": (), "save_as": (), "setting": "used"}
    whole = BenchmarkOptions(**plain | {"preset": "card"}).completed()
    assert (whole.attacks, whole.save_as, whole.setting) == (CARD, CARD_WAYS, "both")
    assert BenchmarkOptions(**plain | {"preset": "card", "attacks": ("cw",)}).completed().attacks == ("cw",)
    assert BenchmarkOptions(**plain).completed().attacks == ()
    assert [str(attack) for attack in parse_all(CARD)] == list(CARD)
