"""CloudEvents 1.0 over HTTP, in the binary or the structured content mode, that hold a request of the protocol."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from advconn.data import sandbox
from advconn.errors import DataError, printable
from advconn.serving.open_inference_protocol import (
    HEADER,
    MOST_LISTS,
    NEAR_JSON,
    parse_header_length,
    unique_names,
)
from advconn.serving.trace import carried_headers

STRUCTURED = "application/cloudevents+json"
LONGEST = 500  # characters of an event's id, type and source


class Event(NamedTuple):
    """A CloudEvent: its id, type and source, the headers of its trace, and its data.

    content: a request of the Open Inference Protocol.
    json_bytes: how many bytes of the data are JSON, where binary tensors follow; else None.
    """

    id: str
    kind: str
    source: str
    carried: dict[str, str]
    content: bytes
    json_bytes: int | None = None


def parse_event(headers: Mapping[str, str], body: bytes) -> Event:
    """The CloudEvent of a request, in the binary or the structured content mode.

    Args:
        headers: of the request, looked up case-insensitively.
        body: of the request.

    Raises:
        DataError: no CloudEvent of version 1.0.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() == STRUCTURED:
        if body.count(b"[") + body.count(b"{") > MOST_LISTS:
            raise DataError(f"the CloudEvent holds more than {MOST_LISTS} lists and objects: send flat data")
        said, arrays = (
            read_structured(body) if len(body) <= NEAR_JSON else sandbox.call(f"{__name__}:read_structured", body)
        )
        return _event(said, arrays[0].tobytes(), None)
    names = ("specversion", "id", "type", "source", "traceparent", "tracestate")
    told = {name: headers.get(f"ce-{name}") for name in names}
    return _event(told, body, parse_header_length(headers.get(HEADER)))


def read_structured(body: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The attributes of a CloudEvent in JSON, and the bytes of its data.

    Raises:
        DataError: no JSON object, a name twice in one, or data_base64 that is none.
    """
    try:
        said = json.loads(body, object_pairs_hook=unique_names)
    except DataError:
        raise
    except (ValueError, RecursionError):
        raise DataError(f"the body is no JSON, as {STRUCTURED} says") from None
    if not isinstance(said, dict):
        raise DataError("the CloudEvent is no JSON object")
    encoded, data = said.pop("data_base64", None), said.pop("data", None)
    try:
        content = json.dumps(data).encode() if encoded is None else base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise DataError("the CloudEvent's data_base64 is no base64") from None
    plain = {name: value for name, value in said.items() if isinstance(value, str)}
    return plain, [np.frombuffer(content, np.uint8)]


def _event(said: Mapping[str, Any], content: bytes, json_bytes: int | None) -> Event:
    if said.get("specversion") != "1.0":
        raise DataError("expected a CloudEvent of version 1.0 (Ce-Specversion: 1.0), in binary or structured mode")
    names = [said.get(name) for name in ("id", "type", "source")]
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST for name in names):
        raise DataError(f"a CloudEvent needs an id, a type and a source of 1 to {LONGEST} characters")
    name, kind, source = (printable(str(text)) for text in names)
    trace = {name: text for name in ("traceparent", "tracestate") if isinstance(text := said.get(name), str)}
    return Event(name, kind, source, carried_headers(trace), content, json_bytes)
