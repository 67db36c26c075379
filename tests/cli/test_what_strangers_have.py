"""What people have: networks, outputs, files and words of their own, taken, or refused with the reason."""

import io
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from brought import NET, fitted, folder, images, one_line, run, trained
from PIL import Image
from torch import nn

import advconn
from advconn import Classifier, Guard, models
from advconn.attacks.attack import Attack
from advconn.data.collection import Collection
from advconn.data.preprocessing import Preprocessing
from advconn.errors import AdvconnError, DataError, FitError, ModelError
from advconn.serving import Judge


class Viewing(nn.Module):
    """The network of many tutorials."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 10, 5), nn.Conv2d(10, 20, 5)
        self.c = nn.Linear(320, 10)

    def forward(self, x):
        x = torch.relu(torch.max_pool2d(self.a(x), 2))
        x = torch.relu(torch.max_pool2d(self.b(x), 2))
        return self.c(x.view(-1, 320))


def test_a_view_behind_a_convolution():
    """The same answers and gradients as in a plain loop; for attacks too."""
    torch.manual_seed(0)
    net, x = Viewing().eval(), torch.rand(5, 1, 28, 28)
    c = Classifier(net, size=28, channels=1)
    torch.testing.assert_close(c.logits(x), net(x).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(c.module(x), net(x).detach(), atol=1e-5, rtol=1e-5)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(c.logits(leaf).sum(), leaf)
    (own,) = torch.autograd.grad(net(leaf).sum(), leaf)
    torch.testing.assert_close(slope, own, atol=1e-5, rtol=1e-5)


class Last(nn.Module):
    """The network with something behind it."""

    def __init__(self, last):
        super().__init__()
        self.net, self.last = trained(), last
        self.eval()

    def forward(self, x):
        return self.last(self.net(x))


@pytest.mark.parametrize(
    ("last", "scale"),
    [
        (lambda z: z.softmax(1), "softmax"),
        (lambda z: {"probabilities": z.softmax(1)}, "softmax"),
        (lambda z: z.log_softmax(1), "logits"),
        (lambda z: 100 * z.softmax(1), "percent"),
        (lambda z: (z.softmax(1) * 100).round() / 100, "softmax"),
        (lambda z: 0.5 + 1e-3 * z, "logits"),
    ],
)
def test_outputs_that_are_probabilities(last, scale):
    """Their logarithms are logits, of modules and of functions; what was taken is told."""
    x = images(n=20, seed=3)[0]
    c, plain = Classifier(Last(last), size=16), Classifier(trained(), size=16)
    assert c.adapter.scale == scale
    assert (c.told is not None) == (scale != "logits")
    assert torch.equal(c.predict(x), plain.predict(x))
    if "round" not in last.__code__.co_names and "log" in str(last.__code__.co_names):
        ours, theirs = (k.logits(k.check(x)).log_softmax(1) for k in (c, plain))
        torch.testing.assert_close(ours, theirs.clamp_min(ours.min()), atol=1e-2, rtol=1e-2)


def test_functions_of_probabilities_and_arrays_of_others():
    """As they are, by torch's and by numpy's logarithms; what numpy takes for an array is taken."""

    class Array:
        __slots__ = ("values",)

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return self.values if dtype is None else self.values.astype(dtype)

    def f(x):
        return trained()(torch.as_tensor(np.asarray(x))).softmax(1).detach().numpy()

    c, plain = Classifier(Last(lambda z: z.softmax(1)), size=16), Classifier(trained(), size=16)
    x, y = images(n=20, seed=3)
    for attack in ("cw:c=1,kappa=0,steps=50", "cw:c=1,kappa=3,steps=50"):  # which asks for the other classes' logits
        hits = [int((k.predict(Attack.parse(attack).run(k, k.check(x), y)) != y).sum()) for k in (c, plain)]
        assert abs(hits[0] - hits[1]) <= 4
        assert hits[0] > 10
    for way, options in ((f, {}), (f, {"output": torch.log}), (f, {"output": np.log}), (lambda x: Array(f(x)), {})):
        assert Classifier.from_callable(way, num_classes=4, size=16, **options).num_classes == 4


def test_one_sigmoid_is_two_classes_and_several_are_refused():
    one = Classifier(Last(lambda z: z[:, :1].sigmoid()), size=16)
    assert (one.num_classes, one.adapter.scale) == (2, "sigmoid")
    x = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(one.logits(x)[:, 1], trained()(x).detach()[:, 0], atol=1e-2, rtol=1e-2)
    with pytest.raises(ModelError, match="several labels"):
        Classifier(Last(torch.sigmoid), size=16)
    Classifier(Last(torch.sigmoid), size=16, output=torch.logit)


def test_a_guard_is_not_traced_and_stays_in_its_precision():
    """A trace would keep its example's verdicts; the rest of a pipeline is converted."""
    guard = Guard(fitted())
    x = images(n=4)[0].float() / 255
    flags = guard(x).flag
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in (
            lambda: torch.jit.trace(guard, x), lambda: torch.jit.script(guard), lambda: torch.fx.symbolic_trace(guard),
            lambda: torch.jit.script(nn.Sequential(guard)), lambda: torch.jit.trace(nn.Sequential(guard), x),
            lambda: torch.export.export(guard, (x,)),
        ):  # fmt: skip
            with pytest.raises(ModelError, match="traced"):
                record()
    pipeline = nn.Sequential(trained(), guard)
    for dtype in (torch.bfloat16, torch.float64, torch.float16):
        assert next(pipeline.to(dtype)[0].parameters()).dtype == dtype
        assert torch.equal(guard(x.to(torch.float64)).flag, flags)


