"""The server: the Open Inference Protocol, files, limits, metrics, the page; and the callable for other frameworks."""

import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advconn import bundle
from advconn.errors import AdvconnError, DataError
from advconn.models.classifier import Classifier
from advconn.serving import Judge
from advconn.serving.framework_callable import OUTPUTS

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import asyncio

from starlette.testclient import TestClient

from advconn.serving.app import Server
from advconn.serving.batching import Batcher, QueueFull
from advconn.serving.request_body import Limits


@pytest.fixture(scope="module")
def shipped():
    return bundle.load(bundle.default("digits"))


@pytest.fixture(scope="module")
def pixels(digits):
    return digits[0][1500:1512].numpy()


def server(detector, **options):
    return Server(Judge(detector), "digits", "about", note=lambda text: None, **options)


@pytest.fixture(scope="module")
def client(shipped):
    with TestClient(server(shipped).app()) as client:
        yield client


def request(images, kind="UINT8", **more):
    return {
        "inputs": [{"name": "x", "datatype": kind, "shape": list(images.shape), "data": images.ravel().tolist()}],
        **more,
    }


def outputs(answered):
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answered.json()["outputs"]}


def test_a_request_gets_the_verdicts_of_the_detector(client, shipped, pixels):
    """As bytes and as floats, channels first and last."""
    expected = shipped.judge(torch.from_numpy(pixels))
    for images, kind in ((pixels, "UINT8"), (pixels / 255, "FP32"), (pixels.transpose(0, 2, 3, 1), "UINT8")):
        answered = client.post("/v2/models/digits/infer", json=request(images, kind, id="7"))
        assert answered.status_code == 200, answered.text
        assert answered.json()["id"] == "7"
        found = outputs(answered)
        assert set(found) == {"logits", *OUTPUTS}
        np.testing.assert_allclose(found["advconn_score"], expected.score, atol=1e-5)
        np.testing.assert_allclose(found["advconn_p_value"], expected.p_value)
        np.testing.assert_array_equal(found["advconn_flag"], expected.adversarial)
        np.testing.assert_array_equal(found["advconn_consensus"], expected.consensus)
        np.testing.assert_allclose(found["logits"], expected.logits.numpy(), atol=1e-4)


def test_health_and_what_is_told_of_the_model(client):
    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/digits/ready",
        "/v2/models/digits/versions/1/ready",
    ):
        assert client.get(path).status_code == 200
    about = client.get("/v2/models/digits").json()
    assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert about["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 10]}
    assert client.get("/v2").json()["name"] == "advconn"
    for path in ("/v2/models/other", "/v2/models/digits/versions/2", "/v2/models/digits/"):
        assert client.get(path, follow_redirects=False).status_code == 404


def test_the_log_names_what_is_flagged(shipped, pixels):
    told = []
    one = Server(Judge(shipped), "digits", "", block=True, note=told.append)
    bad = np.full((6, 1, 8, 8), 7, np.float32)
    with TestClient(one.app()) as client:
        assert client.post("/v2/models/digits/infer", json=request(pixels[:1])).status_code == 200
        assert told == []
        assert client.post("/v2/models/digits/infer", json=request(bad, "FP32", id="r7")).status_code == 422
        assert client.post("/score", content=b"no picture").status_code == 422
    assert len(told) == 2
    assert "/infer: flagged request r7, image 0 (the image lies in [7, 7]" in told[0]
    assert told[0].endswith("and 2 more")
    assert "/score: flagged image (not an image" in told[1]


def test_one_bad_image_has_its_own_error(client, shipped, pixels):
    images = (pixels[:4] / 255).astype(np.float32)
    images[1, 0, 0, 0], images[2, 0, 0, 0] = np.nan, 7
    body = request(images, "FP32")
    body["inputs"][0]["data"][64] = None  # JSON has no NaN
    found = outputs(client.post("/v2/models/digits/infer", json=body))
    assert [bool(e) for e in found["advconn_error"]] == [False, True, True, False]
    assert found["advconn_flag"][1]
    assert found["advconn_p_value"][2] == 0
    good = [0, 3]
    np.testing.assert_allclose(
        found["advconn_score"][good], shipped.score_samples(torch.from_numpy(pixels[good])), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.pop("inputs"), "no inputs"),
        (lambda b: b["inputs"].append(b["inputs"][0]), "2 inputs"),
        (lambda b: b["inputs"][0].update(datatype="INT8"), "datatype"),
        (lambda b: b["inputs"][0].update(shape=[12, 1, 8]), "768 numbers"),
        (lambda b: b["inputs"][0].update(shape=[-1, 1, 8, 8]), "shape"),
        (lambda b: b["inputs"][0].update(shape=[10**9, 1, 8, 8]), "1000000000 images"),
        (lambda b: b["inputs"][0].update(shape=[3, 1, 16, 16]), "expected images of 8 x 8"),
        (lambda b: b["inputs"][0].update(shape=[4, 3, 8, 8]), "can|channels|neither"),
        (lambda b: b["inputs"][0]["data"].__setitem__(0, 300), "integers from 0 to 255"),
        (lambda b: b["inputs"][0]["data"].__setitem__(0, "a"), "not numeric"),
        (lambda b: b["inputs"][0].pop("data"), "no data"),
        (lambda b: b["inputs"][0].update(parameters={"binary_data_size": 5}), "bytes of images"),
        (lambda b: b.update(outputs=[{"name": "nothing"}]), "no output 'nothing'"),
        (lambda b: b.update(outputs=7), "outputs"),
    ],
)
def test_a_wrong_request_gets_one_line(client, pixels, change, said):
    body = request(pixels)
    change(body)
    answered = client.post("/v2/models/digits/infer", json=body)
    assert answered.status_code == 400
    assert re.search(said, answered.json()["error"])
    assert "\n" not in answered.json()["error"]


