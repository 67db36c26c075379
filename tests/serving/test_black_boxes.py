"""Networks without a gradient behind a file or an address: ONNX, and the Open Inference Protocol."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from brought import fit, fitted, images, mixed, run, trained, without_paths
from PIL import Image

import advconn
from advconn import Classifier, models
from advconn.errors import AdvconnWarning, ModelError

X = images(n=5, seed=3)[0].float() / 255


@pytest.fixture(params=["any batch", "one image", "last"])
def file(request, tmp_path):
    """The trained network as an ONNX file: any batch, one image at a time, channels last."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    state = {k: v.numpy() for k, v in trained().state_dict().items()}
    batch = 1 if request.param == "one image" else "n"
    last = request.param == "last"
    shape = [batch, 16, 16, 3] if last else [batch, 3, 16, 16]
    first = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])] if last else []
    nodes = [
        *first,
        helper.make_node("Conv", ["y" if last else "x", "conv.weight", "conv.bias"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization",
            ["c", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"],
            ["b"],
            epsilon=1e-5,
        ),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["scores"], transB=1),
    ]
    held = [numpy_helper.from_array(v, k) for k, v in state.items() if "num_batches" not in k]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 4])],
        held,
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_an_onnx_file_is_scored_by_its_twins_detector(file, tmp_path):
    """Size, channels and layout are read off its input; it travels to other processes by its path."""
    import pickle

    c = models.load(f"onnx:{file}")
    assert (c.preprocessing.size, c.channels, c.num_classes, c.differentiable) == ((16, 16), 3, 4, False)
    torch.testing.assert_close(c.logits(X), trained()(X).detach(), atol=1e-4, rtol=1e-3)
    advconn.save(fitted(), tmp_path / "d")
    with pytest.warns(AdvconnWarning, match="gives no gradient"):
        seen = advconn.load(tmp_path / "d", model=c).judge(mixed()[:40])
    np.testing.assert_allclose(seen.p_value, without_paths(mixed()[:40]).p_value, atol=0.03)
    np.testing.assert_array_equal(seen.adversarial, without_paths(mixed()[:40]).adversarial)
    torch.testing.assert_close(pickle.loads(pickle.dumps(c)).logits(X), c.logits(X))
    Image.fromarray(images(n=1)[0][0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    out = run("score", "--detector", tmp_path / "d", "--model", f"onnx:{file}", tmp_path / "a.png")
    assert out.exit_code in (0, 1), out.output
    assert "note: " in out.stderr
    assert "gives no gradient" in out.stderr
    assert "Warning" not in out.stderr


def test_an_onnx_file_is_fitted_itself(file, tmp_path):
    """With attacks that need no gradient; its fingerprint is the file's."""
    c = Classifier.from_onnx(file)
    found = fit(c, attacks=("square:eps=24/255,n_queries=60", "noise:eps=60/255,tries=5"))
    again = advconn.load(advconn.save(found, tmp_path / "d"), model=Classifier.from_onnx(file))
    np.testing.assert_allclose(again.score_samples(X), found.score_samples(X), atol=1e-5)


def test_weights_in_a_file_beside_an_onnx_file_count(file, tmp_path):
    """They are part of its fingerprint, and its answers are compared."""
    before = Classifier.from_onnx(file).fingerprint
    file.with_name("net.onnx.data").write_bytes(b"other weights")
    assert Classifier.from_onnx(file).fingerprint != before


def test_onnx_files_that_are_none(tmp_path):
    """In one line."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.onnx").write_bytes(b"no network")
    for name, text in (("a.onnx", "not a readable ONNX file"), ("b.onnx", "no such file")):
        with pytest.raises(ModelError, match=text) as caught:
            models.load(f"onnx:{tmp_path / name}")
        assert "\n" not in str(caught.value)


class Handler(BaseHTTPRequestHandler):
    """The protocol's REST interface for the trained network, under the name net."""

    about = {  # noqa: RUF012 - read only
        "name": "net",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 16, 16]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 4]}],
    }

    def log_message(self, *args):
        """Say nothing."""

    def answer(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if self.path == "/v2/models/odd":
            self.answer(["no", "description"])
        elif self.path == "/v2/models/quiet":
            self.answer({"name": "quiet", "inputs": []})
        elif self.path == "/v2/models/net":
            self.answer(self.about)
        else:
            self.answer({"error": "no such model"}, 404)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        x = torch.tensor(asked["data"]).view(asked["shape"])
        out = trained()(x).detach().flatten().tolist()
        self.answer({"outputs": [{"name": "scores", "datatype": "FP32", "shape": [len(x), 4], "data": out}]})


@pytest.fixture(scope="module")
def url():
    """A server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_an_endpoint_is_scored_by_its_twins_detector(url, tmp_path):
    """Described by the server; named by its address on the command line."""
    c = models.load(f"{url}/v2/models/net")
    assert (c.preprocessing.size, c.channels, c.num_classes) == ((16, 16), 3, 4)
    torch.testing.assert_close(c.logits(X), trained()(X).detach(), atol=1e-4, rtol=1e-3)
    advconn.save(fitted(), tmp_path / "d")
    with pytest.warns(AdvconnWarning, match="gives no gradient"):
        seen = advconn.load(tmp_path / "d", model=c).judge(mixed()[:10])
    np.testing.assert_allclose(seen.p_value, without_paths(mixed()[:10]).p_value, atol=0.03)
    np.testing.assert_array_equal(seen.adversarial, without_paths(mixed()[:10]).adversarial)


def test_an_endpoint_that_does_not_describe_its_input(url):
    """Size and channels say it."""
    with pytest.raises(ModelError, match=r"describes 0 inputs.*--size and --channels"):
        models.load(f"{url}/v2/models/quiet")
    c = models.load(f"{url}/v2/models/quiet", size=(16, 16), channels=3)
    torch.testing.assert_close(c.logits(X), trained()(X).detach(), atol=1e-4, rtol=1e-3)


def test_endpoints_that_do_not_answer(url):
    """In one line that says what the server said."""
    for spec, text in (
        (f"{url}/v2/models/absent", "answers 404.*no such model"),
        (f"{url}/v2/models/odd", "not a response of the Open Inference Protocol"),
        ("http://127.0.0.1:9/v2/models/net", "no answer"),
        (f"{url}/models/net", "expected an address such as"),
    ):
        with pytest.raises(ModelError, match=text) as caught:
            models.load(spec)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="expected the address"):
        Classifier.from_endpoint("file:///etc/passwd", "x")