def test_devices_that_are_not_here():
    for device in ("mps", "cuda" if not torch.cuda.is_available() else "cuda:99"):
        with pytest.raises(ModelError, match=f"device {device}"):
            Classifier(trained(), size=16, device=device)


def test_forwards_of_other_signatures():
    """A keyword and a dict are taken by name; what wants more is told to be wrapped."""

    class OfKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = trained()

        def forward(self, *, pixel_values):
            return self.net(pixel_values)

    class OfDict(OfKeyword):
        def forward(self, batch):
            return self.net(batch["image"])

    class OfTwo(OfKeyword):
        def forward(self, image, age):
            return self.net(image)

    x = torch.rand(3, 3, 16, 16)
    for kind, key in ((OfKeyword, "pixel_values"), (OfDict, "image")):
        c = Classifier(kind().eval(), size=16, input=key)
        torch.testing.assert_close(c.logits(x), trained()(x).detach(), atol=1e-4, rtol=1e-4)
        assert c.differentiable
        with pytest.raises(ModelError, match="wrap it"):
            Classifier(kind().eval(), size=16)
    with pytest.raises(ModelError, match="wrap it"):
        Classifier(OfTwo().eval(), size=16)


def test_hugging_faces_processors_to_the_pixel_or_not_at_all(tmp_path):
    """Those that do more than their settings say are refused; a timm folder without one says the way."""
    hf = pytest.importorskip("transformers")
    config = hf.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=224, patch_size=32,
        num_labels=5,
    )  # fmt: skip
    kinds = {
        "vit": (hf.ViTImageProcessor(), True),
        "levit": (hf.LevitImageProcessor(), False),
        "efficientnet": (hf.EfficientNetImageProcessor(size={"height": 224, "width": 224}), False),
    }
    for name, (processor, taken) in kinds.items():
        hf.ViTForImageClassification(config).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        if taken:
            assert models.load(f"hf:{tmp_path / name}").num_classes == 5
        else:
            with pytest.raises(ModelError, match="does more than its settings say"):
                models.load(f"hf:{tmp_path / name}")


