"""What a request sends: its body, or its files, within limits of bytes and of time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from starlette.exceptions import HTTPException
from starlette.requests import Request

from advconn.errors import DataError
from advconn.shown import shown

DIGITS = 18  # of a length in a header
SMALL_BODY = 2**16  # bytes of every body that count towards no common limit: small requests always get through
LONGEST_NAME = 200  # characters of a file's name that are kept
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "image/bmp": ".bmp"}
FORM = "multipart/form-data"


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    bytes: of a body. images: of a request. waiting: images that wait. batch: images judged at once. wait: seconds that
    an image waits for others. body_seconds: in which a body must have come.
    """

    bytes: int = 2**26
    images: int = 256
    waiting: int = 1024
    batch: int = 64
    wait: float = 0.005
    body_seconds: float = 30.0


class Bodies:
    """The bodies of all requests, which together hold at most half as many bytes again as one may have."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.most, self.held = limits, limits.bytes * 3 // 2, 0

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytearray]:
        """A request's body, read no farther than it may be long, as long as the block runs.

        Raises:
            HTTPException: 408 too slow, 411 or 413 too long, 415 compressed, 503 others' bodies fill the memory.
        """
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise HTTPException(415, f"a body of the encoding {coding[:20]!r}; expected one that is not compressed")
        self._refuse_length(request.headers.get("content-length"))
        body, counted = bytearray(), 0
        try:
            try:
                async with asyncio.timeout(self.limits.body_seconds):
                    async for part in request.stream():
                        body += part
                        if len(body) > self.limits.bytes:
                            raise HTTPException(413, f"expected {self.limits.bytes} bytes or fewer")
                        more = max(0, len(body) - SMALL_BODY) - counted
                        if self.held + more > self.most:
                            raise HTTPException(
                                503, "large requests wait already: try again later", {"Retry-After": "1"}
                            )
                        self.held, counted = self.held + more, counted + more
            except TimeoutError:
                raise HTTPException(408, f"the body did not come in {self.limits.body_seconds:g} s") from None
            yield body
        finally:
            self.held -= counted

    def _refuse_length(self, length: str | None) -> None:
        """Refuse a body that says it is too long."""
        if length is None:
            return
        if not (length.isdecimal() and len(length) <= DIGITS):
            raise HTTPException(411, "expected a Content-Length of digits")
        if int(length) > self.limits.bytes:
            raise HTTPException(413, f"{length} bytes; expected {self.limits.bytes} or fewer")


def files_in(kinds: list[str], body: bytearray, most: int) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a body: of a form, or one file that is the body.

    Args:
        kinds: values of the request's Content-Type headers.
        body: of the request.
        most: files in a form.

    Raises:
        DataError: no file, a form with anything else than files, or one that readers of forms may read differently.
    """
    if len(kinds) > 1:
        raise DataError(f"{len(kinds)} Content-Type headers; expected one")
    kind = _header("Content-Type", kinds[0] if kinds else "application/octet-stream")
    if kind.get_content_type() == FORM:
        return [_file(part) for part in _parts(bytes(body), kind, most)]
    if kind.get_content_maintype() == "multipart":
        raise DataError(f"a body of the type {kind.get_content_type()}; expected {FORM}, or one file")
    if not body:
        raise DataError("no file in the request: send image files as a form, or one as the body")
    return [(f"image{SUFFIXES.get(kind.get_content_type(), '')}", bytes(body))]


def _header(name: str, value: str) -> Message:
    message = Message()
    message[name] = " ".join(value.split())
    return message


def _parts(body: bytes, kind: Message, most: int) -> list[bytes]:
    """The parts of a form, each with its headers; nothing stands before, between or behind them."""
    boundary = str(kind.get_boundary("")).encode("latin-1", "replace")
    if not re.fullmatch(rb"[0-9A-Za-z'()+_,\-./:=? ]{1,70}", boundary):
        raise DataError("the form's Content-Type names no boundary")
    mark = b"--" + boundary
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    first, *parts, last = pieces if len(pieces) > 1 else (b"", b"", b"")
    whole = not first and last.rstrip(b" \t\r\n") == b"--" and all(re.match(rb"[ \t]*\r\n", part) for part in parts)
    if not whole or body.count(b"\n" + mark) + body.startswith(mark) != len(pieces) - 1:
        raise DataError("the form cannot be read: it is cut off, or holds more than its parts")
    if len(parts) > most:
        raise DataError(f"{len(parts)} files in the form; expected {most} or fewer")
    if not parts:
        raise DataError("no file in the request: send image files as a form, or one as the body")
    return [part.lstrip(b" \t") for part in parts]


def _file(part: bytes) -> tuple[str, bytes]:
    """Name and content of a part that is a file."""
    head, found, content = part.partition(b"\r\n\r\n")
    headers = BytesHeaderParser().parsebytes(head.lstrip(b"\r\n"))
    said = headers.get_all("Content-Disposition", [])
    name = headers.get_filename() if len(said) == 1 else None
    if not found or headers.get_content_disposition() != "form-data" or name is None:
        raise DataError("a part of the form is no file: expected files alone, each with a file name")
    coding = str(headers.get("Content-Transfer-Encoding", "binary")).strip().lower()
    if coding not in ("binary", "8bit", "7bit") or "Content-Encoding" in headers:
        raise DataError("a part of the form is encoded; expected files as they are")
    if headers.get_content_maintype() == "multipart":
        raise DataError("a part of the form has parts of its own; expected files alone")
    plain = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return shown(re.split(r"[\\/]", plain)[-1] or "image")[:LONGEST_NAME], content
