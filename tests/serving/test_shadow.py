"""Copies of another model's requests are judged beside it."""

import base64
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
import torch

from advconn import bundle
from advconn.attacks.attack import Attack, attack_correct_images
from advconn.errors import AdvconnError, DataError
from advconn.serving import Judge
from advconn.serving.cloudevents import STRUCTURED, parse_event
from advconn.serving.shadow import flagged_event, send_event

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from starlette.testclient import TestClient

from advconn.serving.app import Server

KIND = "org.kubeflow.serving.inference.request"
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "7",
    "ce-type": KIND,
    "ce-source": "http://logger",
    "content-type": "application/json",
}


class Sink:
    """A server that keeps what it is sent."""

    def __init__(self, status=200):
        kept = self.kept = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                length = int(self.headers["content-length"])
                kept.append((self.headers["content-type"], json.loads(self.rfile.read(length))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *args):
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def sink():
    found = Sink()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def images(digits):
    """A clean digit and an attacked one."""
    classifier = bundle.load(bundle.default("digits")).classifier
    clean, labels = digits[0][1500:1520], digits[1][1500:1520]
    hits = attack_correct_images(classifier, Attack.parse("pgd:eps=51/255,steps=10"), clean, labels, seed=0)
    return np.concatenate([clean[:1].numpy(), (hits.images[:1] * 255).round().to(torch.uint8).numpy()])


def body(images):
    values = {"name": "x", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
    return {"inputs": [values]}


def waited_for(done):
    until = time.monotonic() + 20
    while not done() and time.monotonic() < until:
        time.sleep(0.02)
    assert done()


def test_flagged_requests_reach_the_sink_in_both_modes(images, sink):
    """Answered at once with nothing in it; responses are passed over; a request that cannot be read is told of."""
    told = []
    detector = bundle.load(bundle.default("digits"))
    server = Server(Judge(detector), "digits", "about", note=told.append, shadow=True, sink=sink.url)
    with TestClient(server.app()) as client:
        binary = client.post("/", content=json.dumps(body(images)), headers=HEADERS)
        inner = {"specversion": "1.0", "id": "8", "type": KIND, "source": "s"}
        encoded = base64.b64encode(json.dumps(body(images)).encode()).decode()
        for data in ({"data": body(images)}, {"data_base64": encoded}):
            one = client.post("/", content=json.dumps(inner | data), headers={"content-type": STRUCTURED})
            assert one.status_code == 202
        response = HEADERS | {"ce-type": "org.kubeflow.serving.inference.response", "ce-id": "9"}
        assert client.post("/", content="{}", headers=response).status_code == 202
        assert client.post("/", content="{}", headers=HEADERS | {"ce-id": "10"}).status_code == 202
        waited_for(lambda: len(sink.kept) == 3 and any("request 10 was not judged" in line for line in told))
        metrics = client.get("/metrics").text
    assert (binary.status_code, binary.content) == (202, b"")
    kinds, events = zip(*sink.kept, strict=True)
    assert set(kinds) == {STRUCTURED}
    assert [event["subject"] for event in events] == ["7", "8", "8"]
    assert all(event["data"]["flagged"] == [1] for event in events)
    assert events[0]["type"] == "org.advconn.flagged"
    assert 0 < events[0]["data"]["p_value"][0] < 0.05
    assert 'advconn_refused_total{status="event"} 1.0' in metrics


def test_too_many_events_are_refused(images, monkeypatch):
    """Memory is bounded."""
    detector = bundle.load(bundle.default("digits"))
    server = Server(Judge(detector), "digits", "about", note=lambda text: None, shadow=True)
    monkeypatch.setattr(server, "_follow_events", lambda: _never())
    with TestClient(server.app()) as client:
        statuses = [client.post("/", content="{}", headers=HEADERS).status_code for _ in range(258)]
    assert statuses == [202] * 256 + [503] * 2


async def _never():
    """Judge nothing."""


def test_without_shadow_there_is_no_such_route():
    detector = bundle.load(bundle.default("digits"))
    with TestClient(Server(Judge(detector), "digits", "about", note=lambda text: None).app()) as client:
        assert client.post("/", content="{}", headers=HEADERS).status_code in (404, 405)


@pytest.mark.parametrize(
    ("headers", "content", "says"),
    [
        ({}, b"{}", "version 1.0"),
        ({"ce-specversion": "0.3"}, b"{}", "version 1.0"),
        ({"ce-specversion": "1.0", "ce-id": "1"}, b"{}", "needs an id"),
        ({"content-type": STRUCTURED}, b"{", "no JSON"),
        ({"content-type": STRUCTURED}, b"[]", "no JSON object"),
        ({"content-type": STRUCTURED}, b'{"data": {"a": 1, "a": 2}}', "a name twice"),
        ({"content-type": STRUCTURED}, b"[" * 600_000, "lists and objects"),
        ({"ce-specversion": "1.0", "inference-header-content-length": "x"}, b"{}", "expected a number of bytes"),
        ({"content-type": STRUCTURED}, b'{"data_base64": "*"}', "no base64"),
        ({"content-type": STRUCTURED}, b'{"specversion": "1.0", "id": 3, "type": "t", "source": "s"}', "needs an id"),
    ],
)
def test_what_is_no_cloudevent_is_refused(headers, content, says):
    with pytest.raises(DataError, match=says):
        parse_event(headers, content)


def test_a_sink_that_fails_is_told_of():
    refusing = Sink(500)
    event = flagged_event(
        parse_event(HEADERS, b""),
        "digits",
        {"advconn_flag": [True], "advconn_error": ["broken"], "advconn_p_value": [0.0], "advconn_score": [np.inf]},
    )
    assert event["data"]["errors"] == {"0": "broken"}
    assert event["data"]["score"] == [None]
    with pytest.raises(AdvconnError, match="did not take the event of 7"):
        send_event(refusing.url, event)
    refusing.server.shutdown()
    refusing.server.server_close()
    with pytest.raises(AdvconnError, match="did not take"):
        send_event(refusing.url, event)


def test_a_sink_that_redirects_has_not_taken_the_event():
    """A redirect would lose what is sent."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args):
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(AdvconnError, match="did not take"):
        send_event(f"http://127.0.0.1:{server.server_port}/", {"subject": "7"})
    server.shutdown()
    server.server_close()


def test_binary_tensors_and_traces_are_read():
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    more = {"ce-traceparent": f"00-{trace}-00f067aa0ba902b7-01", "inference-header-content-length": "2"}
    event = parse_event(HEADERS | more, b"{}\0\1")
    carried = {"traceparent": more["ce-traceparent"]}
    assert (event.carried, event.json_bytes, event.content) == (carried, 2, b"{}\0\1")


def test_large_events_are_read_elsewhere():
    """By another process; what it gives is the same."""
    inner = {"specversion": "1.0", "id": "8", "type": KIND, "source": "s", "data": {"inputs": ["x" * 2**21]}}
    event = parse_event({"content-type": STRUCTURED}, json.dumps(inner).encode())
    assert json.loads(event.content) == inner["data"]
