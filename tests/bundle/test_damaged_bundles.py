"""Folders that someone forged, with every hash put right: one line, no code run, no memory taken."""

import io
import json
import resource
import shutil
import struct
import sys
import zipfile

import numpy as np
import pytest
from brought import fit, mixed, run, trained
from PIL import Image
from safetensors.numpy import load_file, save_file

import advconn
from advconn import bundle
from advconn.bundle import card_schema as cards
from advconn.bundle.card_schema import LATER
from advconn.errors import BundleError


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A small grey picture for the digits detector."""
    path = tmp_path_factory.mktemp("p") / "d.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def forge(tmp_path):
    """A copy of the shipped digits detector, edited, with its hashes mended as an attacker would."""

    def made(change=lambda card: None, files=None, raw=None):
        out = tmp_path / "forged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bundle.default("digits"), out)
        for name, content in (files or {}).items():
            (out / name).write_bytes(content)
        card = json.loads((out / bundle.CARD).read_text())
        card["files"] = {p.name: cards.sha256(p) for p in out.iterdir() if p.name != bundle.CARD}
        change(card)
        card["card"] = cards.digest(card)
        (out / bundle.CARD).write_text(json.dumps(card) if raw is None else raw)
        return out

    return made


def refused(folder):
    """In one line that names the folder."""
    with pytest.raises(BundleError) as caught:
        bundle.load(folder)
    assert "\n" not in str(caught.value)
    assert "forged" in str(caught.value)
    return str(caught.value)


def put(card, path, value):
    inner = card
    *most, last = path.split(".")
    for key in most:
        inner = inner[key]
    inner[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("classifier.preprocessing.size", [20000, 20000]),
        ("classifier.preprocessing.size", [8]),
        ("classifier.preprocessing.interpolation", "foo"),
        ("classifier.preprocessing.resize", -5),
        ("classifier.class_names", list(range(10))),
        ("classifier.channels", 10**9),
        ("classifier.num_classes", 7),
        ("connectivity.samples", 1),
        ("connectivity.samples", 200000),
        ("connectivity.samples", True),
        ("connectivity.per_class", -1),
        ("connectivity.copies", ["no such copy"]),
        ("connectivity.families", ["nothing"]),
        ("calibration.fpr", 0),
        ("calibration.fpr", float("nan")),
        ("calibration.threshold", 1e6),
        ("calibration.threshold", 10**400),
        ("classifier.preprocessing.size", [1024, 1024]),
        ("connectivity.rivals", 0),
        ("features", ["a"]),
        ("fitted.attacks", {"pgd": 3}),
        ("references", None),
        ("format", 99),
        ("versions", "all"),
        ("unknown", 1),
        ("files", {"../../etc/passwd": "0" * 64}),
    ],
)
def test_a_card_that_says_what_it_may_not(path, value, forge):
    """Types, ranges and unknown keys, before anything is allocated."""
    refused(forge(lambda card: put(card, path, value)))


@pytest.mark.parametrize("key", ["files", "classifier", "connectivity", "calibration", "features", "fitted"])
def test_a_card_that_lacks_something(key, forge):
    """It is named."""
    assert key in refused(forge(lambda card: card.pop(key)))


def test_a_card_that_is_none(forge):
    """Deeply nested, a list, a text."""
    nested = '{"format": 1, "card": ' + "[" * 985 + "]" * 985 + "}"
    for raw in ("[" * 100000, nested, "[]", '"card"', "{", "\ud800".encode("utf-8", "surrogatepass").decode("latin1")):
        refused(forge(raw=raw))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(typical=t["typical"][:5]),
        lambda t: t.update(typical=np.full_like(t["typical"], np.nan)),
        lambda t: t.update({"calibration.clean": t["calibration.clean"] * np.inf}),
        lambda t: t.update({"calibration.clean": t["calibration.clean"][:, :1]}),
        lambda t: t.update({"calibration.clean": t["calibration.clean"][:5]}),
        lambda t: t.update({"calibration.clean": t["calibration.clean"].astype(np.float32)}),
        lambda t: t.pop("calibration.clean"),
        lambda t: t.pop("calibration.jpeg75"),
        lambda t: t.update({"predicted.clean": t["predicted.clean"][:5]}),
        lambda t: t.update(references=np.zeros((5, 3, 8, 8), np.uint8)),
        lambda t: t.update(references=np.zeros((5, 1, 9, 9), np.uint8)),
        lambda t: t.update(references=t["references"].astype(np.float32)),
        lambda t: t.update(reference_logits=t["reference_logits"][:, :4]),
        lambda t: t.update(reference_logits=t["reference_logits"] * np.nan),
        lambda t: t.pop("references"),
    ],
)
def test_tensors_that_do_not_fit(change, forge, tmp_path):
    """Shapes, types, finiteness."""
    held = load_file(bundle.default("digits") / bundle.TENSORS)
    change(held)
    save_file({k: np.ascontiguousarray(v) for k, v in held.items()}, tmp_path / "t")
    refused(forge(files={bundle.TENSORS: (tmp_path / "t").read_bytes()}))


def test_files_that_are_none(forge):
    """A header of 2^40 bytes, nothing, no zip."""
    for name, content in (
        (bundle.TENSORS, struct.pack("<Q", 2**40)),
        (bundle.TENSORS, b""),
        (bundle.WEIGHTS, b"\0" * 100),
        (bundle.HEAD, b"no zip"),
        (bundle.HEAD, b""),
    ):
        refused(forge(files={name: content}))


def head(edit=lambda schema: schema, arrays=lambda name, data: data):
    """The shipped head's file with its schema or arrays changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(bundle.default("digits") / bundle.HEAD) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps(edit(json.loads(data))) if name == "schema.json" else arrays(name, data))
    return {bundle.HEAD: out.getvalue()}


