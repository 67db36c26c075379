"""The command's table: names of models and files, exit statuses, results that survive."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from brought import FAST, NET, fit, fitted, folder, images, one_line, run, trained
from PIL import Image
from safetensors.torch import save_file

import advconn
from advconn import Classifier, models
from advconn.errors import ModelError

MODEL = (
    NET
    + """
from dataclasses import dataclass

def build():
    return Net().eval()

def grey():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()

def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()

def ready():
    import advconn
    net = Net()
    net.load_state_dict(torch.load(WEIGHTS))
    return advconn.Classifier(net.eval(), size=16, class_names=["a", "b", "c", "d"])

def leaves():
    import sys
    sys.exit(0)

network = Net().eval()

def needs(k):
    return Net(k).eval()

def pair():
    return Net().eval(), None

def function():
    return lambda x: x
"""
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model's file, its weights, a detector and some images."""
    place = tmp_path_factory.mktemp("place")
    torch.save(trained().state_dict(), place / "w.pt")
    (place / "mine.py").write_text(MODEL.replace("WEIGHTS", repr(str(place / "w.pt"))))
    advconn.save(fitted(), place / "detector")
    folder(place / "images", images(n=6, seed=2)[0])
    return place


def known(place):
    return ["--detector", place / "detector", "--model", f"{place}/mine.py:build", "--weights", place / "w.pt"]


def command(*args, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "advconn", *map(str, args)], capture_output=True, check=False, **options
    )


WAYS = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "ema": lambda s: {"model_ema": s, "model": s},
    "parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "compiled": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.ones(4)}},
    "namespace": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1)},
    "scalar": lambda s: {"state_dict": s, "best": np.float64(93.2), "acc": np.float32(1)},
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_under_every_usual_key_and_prefix(way, place, tmp_path):
    """The same logits."""
    torch.save(WAYS[way](trained().state_dict()), tmp_path / "w.pth")
    found = models.load(f"{place}/mine.py:build", tmp_path / "w.pth", size=(16, 16))
    x = images(n=3)[0].float() / 255
    torch.testing.assert_close(found.logits(x), trained()(x).detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_refused_say_the_way(place, tmp_path):
    """A whole model, TorchScript, tensors of another network, no tensors: one line, no code run."""
    torch.save(trained(), tmp_path / "whole.pt")
    torch.jit.save(torch.jit.script(trained()), tmp_path / "script.pt")
    torch.save({**trained().state_dict(), "extra": torch.zeros(1)}, tmp_path / "more.pt")
    torch.save({"a": 1}, tmp_path / "none.pt")
    for name, text in (
        ("whole.pt", "brought.Net.*would run code.*state_dict"),
        ("script.pt", "TorchScript.*torch.jit.load"),
        ("more.pt", "extra is not the model's"),
        ("none.pt", "found a"),
    ):
        with pytest.raises(ModelError, match=text) as caught:
            models.load(f"{place}/mine.py:build", tmp_path / name, size=(16, 16))
        assert "\n" not in str(caught.value)


def test_a_factory_may_return_a_classifier_and_import_its_neighbours(place, tmp_path, monkeypatch):
    """Dataclasses with postponed annotations, the current folder's packages, the file's own folder."""
    assert models.load(f"{place}/mine.py:ready").class_names == ("a", "b", "c", "d")
    with pytest.raises(ModelError, match="asked for was"):
        models.load(f"{place}/mine.py:ready", channels=1)
    (tmp_path / "net_of_mine.py").write_text(NET)
    (tmp_path / "beside.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom net_of_mine import Net\n\n"
        "@dataclass\nclass Settings:\n    k: int = 4\n\ndef build():\n    return Net(Settings().k).eval()\n"
    )
    assert models.load(f"{tmp_path}/beside.py:build", size=(16, 16)).num_classes == 4
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "model.py").write_text(NET + "\ndef build():\n    return Net(6).eval()\n")
    monkeypatch.chdir(tmp_path)
    assert models.load("own_package.model:build", size=(16, 16)).num_classes == 6
    assert models.load(f"{place}/mine.py:network", size=(16, 16)).num_classes == 4
    for name, text in (
        ("needs", "takes k; expected"),
        ("leaves", "SystemExit"),
        ("pair", "returned tuple.*the module alone"),
        ("function", "from_callable"),
    ):
        with pytest.raises(ModelError, match=text):
            models.load(f"{place}/mine.py:{name}", size=(16, 16))


