"""The classifier's table: what people have is taken, or refused in one line that tells the way."""

import copy
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brought import FAST, Net, fit, fitted, images, mixed, trained, without_paths
from torch import nn

import advconn
from advconn import Classifier
from advconn.attacks.attack import Attack
from advconn.errors import AdvconnError, AdvconnWarning, AttackError, DataError, FitError, ModelError
from advconn.models.fingerprint import fingerprint

X = images(n=8, seed=3)[0].float() / 255


class Answers(nn.Module):
    """The trained network with another answer."""

    def __init__(self, how) -> None:
        super().__init__()
        self.net, self.how = trained(), how

    def forward(self, x):
        return self.how(self.net(x), x)


@dataclass
class Output:
    loss: Any
    logits: Any


def same(classifier, expected=None, atol=1e-4):
    """It gives the trained network's logits, one image alone too."""
    expected = trained()(X).detach() if expected is None else expected
    torch.testing.assert_close(classifier.logits(X), expected, atol=atol, rtol=1e-3)
    torch.testing.assert_close(classifier.logits(X[:1]), expected[:1], atol=atol, rtol=1e-3)


@pytest.mark.parametrize(
    "how",
    [
        lambda z, x: {"logits": z, "features": x.mean((2, 3))},
        lambda z, x: {"scores": z, "aux": x},
        lambda z, x: Output(None, z),
        lambda z, x: (z, x),
        lambda z, x: [z],
        lambda z, x: (z, {"deep": x}),
        lambda z, x: z[:, :, None, None],
    ],
    ids=["dict", "one entry that fits", "dataclass", "tuple", "list", "nested", "trailing ones"],
)
def test_logits_are_taken_out_of_what_a_module_answers(how):
    """The entry `logits`, else the one 2-D tensor."""
    same(Classifier(Answers(how).eval(), size=16))


def test_an_ambiguous_answer_names_what_was_found_and_the_way():
    """Two tensors that could be logits; `output` settles it."""
    module = Answers(lambda z, x: {"a": z, "b": x.mean((2, 3))}).eval()
    with pytest.raises(ModelError, match=r"a \(3, 4\), b \(3, 3\).*output=lambda out: out\[\"a\"\]") as caught:
        Classifier(module, size=16)
    assert "\n" not in str(caught.value)
    same(Classifier(module, size=16, output=lambda out: out["a"]))
    with pytest.raises(ModelError, match="got str"):
        Classifier(Answers(lambda z, x: "cat").eval(), size=16)


@pytest.mark.parametrize("how", [lambda z, x: z[:, :1], lambda z, x: z[:, 0], lambda z, x: z[:, :1].squeeze()])
def test_one_logit_stands_for_two_classes(how):
    """(n, 1), (n,) and what squeeze makes of one image: logits (0, z)."""
    found = Classifier(Answers(how).eval(), size=16)
    z = trained()(X).detach()[:, :1]
    same(found, torch.cat([torch.zeros_like(z), z], 1))


@pytest.mark.parametrize(
    ("dtype", "agree"), [(torch.float64, 1.0), (torch.float16, 0.98), (torch.bfloat16, 0.98)], ids=str
)
def test_other_precisions_run_and_are_judged_alike(dtype, agree, tmp_path):
    """In their own dtype, with gradients; the detector fitted for float32 is loaded for them by their answers.

    Bypass takes steps along gradients, and in bfloat16 they end elsewhere: there one flag in twenty may differ.
    """
    x = mixed()
    plain, copies = fitted().judge(x), without_paths(x)
    other = Classifier(trained().to(dtype), size=16)
    assert other.adapter.dtype == dtype
    assert other.differentiable
    advconn.save(fitted(), tmp_path / "d")
    detector = advconn.load(tmp_path / "d", model=other)
    seen = detector.judge(x)
    alone = detector.judge(x, max_stage=len(detector.cascade_.connectivities) - 1)
    assert (alone.adversarial == copies.adversarial).mean() >= agree
    assert (seen.adversarial == plain.adversarial).mean() >= agree - 0.03 * (dtype == torch.bfloat16)
    if dtype == torch.float64:
        np.testing.assert_allclose(seen.score, plain.score, atol=1e-3)
    detector.set_params(conditions=("clean",), confidence=None, fpr=0.1).calibrate_on(x)
    assert detector.fitted_.precision == str(dtype).removeprefix("torch.")
    assert len(Attack.parse("fgsm").run(other, X, trained()(X).argmax(1))) == len(X)