def test_torchvisions_first_weights_have_a_name(tmp_path):
    import torchvision

    torch.save(torchvision.models.mobilenet_v2(num_classes=5).state_dict(), tmp_path / "w.pth")
    told = []
    newest = models.load("torchvision:mobilenet_v2", tmp_path / "w.pth", note=told.append)
    first = models.load("torchvision:mobilenet_v2.IMAGENET1K_V1", tmp_path / "w.pth", note=told.append)
    assert (newest.preprocessing.resize, first.preprocessing.resize) == (232, 256)
    assert len(told) == 1
    assert "mobilenet_v2.IMAGENET1K_V1" in told[0]
    with pytest.raises(ModelError, match="expected one of IMAGENET1K_V1"):
        models.load("torchvision:mobilenet_v2.V9", tmp_path / "w.pth")


def test_pictures_of_one_colour_are_clean():
    """Nothing can be hidden in them; one pixel more, and they are judged."""
    flat = torch.stack([torch.full((3, 16, 16), v) for v in (0.0, 0.5, 1.0)])
    flat[1, 0] = 0.2
    found = fitted().judge(flat)
    assert not found.adversarial.any()
    assert (found.p_value > 0.9).all()
    assert "one colour" in fitted().reasons(found)[0]
    assert fitted().predict(flat).tolist() == [0, 0, 0]
    flat[0, 0, 0, 0] = 1 / 255
    assert fitted().judge(flat).flat.tolist() == [False, True, True]


