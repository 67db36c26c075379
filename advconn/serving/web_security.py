"""What keeps other people's web pages from using a server: known hosts, own origin, and headers of every answer."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


class PlainJSON(JSONResponse):
    """JSON of ASCII alone, which holds any text that a client may have sent, and unpaired surrogates too."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def policy(*pages: str) -> str:
    """A Content-Security-Policy under which nothing but the scripts that stand in these pages runs."""
    scripts = [script for page in pages for script in re.findall(r"<script>(.*?)</script>", page, re.DOTALL)]
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guarded:
    """An application that answers to known hosts and to its own pages alone.

    Args:
        app: what answers.
        hosts: names that a request may give as Host; None allows any.
        csp: Content-Security-Policy of answers that have none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, csp: str) -> None:
        self.app, self.hosts, self.csp = app, hosts, csp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or answer with the headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in {"Content-Security-Policy": self.csp, **HEADERS}.items():
                    headers.setdefault(name, value)
            await send(message)

        probe = scope["path"].startswith("/v2/health/")  # which come under a machine's own address, and tell nothing
        refused = None if probe else self._refused(Headers(scope=scope))
        await (self.app if refused is None else PlainJSON({"error": refused}, 403))(scope, receive, guarded)

    def _refused(self, headers: Headers) -> str | None:
        host, origin = headers.get("host"), headers.get("origin")
        if self.hosts is not None and host is not None and _name(f"//{host}") not in self.hosts:
            return f"{host[:80]!r} is no name of this server: --allow-host lets it in"
        if origin is not None and (host is None or urlsplit(origin).netloc.lower() != host.lower()):
            return "a web page of another origin asks; expected this server's own page, or a program"
        return None


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return ""