def test_a_squeeze_at_the_end_of_forward():
    """An odd number of images, one, and an attack on 65."""
    found = Classifier(Answers(lambda z, x: z.squeeze()).eval(), size=16)
    same(found)
    assert Attack.parse("fgsm").run(found, images(n=65)[0].float() / 255, images(n=65)[1], batch_size=64).shape[0] == 65


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x):
        return self.net(F.dropout(x, 0.5))


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = trained()
        self.net.bn = nn.BatchNorm2d(8, track_running_stats=False)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Dropping, "differently when asked twice.*F.dropout"),
        (BatchStatistics, "depends on the other images in the batch.*batch norm"),
        (lambda: Answers(lambda z, x: z / x.max()), "depends on the other images"),
        (lambda: nn.Sequential(trained(), nn.Sigmoid()), "as of a sigmoid a label"),
        (lambda: Answers(lambda z, x: z * torch.nan), "gives NaN"),
    ],
)
def test_an_unsteady_answer_is_refused_with_the_reason(make, text):
    """Dropout left on, batch statistics, normalisation over the batch, several labels, NaN weights."""
    with pytest.raises(ModelError, match=text):
        Classifier(make().eval(), size=16)


class Cached(nn.Module):
    """Makes a constant at the first forward and keeps it, in one of several ways."""

    def __init__(self, way) -> None:
        super().__init__()
        self.net, self.way, self.std, self.masks = trained(), way, None, {}
        self.register_buffer("scale", None)

    def forward(self, x):
        if self.way == "constant":
            if self.std is None:
                self.std = torch.tensor([0.9, 1.0, 1.1], device=x.device).view(1, 3, 1, 1)
            return self.net(x / self.std)
        if self.way == "mask":
            if tuple(x.shape[2:]) not in self.masks:
                self.masks[tuple(x.shape[2:])] = torch.linspace(0.9, 1.1, x.shape[3])
            return self.net(x * self.masks[tuple(x.shape[2:])])
        if self.way == "buffer":
            if self.scale is None:
                self.scale = torch.full((1, 3, 1, 1), 1.1)
            return self.net(x * self.scale)
        SHARED.setdefault("scale", torch.full((1, 3, 1, 1), 1.1, device=x.device))
        return self.net(x * SHARED["scale"])


SHARED: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize("way", ["constant", "mask", "buffer", "global"])
def test_constants_made_at_the_first_forward_serve_gradients_later(way):
    """Also under inference_mode; the module itself is not touched by being taken."""
    module = Cached(way).eval()
    with torch.inference_mode():
        found = Classifier(module, size=16)
        assert found.logits(X).shape == (8, 4)
    assert module.std is None
    assert module.scale is None
    same(found, module(X).detach())
    leaf = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(found.logits(leaf).sum(), leaf)
    assert float(slope.abs().max()) > 0