def test_what_is_no_json_and_what_is_too_large(shipped, pixels):
    with TestClient(server(shipped, limits=Limits(bytes=3000, images=4)).app()) as client:
        assert client.post("/v2/models/digits/infer", content=b"{").status_code == 400
        assert client.post("/v2/models/digits/infer", content=b"[" * 2000).status_code == 400
        assert client.post("/v2/models/digits/infer", content=b"x" * 3001).status_code == 413
        chunks = (b"x" * 1000 for _ in range(4))  # which says no length
        assert client.post("/v2/models/digits/infer", content=chunks).status_code == 413
        body = json.dumps(request(pixels[:2])).encode()
        assert client.post("/v2/models/digits/infer", content=body).status_code == 200
        for length in ("99999", "-1", "x", "9" * 5000):
            head = {"Inference-Header-Content-Length": length}
            assert client.post("/v2/models/digits/infer", content=body, headers=head).status_code == 400


def test_the_binary_extension(client, shipped, pixels):
    """As Triton's client sends it: the tensor behind the JSON, the answer likewise."""
    blob = pixels[:3].tobytes()
    about = {"name": "x", "datatype": "UINT8", "shape": [3, 1, 8, 8], "parameters": {"binary_data_size": len(blob)}}
    wanted = [
        {"name": "advconn_score", "parameters": {"binary_data": True}},
        {"name": "advconn_error", "parameters": {"binary_data": True}},
        {"name": "advconn_flag"},
    ]
    head = json.dumps({"inputs": [about], "outputs": wanted}).encode()
    answered = client.post(
        "/v2/models/digits/infer", content=head + blob, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert answered.status_code == 200
    length = int(answered.headers["Inference-Header-Content-Length"])
    said = json.loads(answered.content[:length])["outputs"]
    assert [o["name"] for o in said] == ["advconn_score", "advconn_error", "advconn_flag"]
    scores = np.frombuffer(answered.content[length : length + 24], "<f8")
    np.testing.assert_allclose(scores, shipped.score_samples(torch.from_numpy(pixels[:3])), atol=1e-5)
    assert answered.content[length + 24 :] == b"\0" * 12  # three empty texts
    assert said[2]["data"] == shipped.judge(torch.from_numpy(pixels[:3])).adversarial.tolist()


def test_block_answers_422(shipped, pixels, monkeypatch):
    shipped_p = shipped.judge(torch.from_numpy(pixels))
    judge = Judge(shipped)
    one = Server(judge, "digits", "", block=True, note=lambda text: None)
    with TestClient(one.app()) as client:
        clean = np.flatnonzero(~shipped_p.adversarial)
        assert client.post("/v2/models/digits/infer", json=request(pixels[clean])).status_code == 200
        images = (pixels[clean[:2]] / 255).astype(np.float32)
        images[1] = 9
        answered = client.post("/v2/models/digits/infer", json=request(images, "FP32"))
        assert answered.status_code == 422
        assert answered.json()["flagged"] == [1]
        good, bad = png(pixels[clean[0], 0]), b"no picture"
        assert client.post("/score", content=good).status_code == 200
        answered = client.post("/score", files=[("a", ("a.png", good)), ("b", ("b.png", bad))])
        assert answered.status_code == 422
        assert [r["adversarial"] for r in answered.json()] == [False, True]


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def test_files_are_judged_as_the_command_judges_them(client, pixels, tmp_path):
    from click.testing import CliRunner

    from advconn.cli import main

    files = [("file", (f"{i}.png", png(pixels[i, 0]), "image/png")) for i in range(3)]
    files += [("file", ("no.png", b"nothing", "image/png")), ("file", ("a.npz", b"PK", "application/zip"))]
    answered = client.post("/score", files=files)
    assert answered.status_code == 200
    found = answered.json()
    assert [r["image"] for r in found] == ["0.png", "1.png", "2.png", "no.png", "a.npz"]
    assert all("error" in r and r["adversarial"] and "/tmp" not in r["error"] for r in found[3:])
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(png(pixels[i, 0]))
    line = ["score", "--detector", str(bundle.default("digits")), "--format", "json", *map(str, paths)]
    said = [json.loads(row) for row in CliRunner().invoke(main, line).stdout.splitlines()]
    for mine, theirs in zip(found[:3], said, strict=True):
        for key in ("prediction", "p_value", "adversarial", "why", "reading", "consensus"):
            assert mine[key] == theirs[key]
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
    alone = client.post("/score", content=png(pixels[0, 0]), headers={"Content-Type": "image/png"}).json()
    assert alone[0]["p_value"] == found[0]["p_value"]
    assert client.post("/score", content=b"").status_code == 400
    assert client.post("/score", files=[("a", ("x" * 5000 + ".png", png(pixels[0, 0])))]).status_code < 500
    assert client.post("/score", content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 415
    assert client.post("/score?page=1", files=files[:1]).text.startswith("<!doctype html>")


def test_metrics_count_what_was_judged(shipped, pixels):
    with TestClient(server(shipped).app()) as client:
        client.post("/v2/models/digits/infer", json=request(pixels))
        client.post("/v2/models/digits/infer", json={"inputs": []})
        client.post("/score", files=[("file", ("0.png", png(pixels[0, 0]), "image/png"))])
        text = client.get("/metrics").text
    assert "advconn_p_value_count 13.0" in text
    assert sum(float(v) for v in re.findall(r"advconn_images_total\{[^}]*\} ([\d.]+)", text)) == 13
    assert 'advconn_refused_total{status="400"} 1.0' in text
    for name in (
        "advconn_stage_total",
        "advconn_seconds_per_image_count",
        "advconn_watch_fortune",
        "advconn_waiting_images",
    ):
        assert name in text


def test_requests_that_come_together_are_judged_together():
    sizes = []

    def judge(images):
        sizes.append(len(images))
        time.sleep(0.02)
        return {"sum": images.flatten(1).sum(1).numpy()}

    async def main():
        batcher = Batcher(judge, batch=8, wait=0.05, most=100)
        await batcher.start()
        found = await asyncio.gather(*(batcher.ask(torch.full((2, 1, 2, 2), float(i))) for i in range(8)))
        other = await asyncio.gather(batcher.ask(torch.zeros(1, 1, 2, 2)), batcher.ask(torch.zeros(1, 1, 3, 3)))
        await batcher.stop()
        with pytest.raises(QueueFull):
            await batcher.ask(torch.zeros(1, 1, 2, 2))
        return found, other

    found, _ = asyncio.run(main())
    assert [f["sum"].tolist() for f in found] == [[4.0 * i] * 2 for i in range(8)]
    assert sizes[:2] == [8, 8]
    assert sizes[2:] == [1, 1]


def test_past_the_queue_and_with_a_failing_classifier():
    from advconn.errors import ModelError

    def judge(images):
        time.sleep(0.1)
        if images.max() > 1:
            raise ModelError("broken")
        return {"n": np.zeros(len(images))}

    async def main():
        batcher = Batcher(judge, batch=4, wait=0.0, most=4)
        await batcher.start()
        tasks = [asyncio.create_task(batcher.ask(torch.full((2, 1, 1, 1), float(v)))) for v in (0, 5)]
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFull):
            await batcher.ask(torch.zeros(1, 1, 1, 1))
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.stop()
        return found

    good, bad = asyncio.run(main())
    assert len(good["n"]) == 2
    assert isinstance(bad, ModelError)


def test_stopping_answers_what_waits():
    def judge(images):
        time.sleep(0.05)
        return {"n": np.zeros(len(images))}

    async def main():
        batcher = Batcher(judge, batch=1, wait=0.0)
        await batcher.start()
        tasks = [asyncio.create_task(batcher.ask(torch.zeros(1, 1, 1, 1))) for _ in range(4)]
        await asyncio.sleep(0.01)
        await batcher.stop()
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(main())) == 4


