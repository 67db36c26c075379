"""What a request sends: its body, or its files, within limits of bytes and of time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.parser import BytesHeaderParser

from starlette.exceptions import HTTPException
from starlette.requests import Request

from advconn.errors import DataError, printable

DIGITS = 18  # of a length in a header
SMALL_BODY = 2**16  # bytes of every body that count towards no common limit: small requests always get through
LONGEST_NAME = 200  # characters of a file's name that are kept
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "image/bmp": ".bmp"}
LONGEST_HEAD = 2**11  # bytes of the headers of a form's part
FORM = "multipart/form-data"
# A form, strictly as clients write it: another reader finds no other boundary in it.
_FORM = re.compile(
    r"multipart/form-data *; *(?:charset=[\w.-]+ *; *)?"
    r"boundary=(?:\"([\w'()+,\-./:=? ]{0,69}[\w'()+,\-./:=?])\"|([\w'()+,\-./:=?]{1,70}))"
    r"(?: *; *charset=[\w.-]+)? *",
    re.ASCII | re.IGNORECASE,
)
_KIND = re.compile(r"([\w.+-]+/[\w.+-]+) *(?:;[^,]*)?")
_LINE = re.compile(rb"[A-Za-z0-9-]+:[^\r\n\0]*")


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
    said = kinds[0] if kinds else "application/octet-stream"
    form = _FORM.fullmatch(said)
    if form is not None:
        boundary = (form[1] if form[1] is not None else form[2]).encode()
        return [_file(part) for part in _parts(bytes(body), boundary, most)]
    kind = _KIND.fullmatch(said)
    if kind is None or "multipart" in said.lower():
        raise DataError(f"a body of the type {said[:60]!r}; expected {FORM}; boundary=..., or one file")
    if not body:
        raise DataError("no file in the request: send image files as a form, or one as the body")
    return [(f"image{SUFFIXES.get(kind[1].lower(), '')}", bytes(body))]


def _parts(body: bytes, boundary: bytes, most: int) -> list[bytes]:
    """The parts of a form, each with its headers; nothing stands before, between or behind them."""
    mark = b"--" + boundary
    pieces = (b"\r\n" + body).split(b"\r\n" + mark, most + 2)
    first, *parts, last = pieces if len(pieces) > 1 else (b"", b"", b"")
    if len(parts) > most:
        raise DataError(f"more than {most} files in the form")
    whole = not first and last.rstrip(b" \t\r\n") == b"--" and all(re.match(rb"[ \t]*\r\n", part) for part in parts)
    lines = sum(body.count(end + mark) for end in (b"\n", b"\r")) + body.startswith(mark)
    if not whole or lines != len(pieces) - 1:
        raise DataError("the form cannot be read: it is cut off, or holds more than its parts")
    if not parts:
        raise DataError("no file in the request: send image files as a form, or one as the body")
    return [part.lstrip(b" \t").removeprefix(b"\r\n") for part in parts]


def _file(part: bytes) -> tuple[str, bytes]:
    """Name and content of a part that is a file."""
    start = part[: LONGEST_HEAD + 4]
    head, found, rest = start.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if not found or not all(_LINE.fullmatch(line) for line in lines):
        raise DataError("a part of the form has headers that cannot be read")
    content = rest + part[len(start) :]
    names = [line.partition(b":")[0].strip().lower() for line in lines]
    if names.count(b"content-disposition") != 1 or len(set(names)) != len(names):
        raise DataError("a part of the form has a header twice, or no Content-Disposition")
    headers = BytesHeaderParser().parsebytes(head + b"\r\n\r\n")
    try:
        name = headers.get_filename()
        said = headers.get_content_disposition()
        plain = None if name is None else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except (LookupError, UnicodeError, ValueError):  # a charset that nobody knows, or bytes that it does not have
        raise DataError("a part of the form has a file name that cannot be read") from None
    if said != "form-data" or plain is None:
        raise DataError("a part of the form is no file: expected files alone, each with a file name")
    coding = str(headers.get("Content-Transfer-Encoding", "binary")).strip().lower()
    if coding not in ("binary", "8bit", "7bit") or "Content-Encoding" in headers:
        raise DataError("a part of the form is encoded; expected files as they are")
    if headers.get_content_maintype() == "multipart":
        raise DataError("a part of the form has parts of its own; expected files alone")
    return printable(re.split(r"[\\/]", plain)[-1] or "image")[:LONGEST_NAME], content
