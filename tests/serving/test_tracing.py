"""A request's trace goes on to the classifier upstream, into the log, and into a span of OpenTelemetry."""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from PIL import Image

from advconn import bundle
from advconn.models.classifier import Classifier
from advconn.runtime.trace_context import trace_headers, traced
from advconn.serving import Judge

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from advconn.serving.app import Server
from advconn.serving.log import FlaggedImage, Log
from advconn.serving.request_body import Limits
from advconn.serving.trace import carried_headers

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Upstream:
    """The digits' classifier behind the protocol, which keeps the headers of what asks for logits."""

    def __init__(self):
        kept = self.kept = []
        classifier = bundle.load(bundle.default("digits")).classifier

        class Handler(BaseHTTPRequestHandler):
            def answer(self, content):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def do_GET(self):
                self.answer({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]})

            def do_POST(self):
                kept.append(self.headers)
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"][0]
                images = classifier.check(torch_of(asked))
                logits = classifier.logits(images).tolist()
                out = {
                    "name": "logits",
                    "datatype": "FP32",
                    "shape": [len(logits), 10],
                    "data": [v for row in logits for v in row],
                }
                self.answer({"outputs": [out]})

            def log_message(self, *args):
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()


def torch_of(asked):
    import torch

    return torch.tensor(asked["data"], dtype=torch.float32).view(asked["shape"])


@pytest.fixture(scope="module")
def upstream():
    found = Upstream()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def behind(upstream):
    """A detector whose classifier is upstream; what was asked while it was loaded is forgotten."""
    there = Classifier.from_endpoint(upstream.url, "digits")
    detector = bundle.load(bundle.default("digits"), model=there)
    upstream.kept.clear()
    return detector


def body(images):
    values = {"name": "x", "datatype": "UINT8", "shape": list(images.shape), "data": images.flatten().tolist()}
    return {"inputs": [values]}


def test_a_trace_goes_on_upstream_and_into_the_log(upstream, behind, digits):
    """Of infer and of /score's files; a request without a trace, or with a malformed one, carries none."""
    told = []
    server = Server(Judge(behind), "digits", "", note=Log(told.append, "json"))
    bad = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [7.0] * 64}]}
    with TestClient(server.app()) as client:
        upstream.kept.clear()  # of the question whether it is the same as before
        state = {"traceparent": PARENT, "tracestate": "vendor=1"}
        client.post("/v2/models/digits/infer", json=body(digits[0][1500:1502]), headers=state)
        assert upstream.kept
        carried = {(h["traceparent"], h["tracestate"]) for h in upstream.kept}
        assert carried - {(None, None)} == {(PARENT, "vendor=1")}  # the server asks for itself, too
        for headers in ({}, {"traceparent": PARENT.upper()}, {"traceparent": "00-" + "0" * 32 + PARENT[35:]}):
            upstream.kept.clear()
            client.post("/v2/models/digits/infer", json=body(digits[0][1500:1502]), headers=headers)
            assert upstream.kept
            assert {h["traceparent"] for h in upstream.kept} == {None}
        client.post("/v2/models/digits/infer", json=bad, headers=state)
        upstream.kept.clear()
        picture = io.BytesIO()
        Image.fromarray(digits[0][1500, 0].numpy()).save(picture, "PNG")
        assert client.post("/score", content=picture.getvalue(), headers=state).status_code == 200
        assert PARENT in {h["traceparent"] for h in upstream.kept}
    assert [json.loads(line).get("trace_id") for line in told if "flagged" in line] == [TRACE]


@pytest.mark.parametrize("tail", ["-\rX-Evil: y", "-\r X: y", "-\x00\x0b", "-\x7f", "-é", "-more", "-", " ", "0"])
def test_headers_that_go_on_hold_nothing_of_a_clients_own(tail):
    """Nothing after the four fields of version 00; of a later version the four fields alone go on, as version 00."""
    assert carried_headers({"traceparent": PARENT + tail}) == {}
    later = f"01{PARENT[2:]}"
    assert carried_headers({"traceparent": later + "-more"}) == carried_headers({"traceparent": later})
    assert carried_headers({"traceparent": later + "-" + "x" * 10**5}) == {"traceparent": PARENT}
    if tail not in ("-more", "-"):
        assert carried_headers({"traceparent": later + tail}) == {}


@pytest.mark.parametrize("state", ["a=1\r\nX: y", "   ", "", "é=1", "x" * 600])
def test_a_state_that_is_malformed_stays_behind(state):
    assert carried_headers({"traceparent": PARENT, "tracestate": state}) == {"traceparent": PARENT}
    assert carried_headers({"tracestate": "a=1"}) == {}


def test_a_header_of_one_client_fails_no_other(upstream, behind, digits):
    """Requests are judged together: whatever stands in one's traceparent, the others are answered."""
    server = Server(Judge(behind), "digits", "", shadow=True, note=lambda text: None, limits=Limits(wait=0.3))
    event = {"specversion": "1.0", "id": "1", "type": "a.request", "source": "s", "data": body(digits[0][1500:1501])}
    event["traceparent"] = PARENT + "-\r X-Evil: y"
    with TestClient(server.app()) as client, ThreadPoolExecutor(3) as pool:
        kind = {"content-type": "application/cloudevents+json"}
        assert client.post("/", content=json.dumps(event), headers=kind).status_code == 202
        asked = [
            pool.submit(client.post, "/v2/models/digits/infer", json=body(digits[0][1501 + i : 1502 + i]))
            for i in range(3)
        ]
        assert [one.result().status_code for one in asked] == [200] * 3


