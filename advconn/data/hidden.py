"""Pictures in a file that Image.open does not show: layers, previews, other sizes, what stands behind the first.

A thumbnail in a block of EXIF data is none of them: cameras write one into every photograph, and no reader takes it for
the picture.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from PIL import Image

from advconn.data.formats import HEAD, looks_like_picture

SUB_PAGES = 330  # the tag of pages under a page of a TIFF
FACES = 6  # of a cube in a DDS file
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no restart in a JPEG's scan, and no byte 255 of it
_BARE = {0x01, *range(0xD0, 0xDA)}  # markers of a JPEG that have no length
_NO_PICTURES = {b"TOC ", b"icnV", b"name", b"info", b"s8mk", b"l8mk", b"h8mk", b"t8mk", b"\xfd\xd9\x2f\xa8"}  # in ICNS


def hidden_pictures(image: Image.Image, data: bytes) -> int:
    """How many pictures a file holds beside those that Image.open gives as frames.

    Args:
        image: as opened, at the frame that is looked at.
        data: of the whole file.
    """
    kind: Any = image
    counted = _COUNTS.get(str(image.format))
    count = 0
    if counted is not None:
        with suppress(IndexError, ValueError, TypeError, AttributeError, KeyError):  # a damaged index names no picture
            count = counted(kind, data)
    end = _ENDS.get(str(image.format))
    behind = 0 if end is None else _pictures_from(data, end(data))
    return max(count, behind) + zipfile.is_zipfile(io.BytesIO(data))


def _pictures_from(data: bytes, end: int) -> int:
    """Whether another picture begins where the first one ends: 1 or 0."""
    tail = data[end : end + 2**16].lstrip(b"\0\r\n ")
    return int(looks_like_picture("", tail[:HEAD]))


def _of_tiff(image: Any, data: bytes) -> int:
    below = image.tag_v2.get(SUB_PAGES, ())
    return len(below) if isinstance(below, tuple) else 1


def _of_jpeg(image: Any, data: bytes) -> int:
    with suppress(Exception):  # a damaged index makes Pillow raise many types
        return max(0, int((image._getmp() or {}).get(45057, 1)) - 1)
    return 0


def _of_png(image: Any, data: bytes) -> int:
    """Frames of an animation that Pillow does not show."""
    frames = sum(kind == b"fcTL" for kind, _, _ in _png_chunks(data))
    return max(0, frames - int(getattr(image, "n_frames", 1)))


def _of_icns(image: Any, data: bytes) -> int:
    kinds = [kind for kind, _ in _blocks(data[8:], 0)]
    return sum(kind not in _NO_PICTURES for kind in kinds) - 1


def _of_jpeg2000(image: Any, data: bytes) -> int:
    return sum(kind == b"jp2c" for kind, _ in _boxes(data)) - 1 if data[4:8] == b"jP  " else 0


def _of_avif(image: Any, data: bytes) -> int:
    """A track of frames beside a single picture."""
    tracks = any(kind == b"moov" for kind, _ in _boxes(data))
    return int(tracks and int(getattr(image, "n_frames", 1)) == 1)


def _of_dds(image: Any, data: bytes) -> int:
    cube = int.from_bytes(data[112:116], "little") & 0x200
    return FACES - 1 if cube else max(0, int.from_bytes(data[140:144], "little") - 1) * (data[84:88] == b"DX10")


def _of_fits(image: Any, data: bytes) -> int:
    """Further extensions, and planes of a cube."""
    more = sum(bool(re.match(rb"XTENSION= *'IMAGE", data[at : at + 30])) for at in range(0, len(data), 2880))
    planes = re.search(rb"NAXIS3  = *(\d+)", data[:11520])
    return more + (max(0, int(planes[1]) - 1) if planes else 0)


def _of_pnm(image: Any, data: bytes) -> int:
    return int(len(data) > _pnm_end(image) + 2)


_COUNTS: dict[str, Callable[[Any, bytes], int]] = {
    "PSD": lambda image, data: int(image.n_frames),
    "ICO": lambda image, data: len(image.ico.entry) - 1,
    "CUR": lambda image, data: int.from_bytes(data[4:6], "little") - 1,
    "ICNS": _of_icns,
    "TIFF": _of_tiff,
    "PPM": _of_pnm,
    "FITS": _of_fits,
    "JPEG": _of_jpeg,
    "PNG": _of_png,
    "JPEG2000": _of_jpeg2000,
    "AVIF": _of_avif,
    "DDS": _of_dds,
}


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, length and end of each chunk of a PNG."""
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        at += 12 + length
        yield kind, length, at
        if kind == b"IEND":
            return