def test_bytes_and_file_objects():
    buffer = io.BytesIO()
    x = images(n=1)[0][0]
    Image.fromarray(x.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    for given in (buffer.getvalue(), io.BytesIO(buffer.getvalue()), [buffer.getvalue()]):
        assert torch.equal(fitted().read(given)[0], x)
    with pytest.raises(DataError, match="expected bytes"):
        fitted().read(io.StringIO("text"))


def test_rows_of_several_sizes_and_none():
    """Each is brought to size, or has its own error; a relative path stays right elsewhere."""
    rows = np.empty(4, object)
    for i, shape in enumerate(((16, 16, 3), (24, 16, 3), None, (16, 16, 5))):
        rows[i] = None if shape is None else np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
    found = Judge(fitted())({"image": rows})
    assert [bool(error) for error in found["advconn_error"]] == [False, False, True, True]
    assert found["advconn_flag"][2:].tolist() == [True, True]


def test_rows_of_tables():
    """Of pandas, of Arrow, and pictures as Hugging Face's datasets hold them."""
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    files = []
    for x in images(n=3)[0]:
        buffer = io.BytesIO()
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        files.append(buffer.getvalue())
    rows = [{"bytes": file, "path": None} for file in files] + [{"bytes": None, "path": "/etc/hostname"}]
    names, judge = ["a", "b", "c", "d"], Judge(fitted())
    expected = judge.detector.judge(images(n=3)[0])
    for table in (
        pandas.DataFrame({"image": rows, "name": names}),
        arrow.table({"image": rows, "name": names}),
        arrow.RecordBatch.from_pydict({"image": rows, "name": names}),
        {"image": arrow.array(rows), "name": names},
        {"image": pandas.Series(rows), "name": names},
    ):
        found = judge(table)
        assert np.array_equal(found["advconn_score"][:3], expected.score)
        assert found["advconn_flag"][3]
        assert found["advconn_error"].tolist() == ["", "", "", "row 3 holds no image"]
        assert list(found["name"]) == names


def test_a_judge_travels_with_its_folders_whole_name(tmp_path, monkeypatch):
    advconn.save(fitted(), tmp_path / "det")
    monkeypatch.chdir(tmp_path)
    judge = pickle.loads(pickle.dumps(Judge("det", model=None)))
    monkeypatch.chdir("/")
    with pytest.raises(AdvconnError, match="holds no classifier"):
        _ = judge.detector


def test_words_are_no_kinds_of_image():
    from advconn.data.input_conversion import parse_y

    with pytest.raises(FitError, match="y == 'attacked' gives them"):
        parse_y(["clean", "attacked"], 2)


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    """train/ and val/ alone at the top; among others they are classes."""
    x = images(n=4)[0]
    for part in ("train", "val"):
        folder(tmp_path / "parts" / part, x, torch.tensor([0, 1, 0, 1]), ["ok", "defect"])
    assert {item.label for item in Collection(tmp_path / "parts").items} == {"ok", "defect"}
    for parts in (("train2017", "test2017"), ("training_set", "val_set")):
        for part in parts:
            folder(tmp_path / parts[0] / part, x, torch.tensor([0, 1, 0, 1]), ["ok", "defect"])
        folder(tmp_path / parts[0] / parts[1], x[:1])  # as test images without labels lie
        assert {item.label for item in Collection(tmp_path / parts[0]).items} == {"ok", "defect", None}
    folder(tmp_path / "classes", x, torch.tensor([0, 1, 2, 0]), ["train", "bus", "car"])
    assert {item.label for item in Collection(tmp_path / "classes").items} == {"train", "bus", "car"}


def test_arrays_of_four_channels_and_hints(tmp_path):
    """On the command line as in Python; no hint that wraps values."""
    x, y = images(n=120, channels=4)
    np.savez(tmp_path / "x.npz", images=x.permute(0, 2, 3, 1).numpy(), labels=y.numpy())
    (tmp_path / "m4.py").write_text(NET + "\ndef build():\n    return Net(4, 4).eval()\n")
    line = [
        "attack",
        "--attack",
        "fgsm",
        "--model",
        f"{tmp_path}/m4.py:build",
        "--size",
        16,
        "--channels",
        4,
        "--accept-accuracy",
    ]
    assert run(*line, "--data", tmp_path / "x.npz", "--out", tmp_path / "out").exit_code == 0
    np.save(tmp_path / "wide.npy", np.zeros((1, 16, 16, 3), np.uint16))
    assert "astype" not in one_line(run("score", "--detector", "cifar10", tmp_path / "wide.npy"))


def test_images_are_stretched_cropped_or_padded_as_told(tmp_path):
    """And what was done is said."""
    x = images(n=40)[0].repeat_interleave(2, 3)
    folder(tmp_path / "wide", x)
    (tmp_path / "mine.py").write_text(NET + "\ndef build():\n    return Net().eval()\n")
    for way, said in (("stretch", "stretched"), ("crop", "the middle is cut out"), ("pad", "padded")):
        line = ["attack", "--attack", "fgsm", "--model", f"{tmp_path}/mine.py:build", "--size", 16, "--accept-accuracy"]
        out = run(*line, "--data", tmp_path / "wide", "--resize", way, "--out", tmp_path / way)
        assert said in out.stderr, out.output


def test_sixteen_bits_are_told_and_the_reading_of_a_fit_is_kept(tmp_path):
    """In the card, in score, and in what serves."""
    x, y = images(n=40, channels=1)
    for i in range(40):
        place = tmp_path / "x" / str(int(y[i]))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i, 0].numpy().astype(np.uint16) * 257).save(place / f"{i}.png")
    (tmp_path / "m1.py").write_text(NET + "\ndef build():\n    return Net(4, 1).eval()\n")
    line = ["attack", "--attack", "fgsm", "--model", f"{tmp_path}/m1.py:build", "--size", 16, "--channels", 1]
    out = run(*line, "--data", tmp_path / "x", "--out", tmp_path / "a")
    assert "--reading upright" in out.stderr
    from dataclasses import replace

    detector = fitted()
    before = detector.fitted_
    try:
        detector.fitted_ = replace(before, reading="upright")
        advconn.save(detector, tmp_path / "det")
    finally:
        detector.fitted_ = before
    assert json.loads((tmp_path / "det" / "card.json").read_text())["fitted"]["reading"] == "upright"
    loaded = advconn.load(tmp_path / "det", model=Classifier(trained(), size=16))
    assert loaded.fitted_.shown_reading == "upright"