class Keeps(nn.Module):
    """Keeps its feature map, as hooks for Grad-CAM do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x):
        self.features = self.net.conv(x)
        return self.net(x)


def uncopied(kind):
    module = Keeps().eval()
    if kind == "feature map":
        module(torch.rand(2, 3, 16, 16))
    elif kind == "weight norm":
        module.net.conv = torch.nn.utils.weight_norm(module.net.conv)
        module(torch.rand(2, 3, 16, 16))
    else:
        module.lock = threading.Lock()
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["feature map", "weight norm", "lock"])
def test_a_module_that_cannot_be_copied_is_used_as_it_is_and_locked(kind):
    """Its parameters keep their state; once it is changed it is refused."""
    module = uncopied(kind)
    found = Classifier(module, size=16)
    assert found.network is module
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    same(found, module(X).detach())
    assert len(fit(found).judge(X).score) == 8
    with torch.no_grad():
        module.net.fc.bias += 1
    with pytest.raises(ModelError, match="was changed since"):
        found.logits(X)
    if kind == "lock":  # the others can be copied once they were asked without gradients
        again = Classifier(module, size=16)
        module.train()
        with pytest.raises(ModelError, match="was changed since"):
            again.logits(X)


def deployed(kind):
    net = trained()
    if kind == "scripted":
        return torch.jit.script(net)
    if kind == "traced":
        return torch.jit.trace(net, X[:2])
    if kind == "frozen":
        return torch.jit.freeze(torch.jit.script(net))
    if kind == "exported":
        return torch.export.export(net, (X[:2],), dynamic_shapes=({0: torch.export.Dim("b")},)).module()
    if kind == "program of one image":
        return torch.export.export(net, (X[:1],))
    if kind == "program of two images":
        return torch.export.export(net, (X[:2],)).module()
    if kind == "compiled":
        return torch.compile(net)
    return nn.DataParallel(net).eval()


KINDS = [
    "scripted",
    "traced",
    "frozen",
    "exported",
    "program of one image",
    "program of two images",
    "compiled",
    "parallel",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_deployed_modules_are_scored_fitted_and_load_the_detector_of_the_plain_one(kind, tmp_path):
    """Same logits, gradients, and the same verdicts from the detector that was fitted on the plain module."""
    found = Classifier(deployed(kind), size=16)
    same(found, atol=1e-3)
    assert found.differentiable
    advconn.save(fitted(), tmp_path / "d")
    seen = advconn.load(tmp_path / "d", model=found).judge(mixed())
    np.testing.assert_allclose(seen.score, fitted().judge(mixed()).score, atol=1e-3)
    if kind in ("scripted", "exported"):
        assert fit(found).fitted_.attacks[FAST[0]][1] > 0


def test_the_same_network_inside_another_module_loads_the_detector(tmp_path):
    """Its answers are the same to rounding, whatever the names of its weights are."""
    advconn.save(fitted(), tmp_path / "d")
    found = Classifier(Answers(lambda z, x: {"logits": z, "x": x}).eval(), size=16)
    assert found.fingerprint != fitted().classifier.fingerprint
    np.testing.assert_allclose(
        advconn.load(tmp_path / "d", model=found).score_samples(X), fitted().score_samples(X), atol=1e-4
    )
    with pytest.raises(FitError, match=r"Detector\(Connectivity\(classifier\)\)"):
        advconn.Detector(found).fit(X)


@pytest.mark.filterwarnings("ignore")
def test_fingerprints_tell_weights_and_nothing_else():
    """Prefixes of wrappers do not count; frozen and quantised weights do."""
    net, other = trained(), trained()
    with torch.no_grad():
        other.fc.weight[0, 0] += 1
    assert fingerprint(net) != fingerprint(other)
    assert fingerprint(nn.DataParallel(net)) == fingerprint(torch.compile(net)) == fingerprint(net)

    def frozen(module):
        return torch.jit.freeze(torch.jit.script(module))

    def small(module):
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8).eval()

    for make in (frozen, small):
        assert fingerprint(make(net)) == fingerprint(make(trained()))
        assert fingerprint(make(net)) != fingerprint(make(other))


@pytest.mark.filterwarnings("ignore")
def test_dynamic_int8_is_scored_by_its_float_twins_detector_and_fitted_without_gradients(tmp_path):
    """It has no gradient, which is said; attacks that need none fit it."""
    small = torch.ao.quantization.quantize_dynamic(trained(), {nn.Linear}, dtype=torch.qint8).eval()
    found = Classifier(small, size=16)
    assert not found.differentiable
    advconn.save(fitted(), tmp_path / "d")
    seen = advconn.load(tmp_path / "d", model=found).judge(mixed())
    assert (seen.adversarial == fitted().judge(mixed()).adversarial).mean() > 0.85
    with pytest.raises(AttackError, match="needs gradients, and this classifier gives none"):
        fit(found)
    assert fit(found, attacks=("square:eps=24/255,n_queries=60",)).fitted_.attacks


@pytest.mark.parametrize("takes", ["array", "tensor", "list"])
def test_a_function_is_scored_by_its_twins_detector_and_fitted_itself(takes, tmp_path):
    """Any callable from images in [0, 1] to logits."""
    net = trained()

    def f(x):
        if takes == "tensor":
            return net(x)
        assert isinstance(x, np.ndarray)
        assert x.dtype == np.float32
        out = net(torch.from_numpy(x)).detach().numpy()
        return out.tolist() if takes == "list" else out

    found = Classifier.from_callable(f, num_classes=4, size=16, channels=3)
    same(found)
    advconn.save(fitted(), tmp_path / "d")
    with pytest.warns(AdvconnWarning, match="gives no gradient"):
        seen = advconn.load(tmp_path / "d", model=found).judge(mixed())
    np.testing.assert_allclose(seen.p_value, without_paths(mixed()).p_value, atol=0.03)
    np.testing.assert_array_equal(seen.adversarial, without_paths(mixed()).adversarial)
    with pytest.raises(FitError, match="need gradients"):
        fit(found, synthesised=True, attacks=("noise",))
    with pytest.raises(DataError, match="complexity needs gradients"):
        advconn.Connectivity(found, fitted().connectivity.references, families=("complexity",)).transform(X)


def test_a_function_is_fitted_on_attacks_made_on_a_surrogate(tmp_path):
    """Only those that change its own prediction count; the folder goes with the function."""
    net, other = trained(), trained()
    with torch.no_grad():
        other.fc.weight += 0.01 * torch.randn(other.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    found = Classifier.from_callable(lambda x: net(torch.as_tensor(x)).detach(), num_classes=4, size=16, channels=3)
    detector = fit(found, surrogate=other)
    assert detector.fitted_.attacks[FAST[0]][1] > 10
    again = advconn.load(advconn.save(detector, tmp_path / "d"), model=found)
    np.testing.assert_allclose(again.score_samples(X), detector.score_samples(X))
    twin = advconn.load(tmp_path / "d", model=Classifier(net, size=16))  # whose barriers could be bypassed
    np.testing.assert_allclose(twin.score_samples(X), detector.score_samples(X), atol=1e-3)
    with torch.no_grad():
        net.fc.weight += 0.1
    with pytest.raises(AdvconnError, match="other weights"):
        advconn.load(tmp_path / "d", model=found)
    with pytest.raises(ModelError, match="takes neither an array"):
        Classifier.from_callable(lambda x: x.nothing(), num_classes=4, size=16)


class Standardised(nn.Module):
    """Divides each image by its own deviation: NaN for a constant one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x):
        return self.net((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True) / 4 + 0.3)