def test_a_judge_travels_and_takes_what_frameworks_hand_on(shipped, pixels):
    judge = pickle.loads(pickle.dumps(Judge("digits", column="pixels")))
    found = judge({"pixels": pixels[:, 0], "name": np.arange(12)})
    assert found["name"].tolist() == list(range(12))
    np.testing.assert_allclose(found["advconn_score"], shipped.score_samples(torch.from_numpy(pixels)), atol=1e-5)
    rows = np.empty(12, dtype=object)
    rows[:] = [image for image in pixels[:, 0]]
    np.testing.assert_array_equal(judge({"pixels": rows})["advconn_flag"], found["advconn_flag"])
    for batch, said in (
        ({"image": pixels}, "no 'pixels', only 'image'"),
        ({"pixels": pixels, "logits": pixels}, "has 'logits' already"),
        (np.zeros((2, 5, 8, 8, 1), np.uint8), "neither"),
    ):
        with pytest.raises(DataError, match=said):
            judge(batch)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The command itself, on a port of its own."""
    pytest.importorskip("uvicorn")
    line = [sys.executable, "-m", "advconn", "serve", "--detector", str(bundle.default("digits")), "--name", "digits"]
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("serve") / "log").open("w+")
    process = subprocess.Popen([*line, "--port", str(port)], stderr=log)
    import urllib.request

    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
            assert process.poll() is None, Path(log.name).read_text()
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    assert process.wait(30) in (0, -15)


def test_the_project_itself_is_a_client(address, shipped, pixels):
    """A classifier behind a served detector answers with the same logits."""
    found = Classifier.from_endpoint(address, "digits")
    expected = shipped.classifier
    images = expected.check(torch.from_numpy(pixels))
    torch.testing.assert_close(found.logits(images), expected.logits(images), atol=1e-4, rtol=1e-4)


def test_a_detector_in_front_of_an_upstream_classifier(address, shipped, pixels):
    """The detector here, the classifier there: verdicts are the same, at one request a stage."""
    upstream = Classifier.from_endpoint(address, "digits")
    here = bundle.load(bundle.default("digits"), model=upstream)
    there = shipped.judge(torch.from_numpy(pixels), max_stage=len(here.cascade_.connectivities))
    found = here.judge(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.score, there.score, atol=1e-3)


def test_it_is_ready_while_the_classifier_upstream_is(address, shipped, monkeypatch):
    """Live all the same, so that nobody restarts it for that."""
    upstream = Classifier.from_endpoint(address, "digits")
    with TestClient(server(bundle.load(bundle.default("digits"), model=upstream)).app()) as client:
        assert client.get("/v2/health/ready").status_code == client.get("/v2/models/digits/ready").status_code == 200
        monkeypatch.setattr(upstream.network, "address", "http://127.0.0.1:9/v2/models/digits")
        assert client.get("/v2/health/ready").status_code == client.get("/v2/models/digits/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200


def test_tritons_client(address, shipped, pixels):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(address.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_model_ready("digits")
    tensor = http.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    found = client.infer("digits", [tensor])
    expected = shipped.judge(torch.from_numpy(pixels))
    np.testing.assert_allclose(found.as_numpy("advconn_score"), expected.score, atol=1e-5)
    np.testing.assert_array_equal(found.as_numpy("advconn_flag"), expected.adversarial)
    assert set(found.as_numpy("advconn_error").tolist()) == {b""}


def test_many_clients_at_once_lose_nothing(address, shipped, pixels):
    import urllib.request

    expected = shipped.judge(torch.from_numpy(pixels)).score
    wrong: list[object] = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(5):
            rows = rng.integers(0, len(pixels), 3)
            body = json.dumps(request(pixels[rows])).encode()
            with urllib.request.urlopen(f"{address}/v2/models/digits/infer", body, timeout=60) as answered:
                said = {o["name"]: o["data"] for o in json.loads(answered.read())["outputs"]}
            if not np.allclose(said["advconn_score"], expected[rows], atol=1e-5):
                wrong.append((rows, said["advconn_score"]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_the_page_in_a_browser_shows_the_verdict_of_a_dropped_picture(address, pixels, tmp_path):
    """A picture is put into the page's input, as a drop does, and its verdict is read off the page."""
    import base64
    import urllib.request

    picture = base64.b64encode(png(pixels[0, 0])).decode()
    source = urllib.request.urlopen(f"{address}/").read().decode()
    drive = f"""<script>addEventListener("load", async () => {{
      const bytes = Uint8Array.from(atob("{picture}"), c => c.charCodeAt(0));
      await judge(new File([bytes], "dropped.png", {{type: "image/png"}}));
      document.title = "done";
    }});</script>"""
    local = tmp_path / "page.html"
    local.write_text(source.replace("<head>", f'<head><base href="{address}/">') + drive)
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-web-security", "--dump-dom"]
    line += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000", local.as_uri()]
    shown = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False).stdout
    said = re.search(r'<p id="said"[^>]*>([^<]*)</p>', shown)
    assert said is not None
    assert re.search(r"\d: (clean|ADVERSARIAL), p \d\.\d{4}", said[1])
    assert "srcdoc" in shown