def test_size_channels_and_names_are_said_on_the_command_line(place, tmp_path):
    """A grey network for 28 x 28 is found by itself; a fixed one among pictures of several sizes names --size."""
    for i, side in enumerate((28, 28, 28)):
        Image.fromarray(images(n=3, channels=1, size=28)[0][i, 0].numpy()).resize((side, side)).save(
            tmp_path / f"{i}.png"
        )
    go = ["attack", "--attack", "noise", "--data", tmp_path]
    assert run(*go, "--model", f"{place}/mine.py:grey", "--out", tmp_path / "a").exit_code == 0
    Image.new("RGB", (40, 30)).save(tmp_path / "wide.png")
    assert "--size" in one_line(run(*go, "--model", f"{place}/mine.py:fixed", "--out", tmp_path / "b"))
    (tmp_path / "names.json").write_text(json.dumps({"id2label": {str(i): f"c{i}" for i in range(4)}}))
    options = ["--size", "16", "--channels", "3", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    (tmp_path / "a").rename(tmp_path.parent / "elsewhere")
    out = run(
        *go,
        "--model",
        f"{place}/mine.py:fixed",
        *options,
        "--classes",
        tmp_path / "names.json",
        "--out",
        tmp_path / "c",
    )
    assert out.exit_code == 0, out.output
    for bad, text in (
        (["--size", "big"], "HEIGHTxWIDTH"),
        (["--mean", "a"], "a number a channel"),
        (["--mean", "0.5,0.5,0.5"], "go together"),
    ):
        assert text in one_line(run(*go, "--model", f"{place}/mine.py:fixed", "--out", tmp_path / "d", *bad))
    assert "go with --model" in one_line(run("score", tmp_path, "--size", "16"))


def test_timms_tags_transforms_and_heads(tmp_path):
    """A tag's own constants, to the pixel; classes from the head though names are sorted; an unknown tag is told."""
    timm = pytest.importorskip("timm")
    from advconn.data.collection import Collection

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    for name, expected in (
        ("resnet18.tv_in1k", "bilinear"),
        ("mobilenetv3_small_050.lamb_in1k", "bicubic"),
        ("vit_tiny_patch16_224", "bicubic"),
        ("tf_efficientnet_b0.ap_in1k", "bicubic"),
        ("edgenext_xx_small", "bicubic"),
        ("convnext_atto.d2_in1k", "bicubic"),
    ):
        net = timm.create_model(name, num_classes=7).eval()
        save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
        told = []
        c = models.load(f"timm:{name}", tmp_path / "w.safetensors", note=told.append)
        assert c.num_classes == 7
        assert c.preprocessing.interpolation == expected
        assert bool(told) == ("." not in name)
        theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
        (batch,) = Collection(tmp_path / "p.png", 3).batches(c.preprocessing)
        torch.testing.assert_close(
            c.normalise(c.check(batch.images))[0], theirs(Image.open(tmp_path / "p.png")), atol=1e-5, rtol=0
        )
    with pytest.raises(ModelError, match=r"no tag 'foo'.*d2_in1k"):
        models.load("timm:convnext_atto.foo", tmp_path / "w.safetensors")


def test_another_input_size_is_taken_by_named_architectures(tmp_path):
    """A timm ViT made for 96 pixels and a convolutional network: the resize before the crop keeps its share."""
    timm = pytest.importorskip("timm")
    for name, extra in (("vit_tiny_patch16_224", {"img_size": 96}), ("mobilenetv3_small_050", {})):
        net = timm.create_model(name, num_classes=7, **extra).eval()
        torch.save(net.state_dict(), tmp_path / "w.pt")
        c = models.load(f"timm:{name}", tmp_path / "w.pt", size=(96, 96))
        assert c.preprocessing.size == (96, 96)
        assert c.preprocessing.resize == {"vit": 106, "mob": 109}[name[:3]]
        x = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(c.logits(x), net(c.normalise(x)).detach(), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("crop", "resize"), [("squash", 256), ("border", 224), ("border", 256), ("center", 235)])
def test_crop_modes_are_timms(crop, resize, tmp_path):
    """To the pixel, for tall and wide pictures."""
    pytest.importorskip("timm")
    from timm.data.transforms_factory import transforms_imagenet_eval

    from advconn.data.decoding import resize_and_crop as brought
    from advconn.data.preprocessing import Preprocessing

    mean = (0.485, 0.456, 0.406)
    for size in ((375, 500), (500, 333), (100, 300)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        share = 224 / resize - 1e-9
        theirs = transforms_imagenet_eval(
            224, crop_pct=share, crop_mode=crop, interpolation="bicubic", mean=mean, normalize=False
        )
        ours = brought(picture, Preprocessing((224, 224), resize, "bicubic", mean, (1.0,) * 3, crop), "p")
        assert np.array_equal(np.asarray(ours).transpose(2, 0, 1), theirs(picture).numpy()), (crop, size)


@pytest.mark.filterwarnings("ignore")
def test_torchvisions_special_cases(tmp_path):
    """DenseNet's older names; GoogLeNet turns its input as the published weights want it."""
    import re

    import torchvision

    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.")
    state = torchvision.models.densenet121(weights=None, num_classes=7).state_dict()
    torch.save({old.sub(r"\1.\2.", k): v for k, v in state.items()}, tmp_path / "d.pth")
    assert models.load("torchvision:densenet121", tmp_path / "d.pth").num_classes == 7
    net = torchvision.models.googlenet(weights=None, num_classes=7, transform_input=True, init_weights=False).eval()
    torch.save(net.state_dict(), tmp_path / "g.pth")
    told = []
    c = models.load("torchvision:googlenet", tmp_path / "g.pth", note=told.append)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(c.logits(x), net(c.normalise(x)).detach(), atol=1e-4, rtol=1e-3)
    assert "transform_input" in told[0]


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_folder(tmp_path):
    """Its image processor's pixels, its names, its logits out of its own output type."""
    transformers = pytest.importorskip("transformers")
    from advconn.data.collection import Collection

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=3, id2label={0: "bee", 1: "cat", 2: "owl"},
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "vit")
    look = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    look.save_pretrained(tmp_path / "vit")
    c = models.load(f"hf:{tmp_path}/vit")
    assert c.class_names == ("bee", "cat", "owl")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 50, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    (batch,) = Collection(tmp_path / "p.png", 3).batches(c.preprocessing)
    given = look(Image.open(tmp_path / "p.png"), return_tensors="pt")["pixel_values"]
    assert float((c.normalise(c.check(batch.images)) - given).abs().max()) < 0.02
    torch.testing.assert_close(
        c.logits(c.check(batch.images)), net(c.normalise(c.check(batch.images))).logits.detach(), atol=1e-4, rtol=1e-3
    )
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.load(f"hf:{tmp_path}")
    transformers.ViTModel(config).save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        models.load(f"hf:{tmp_path}/headless")
    look.save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match="without its classification head"):
        models.load(f"hf:{tmp_path}/headless")