def test_an_image_with_nan_logits_is_reported_and_the_others_are_judged():
    """A gate fails closed: it is flagged, and told apart by `errors`."""
    detector = fit(Classifier(Standardised().eval(), size=16), accept_accuracy=True)
    batch = X.clone()
    batch[3] = 0
    seen = detector.judge(batch)
    assert [i for i, e in enumerate(seen.errors) if e] == [3]
    assert "gives NaN for it" in seen.errors[3]
    assert seen.adversarial[3]
    assert seen.p_value[3] == pytest.approx(1 / (len(detector.calibration_.scores) + 1))
    np.testing.assert_allclose(np.delete(seen.score, 3), np.delete(detector.judge(X).score, 3), atol=1e-4)
    assert detector.predict(batch)[3] == 1
    assert detector.predict_proba(batch)[3, 1] == 1
    assert bool(advconn.Guard(detector)(batch).flag[3])


def test_classes_at_minus_infinity_are_fine():
    """They get next to no probability, and every feature is finite."""
    module = Answers(lambda z, x: torch.cat([z, torch.full_like(z[:, :2], -torch.inf)], 1)).eval()
    found = Classifier(module, size=16)
    assert bool(torch.isfinite(found.logits(X)).all())
    torch.testing.assert_close(found.logits(X).softmax(1)[:, :4], trained()(X).softmax(1).detach())
    with pytest.warns(UserWarning, match="have no reference"):
        assert np.isfinite(fit(found).score_samples(X)).all()


