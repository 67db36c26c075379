"""The trace that a request belongs to, as W3C's Trace Context says it, and what of it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from advconn.runtime.trace_context import traced

if TYPE_CHECKING:
    from advconn.serving.log import FlaggedImage

_TRACE = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_LATER = re.compile(r"(?!ff|00)[0-9a-f]{2}(-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})(-[\x21-\x7e]*)?")  # a later version
_STATE = re.compile(r"[\x20-\x7e]{0,511}[\x21-\x7e]")  # printable ASCII, as long as the standard asks to keep
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LONGEST_PATH = 200  # letters of a path that are told


def _parsed(traceparent: str | None) -> re.Match[str] | None:
    """The parts of a traceparent header, a later version's as those of version 00; None if it is malformed."""
    text = traceparent or ""
    later = _LATER.fullmatch(text)
    return _TRACE.fullmatch(text if later is None else f"00{later[1]}")


def trace_of(traceparent: str | None) -> str:
    """The trace id of a W3C traceparent header, 32 hexadecimal digits; '' of none, or of one that is malformed."""
    found = _parsed(traceparent)
    return "" if found is None else found[1]


def carried_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request's trace that go on to other servers; none if its traceparent is malformed.

    What goes on is written anew from the parsed fields, so that a client cannot send other text along.

    Args:
        headers: of the request, looked up case-insensitively.
    """
    found, state = _parsed(headers.get("traceparent")), headers.get("tracestate", "")
    if found is None:
        return {}
    parent = f"00-{found[1]}-{found[2]}-{found[3]}"
    return {"traceparent": parent} | ({"tracestate": state} if _STATE.fullmatch(state) else {})


class Tracing:
    """Carries a request's trace on to the classifier upstream, and into the log. It makes no span of its own."""

    @contextmanager
    def span(self, name: str, carried: Mapping[str, str], about: Mapping[str, str]) -> Iterator[Callable[[int], None]]:
        """Do something inside its trace; an HTTP request's status is told by the caller.

        Args:
            name: of what is done.
            carried: headers of the trace, as `carried_headers` gives them.
            about: attributes of what is done, by OpenTelemetry's names.
        """
        with traced(carried):
            yield lambda status: None

    def flagged(self, images: Sequence[FlaggedImage]) -> None:
        """Add images that were flagged, or could not be judged, to the current span."""

    def close(self) -> None:
        """Send what was not sent yet."""


class Traced:
    """An application whose requests are answered inside their traces.

    Args:
        app: what answers.
        tracing: what carries the traces.
        paths: that name a span; another path may be anything.
        unseen: paths of requests that belong to no trace.
    """

    def __init__(
        self, app: ASGIApp, tracing: Tracing, paths: Collection[str] = (), unseen: Collection[str] = ()
    ) -> None:
        self.app, self.tracing, self.paths, self.unseen = app, tracing, frozenset(paths), frozenset(unseen)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in self.unseen:
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        path, started = scope["path"][:LONGEST_PATH], False
        about = {"http.request.method": method, "url.path": path}
        name = f"{method} {path}" if path in self.paths else method
        with self.tracing.span(name, carried_headers(Headers(scope=scope)), about) as answered:

            async def told(message: Message) -> None:
                nonlocal started
                if message["type"] == "http.response.start":
                    started = True
                    answered(message["status"])
                await send(message)

            try:
                await self.app(scope, receive, told)
            except BaseException:
                if not started:  # whoever is outside answers with this status
                    answered(500)
                raise