def test_the_dashboard_asks_for_what_is_told(client, pixels):
    """Every metric in the panels is one that the server gives."""
    import advconn.serving.metrics as module

    client.post("/v2/models/digits/infer", json=request(pixels))
    told = client.get("/metrics").text
    board = json.loads((Path(module.__file__).parent / "dashboard.json").read_text())
    asked_for = {n for p in board["panels"] for t in p["targets"] for n in re.findall(r"advconn_\w+", t["expr"])}
    assert len(asked_for) >= 6
    for name in asked_for - {"advconn_flagged_total"}:  # which counts from the first flag on
        assert name in told


def test_files_wait_in_the_same_queue(shipped, pixels):
    """Past it they too get 503; what fails behind the server is told to its log, not to the client."""
    told: list[str] = []
    one = Server(Judge(shipped), "digits", "", limits=Limits(waiting=2), note=told.append)
    with TestClient(one.app()) as client:
        one.batcher.waiting = 2
        assert client.post("/score", content=png(pixels[0, 0])).status_code == 503
        one.batcher.waiting = 0
        one.batcher.judge = lambda images: (_ for _ in ()).throw(AdvconnError("http://inner:1: no answer"))
        answered = client.post("/v2/models/digits/infer", json=request(pixels))
        assert answered.status_code == 502
        assert "inner" not in answered.text
        assert any("inner" in line for line in told)


