"""The server's table: bounded bytes and seconds, nothing unjudged under --block, other people's pages and upstreams."""

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from advconn import bundle
from advconn.errors import DataError, ModelError, Unanswered
from advconn.models.classifier import Classifier
from advconn.models.onnx_and_http import Endpoint, _exchanged
from advconn.serving import Judge

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from starlette.testclient import TestClient

from advconn.serving.app import Server
from advconn.serving.open_inference_protocol import parse_body, parse_request
from advconn.serving.request_body import Limits, files_in

CLEAN = (load_digits().images[1000:1020] * 255 / 16).round().astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def shipped():
    return bundle.load(bundle.default("digits"))


@pytest.fixture(scope="module")
def gate(shipped):
    """A server under --block, and what it tells its operator."""
    told = []
    server = Server(Judge(shipped), "digits", "about", block=True, note=told.append)
    with TestClient(server.app(), raise_server_exceptions=False) as client:
        client.told = told
        yield client


def part(said, content):
    return b"--b\r\nContent-Disposition: form-data; " + said + b"\r\n\r\n" + content + b"\r\n"


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
CLEAN_PART = part(b'name="a"; filename="a.png"', png(CLEAN[3]))


@pytest.mark.parametrize(
    "more",
    [
        part(b'name="b"; filename="x.png"', png(NOISE)),
        part(b"name=\"b\"; filename*=UTF-8''x.png", png(NOISE)),
        part(b'name="b"; filename*0="x"; filename*1=".png"', png(NOISE)),
        part(b'name="b"', png(NOISE)),
        part(b'name="b"; filename="x.png"\r\nContent-Transfer-Encoding: base64', base64.b64encode(png(NOISE))),
        part(b'name="b"; filename="x.png"\r\nContent-Type: multipart/mixed; boundary=c', png(NOISE)),
        part(b'name="b"; filename="x.png"\r\nContent-Disposition: attachment', png(NOISE)),
        part(b'name="b"; filename="x.gif"', b"GIF89a"),
        b"--b\r\nContent-Disposition: form-data; name=b; filename=x\n\n"
        + png(NOISE)
        + b"\r\n\r\n"
        + png(CLEAN[3])
        + b"\r\n",
        CLEAN_PART[:-2] + b"\r--b\r\nContent-Disposition: form-data; name=b; filename=x\r\n\r\n" + png(NOISE) + b"\r\n",
        part(b'name="b"; filename="x"\r\njunk\r\nContent-Transfer-Encoding: base64', base64.b64encode(png(NOISE))),
        part(b"name=b; filename*=undefined''x", png(NOISE)),
        part(b"name=b; filename*=idna''%ff.x", png(NOISE)),
        part(b"name=b; filename*=utf-7''+2AA-.png", png(NOISE)),
        part(b"name=b; filename=x\r\n" + b"a:b\r\n" * 5000, png(NOISE)),
        b"--b--\r\n" + part(b'name="b"; filename="x.png"', png(NOISE)),
        b"\n--b\nContent-Disposition: form-data; name=b; filename=x.png\n\n" + png(NOISE) + b"\r\n",
    ],
)
def test_no_part_of_a_form_passes_unjudged(gate, more):
    """File names in all spellings, parts without one, encoded ones, and what stands behind the end."""
    for body in (CLEAN_PART + more + b"--b--\r\n", more + CLEAN_PART + b"--b--\r\n", b"x" + CLEAN_PART + more):
        assert gate.post("/score", content=body, headers=FORM).status_code in (400, 422)
    assert gate.post("/score", content=CLEAN_PART + b"--b--\r\n", headers=FORM).status_code == 200


def test_names_of_files_break_nothing(gate):
    """In charsets of the client's choice, with control characters, of any length."""
    for charset, name in (("utf-7", b"+2AA-.png"), ("unicode_escape", b"\\ud800.png"), ("utf-8", b"\xff\x00" * 500)):
        body = part(b'name="a"; filename="' + name + b'"', png(CLEAN[3])) + b"--b--\r\n"
        answered = gate.post(
            "/score", content=body, headers={"Content-Type": f"{FORM['Content-Type']}; charset={charset}"}
        )
        assert answered.status_code in (200, 400)
    assert gate.get("/flagged").json() == []


