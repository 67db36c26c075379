"""Judging beside a served model: its requests arrive as CloudEvents, and flagged ones go on to a sink.

KServe's inference logger sends a copy of each request (CloudEvents 1.0 over HTTP, binary or structured). It is answered
before anything is judged, so that the served model never waits.
"""

from __future__ import annotations

import http.client
import json
import urllib.request
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from advconn.errors import AdvconnError, first_line
from advconn.serving.cloudevents import STRUCTURED, Event

REQUESTS = ".request"  # the end of the type of events that hold a request; others, such as responses, are passed over
FLAGGED = "org.advconn.flagged"  # the type of events that are sent
SINK_SECONDS = 5.0  # that a sink may take to answer


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
        "id": uuid.uuid4().hex,
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


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would turn the event into a GET without it."""

    def redirect_request(self, *args: Any) -> None:
        """None, so that the answer counts as an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def send_event(sink: str, event: Mapping[str, Any]) -> None:
    """Send a structured CloudEvent to a sink.

    Raises:
        AdvconnError: it does not take it.
    """
    request = urllib.request.Request(sink, json.dumps(event).encode(), {"Content-Type": STRUCTURED})
    try:
        with _OPENER.open(request, timeout=SINK_SECONDS):
            return
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise AdvconnError(f"the sink did not take the event of {event['subject']}: {first_line(error)}") from None
