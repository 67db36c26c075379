"""What a server logs: lines for people, lines of JSON, or flagged images as OCSF findings for a SIEM."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from advconn.errors import printable
from advconn.scoring.sarif_ocsf_junit import ocsf_finding

STYLES = ("text", "json", "ocsf")
TOLD = 4  # flagged images of a request that a line for people names
LETTERS = 80  # of a name or a reason in such a line


class FlaggedImage(NamedTuple):
    """An image's name in its request, its p-value, and why it could not be judged; '' if it was."""

    image: str
    p_value: float
    error: str


class Asked(NamedTuple):
    """Who asked: the client's address, the route, and the trace of the request (W3C); '' without one."""

    client: str
    path: str
    trace: str


class Log:
    """Writes a server's lines.

    Args:
        write: takes a line.
        style: one of STYLES. text: for people. json: an object a line. ocsf: each flagged image as an OCSF Detection
            Finding (class 2004), and all else as json.
        model: the name of the detector that is served.
    """

    def __init__(self, write: Callable[[str], None], style: str = "text", model: str = "advconn") -> None:
        self.write, self.style, self.model = write, style, model

    def __call__(self, text: str) -> None:
        """Log a line about the server."""
        self.write(text if self.style == "text" else self._json(text))

    def flagged(self, asked: Asked, images: Sequence[FlaggedImage]) -> None:
        """Log the images of a request that were flagged, or could not be judged; nothing if there are none.

        Args:
            asked: whose request.
            images: these images.
        """
        if not images:
            return
        if self.style == "text":
            self.write(_sentence(asked, images))
        elif self.style == "json":
            rows = [one._asdict() | {"error": one.error or None} for one in images]
            self.write(
                self._json("flagged", client=asked.client, path=asked.path, images=rows, trace_id=asked.trace or None)
            )
        else:
            for one in images:
                self.write(json.dumps(self._finding(asked, one)))

    def _json(self, text: str, **fields: Any) -> str:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": now, "model": self.model, "message": text, **fields})

    def _finding(self, asked: Asked, one: FlaggedImage) -> dict[str, Any]:
        said = one.error or f"p {one.p_value:.4g}"
        finding = ocsf_finding(
            one.image,
            said,
            failed=bool(one.error),
            uid=uuid.uuid4().hex,
            data={"p_value": one.p_value, "model": self.model},
        )
        finding["metadata"] |= {"correlation_uid": asked.trace} if asked.trace else {}
        finding["unmapped"] = {"path": asked.path, "client": asked.client}
        with suppress(ValueError):
            finding["evidences"][0]["src_endpoint"] = {"ip": str(ip_address(asked.client))}
        return finding


def _sentence(asked: Asked, images: Sequence[FlaggedImage]) -> str:
    reasons = [one.error.removeprefix(f"{one.image}: ")[:LETTERS] or f"p {one.p_value:.3g}" for one in images[:TOLD]]
    said = [f"{one.image[:LETTERS]} ({why})" for one, why in zip(images[:TOLD], reasons, strict=True)]
    more = f" and {len(images) - TOLD} more" if len(images) > TOLD else ""
    trace = f" [trace {asked.trace}]" if asked.trace else ""
    return printable(f"{asked.client} {asked.path}: flagged {', '.join(said)}{more}{trace}")