def flagged_bodies():
    """Requests with a flagged or unjudged image, by every way in."""
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": NOISE.ravel().tolist()}
    file = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(png(NOISE)).decode()]}
    nan = {"name": "x", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [None] * 64}
    two = io.BytesIO()
    large = [Image.fromarray(np.kron(CLEAN[3], np.ones((k, k), np.uint8))) for k in (4, 2)]
    large[0].save(two, "TIFF", save_all=True, append_images=large[1:])
    for path in ("/score", "/score?page=1", "/score?page=2", "/score?page=2&page=1"):
        for content in (png(NOISE), png(NOISE)[:30], b"text", two.getvalue()):
            yield path, content, {"Content-Type": "image/png"}
            yield path, CLEAN_PART + part(b'name="b"; filename="x"', content) + b"--b--\r\n", FORM
    for model in ("/v2/models/digits", "/v2/models/digits/versions/1"):
        for given in (tensor, file, nan):
            for outputs in (None, [{"name": "logits"}], [{"name": "logits", "parameters": {"binary_data": True}}]):
                yield f"{model}/infer", json.dumps({"inputs": [given], "outputs": outputs}).encode(), {}


def test_under_block_no_way_in_answers_200_for_a_flagged_or_unjudged_image(gate):
    """Every route, query and kind of body; pages too; a picture beside the judged one as well."""
    count = 0
    for path, content, headers in flagged_bodies():
        answered = gate.post(path, content=content, headers=headers)
        assert answered.status_code in (400, 422), (path, content[:60], answered.text[:200])
        count += 1
    assert count > 30
    for method in ("GET", "PUT", "DELETE"):
        assert gate.request(method, "/score").status_code in (404, 405)


def test_pictures_as_bytes_in_the_protocol(shipped):
    """In base64 and as binary data; the refusal of what is none names /score."""
    with TestClient(Server(Judge(shipped), "digits", "about", note=lambda text: None).app()) as client:
        data = [base64.b64encode(png(x)).decode() for x in (CLEAN[3], NOISE)]
        given = {"name": "x", "datatype": "BYTES", "shape": [2], "data": data}
        found = {
            o["name"]: o["data"]
            for o in client.post("/v2/models/digits/infer", json={"inputs": [given]}).json()["outputs"]
        }
        assert found["advconn_flag"] == [False, True]
        blob = b"".join(len(f).to_bytes(4, "little") + f for f in (png(CLEAN[3]), png(NOISE)))
        apart = {k: v for k, v in given.items() if k != "data"} | {"parameters": {"binary_data_size": len(blob)}}
        head = json.dumps({"inputs": [apart]}).encode()
        answered = client.post(
            "/v2/models/digits/infer", content=head + blob, headers={"Inference-Header-Content-Length": str(len(head))}
        )
        assert {o["name"]: o["data"] for o in answered.json()["outputs"]}["advconn_flag"] == [False, True]
        one_broken = given | {"data": [data[0], base64.b64encode(b"text").decode()]}
        found = {
            o["name"]: o["data"]
            for o in client.post("/v2/models/digits/infer", json={"inputs": [one_broken]}).json()["outputs"]
        }
        assert found["advconn_flag"] == [False, True]
        assert "not an image" in found["advconn_error"][1]
        lines = base64.encodebytes(png(CLEAN[3])).decode()
        wrapped = given | {"shape": [1], "data": [lines]}
        assert client.post("/v2/models/digits/infer", json={"inputs": [wrapped]}).status_code == 200
        answered = client.post("/v2/models/digits/infer", json={"inputs": [given | {"data": ["é", "x"]}]})
        assert answered.status_code == 400
        assert "/score" in answered.text


