"""What a request sends: its body, or its files, within limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from advconn.errors import DataError

DIGITS = 18  # of a length in a header
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif", "image/bmp": ".bmp"}


@dataclass(frozen=True)
class Limits:
    """What a server takes: bytes of a body, images of a request, images that wait, images at once, seconds of it."""

    bytes: int = 2**26
    images: int = 256
    waiting: int = 1024
    batch: int = 64
    wait: float = 0.005


async def files_of(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Names and contents of the files in a request: a form of files, or one file as the body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        _declared(request, limits)
        try:
            form = await request.form(max_files=limits.images, max_fields=16)
        except ClientDisconnect:
            raise
        except Exception:  # the parser's own types
            most = limits.images
            raise DataError(f"the form cannot be read: expected at most {most} files, of short names") from None
        out = []
        for _, part in form.multi_items():
            if not isinstance(part, str):
                out.append((Path(part.filename or "image").name, await part.read()))
        if sum(len(content) for _, content in out) > limits.bytes:
            raise HTTPException(413, f"expected {limits.bytes} bytes or fewer")
        await form.close()
    else:
        out = [(f"image{SUFFIXES.get(kind, '.png')}", await body_of(request, limits))]
    if not out or not any(content for _, content in out):
        raise DataError("no file in the request: send image files as a form, or one as the body")
    return out


async def body_of(request: Request, limits: Limits) -> bytes:
    """The body, read no farther than it may be long."""
    coding = request.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise HTTPException(415, f"a body of the encoding {coding[:20]!r}; expected one that is not compressed")
    length = request.headers.get("content-length")
    if length is not None:
        _declared(request, limits)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limits.bytes:
            raise HTTPException(413, f"expected {limits.bytes} bytes or fewer")
        parts.append(part)
    return b"".join(parts)


def _declared(request: Request, limits: Limits) -> None:
    """Refuse a body that says it is too large, or says nothing in a form."""
    length = request.headers.get("content-length")
    if length is None or not (length.isdecimal() and len(length) <= DIGITS):
        raise HTTPException(411, "expected a Content-Length")
    if int(length) > limits.bytes:
        raise HTTPException(413, f"{length} bytes; expected {limits.bytes} or fewer")