def test_exit_status_1_is_a_flag_and_nothing_else(place, tmp_path):
    """Odd names, closed, full and broken outputs, a bug, an unreadable file: 2; --debug shows the trace."""
    clean = next((place / "images").iterdir())
    odd = tmp_path / "图\u202e\x1b[31m.png"
    odd.write_bytes(clean.read_bytes())
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    Path(os.fsdecode(raw)).write_bytes(clean.read_bytes())
    status = command("score", clean, *known(place)).returncode
    out = command("score", tmp_path, *known(place), env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert out.returncode == status
    assert b"\x1b[31m" not in out.stdout + out.stderr
    assert (
        command("score", tmp_path, *known(place), env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}).returncode
        == status
    )
    line = subprocess.list2cmdline([sys.executable, "-m", "advconn", "score", str(clean), *map(str, known(place))])
    for end in ("| true; exit ${PIPESTATUS[0]}", ">&-", ">/dev/full"):
        done = subprocess.run(["bash", "-c", f"{line} {end}"], capture_output=True, text=True, check=False)
        assert done.returncode == 2, end
        assert "Traceback" not in done.stderr
    assert "SystemExit" in one_line(
        run("score", clean, "--detector", place / "detector", "--model", f"{place}/mine.py:leaves")
    )


def test_a_bug_is_one_line_and_status_2(place, monkeypatch):
    """Whatever is raised inside."""
    from advconn import bundle

    monkeypatch.setattr(bundle, "load", lambda *a, **k: 1 / 0)
    out = run("score", place / "images")
    assert out.exit_code == 2
    assert "ZeroDivisionError" in one_line(out)
    traced = run("score", place / "images", "--debug")
    assert traced.exit_code == 2
    assert "Traceback" in traced.output
    assert "ZeroDivisionError" in traced.output