def test_health_names_and_unknown_addresses(gate):
    """As KServe's client reads them; a wrong name is told the right one."""
    assert gate.get("/v2/health/live").json() == {"live": True}
    assert gate.get("/v2/health/ready").json()["ready"] is True
    for method, path in (("POST", "/v2/models/resnet50/infer"), ("GET", "/v2/models/x"), ("PUT", "/nowhere")):
        answered = gate.request(method, path)
        assert answered.status_code == 404
        assert "'digits'" in answered.json()["error"]


def test_texts_of_clients_come_back_in_any_answer(gate):
    """Unpaired surrogates in an id, a name of an output, an address."""
    given = {"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8]}
    for data in (CLEAN[3], NOISE):
        inputs = [given | {"data": data.ravel().tolist()}]
        for more in ({"id": "\ud800"}, {"outputs": [{"name": "\ud800"}]}):
            body = json.dumps({"inputs": inputs} | more).encode()
            assert gate.post("/v2/models/digits/infer", content=body).status_code in (200, 400, 422)
    assert gate.get("/%ed%a0%80").status_code == 404


def test_what_nobody_thought_of_is_logged_and_counted(shipped):
    told = []
    one = Server(Judge(shipped), "digits", "about", note=told.append)
    one.judge.images = lambda given: 1 / 0
    with TestClient(one.app(), raise_server_exceptions=False) as client:
        body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": [0] * 64}]}
        answered = client.post("/v2/models/digits/infer", json=body)
        assert (answered.status_code, answered.json()) == (500, {"error": "the server failed: its log says why"})
        assert "ZeroDivisionError" in told[0]
        assert 'advconn_refused_total{status="500"} 1.0' in client.get("/metrics").text


def test_foreign_pages_and_hosts(shipped):
    """Unknown hosts and origins are refused; every answer says what a browser may do with it."""
    hosts = {"localhost", "127.0.0.1", "::1", "inner.example"}
    with TestClient(Server(Judge(shipped), "digits", "about", hosts=hosts, note=lambda text: None).app()) as client:
        assert client.get("/v2/health/live", headers={"Host": "10.0.0.5:8080"}).status_code == 200  # a probe
        for host, status in (
            ("attacker.example", 403), ("127.0.0.1:8080", 200), ("[::1]:80", 200), ("LOCALHOST", 200),
            ("inner.example", 200), ("127.0.0.1.attacker.example", 403), ("", 403),
        ):  # fmt: skip
            answered = client.get("/flagged", headers={"Host": host})
            assert answered.status_code == status, host
            for name in ("content-security-policy", "x-content-type-options", "cache-control"):
                assert name in answered.headers
        origins = {"http://attacker.example": 403, "null": 403, "http://localhost": 200}
        for origin, status in origins.items():
            answered = client.post("/score", content=png(CLEAN[3]), headers={"Host": "localhost", "Origin": origin})
            assert answered.status_code == status
    assert "'unsafe-inline'" not in answered.headers["content-security-policy"].split("style-src")[0]


def test_formats_that_python_decodes_are_off_unless_asked_for(shipped):
    out = io.BytesIO()
    Image.fromarray(CLEAN[3]).save(out, "PCX")
    for every, error in ((False, True), (True, False)):
        server = Server(Judge(shipped), "digits", "about", every_format=every, note=lambda text: None)
        with TestClient(server.app()) as client:
            (record,) = client.post("/score", content=out.getvalue()).json()
            assert ("error" in record) is error


def test_json_is_bounded_by_what_the_shape_needs():
    """Nested lists are refused unread; texts, booleans and giants are no numbers; endless shapes are told."""
    deep = b'{"inputs":[{"datatype":"FP32","shape":[1,1,8,8],"data":[' + b"[[[[]]]]," * 200_000 + b"0]}]}"
    with pytest.raises(DataError, match="holds more than"):
        parse_request(deep, None, 8)
    started = time.perf_counter()
    for data in (["1e3"] * 64, [True] * 64, [10**400] * 64, [[1]] * 64 + [2], ["x" * 40_000] + [""] * 15_000):
        given = {"datatype": "FP32", "shape": [1, 1, 8, 8], "data": data}
        with pytest.raises(DataError, match=r"not numeric|too large"):
            parse_body(json.dumps({"inputs": [given]}).encode(), b"", 8)
    assert time.perf_counter() - started < 1
    nines = "9" * 4000
    with pytest.raises(DataError, match="shape"):
        parse_body(f'{{"inputs":[{{"datatype":"FP32","shape":[1,{nines},{nines},3],"data":[1]}}]}}'.encode(), b"", 8)
    wide = {"datatype": "FP32", "shape": [40, 1, 80, 80], "data": [0.25] * 256_000}
    found = parse_request(json.dumps({"id": "x", "inputs": [wide]}).encode(), None, 64)  # read by a worker
    assert (found.images.shape, found.id, float(found.images.mean())) == ((40, 1, 80, 80), "x", 0.25)


def test_a_form_is_files_alone():
    for kinds, body in (
        (["multipart/form-data; boundary=b; boundary=c"], CLEAN_PART + b"--b--"),
        (["multipart/form-data, x/y; boundary=b"], CLEAN_PART + b"--b--"),
        (["multipart/form-data/x; boundary=b"], CLEAN_PART + b"--b--"),
        (["image/png, multipart/form-data; boundary=b"], CLEAN_PART + b"--b--"),
        (["multipart/form-data; boundary*=idna''b"], CLEAN_PART + b"--b--"),
        (["multipart/form-data"], b""),
        (["multipart/form-data; boundary=b", "image/png"], CLEAN_PART + b"--b--"),
        (["multipart/mixed; boundary=b"], CLEAN_PART + b"--b--"),
        (["multipart/form-data; boundary=b"], CLEAN_PART),
        (["image/png"], b""),
    ):
        with pytest.raises(DataError):
            files_in(kinds, bytearray(body), 8)
    with pytest.raises(DataError, match="more than 1 files"):
        files_in(["multipart/form-data; boundary=b"], bytearray(CLEAN_PART * 2 + b"--b--\r\n"), 1)


class Upstream(ThreadingHTTPServer):
    """The digits network behind the protocol, which misbehaves on demand."""

    daemon_threads = True

    def __init__(self, classifier):
        self.classifier, self.mode, self.seen = classifier, "well", []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def put(self, body, status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append(("GET", self.path, self.headers.get("Authorization")))
        inputs = [{"name": "i", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
        self.put(json.dumps({"name": "m", "inputs": inputs, "outputs": []}).encode())

    def do_POST(self):
        self.server.seen.append(("POST", self.path, self.headers.get("Authorization")))
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        x = torch.tensor(given["data"], dtype=torch.float32).reshape(given["shape"])
        with torch.no_grad():
            y = self.server.classifier.logits(x).numpy()
        mode = self.server.mode
        y = y[:, :-1] if mode == "other classes" else -y if mode == "other network" else y
        output = {"name": "logits", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}
        body = json.dumps({"outputs": [output]}).encode()
        with contextlib.suppress(OSError):
            if mode == "hang":
                time.sleep(30)
            elif mode in ("trickle", "trickling headers"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self.wfile.write(b"" if "headers" in mode else b"Content-Length: 100000\r\n\r\n")
                for i in range(60):
                    self.wfile.write(b"X-%d: y\r\n" % i if "headers" in mode else b" ")
                    self.wfile.flush()
                    time.sleep(0.2)
            elif mode == "redirect":
                self.put(b"", 302, Location=f"http://127.0.0.1:{self.server.server_address[1]}/elsewhere")
            elif mode == "lists":
                self.put(b'{"outputs": [' + b"[]," * 100_000 + b"[]]}")
            elif mode == "long":
                self.put(b" " * 2**22 + body)
            else:
                self.put(body)


@pytest.fixture
def upstream(shipped):
    server = Upstream(shipped.classifier)
    yield server
    server.shutdown()


@pytest.fixture
def behind(upstream, monkeypatch):
    """A server whose classifier is upstream, and which waits half a second for it."""
    there = Classifier.from_endpoint(upstream.url, "m", timeout=0.5)
    detector = bundle.load(bundle.default("digits"), model=there)
    with TestClient(Server(Judge(detector), "digits", "about", block=True, note=lambda text: None).app()) as client:
        yield client


@pytest.mark.parametrize("mode", ["hang", "trickle", "trickling headers", "redirect", "lists", "long", "other classes"])
def test_an_upstream_that_misbehaves_is_an_error_of_its_images(mode, upstream, behind):
    """In the time that it has; the next request is judged, and nothing is fetched from elsewhere."""
    body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": CLEAN[3].ravel().tolist()}]}
    assert behind.post("/v2/models/digits/infer", json=body).status_code == 200
    upstream.mode = mode
    started = time.perf_counter()
    assert behind.post("/v2/models/digits/infer", json=body).status_code == 502
    answered = behind.post("/score", content=png(CLEAN[3]))
    assert time.perf_counter() - started < 8
    assert (answered.status_code, answered.json()[0]["adversarial"]) == (422, True)
    assert not any("elsewhere" in path for _, path, _ in upstream.seen)
    upstream.mode = "well"
    assert behind.post("/v2/models/digits/infer", json=body).status_code == 200


def test_nobody_waits_many_times_for_an_upstream_that_hangs(upstream, behind):
    """Requests that arrive together fail together, and so do the files of a form."""
    body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": CLEAN[3].ravel().tolist()}]}
    form = b"".join(part(b'name="a"; filename="a.png"', png(x)) for x in CLEAN[:8]) + b"--b--\r\n"
    upstream.mode = "hang"
    started, statuses = time.perf_counter(), []

    def ask():
        statuses.append(behind.post("/v2/models/digits/infer", json=body).status_code)

    threads = [threading.Thread(target=ask) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [502] * 9
    assert time.perf_counter() - started < 3
    assert behind.post("/score", content=form, headers=FORM).status_code == 422
    assert time.perf_counter() - started < 5


def test_it_is_not_ready_where_the_network_upstream_became_another(upstream, behind, monkeypatch):
    from advconn.serving import app

    monkeypatch.setattr(app, "PROBED", 0.0)
    assert behind.get("/v2/health/ready").status_code == 200
    upstream.mode = "other network"
    assert "another one" in behind.get("/v2/health/ready").json()["error"]
    body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": CLEAN[3].ravel().tolist()}]}
    for answered in (behind.post("/v2/models/digits/infer", json=body), behind.post("/score", content=png(CLEAN[3]))):
        assert answered.status_code == 502
    upstream.mode = "well"
    assert behind.get("/v2/health/ready").status_code == 200
    assert behind.post("/v2/models/digits/infer", json=body).status_code == 200


def test_requests_alone_notice_that_the_network_upstream_became_another(upstream, behind, monkeypatch):
    """Where nobody asks for its health."""
    from advconn.serving import app

    monkeypatch.setattr(app, "PROBED", 0.0)
    body = {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": CLEAN[3].ravel().tolist()}]}
    assert behind.post("/v2/models/digits/infer", json=body).status_code == 200
    upstream.mode = "other network"
    deadline = time.perf_counter() + 20
    while behind.post("/v2/models/digits/infer", json=body).status_code != 502:
        assert time.perf_counter() < deadline


def test_headers_go_along_to_an_upstream(upstream, monkeypatch, tmp_path):
    from brought import one_line, run

    Image.fromarray(CLEAN[3]).save(tmp_path / "a.png")
    line = ["score", "--detector", "digits", "--model", f"{upstream.url}/v2/models/m", tmp_path / "a.png"]
    monkeypatch.setenv("ADVCONN_UPSTREAM_HEADER", "Authorization: Bearer secret")
    assert run(*line).exit_code == 0
    assert {token for _, _, token in upstream.seen} == {"Bearer secret"}
    assert run(*line, "--upstream-header", "Authorization: Bearer other").exit_code == 0
    assert upstream.seen[-1][2] == "Bearer other"
    assert "NAME: VALUE" in one_line(run(*line, "--upstream-header", "secret"))


def test_an_exchange_ends_in_time_and_no_answer_is_too_long(upstream):
    import urllib.request

    there = Endpoint(upstream.url, "m", timeout=0.3, headers={"X-A": "b"})
    there.ask(np.zeros((2, 1, 8, 8), np.float32))
    assert 64 <= there.row_bytes < 1000
    with pytest.raises(ModelError, match="more than 10 bytes"):
        _exchanged(urllib.request.Request(f"{upstream.url}/v2"), 5, 10)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(Unanswered):
            _exchanged(urllib.request.Request(f"http://127.0.0.1:{mute.getsockname()[1]}/"), 0.3, 10)


@pytest.fixture(scope="module")
def port():
    """The command itself, which may write no file, and takes bodies of a megabyte."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); from advconn.serving import connection_limits; "
        "connection_limits.HEAD_SECONDS = 1.5; connection_limits.MOST = 40; from advconn.__main__ import main; main()"
    )
    line = [
        sys.executable,
        "-c",
        script,
        "serve",
        "--detector",
        "digits",
        "--port",
        str(number),
        "--max-bytes",
        "1000000",
    ]
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", number), 1):
            break
        time.sleep(0.1)
    yield number
    process.send_signal(signal.SIGTERM)
    process.wait(25)
    assert process.returncode == 0


def ask(port, method, path, body=None, **headers):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = link.getresponse()
    return answer.status, answer.read()


def test_pictures_are_judged_from_memory_in_chunks_too(port):
    """A disk that takes nothing; bodies and forms in chunks."""
    for body, kind in ((png(CLEAN[3]), "image/png"), (CLEAN_PART + b"--b--\r\n", FORM["Content-Type"])):
        assert ask(port, "POST", "/score", body, Content_Type=kind)[0] == 200
        assert ask(port, "POST", "/score", iter([body]), Content_Type=kind)[0] == 200


def test_bytes_are_counted_as_they_come(port):
    """Whatever a length says."""
    with socket.create_connection(("127.0.0.1", port), 20) as link:
        link.sendall(
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):
            for _ in range(60):
                link.sendall(b"8000\r\n" + b"a" * 0x8000 + b"\r\n")
        assert link.recv(20).split()[1] in (b"413", b"400")


def test_clients_that_never_finish_are_closed_and_health_is_answered_meanwhile(port):
    """Half a head, none at all; more connections than are kept."""
    links = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(45)]
    for link in links[::2]:
        link.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\n")
    started = time.perf_counter()
    assert ask(port, "GET", "/v2/health/live") == (200, b'{"live":true}')
    assert time.perf_counter() - started < 1
    time.sleep(2)
    closed = 0
    for link in links:
        link.setblocking(False)
        try:
            closed += link.recv(1) == b""
        except BlockingIOError:
            pass
        except OSError:
            closed += 1
        link.close()
    assert closed == len(links)


def test_bodies_have_limits_of_time_and_of_all_together(shipped):
    """A body that does not come is 408; what others hold already is counted."""
    import asyncio

    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from advconn.serving.request_body import Bodies

    async def read(bodies, parts, wait=0.0):
        async def receive():
            await asyncio.sleep(wait)
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        request = Request({"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}, receive)
        async with bodies.of(request) as body:
            return len(body), bodies.held

    bodies = Bodies(Limits(bytes=200_000, body_seconds=0.2))
    assert asyncio.run(read(bodies, [b"a" * 100_000, b"b" * 50_000])) == (150_000, 150_000 - 2**16)
    assert bodies.held == 0
    for parts, wait, status in (([b"a"] * 9, 0.1, 408), ([b"a" * 150_000] * 2, 0.0, 413)):
        with pytest.raises(HTTPException) as caught:
            asyncio.run(read(bodies, parts, wait))
        assert caught.value.status_code == status
    bodies.held = 250_000
    with pytest.raises(HTTPException) as caught:
        asyncio.run(read(bodies, [b"a" * 150_000]))
    assert caught.value.status_code == 503
    assert asyncio.run(read(bodies, [b"a" * 60_000]))[0] == 60_000