def dumped(estimator):
    from skops.io import dumps

    return {bundle.HEAD: dumps(estimator)}


def estimators():
    from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 213)), np.repeat([0, 1], 30)
    forged = SVC().fit(x, y)
    forged.support_ = np.arange(10**6, dtype=np.int32)
    bagging = BaggingClassifier(LogisticRegression(), n_estimators=12).fit(x, y)
    bagging.n_jobs = 12
    nan = LogisticRegression().fit(x, y)
    nan.coef_ = np.full((1, 213), np.nan)
    short = LogisticRegression().fit(x[:, :7], y)
    return {
        "svc": forged,
        "bagging": bagging,
        "nan": nan,
        "short": short,
        "boosting": HistGradientBoostingClassifier().fit(x, y),
    }


@pytest.mark.parametrize("name", ["svc", "bagging", "nan", "short", "boosting"])
def test_heads_that_would_crash_start_processes_or_say_nothing(name, forge, picture):
    """Trusted by skops, refused here; the command ends with 2 and judges nothing."""
    folder = forge(files=dumped(estimators()[name]))
    refused(folder)
    out = run("score", picture, "--detector", folder)
    assert out.exit_code == 2
    assert out.stdout == ""


def test_heads_of_other_types_run_nothing(forge, tmp_path):
    """A method of an array that writes a file (CVE-2025-54413), functions, partials, an int, a deep schema."""
    canary = tmp_path / "canary"

    def node(module, name, loader, **rest):
        return {"__module__": module, "__class__": name, "__loader__": loader, **rest}

    text = node("builtins", "str", "JsonNode", content=json.dumps(str(canary)), is_json=True)
    array = node("numpy", "ndarray", "NdArrayNode", type="numpy", file="1.npy")
    forged = [
        node(
            "sklearn.neural_network._stochastic_optimizers",
            "AdamOptimizer",
            "MethodNode",
            content={"func": "tofile", "obj": array},
        ),
        node("posix", "system", "FunctionNode", content="touch"),
        node("functools", "partial", "PartialNode", content={}),
        node("builtins", "eval", "TypeNode"),
        node("os", "system", "TypeNode"),
        node("builtins", "int", "JsonNode", content="3", is_json=True),
    ]
    for inner in forged:
        refused(forge(files=head(lambda schema, inner=inner: schema | {"content": {"steps": inner, "x": text}})))
        refused(forge(files=head(lambda schema, inner=inner: inner | {"protocol": 2, "_skops_version": "0.16.0"})))
    deep = "[" * 100000
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("schema.json", deep)
    refused(forge(files={bundle.HEAD: out.getvalue()}))
    assert not canary.exists()