def at_hand(place):
    """A detector, its model with weights, and a picture in a folder; the command that judges with them."""
    advconn.save(fitted(), place / "det")
    torch.save(trained().state_dict(), place / "w.pt")
    (place / "m.py").write_text(NET + "\ndef build():\n    return Net().eval()\n")
    Image.fromarray(images(n=1)[0][0].permute(1, 2, 0).numpy()).save(place / "a.png")
    return ["score", "--detector", place / "det", "--model", f"{place}/m.py:build", "--weights", place / "w.pt"]


def test_class_names_that_are_none_get_one_line(tmp_path):
    line = at_hand(tmp_path)
    for text in ('{"id2label": null}', '{"a": [1]}', "[" * 100_000):
        (tmp_path / "c.json").write_text(text)
        assert "class names" in one_line(run(*line, "--classes", tmp_path / "c.json", tmp_path / "a.png"))


def test_a_phones_photograph_is_judged(tmp_path):
    """48 megapixels, by a worker."""
    from advconn.data.decoding import content, views

    Image.new("RGB", (8064, 6048), (90, 120, 60)).save(tmp_path / "a.jpg", quality=80)
    ((way,),), _ = views(content(tmp_path / "a.jpg"), "a", Preprocessing(size=(32, 32)), "both")
    assert way.given == (8064, 6048)
    assert way.pixels.shape == (3, 32, 32)


def test_bands_are_resized_one_by_one_and_shown():
    """A fourth is no transparency; figures and pages show what they can."""
    from advconn.data.decoding import resize_array
    from advconn.paths.plots import to_display

    bands = np.stack([np.full((64, 64), v, np.uint8) for v in (120, 60, 30)] + [np.indices((64, 64)).sum(0) % 2 * 2])
    found = resize_array(bands.astype(np.uint8), Preprocessing(size=(32, 32)), "x")
    assert [int(band.mean()) for band in found] == [120, 60, 30, 1]
    for channels, shape in ((1, (8, 8)), (2, (8, 8)), (3, (8, 8, 3)), (4, (8, 8, 3)), (12, (8, 8, 3))):
        assert to_display(torch.zeros(channels, 8, 8)).shape == shape


def test_the_layout_of_a_described_input():
    """Four and twelve channels behind the sides; small pictures of three channels before them."""
    from advconn.models.onnx_and_http import ArrayModule

    for shape, last, size in (
        ([1, 32, 32, 4], True, (32, 32)), ([-1, 64, 64, 12], True, (64, 64)), ([1, 3, 8, 8], False, (8, 8)),
        ([1, 8, 8, 3], True, (8, 8)), ([1, 4, 32, 32], False, (32, 32)), ([1, 1, 28, 28], False, (28, 28)),
    ):  # fmt: skip
        made = ArrayModule("FP32", shape, "x")
        assert (made.last, made.size) == (last, size), shape


def test_a_detectors_preprocessing_is_not_changed_where_it_judges(tmp_path):
    """--resize and --interpolation are of the fit."""
    line = at_hand(tmp_path)
    assert "was fitted with" in one_line(run(*line, "--resize", "pad", tmp_path / "a.png"))
    assert run(*line, "--resize", "crop", tmp_path / "a.png").exit_code in (0, 1)


def test_no_rows_and_impossible_ones():
    judge = Judge(fitted())
    assert judge([])["advconn_flag"].tolist() == []
    found = judge([np.zeros((0, 0, 3), np.uint8), images(n=1)[0][0].permute(1, 2, 0).numpy()])
    assert [bool(error) for error in found["advconn_error"]] == [True, False]


def test_a_guard_is_not_moved_to_a_device_without_weights():
    guard = Guard(fitted())
    with pytest.raises(ModelError, match="meta"):
        guard.to("meta")
    assert guard(images(n=2)[0]).flag.shape == (2,)