def test_an_upstream_that_hangs_is_told_in_one_line():
    """After --upstream-timeout, not after a minute."""
    import socket

    from click.testing import CliRunner

    from advconn.cli import main

    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        there = f"http://127.0.0.1:{mute.getsockname()[1]}"
        line = ["serve", "--detector", "digits", "--upstream", there, "--upstream-model", "x"]
        started = time.perf_counter()
        out = CliRunner().invoke(main, [*line, "--upstream-timeout", "0.5"])
    assert time.perf_counter() - started < 10
    assert (out.exit_code, out.stderr.count("\n")) == (2, 1)
    assert "no answer" in out.stderr


def test_serve_takes_its_options_from_a_file_and_the_environment(tmp_path, monkeypatch):
    """The command line comes first, then the environment, then the file; what is no option is told in one line."""
    from click.testing import CliRunner

    from advconn.cli import main

    seen = {}
    command = main.get_command(None, "serve")
    monkeypatch.setattr(command, "callback", lambda **options: seen.update(options))
    file = tmp_path / "advconn.toml"
    file.write_text('port = 1\nname = "a"\nblock = true\nmax-images = 7\nallow-host = ["x", "y"]\nwait = 2.5\n')
    out = CliRunner().invoke(main, ["serve", "--config", str(file), "--port", "3"], env={"ADVCONN_SERVE_NAME": "b"})
    assert out.exit_code == 0, out.output
    assert (seen["port"], seen["name"], seen["block"], seen["max_images"]) == (3, "b", True, 7)
    assert (seen["allowed"], seen["wait"]) == (("x", "y"), 2.5)
    CliRunner().invoke(
        main,
        ["serve"],
        env={"ADVCONN_SERVE_BLOCK": "1", "ADVCONN_SERVE_ALLOW_HOST": "p q", "ADVCONN_PORT": "tcp://1.2.3.4:80"},
    )
    assert (seen["block"], seen["allowed"]) == (True, ("p", "q"))
    for text, said in (
        ("prot = 1", "did you mean port"),
        ("port = [1]", "expected a text or a number"),
        ('allow-host = "x"', "expected a list"),
        ("port = true", "expected a text or a number"),
        ("block = 1", "expected true or false"),
        ("allow-host = [1]", "expected a list"),
        ("x = " + "[" * 100_000, "not TOML"),
        ("port =", "not TOML"),
        ('port = "many"', "many"),
    ):
        file.write_text(text)
        out = CliRunner().invoke(main, ["serve", "--config", str(file)])
        assert (out.exit_code, said in out.output) == (2, True), out.output
    assert CliRunner().invoke(main, ["serve", "--config", str(tmp_path / "none.toml")]).exit_code == 2


