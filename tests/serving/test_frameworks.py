"""The detector inside what others serve and process data with; each test runs where its package is installed."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from sklearn.datasets import load_digits

import advconn
from advconn import Classifier, bundle
from advconn.serving import Judge

try:
    import litserve
except ImportError:
    litserve = None

RUNTIME = """
import numpy as np
import advconn
from advconn import bundle
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Digits(MLModel):
    async def load(self):
        self.classifier = advconn.load(bundle.default("digits")).classifier
        return True

    async def predict(self, payload):
        import torch
        images = NumpyCodec.decode_input(payload.inputs[0])
        logits = self.classifier.logits(torch.from_numpy(np.asarray(images, np.float32))).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
"""
KSERVE = """
import sys
import numpy as np
import torch
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.predictor_config import PredictorConfig
import advconn
from advconn import bundle
from advconn.serving import Judge

class Digits(Model):
    def __init__(self):
        super().__init__("digits")
        self.classifier, self.ready = advconn.load(bundle.default("digits")).classifier, True

    async def predict(self, payload, headers=None, response_headers=None):
        logits = self.classifier.logits(torch.from_numpy(payload.inputs[0].as_numpy())).numpy()
        return InferResponse(payload.id, self.name, [output("logits", logits)])

class Guarded(Model):
    def __init__(self):
        super().__init__("digits")
        self.judge, self.ready = Judge("digits"), True

    async def predict(self, payload, headers=None, response_headers=None):
        answer = await super().predict(payload, headers, response_headers)
        verdicts = self.judge(payload.inputs[0].as_numpy())
        answer.outputs += [output(name, verdicts[name]) for name in ("advconn_p_value", "advconn_flag")]
        return answer

def output(name, values):
    made = InferOutput(name, list(values.shape), {"f4": "FP32", "f8": "FP64", "b1": "BOOL"}[values.dtype.str[1:]])
    made.set_data_from_numpy(values, binary_data=False)
    return made

role, port, other = sys.argv[1:]
config = PredictorConfig(f"127.0.0.1:{other}", predictor_protocol="v2") if role == "Guarded" else None
server = ModelServer(http_port=int(port), enable_grpc=False, predictor_config=config)
server.start([globals()[role]()])
"""
SETTINGS = {
    "name": "digits",
    "implementation": "runtime.Digits",
    "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
}


class Guarded(litserve.LitAPI if litserve else object):
    """At the top of a module, for it is sent to a worker."""

    def setup(self, device):
        self.judge = Judge("digits")

    def decode_request(self, request):
        return np.asarray(request["images"], np.float32)

    def predict(self, images):
        return self.judge(images)

    def encode_response(self, verdicts):
        return {name: np.asarray(verdicts[name]).tolist() for name in ("advconn_flag", "advconn_p_value")}


@pytest.fixture(scope="module")
def pixels():
    return (load_digits().images[:12] / 16).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def expected(pixels):
    return Judge("digits")(pixels)


def test_ray_data_maps_batches_with_a_judge(pixels, expected):
    """In Ray's own processes, where the judge loads its detector."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        data = ray.data.from_items([{"id": i, "image": pixels[i]} for i in range(len(pixels))])
        found = data.map_batches(Judge("digits"), batch_format="numpy", batch_size=4).take_all()
    finally:
        ray.shutdown()
    found.sort(key=lambda row: row["id"])
    assert [row["advconn_flag"] for row in found] == expected["advconn_flag"].tolist()
    np.testing.assert_allclose([row["advconn_p_value"] for row in found], expected["advconn_p_value"], atol=1e-6)


def test_litserve_predicts_with_a_judge(pixels, expected):
    """Inside its worker."""
    pytest.importorskip("litserve")
    client = pytest.importorskip("fastapi.testclient").TestClient
    from litserve.utils import wrap_litserve_start

    server = litserve.LitServer(Guarded(), accelerator="cpu", workers_per_device=1)
    with wrap_litserve_start(server) as started, client(started.app) as asked:
        answer = asked.post("/predict", json={"images": pixels.tolist()}).json()
    assert answer["advconn_flag"] == expected["advconn_flag"].tolist()
    np.testing.assert_allclose(answer["advconn_p_value"], expected["advconn_p_value"], atol=1e-6)


