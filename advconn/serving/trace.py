"""The trace that a request belongs to, as W3C's Trace Context says it."""

from __future__ import annotations

import re

_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_of(traceparent: str | None) -> str:
    """The trace id of a W3C traceparent header, 32 hexadecimal digits; '' of none, or of one that is malformed."""
    found = _TRACE.fullmatch(traceparent or "")
    return "" if found is None else found[1]