def test_a_batch_that_fails_is_judged_one_by_one(place, tmp_path, monkeypatch):
    """One image takes nobody with it."""
    from advconn.detector.detector import Detector

    judge = Detector.judge

    def failing(self, images, **how):
        if bool((images.flatten(1).float().std(1) == 0).any()):
            raise RuntimeError("no contrast")
        return judge(self, images, **how)

    monkeypatch.setattr(Detector, "judge", failing)
    monkeypatch.setattr("advconn.bundle.loading._trial", lambda detector: None)
    folder(tmp_path, images(n=5)[0])
    Image.new("RGB", (16, 16), "grey").save(tmp_path / "0002.png")
    out = run("score", tmp_path, *known(place), "--format", "json")
    records = [json.loads(line) for line in out.stdout.splitlines()]
    assert sum("adversarial" in r for r in records) == 4
    assert [Path(r["image"]).name for r in records if "error" in r] == ["0002.png"]
    assert out.exit_code == 2


def test_an_interrupt_shows_what_was_judged(place, tmp_path, monkeypatch):
    """In the second step: the first is in the table and kept, status 130, and --resume goes on with the next."""
    from advconn.cascade import cascade
    from advconn.detector.detector import Detector

    monkeypatch.setattr(cascade, "BLOCK", 16)
    judge, calls = Detector.judge, []

    def interrupted(self, batch, **how):
        calls.append(len(batch))
        if len(calls) == 3:  # the trial verdict comes first
            raise KeyboardInterrupt
        return judge(self, batch, **how)

    monkeypatch.setattr(Detector, "judge", interrupted)
    folder(tmp_path / "in", images(n=40)[0])
    line = ("score", tmp_path / "in", *known(place), "--out", tmp_path / "out")
    out = run(*line)
    assert out.exit_code == 130
    assert len(re.findall(r"│ (?:clean|ADVERSARIAL)", out.stdout)) == 16  # a long name is folded anywhere
    assert "verdict" in out.stdout
    assert "--resume goes on" in out.stderr
    assert out.stderr.splitlines()[-1] == "advconn: interrupted"
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Detector, "judge", judge)
    assert "go on with --resume, or remove it" in one_line(run(*line))
    other = run(*line, "--resume", "--fpr", "0.3", "--confidence", "none")
    assert other.exit_code == 2
    assert "started otherwise (fpr was 0.1, now 0.3): give the same" in other.stderr
    again = run(*line, "--resume")
    assert again.exit_code in (0, 1), again.output
    whole = run("score", tmp_path / "in", *known(place), "--out", tmp_path / "whole")
    assert whole.exit_code == again.exit_code

    def lines(name):
        kept = map(json.loads, (tmp_path / name / "results.jsonl").read_text().splitlines())
        return [{k: v for k, v in record.items() if k != "cost"} for record in kept]

    assert lines("out") == lines("whole")
    assert len(lines("out")) == 40
    assert not list(tmp_path.glob("*.unfinished"))


def test_what_a_folder_cannot_show_is_in_its_results_too(place, tmp_path):
    """A pipe with an image's name is a line of the results, beside the verdicts."""
    folder(tmp_path / "in", images(n=3)[0])
    os.mkfifo(tmp_path / "in" / "pipe.png")
    out = run("score", tmp_path / "in", *known(place), "--out", tmp_path / "out")
    assert out.exit_code == 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [("error" in line, "pipe" in line["image"]) for line in lines] == [(False, False)] * 3 + [(True, True)]
    assert "1 could not be judged" in (tmp_path / "out" / "report.html").read_text()


