"""Pictures in a file that Image.open does not show: layers, previews, other sizes, what stands behind the first.

A thumbnail in a block of EXIF data is none of them: cameras write one into every photograph, and no reader takes it for
the picture.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from PIL import Image

from advconn.data.formats import HEAD, looks_like_picture

SUB_PAGES, DESCRIPTION, DEPTH = 330, 270, 32997  # tags of a TIFF: pages under a page, a text, slices of a volume
MOST_DIRECTORIES, MOST_STRIPS = 1000, 10**5  # of a TIFF that are followed
LEAST_BYTES = 64  # no picture has fewer
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # of a value, by its type
_TIFF_STRIPS = ((273, 279), (324, 325), (513, 514), (288, 289))  # where they stand, and how long they are
_TIFF_BELOW = (SUB_PAGES, 34665, 34853, 40965)  # directories that a directory names
_TIFF_PLACES = {*_TIFF_BELOW, *(tag for pair in _TIFF_STRIPS for tag in pair)}
FACES = 6  # of a cube in a DDS file
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no restart in a JPEG's scan, and no byte 255 of it
_BARE = {0x01, *range(0xD0, 0xDA)}  # markers of a JPEG that have no length
_FILLED = re.compile(rb"[^\0\r\n ]")
_BEGINNINGS = re.compile(  # of files, by marks that are long enough to be no chance
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff(?:[\xe0-\xef]..[A-Za-z]{4}|\xdb\0[\x43\x84\xc5])|GIF8[79]a|RIFF....WEBP"
    rb"|ftyp(?:avif|avis|heic|mif1)|8BPS\0[\1\2]",
    re.DOTALL,
)
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
    return max(count, behind, int(zipfile.is_zipfile(io.BytesIO(data))))


def _pictures_from(data: bytes, end: int) -> int:
    """Whether another picture begins behind the end of the first one: 1 or 0."""
    first = _FILLED.search(data, end)
    if first is None:
        return 0
    begins = looks_like_picture("", data[first.start() : first.start() + HEAD])
    return int(begins or _BEGINNINGS.search(data, first.start()) is not None)


def _of_tiff(image: Any, data: bytes) -> int:
    """Pages under a page; of the first also slices that a text or a tag tells of, and what stands behind all."""
    below, tags = image.tag_v2.get(SUB_PAGES, ()), image.tag_v2
    pages = len(below) if isinstance(below, tuple) else 1
    if image.tell():
        return pages
    end, smallest, shown = _tiff_end(data)
    told, depth = str(tags.get(DESCRIPTION, "")), int(tags.get(DEPTH, 1))
    stack = re.search(r"^images=(\d+)", told, re.MULTILINE) if told.startswith("ImageJ=") else None
    shape = re.search(r'"shape": *\[([\d, ]+)\]', told)
    planes = math.prod(map(int, shape[1].split(","))) // max(1, math.prod(image.size)) if shape else 0
    slices = max(depth, int(stack[1]) if stack else 0, planes // len(image.getbands()))
    behind = 0 if end is None else _pictures_from(data, end) or int(_is_filled(data, end, max(LEAST_BYTES, smallest)))
    return max(pages, slices - max(1, shown), behind)


def _is_filled(data: bytes, end: int, least: int) -> bool:
    """Whether so many bytes follow, and not zeros alone."""
    return len(data) - end >= least and _FILLED.search(data, end) is not None


def _tiff_end(data: bytes) -> tuple[int | None, int, int]:
    """Where the last byte that a TIFF's pages name stands, the bytes of its smallest page, and how many have pixels.

    The first is None where it is unclear.
    """
    order: Any = {b"II": "little", b"MM": "big"}.get(data[:2])
    big = int.from_bytes(data[2:4], order or "little") == 43
    if order is None:
        return None, 0, 0

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    wide, count_bytes, entry = (8, 8, 20) if big else (4, 2, 12)
    waiting, end = [number(8 if big else 4, wide)], 0
    seen: set[int] = set()
    pages: list[int] = []
    while waiting:
        at = waiting.pop()
        if not at or at in seen:
            continue
        if len(seen) >= MOST_DIRECTORIES:
            return None, 0, 0
        seen.add(at)
        count = number(at, count_bytes)
        if at + count_bytes + count * entry + wide > len(data):
            return None, 0, 0
        values: dict[int, list[int]] = {}
        for i in range(count):
            begin = at + count_bytes + i * entry
            tag, kind, many = number(begin, 2), number(begin + 2, 2), number(begin + 4, wide)
            size = _TIFF_BYTES.get(kind, 1)
            where = begin + 4 + wide
            if size * many > wide:
                where = number(where, wide)
                end = max(end, where + size * many)
            if tag in _TIFF_PLACES and many <= MOST_STRIPS:
                values[tag] = [number(where + size * k, size) for k in range(many)]
        after = at + count_bytes + count * entry
        end = max(end, after + wide)
        waiting += [number(after, wide), *(place for tag in _TIFF_BELOW for place in values.get(tag, ()))]
        held = 0
        for places, lengths in _TIFF_STRIPS:
            pairs = list(zip(values.get(places, ()), values.get(lengths, ()), strict=False))
            end = max([end, *(place + length for place, length in pairs)])
            held += sum(length for _, length in pairs)
        pages += [held] * bool(held)
    return end, min(pages, default=0), len(pages)


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
    more, depth = int.from_bytes(data[112:116], "little"), int.from_bytes(data[24:28], "little")
    count = FACES if more & 0x200 else depth if more & 0x200000 else 1
    if data[84:88] == b"DX10":
        faces = FACES if int.from_bytes(data[136:140], "little") & 4 else 1
        count = max(count, faces * int.from_bytes(data[140:144], "little"))
    return max(0, count - 1)


def _of_fits(image: Any, data: bytes) -> int:
    """Further extensions, and planes of a cube."""
    more = sum(bool(re.match(rb"XTENSION= *'IMAGE", data[at : at + 30])) for at in range(0, len(data), 2880))
    planes = math.prod(int(count) for _, count in re.findall(rb"NAXIS([3-9])  = *(\d+)", data[:11520]))
    return more + max(0, planes - 1)


def _of_pnm(image: Any, data: bytes) -> int:
    if data[1:2] in b"123":  # written as text, without a fixed end
        return int(re.search(rb"[\s\d]P[1-7]\s", re.sub(rb"#[^\n]*", b"", data[2:])) is not None)
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


def _bmp_end(data: bytes) -> int:
    """The end of the rows, where no run lengths are in them; what the file says of its size may cover more."""
    said = max(14, int.from_bytes(data[2:6], "little"))
    if int.from_bytes(data[14:18], "little") < 40 or data[30:34] not in (b"\0\0\0\0", b"\3\0\0\0"):
        return said
    wide, high = (abs(int.from_bytes(data[at : at + 4], "little", signed=True)) for at in (18, 22))
    row = (wide * int.from_bytes(data[28:30], "little") + 31) // 32 * 4
    return min(said, int.from_bytes(data[10:14], "little") + row * high)


_ENDS: dict[str, Callable[[bytes], int]] = {
    "PNG": _png_end,
    "JPEG": _jpeg_end,
    "GIF": _gif_end,
    "WEBP": lambda data: 8 + int.from_bytes(data[4:8], "little"),
    "BMP": _bmp_end,
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


def has_much_metadata(data: bytes, most: int) -> bool:
    """Whether more than `most` bytes of a PNG, JPEG or WebP are no pixels.

    These are texts, profiles, EXIF data, tables, and the headers of all blocks. Decoders unpack some of them, and look
    at each one by one.

    Args:
        data: of the file.
        most: bytes; no more of them than these are counted.
    """
    total = 0
    for length in _metadata_lengths(data):
        total += length
        if total > most:
            return True
    return False


def _metadata_lengths(data: bytes) -> Iterator[int]:
    if data.startswith(b"\x89PNG\r\n"):
        yield from (12 + length * (kind not in (b"IDAT", b"fdAT")) for kind, length, _ in _png_chunks(data))
    elif data.startswith(b"\xff\xd8"):
        yield from (2 + length for _, length, _ in _jpeg_segments(data))
    elif data[:4] == b"RIFF":
        at = 12
        while at + 8 <= len(data):
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            yield 8 + length * (data[at : at + 4] not in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"))
            at += 8 + length + length % 2


def _pnm_end(image: Any) -> int:
    """Bytes of a PNM file up to the end of its first picture; another may follow. Those in text have no fixed end."""
    tile = image.tile[0]
    bits = {"1": 1, "L": 8, "I": 16, "I;16": 16, "RGB": 24, "CMYK": 32, "RGBA": 32, "F": 32}.get(image.mode, 24)
    if tile[0] not in ("raw", "ppm"):
        return 2**62
    wide = 2 if tile[0] == "ppm" and tile[3] and isinstance(tile[3], tuple) and tile[3][-1] > 255 else 1
    bits *= wide if image.mode in ("L", "RGB") else 1
    return int(tile[2]) + image.size[1] * ((image.size[0] * bits + 7) // 8)