def test_a_client_that_walks_is_told_of_and_others_are_not(shipped, pixels):
    """By the header that names it: in the log once, in the metrics, and in its answers."""
    told = []
    watching = Server(Judge(shipped), "digits", "about", note=told.append, watch_queries="X-Client")
    noise = np.random.default_rng(0).integers(0, 6, (40, *pixels.shape[1:])).astype(np.uint8)
    probes = np.clip(pixels[:1].astype(int) + noise, 0, 255).astype(np.uint8)
    with TestClient(watching.app()) as one:
        url = "/v2/models/digits/infer"
        honest = one.post(url, json=request(pixels), headers={"X-Client": "honest"})
        walking = one.post(url, json=request(probes), headers={"X-Client": "walker"})
        again = one.post("/score", files={"f": ("a.png", png(probes[0, 0]))}, headers={"X-Client": "walker"})
        page = one.post("/score?page=1", files={"f": ("a.png", png(probes[1, 0]))}, headers={"X-Client": "walker"})
        metrics = one.get("/metrics").text
    assert "Advconn-Client-Walks" not in honest.headers
    assert walking.headers["Advconn-Client-Walks"] == "true"
    assert again.headers["Advconn-Client-Walks"] == page.headers["Advconn-Client-Walks"] == "true"
    assert sum("nearly equal" in line for line in told) == 1
    assert not any("walker" in line for line in told)  # it may be a secret
    assert "advconn_walks_total 1.0" in metrics
    with TestClient(server(shipped).app()) as plain:
        assert "Advconn-Client-Walks" not in plain.post(url, json=request(probes)).headers