class Raw(nn.Module):
    """Wants values from 0 to 255."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x):
        return self.net(x / 255)


def test_a_network_at_the_wrong_scale_stops_before_the_attacks():
    """One class for all, or no more than chance; the line names scale, channels and labels."""
    x, y = images()
    with pytest.raises(DataError, match=r"scale.*order of the channels.*--labels.*--accept-accuracy"):
        fit(Classifier(Raw().eval(), size=16))
    shuffled = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    with pytest.raises(DataError, match="no more than chance"):
        advconn.fit(Classifier(trained(), size=16), x, shuffled, attacks=FAST, fpr=0.1)
    found = advconn.fit(Classifier(trained(), size=16), x, shuffled, attacks=FAST, fpr=0.1, accept_accuracy=True)
    assert found.fitted_.train > 0


class InPlace(nn.Module):
    def __init__(self, channels) -> None:
        super().__init__()
        self.net = trained(channels)

    def forward(self, x):
        return self.net(x.mul_(2).div_(2).add_(0.1).sub_(0.1))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_never_changed_for_anyone_else(channels):
    """By a network that normalises in place."""
    found = Classifier(InPlace(channels).eval(), size=16, channels=channels)
    x = images(n=8, channels=channels)[0].float() / 255
    checked, before = found.check(x), x.clone()
    found.logits(checked)
    assert torch.equal(x, before)
    assert torch.equal(checked, before)
    assert fit(found).fitted_.attacks[FAST[1]][0] > 0


def test_the_default_dtype_and_device_change_nothing(tmp_path):
    """Verdicts and a loaded folder are the same to the bit; both are set back."""
    x = mixed()[:80]
    before = fitted().judge(x)
    advconn.save(fitted(), tmp_path / "d")
    for change, undo in (
        (lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
        (lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    ):
        change()
        try:
            after = fitted().judge(x)
            loaded = advconn.load(tmp_path / "d", model=Classifier(trained(), size=16)).judge(x)
        finally:
            undo()
        for seen in (after, loaded):
            np.testing.assert_array_equal(seen.score, before.score)
            assert torch.equal(seen.logits, before.logits)


def test_the_shipped_folder_loads_under_another_default_dtype():
    """Its network is built in float32."""
    from advconn.bundle.shipped import default

    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = advconn.load(default("digits")).score_samples(x)
    torch.set_default_dtype(torch.float64)
    try:
        np.testing.assert_array_equal(advconn.load(default("digits")).score_samples(x), before)
    finally:
        torch.set_default_dtype(torch.float32)


def test_ordinary_values_of_arguments_are_taken(tmp_path):
    """What a constructor takes, `save` saves and `load` accepts."""
    from torchvision.transforms import InterpolationMode

    x, y = images()
    arrays = x.numpy()
    d = fitted()
    want = d.score_samples(X[:, [2, 1, 0]])
    np.testing.assert_allclose(d.score_samples(X.numpy()[:, ::-1]), want, atol=1e-5)
    np.testing.assert_array_equal(d.predict(X.numpy().astype(">f4")), d.predict(X))
    hot = nn.functional.one_hot(y)
    for labels in (y.tolist(), y.numpy(), y[:, None], hot, hot.numpy(), y.double()):
        again = advconn.fit(
            d.classifier,
            arrays,
            labels,
            attacks=FAST[1:],
            fpr=0.1,
            connectivity={"copies": ("flip",), "halves": ()},
        )
        assert again.fitted_.attacks[FAST[1]][0] > 40
    names = {0: "bee", 1: "cat", "2": "dog", 3: "owl"}
    for options in (
        {"size": [16, 16], "mean": np.full(3, 0.5, np.float32), "std": torch.full((3,), 0.2)},
        {"size": np.array([16, 16]), "mean": tuple(np.full(3, 0.5, np.float32)), "std": [0.2] * 3},
        {"size": 16, "class_names": names, "interpolation": InterpolationMode.BICUBIC},
    ):
        made = Classifier(trained(), **options)
        found = fit(made, attacks=FAST[1:], accept_accuracy=True)
        again = advconn.load(
            advconn.save(found, tmp_path / str(len(list(tmp_path.iterdir())))), model=Classifier(trained(), **options)
        )
        np.testing.assert_allclose(again.score_samples(X), found.score_samples(X), atol=1e-5)
    assert made.label_names([1, 2]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": (16, 16, 3)}, "one side"),
        ({"size": 0}, "whole number above 0"),
        ({"mean": (0.5,), "std": (0.2,)}, "1 values for 3 channels"),
        ({"mean": (0.5,) * 3, "std": (0.0,) * 3}, "above 0"),
        ({"interpolation": "foo"}, "expected one of"),
        ({"class_names": {0: "a", 2: "b", 3: "c", 4: "d"}}, "every index"),
        ({"class_names": "abcd"}, "a text"),
        ({"channels": 2.5}, "whole number"),
    ],
)
def test_other_values_are_refused_before_any_work(options, text):
    """In one line."""
    with pytest.raises(ModelError, match=text):
        Classifier(trained(), **options)


def test_labels_that_do_not_fit_are_refused():
    """Too few, from one, no numbers; images in the wrong order of axes."""
    x, y = images()
    c = Classifier(trained(), size=16)
    for labels, text in (
        (y[:100], "100,.* labels for 120"),
        (y + 1, "labels go from 0"),
        (["a"] * 120, "expected 120 integers"),
    ):
        with pytest.raises(AdvconnError, match=text):
            advconn.fit(c, x, labels, attacks=FAST)
    with pytest.raises(AdvconnError, match=r"permute\(0, 3, 1, 2\)"):
        advconn.fit(c, x.permute(0, 2, 3, 1), y, attacks=FAST)
    with pytest.raises(FitError, match=r"31 images leave 10 .* at least 19: give 60 images or more"):
        advconn.fit(c, x[:31], y[:31], attacks=FAST)


def test_a_classifier_that_was_trained_on_a_little_is_refused_and_calibrated(tmp_path):
    """The line names the command; afterwards its false alarms are near the rate."""
    from advconn.detector.recalibration import recalibrate

    advconn.save(fitted(), tmp_path / "d")
    moved = trained()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for p in moved.parameters():
            p += 1e-3 * torch.randn(p.shape)
    new = Classifier(moved, size=16)
    with pytest.raises(AdvconnError, match=r"other weights.*advconn calibrate"):
        advconn.load(tmp_path / "d", model=new)
    x, y = images(n=200, seed=4)
    again, order = recalibrate(advconn.load(tmp_path / "d", model=new, same_weights=False), x, y, fpr=0.05)
    assert order.auroc > 0.9
    assert len(again.calibration_.scores) == 200
    loaded = advconn.load(advconn.save(again, tmp_path / "new"), model=new)
    assert loaded.predict(images(n=200, seed=5)[0]).mean() < 0.12
    other = Classifier(Net().eval(), size=16)
    with pytest.raises(AdvconnError, match=r"no longer tell|changed|no reference"):
        recalibrate(advconn.load(tmp_path / "d", model=other, same_weights=False), x, y)


def attack_classes():
    import inspect

    import torchattacks

    found = {n: o for n, o in vars(torchattacks).items() if inspect.isclass(o) and n != "Attack"}
    return {n: o for n, o in found.items() if issubclass(o, torchattacks.attack.Attack)}


@pytest.mark.parametrize("name", sorted(attack_classes()))
def test_every_attack_class_of_torchattacks_runs(name):
    """On Classifier.module, whose gradient is contiguous; LGV trains a copy of it."""
    import inspect

    import torchattacks

    with torch.random.fork_rng():
        torch.manual_seed(0)
        c = Classifier(Net(k=10).eval(), size=16)  # JSMA takes ten classes for granted
    x, y = c.check(images(n=3, k=10)[0]), c.logits(X[:3]).argmax(1)
    kind = attack_classes()[name]
    known = inspect.signature(kind.__init__).parameters
    some = {
        "steps": 2, "max_iterations": 10, "nb_iter": 1, "n_queries": 5, "popsize": 2, "inf_batch": 4, "epochs": 1,
        "n_restarts": 1, "restarts": 2, "num_iter_set": 2, "nb_sample": 4, "binary_search_steps": 1,
        "nb_models_epoch": 1, "verbose": False, "n_classes": 10,
    }  # fmt: skip
    options = {k: v for k, v in some.items() if k in known}
    if name == "MultiAttack":
        attack = kind([torchattacks.FGSM(c.module), torchattacks.FFGSM(c.module)])
    elif name == "LGV":
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 3)
        attack = kind(c.module, loader, **options)
    elif name == "AutoAttack":
        attack = torchattacks.APGD(c.module, steps=2)  # its parts are tried by themselves: together they take seconds
    else:
        attack = kind(c.module, **options)
    out = attack(x, y)
    assert out.shape == x.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert all(p.grad is None and not p.requires_grad for p in c.network.parameters())


def test_no_class_lacks_a_reference_by_chance():
    """Of ten classes among sixty images each has one."""
    from advconn.detector.clean_images import _every_class

    predicted = torch.arange(60) % 10
    for seed in range(20):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(60))
        found = _every_class(order, 12, predicted, None)
        assert set(predicted[found[:12]].tolist()) == set(range(10))
        assert sorted(found.tolist()) == list(range(60))


@pytest.mark.parametrize("auto", [True, False])
def test_strengths_that_suit_the_classifier_are_found(auto):
    """A network that 8/255 hardly moves: `fit` says so and makes stronger attacks; MIXTURE stays elsewhere."""
    from advconn.attacks.catalog import MIXTURE
    from advconn.attacks.strength import attacks_at_breaking_strength, choose_mixture

    x, y = images(n=80)
    robust = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 4)).eval()
    with torch.no_grad():
        robust[2].weight.zero_()
        robust[2].bias.zero_()
        for c in range(4):
            row, column = divmod(c, 2)
            for plane in range(3):
                robust[2].weight[c, plane * 16 + (row * 2 + row) * 4 + column * 3] = 30.0
    c = Classifier(robust, size=16)
    told = []
    if auto:
        found = attacks_at_breaking_strength(c, x, y)
        eps = float(found[0].split("=")[1].split("/")[0]) / 255
        strong = Attack.parse(found[0]).run(c, c.check(x), y)
        right = c.logits(c.check(x)).argmax(1) == y
        assert eps > 8 / 255
        assert float((c.logits(strong).argmax(1) != y)[right].float().mean()) >= 0.9
    else:
        found = choose_mixture(c, x, y, None, told.append)
        assert found != MIXTURE
        assert "changes only" in told[0]