def test_an_interrupt_at_the_start_is_one_line():
    """While the program is still being imported too."""
    started = subprocess.Popen(
        [sys.executable, "-m", "advconn", "score", "none.png"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.3)
    started.send_signal(signal.SIGINT)
    error = started.communicate(timeout=60)[1]
    assert started.returncode in (130, 2, -signal.SIGINT)
    assert "advconn" not in error or "Traceback" not in error


def test_results_go_into_the_current_folder_links_and_long_names(place, tmp_path, monkeypatch):
    """And nothing half-written stays."""
    (tmp_path / "long").mkdir()
    array = images(n=1)[0][0].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(tmp_path / "long" / ("x" * 246 + ".png"))
    go = ["attack", "--attack", "noise", "--data", tmp_path / "long", *known(place), "--out"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for target in (".", tmp_path / "link", tmp_path / "new" / "deep"):
        out = run(*go, target)
        assert out.exit_code == 0, out.output
        assert len(list(Path(target).glob("*.png"))) == 1
        assert len(list(Path(target).iterdir())) == 2
    assert "not empty" in one_line(run(*go, "."))
    assert "cannot be written" in one_line(run(*go, "/proc/nowhere/x"))
    assert "cannot be written" in one_line(run(*go, tmp_path / ("y" * 300)))


def test_a_full_disk_is_one_line(tmp_path):
    """Whoever writes: nothing is left, and it is not a crash."""
    from safetensors import SafetensorError

    from advconn.errors import DataError
    from advconn.files import atomic_folder

    for error in (OSError(28, "No space left on device"), SafetensorError("Error while serializing: I/O error")):
        with pytest.raises(DataError, match="cannot be written"), atomic_folder(tmp_path / "out"):
            raise error
        assert list(tmp_path.iterdir()) == []


def test_no_home_and_no_cache(tmp_path, monkeypatch):
    """Work goes on without one; the environment's own folders are looked at first."""
    from advconn.runtime.cache import DiskCache, cache_folder

    monkeypatch.setenv("ADVCONN_CACHE", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c"
    monkeypatch.delenv("ADVCONN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "advconn"
    monkeypatch.delenv("XDG_CACHE_HOME")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() is None
    told = []
    (tmp_path / "file").write_text("x")
    store = DiskCache(tmp_path / "file", told.append)
    assert store.folder is None
    assert "continuing without a cache" in told[0]
    assert store.get("k", 1, lambda: 7) == 7


def test_a_damaged_cache_entry_is_a_miss(tmp_path):
    """Truncated, emptied, a bit flipped: made again, and right again."""
    from advconn.runtime.cache import DiskCache

    store = DiskCache(tmp_path)
    calls = []

    def make():
        calls.append(1)
        return np.arange(5)

    assert store.get("k", "a", make).tolist() == [0, 1, 2, 3, 4]
    file = store.path("k", "a")
    whole = file.read_bytes()
    for damage in (whole[:-3], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        file.write_bytes(damage)
        assert not store.has("k", "a")
        assert store.get("k", "a", make).tolist() == [0, 1, 2, 3, 4]
        assert store.has("k", "a")
    store.get("k", "a", make)
    assert len(calls) == 4


def test_a_fit_goes_on_where_it_was_interrupted(tmp_path):
    """Attacks that were finished are not made again; the detector is the same."""
    from advconn.cascade.attacked_copies import AttackAugmenter
    from advconn.runtime.cache import DiskCache
    from advconn.runtime.parallel import Runner

    made, attacked = [], AttackAugmenter.attacked

    def counting(self, images, labels, attack, **options):
        if len(made) == 1 and options.pop("stop", None):
            raise KeyboardInterrupt
        made.append(str(attack))
        return attacked(self, images, labels, attack, **options)

    AttackAugmenter.attacked = counting
    try:
        c = Classifier(trained(), size=16)
        first = fit(c, runner=Runner(store=DiskCache(tmp_path)))
        assert made[: len(FAST)] == list(FAST)
        tried = made[len(FAST) :]  # what the finished detector is tried on
        made.clear()
        again = fit(c, runner=Runner(store=DiskCache(tmp_path)))
        assert made == tried
    finally:
        AttackAugmenter.attacked = attacked
    x = images(n=5, seed=3)[0]
    np.testing.assert_array_equal(first.score_samples(x), again.score_samples(x))
    spread = fit(c, runner=Runner(jobs=2))
    np.testing.assert_allclose(first.score_samples(x), spread.score_samples(x), atol=1e-6)


def test_fit_says_how_long_what_it_sees_and_takes_attacks(place, tmp_path):
    """Accuracy and time first; chosen attacks; other images to calibrate on; a limit."""
    folder(tmp_path / "d", *images(n=60))
    folder(tmp_path / "e", *images(n=40, seed=7))
    np.save(tmp_path / "c.npy", images(n=50, seed=8)[0].permute(0, 2, 3, 1).numpy())
    go = [
        "fit",
        "--model",
        f"{place}/mine.py:build",
        "--weights",
        place / "w.pt",
        "--fpr",
        "0.1",
        "--cache",
        tmp_path / "cache",
    ]
    out = run(
        *go, "--data", tmp_path / "d", "--data", tmp_path / "e", "--calibrate", tmp_path / "c.npy", "--attack", FAST[0],
        "--attack", "fgsm", "--limit-attacked", 10, "--out", tmp_path / "out",
    )  # fmt: skip
    assert out.exit_code == 0, out.output
    assert "images right" in out.stderr
    assert "takes about" in out.stderr
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["fitted"]["calibrate"] == 50
    assert set(card["fitted"]["attacks"]) == {FAST[0], "fgsm"}
    assert all(a["tried"] <= 10 for a in card["fitted"]["attacks"].values())
    assert "no attack named" in one_line(
        run(*go, "--data", tmp_path / "d", "--attack", "magic", "--out", tmp_path / "x")
    )
    assert not (tmp_path / "x").exists()


def test_json_has_a_header_and_errors_and_its_own_cost(place, tmp_path):
    """`features` only when asked for."""
    (tmp_path / "bad.png").write_text("no")
    out = run("score", place / "images", tmp_path / "bad.png", *known(place), "--format", "json", "--header")
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    assert set(lines[0]["header"]) >= {"threshold", "fpr", "detector", "fingerprint"}
    assert lines[0]["header"]["threshold"] == fitted().calibration_.threshold
    judged = [r for r in lines[1:] if "error" not in r]
    assert len(judged) == 6
    assert all("features" not in r and r["cost"]["forwards"] < 60 for r in judged)
    (broken,) = [r for r in lines[1:] if "error" in r]
    assert "adversarial" not in broken
    assert out.exit_code == 2
    assert "goes with --format json" in one_line(run("score", place / "images", *known(place), "--header"))


def test_the_verdict_column_says_what_was_judged():
    """Of a photograph the shipped default sees 224 x 224 pixels."""
    cat = Path(__file__).parents[1] / "images" / "cat.png"
    assert "(its 224x224 view)" in " ".join(run("score", cat).stdout.split())


def test_calibrate_is_one_command(place, tmp_path):
    """A new rate, for a network that moved a little."""
    moved = trained()
    with torch.no_grad():
        moved.fc.weight.add_(1e-3)
    torch.save(moved.state_dict(), tmp_path / "new.pt")
    folder(tmp_path / "d", *images(n=120, seed=6))
    model = ["--model", f"{place}/mine.py:build", "--weights", tmp_path / "new.pt"]
    assert "advconn calibrate" in one_line(run("score", place / "images", "--detector", place / "detector", *model))
    go = ["calibrate", "--detector", place / "detector", *model, "--data", tmp_path / "d"]
    out = run(*go, "--fpr", "0.05", "--out", tmp_path / "out")
    assert out.exit_code == 0, out.output
    assert "AUROC" in out.stdout
    assert run("score", place / "images", "--detector", tmp_path / "out", *model).exit_code in (0, 1)
    assert "at least 999" in one_line(run(*go, "--fpr", "0.001", "--out", tmp_path / "x"))


def test_a_guard_in_a_pipeline():
    """Empty batches, devices, precision, repr, torch.compile, another rate."""
    guard = advconn.Guard(fitted())
    empty = guard(torch.zeros(0, 3, 16, 16))
    assert [len(v) for v in empty] == [0, 0, 0, 0]
    assert empty.logits.shape == (0, 4)
    assert guard.to("cpu") is guard
    assert guard.half() is guard  # it stays in its precision
    with pytest.raises((ModelError, RuntimeError, AssertionError, NotImplementedError)):
        guard.to("cuda" if not torch.cuda.is_available() else "xpu")
    for text in ("Classifier", "threshold=", "fpr=0.1"):
        assert text in repr(guard)
    x = images(n=2)[0]
    torch.testing.assert_close(torch.compile(guard)(x).score, guard(x).score)
    detector = fit(Classifier(trained(), size=16))
    before = detector.calibration_.threshold
    detector.set_params(fpr=0.3)
    assert detector.calibration_.threshold < before
    np.testing.assert_array_equal(detector.predict(x) == 1, detector.p_value(x) <= 0.3)
    with pytest.raises(advconn.AdvconnError, match="at least 9999"):
        detector.set_params(fpr=0.0001)
    assert detector.fpr == 0.3