def test_an_event_carries_its_trace_on(upstream, behind):
    """To the classifier upstream, and into the log."""
    told = []
    server = Server(Judge(behind), "digits", "", shadow=True, note=Log(told.append, "json"))
    bad = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 1, 8, 8], "data": [7.0] * 64 + [0.5] * 64}]}
    headers = {"ce-specversion": "1.0", "ce-id": "7", "ce-type": "a.request", "ce-source": "s"}
    headers |= {"ce-traceparent": PARENT, "ce-tracestate": "vendor=1", "content-type": "application/json"}
    with TestClient(server.app()) as client:
        upstream.kept.clear()
        assert client.post("/", content=json.dumps(bad), headers=headers).status_code == 202
        until = time.monotonic() + 30
        while not any("flagged" in line for line in told) and time.monotonic() < until:
            time.sleep(0.05)
    assert (PARENT, "vendor=1") in {(h["traceparent"], h["tracestate"]) for h in upstream.kept}
    assert [json.loads(line)["trace_id"] for line in told if "flagged" in line] == [TRACE]


def test_work_of_one_trace_ends_with_it():
    """Other threads, and what comes after, are in none."""
    with traced({"traceparent": PARENT}):
        assert trace_headers() == {"traceparent": PARENT}
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(trace_headers).result() == {}
    assert trace_headers() == {}


def test_a_request_becomes_a_span(upstream, behind, digits):
    """A child of the caller's and the parent of the call upstream, with an event for each flagged image."""
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from advconn.serving.spans import OpenTelemetry

    memory, provider, told = InMemorySpanExporter(), TracerProvider(), []
    provider.add_span_processor(SimpleSpanProcessor(memory))
    server = Server(
        Judge(behind), "digits", "", note=Log(told.append, "json"), tracing=OpenTelemetry("digits", provider)
    )
    bad = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [7.0] * 64}]}
    with TestClient(server.app()) as client:
        upstream.kept.clear()
        client.post("/v2/models/digits/infer", json=body(digits[0][1500:1502]), headers={"traceparent": PARENT})
        client.post("/v2/models/digits/infer", json=bad)
        for probe in ("/v2/health/ready", "/v2/models/digits/ready", "/metrics"):
            client.get(probe)
        client.get("/nowhere/" + "a" * 500)
        client.request("X" * 500, "/")
        spans = memory.get_finished_spans()
    assert [span.name for span in spans] == ["POST /v2/models/digits/infer"] * 2 + ["GET", "_OTHER /"]
    first, second, lost, odd = spans
    assert len(lost.attributes["url.path"]) == 200
    assert odd.attributes["http.request.method"] == "_OTHER"
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == PARENT[36:52]
    ours = f"00-{TRACE}-{first.context.span_id:016x}-01"
    assert {h["traceparent"] for h in upstream.kept if h["traceparent"] and TRACE in h["traceparent"]} == {ours}
    assert first.attributes["http.response.status_code"] == 200
    assert not first.events
    assert [event.name for event in second.events] == ["advconn.flagged"]
    assert "[7, 7]" in second.events[0].attributes["advconn.error"]
    assert lost.attributes["http.response.status_code"] == 404
    traces = [json.loads(line).get("trace_id") for line in told if "flagged" in line]
    assert traces == [f"{second.context.trace_id:032x}"]


def test_a_collector_that_hangs_delays_the_end_a_little(monkeypatch):
    """Its last spans are lost; a client that does not sample its own trace is in it all the same."""
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry import trace as api

    from advconn.serving import spans

    class Hanging:
        def export(self, batch):
            kept.extend(batch)
            time.sleep(30)

        def shutdown(self):
            """Nothing."""

        def force_flush(self, timeout_millis=0):
            return True

    kept, told = [], []
    monkeypatch.setattr(spans, "OTLPSpanExporter", Hanging)
    monkeypatch.setattr(api, "get_tracer_provider", api.NoOpTracerProvider)
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    tracing = spans.OpenTelemetry("digits", note=told.append)
    with tracing.span("a", {"traceparent": PARENT[:-2] + "00"}, {}):
        tracing.flagged([FlaggedImage("\ud800", 0.01, "")])
    started = time.monotonic()
    tracing.close()
    assert time.monotonic() - started < 2 * spans.CLOSING_SECONDS
    assert [f"{span.context.trace_id:032x}" for span in kept] == [TRACE]
    assert "\ud800" not in kept[0].events[0].attributes["advconn.image"]


def test_what_is_noted_before_it_serves_is_in_the_log_too(upstream, monkeypatch):
    """As JSON, where the log is JSON."""
    uvicorn = pytest.importorskip("uvicorn")
    from click.testing import CliRunner

    from advconn.cli import main

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, *a, **k: setattr(self, "started", True))
    line = ["serve", "--detector", "digits", "--upstream", upstream.url, "--upstream-model", "digits"]
    done = CliRunner().invoke(main, [*line, "--log-format", "json"])
    assert done.exit_code == 0, done.output
    told = [json.loads(text)["message"] for text in done.stderr.splitlines()]
    assert any("gives no gradient" in text for text in told)
    plain = CliRunner().invoke(main, line)
    assert [text.removeprefix("note: ") for text in plain.stderr.splitlines()] == told
