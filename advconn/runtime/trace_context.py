"""The trace that work belongs to, as headers of W3C Trace Context that its requests to other servers carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_HEADERS: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("advconn_trace_headers", default=())


def trace_headers() -> dict[str, str]:
    """The headers `traceparent` and `tracestate` of the current work; empty outside a trace."""
    return dict(_HEADERS.get())


@contextmanager
def traced(headers: Mapping[str, str]) -> Iterator[None]:
    """Do work that belongs to a trace.

    Args:
        headers: of the trace, as `trace_headers` gives them.
    """
    before = _HEADERS.set(tuple(headers.items()))
    try:
        yield
    finally:
        _HEADERS.reset(before)