def _png_end(data: bytes) -> int:
    return max((end for _, _, end in _png_chunks(data)), default=len(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, length and end of each segment of a JPEG; that of a scan ends where its header does."""
    at = 2
    while True:
        found = _MARKER.search(data, at)
        if found is None:
            return
        marker, at = data[found.start() + 1], found.end()
        if marker in _BARE:
            yield marker, 0, at
            if marker == 0xD9:
                return
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        at += max(2, length)
        yield marker, length, at


def _jpeg_end(data: bytes) -> int:
    return max((end for _, _, end in _jpeg_segments(data)), default=len(data))


def _gif_end(data: bytes) -> int:
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 13 and data[10] & 0x80 else 0)
    while at < len(data):
        kind = data[at]
        if kind == 0x3B:
            return at + 1
        if kind == 0x2C:
            table = data[at + 9] if at + 9 < len(data) else 0
            at += 11 + (3 << ((table & 7) + 1) if table & 0x80 else 0)
        elif kind == 0x21:
            at += 2
        else:
            return len(data)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return len(data)


_ENDS: dict[str, Callable[[bytes], int]] = {
    "PNG": _png_end,
    "JPEG": _jpeg_end,
    "GIF": _gif_end,
    "WEBP": lambda data: 8 + int.from_bytes(data[4:8], "little"),
    "BMP": lambda data: max(14, int.from_bytes(data[2:6], "little")),
}


def _blocks(data: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Kind and end of blocks that say their kind and length, the header included."""
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "big")
        end = at + max(8, length)
        yield data[at : at + 4], end
        at = end


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and end of the outer boxes of an ISO media file."""
    at = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        end = len(data) if length == 0 else at + max(8, length)
        yield kind, end
        at = end


def metadata_bytes(data: bytes) -> int:
    """Bytes of a PNG, JPEG or WebP that are no pixels: text, profiles, EXIF data, and the headers of these blocks.

    Decoders unpack some of them, and look at each one by one.
    """
    if data.startswith(b"\x89PNG\r\n"):
        return sum(12 + length for kind, length, _ in _png_chunks(data) if kind not in (b"IDAT", b"fdAT"))
    if data.startswith(b"\xff\xd8"):
        return sum(2 + length for marker, length, _ in _jpeg_segments(data) if marker >= 0xE0)
    if data[:4] == b"RIFF":
        total, at = 0, 12
        while at + 8 <= len(data):
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            total += 8 + length if data[at : at + 4] not in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF") else 0
            at += 8 + length + length % 2
        return total
    return 0


def _pnm_end(image: Any) -> int:
    """Bytes of a PNM file up to the end of its first picture; another may follow. Those in text have no fixed end."""
    tile = image.tile[0]
    bits = {"1": 1, "L": 8, "I": 16, "I;16": 16, "RGB": 24, "CMYK": 32, "RGBA": 32, "F": 32}.get(image.mode, 24)
    if tile[0] not in ("raw", "ppm"):
        return 2**62
    wide = 2 if tile[0] == "ppm" and tile[3] and isinstance(tile[3], tuple) and tile[3][-1] > 255 else 1
    bits *= wide if image.mode in ("L", "RGB") else 1
    return int(tile[2]) + image.size[1] * ((image.size[0] * bits + 7) // 8)