def test_mlserver_runs_the_classifier_that_is_guarded(pixels, tmp_path):
    """Its own server in a process of its own is the classifier; the verdicts are those of the network here."""
    pytest.importorskip("mlserver")
    ports = [free_port() for _ in range(3)]
    (tmp_path / "runtime.py").write_text(RUNTIME)
    (tmp_path / "model-settings.json").write_text(json.dumps(SETTINGS))
    about = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True)) | {"parallel_workers": 0}
    (tmp_path / "settings.json").write_text(json.dumps(about))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(tmp_path)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{ports[0]}"
        waited(f"{url}/v2/models/digits/ready", server)
        with pytest.warns(advconn.errors.AdvconnWarning, match="no gradient"):
            there = bundle.load(
                bundle.default("digits"), model=Classifier.from_endpoint(url, "digits", size=8, channels=1)
            )
        here = advconn.load(bundle.default("digits"))
        most = len(there.cascade_.connectivities)
        np.testing.assert_allclose(there.judge(pixels).p_value, here.judge(pixels, max_stage=most).p_value, atol=1e-3)
    finally:
        server.terminate()
        server.wait(30)


def test_a_kserve_transformer_adds_verdicts_to_what_its_predictor_says(pixels, expected, tmp_path):
    """Both are kserve's own servers, in processes of their own."""
    pytest.importorskip("kserve")
    (tmp_path / "served.py").write_text(KSERVE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ports = free_port(), free_port()
    servers = []
    try:
        for role, port, other in (("Digits", *ports), ("Guarded", *ports[::-1])):
            command = [sys.executable, str(tmp_path / "served.py"), role, str(port), str(other)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            servers.append(subprocess.Popen(command, env=environment, **quiet))
            waited(f"http://127.0.0.1:{port}/v2/models/digits/ready", servers[-1])
        tensor = {"name": "images", "datatype": "FP32", "shape": list(pixels.shape), "data": pixels.ravel().tolist()}
        request = urllib.request.Request(
            f"http://127.0.0.1:{ports[1]}/v2/models/digits/infer",
            json.dumps({"inputs": [tensor]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            outputs = {o["name"]: o["data"] for o in json.loads(answer.read())["outputs"]}
    finally:
        for server in servers:
            server.terminate()
            server.wait(60)
    np.testing.assert_allclose(np.reshape(outputs["logits"], (-1, 10)), expected["logits"], atol=1e-4)
    np.testing.assert_allclose(outputs["advconn_p_value"], expected["advconn_p_value"], atol=1e-6)
    assert outputs["advconn_flag"] == expected["advconn_flag"].tolist()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def waited(url: str, server: subprocess.Popen) -> None:
    """Until it answers."""
    for _ in range(240):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server never answered")


MLFLOW = """
import mlflow

from advconn.serving import Judge


class DetectorModel(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.judge = Judge(context.artifacts["detector"])

    def predict(self, context, model_input, params=None):
        return self.judge(model_input)


mlflow.models.set_model(DetectorModel())
"""


def test_mlflow_keeps_and_serves_a_detector(tmp_path):
    """As a pyfunc model from code, whose artifact is the detector's folder."""
    mlflow = pytest.importorskip("mlflow")
    (tmp_path / "detector_model.py").write_text(MLFLOW)
    detector, images = bundle.default("digits"), (load_digits().images[1500:1504, None] / 16).astype(np.float32)
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(tmp_path / "detector_model.py"),
        artifacts={"detector": str(detector)},
        pip_requirements=[],
    )
    said = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(images)
    expected = Judge(detector)(images)
    assert set(said) == set(expected)
    np.testing.assert_array_equal(said["advconn_score"], expected["advconn_score"])


def test_an_aotinductor_package_is_taken_as_a_classifier(tmp_path):
    """Compiled ahead of time, called as a function: it answers as the module that it was made of."""
    import shutil

    import torch
    from torch import nn

    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    images = torch.rand(5, 1, 8, 8)
    program = torch.export.export(net, (images,), dynamic_shapes=({0: torch.export.Dim("n", max=512)},))
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    compiled = torch._inductor.aoti_load_package(file)
    found = Classifier.from_callable(compiled, num_classes=10, size=(8, 8), channels=1)
    assert not found.differentiable
    torch.testing.assert_close(found.logits(images), net(images).detach(), atol=1e-5, rtol=1e-5)