def test_arrays_in_a_head_are_measured_before_they_are_read(forge):
    """A shape that the file does not hold, and a billion zeros in a kilobyte."""
    data = io.BytesIO()
    np.save(data, np.zeros(4))
    huge = data.getvalue().replace(b"(4,)", b"(400000000000,)").replace(b"            \n", b"\n", 1)
    refused(forge(files=head(arrays=lambda name, old: huge)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
        archive.writestr("1.npy", bytes(2**27))
    assert "too large" in refused(forge(files={bundle.HEAD: out.getvalue()}))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", '{"a": [' + "[]," * 10**6 + "[]]}")
    assert "too large" in refused(forge(files={bundle.HEAD: out.getvalue()}))


def test_names_in_a_forged_head_never_reach_the_terminal_raw(forge):
    """New lines and escape sequences are shown escaped."""
    node = {"__module__": "a\nb\r\x1b[31m", "__class__": "x", "__loader__": "ObjectNode"}
    text = refused(forge(files=head(lambda schema: schema | {"content": node})))
    assert text.isprintable()


def test_a_giant_architecture_is_refused_without_its_memory(forge):
    """Shapes are compared before anything is allocated."""
    pytest.importorskip("timm")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("timm:vit_giant_patch14_224", "torchvision:regnet_y_128gf"):
        assert "do not fit" in refused(forge(lambda card, name=name: card["classifier"].update(name=name)))
    weights = load_file(bundle.default("digits") / bundle.WEIGHTS)
    weights["head.weight"] = np.zeros((5 * 10**6, 0), np.float32)
    from safetensors.numpy import save

    refused(forge(files={bundle.WEIGHTS: save(weights)}))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (1 if sys.platform == "darwin" else 1024)
    assert grown < 900


@pytest.mark.parametrize("number", [1, 2])
def test_format_1_and_2_say_the_same(number, tmp_path):
    """A folder as those formats had it, of a detector without stages: loaded, judged, and saved again."""
    old = {"connectivity": {"temperature": 1.0}, "accept_weak": True}  # those formats knew of no temperature
    detector = fit(advconn.Classifier(trained(), size=16), stages=None, conditions=("clean",), benign=(), **old)
    folder = bundle.save(detector, tmp_path / "old")
    tensors = load_file(folder / bundle.TENSORS)
    scores = tensors.pop("calibration.clean")[:, 0]
    old = {k: v for k, v in tensors.items() if not k.startswith("predicted.")} | {"calibration": scores}
    save_file(old, folder / bundle.TENSORS)
    card = json.loads((folder / bundle.CARD).read_text()) | {"format": number}
    for *most, last in LATER:
        inner = card
        for key in most:
            inner = inner[key]
        if number == 1 or last not in ("dtype", "kind", "crop"):
            del inner[last]
    detector.set_params(confidence=None)  # of which those formats knew nothing
    card["calibration"]["threshold"] = detector.calibration_.threshold
    card["files"] = {p.name: cards.sha256(p) for p in folder.iterdir() if p.name != bundle.CARD}
    card["card"] = cards.digest(card)
    (folder / bundle.CARD).write_text(json.dumps(card))
    model = advconn.Classifier(trained(), size=16)
    first = bundle.load(folder, model=model)
    again = bundle.load(bundle.save(first, tmp_path / "again"), model=model)
    assert json.loads((tmp_path / "again" / bundle.CARD).read_text())["format"] == 3
    known = detector.judge(mixed())
    for one in (first, again):
        seen = one.judge(mixed())
        np.testing.assert_allclose(seen.score, known.score, atol=1e-5)
        np.testing.assert_array_equal(seen.p_value, known.p_value)
        np.testing.assert_array_equal(seen.adversarial, known.adversarial)
        assert one.attacks == detector.attacks != ()
        assert one.stages is None


def test_a_picture_takes_no_more_memory_than_itself(tmp_path):
    """Thirty-two pictures of twelve megapixels are fitted one by one."""
    import subprocess

    Image.new("RGB", (4000, 3000)).save(tmp_path / "0.jpg")
    for i in range(1, 32):
        (tmp_path / f"{i}.jpg").hardlink_to(tmp_path / "0.jpg")
    code = (
        "import resource, sys; from advconn.data.collection import Collection\n"
        "from advconn.data.preprocessing import Preprocessing\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "list(Collection(sys.argv[1], 3, reading='both').batches(Preprocessing((32, 32))))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400
