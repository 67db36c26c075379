"""Judging beside a served model: its requests arrive as CloudEvents, and flagged ones go on to a sink.

KServe's inference logger sends a copy of each request (CloudEvents 1.0 over HTTP, binary or structured). It is answered
before anything is judged, so that the served model never waits.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from advconn.errors import AdvconnError, DataError, first_line, printable

STRUCTURED = "application/cloudevents+json"
REQUESTS = ".request"  # the end of the type of events that hold a request; others, such as responses, are passed over
FLAGGED = "org.advconn.flagged"  # the type of events that are sent
LONGEST = 500  # characters of an event's id, type and source
SINK_SECONDS = 5.0  # that a sink may take to answer


class Event(NamedTuple):
    """A CloudEvent: its id, type and source, and its data, a request of the Open Inference Protocol."""

    id: str
    kind: str
    source: str
    content: bytes


def parse_event(headers: Mapping[str, str], body: bytes) -> Event:
    """The CloudEvent of a request, in the binary or the structured content mode.

    Args:
        headers: of the request, looked up case-insensitively.
        body: of the request.

    Raises:
        DataError: no CloudEvent of version 1.0.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != STRUCTURED:
        names = {name: headers.get(f"ce-{name}", "") for name in ("specversion", "id", "type", "source")}
        return _event(names, body)
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise DataError(f"the body is no JSON, as {STRUCTURED} says") from None
    if not isinstance(said, dict):
        raise DataError("the CloudEvent is no JSON object")
    try:
        content = (
            base64.b64decode(said["data_base64"], validate=True)
            if "data_base64" in said
            else json.dumps(said.get("data")).encode()
        )
    except (TypeError, ValueError, binascii.Error):
        raise DataError("the CloudEvent's data_base64 is no base64") from None
    return _event(said, content)


def _event(said: Mapping[str, Any], content: bytes) -> Event:
    if said.get("specversion") != "1.0":
        raise DataError("expected a CloudEvent of version 1.0 (Ce-Specversion: 1.0), in binary or structured mode")
    names = [said.get(name) for name in ("id", "type", "source")]
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST for name in names):
        raise DataError(f"a CloudEvent needs an id, a type and a source of 1 to {LONGEST} characters")
    name, kind, source = (printable(str(text)) for text in names)
    return Event(name, kind, source, content)


def flagged_event(event: Event, model: str, verdicts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The structured CloudEvent to send about a request's verdicts; None where nothing is flagged.

    Args:
        event: that held the request; the event that is sent names its id as `subject`.
        model: the detector's name.
        verdicts: columns of n images, as serving.framework_callable.predict gives them.
    """
    rows = np.flatnonzero(verdicts["advconn_flag"]).tolist()
    if not rows:
        return None
    errors = {str(i): str(text) for i in rows if (text := verdicts["advconn_error"][i])}
    return {
        "specversion": "1.0",
        "id": f"{event.id}-advconn",
        "source": f"advconn/{model}",
        "type": FLAGGED,
        "subject": event.id,
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "datacontenttype": "application/json",
        "data": {
            "request_source": event.source,
            "images": len(verdicts["advconn_flag"]),
            "flagged": rows,
            "p_value": [float(verdicts["advconn_p_value"][i]) for i in rows],
            "score": [None if str(i) in errors else float(verdicts["advconn_score"][i]) for i in rows],
            "errors": errors,
        },
    }


def send_event(sink: str, event: Mapping[str, Any]) -> None:
    """Send a structured CloudEvent to a sink.

    Raises:
        AdvconnError: it does not take it.
    """
    request = urllib.request.Request(sink, json.dumps(event).encode(), {"Content-Type": STRUCTURED})
    try:
        with urllib.request.urlopen(request, timeout=SINK_SECONDS):
            return
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AdvconnError(f"the sink did not take event {event['id']}: {first_line(error)}") from None
