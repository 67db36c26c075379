"""Formats of pictures: which are read, and which of them a file is, by its first bytes or its name."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import PurePath

from PIL import Image

SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pnm", ".jp2", ".j2k", ".apng", ".mpo", ".tga", ".ico", ".dib", ".pbm", ".pfm", ".j2c", ".jpc", ".jpf", ".pcx",
    ".dcx", ".sgi", ".bw", ".rgba", ".dds", ".icns", ".cur", ".xbm", ".xpm", ".psd", ".fits", ".fit", ".qoi", ".ras",
    ".fli", ".flc", ".msp", ".pcd", ".pxr", ".gbr", ".ftc", ".icb", ".vda", ".vst",
}  # fmt: skip
COMMON = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "JPEG2000")
# Of Pillow's formats those whose decoders start no other program and open no other file; BLP holds a JPEG whose scans
# nothing counts. Those without a mark at their start are taken by their suffix only.
MARKED = (*COMMON, "PPM", "ICO", "CUR", "ICNS", "DDS", "SGI", "SUN", "QOI", "PSD", "FITS", "FLI", "FTEX", "XPM")
FORMATS = (*MARKED, "TGA", "PCX", "DCX", "XBM", "MSP", "SPIDER", "IM", "PCD", "PIXAR", "GBR", "XVTHUMB", "MCIDAS")
# What other readers show as a picture, by suffix and by mark: nothing that a gate may pass over.
UNREAD = "an unsupported picture format; convert it to PNG"
UNREAD_SUFFIXES = {
    ".heic", ".heif", ".hif", ".dcm", ".dicom", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".dng", ".arw", ".raf", ".orf",
    ".rw2", ".pef", ".srw", ".jxl", ".jxr", ".wdp", ".exr", ".hdr", ".psb", ".eps", ".wmf", ".emf", ".svg", ".xcf",
    ".blp", ".nii", ".jpx", ".jpm", ".x3f", ".3fr", ".iiq", ".kdc", ".mrw", ".erf", ".mos",
}  # fmt: skip
UNREAD_MARKS = (
    (0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL "), (128, b"DICM"), (0, b"v/1\1"), (0, b"#?RADIANCE"), (0, b"gimp xcf"),
    (0, b"FUJIFILM"), (0, b"8BPS\0\2"), (0, b"BLP1"), (0, b"BLP2"), (0, b"\xc5\xd0\xd3\xc6"),
    (0, b"\xd7\xcd\xc6\x9a"),
    *((4, b"ftyp" + kind) for kind in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"crx")),
)  # fmt: skip
# What systems leave in folders of images, by the beginning of a name or all of it, and by the first bytes.
LEFT_BEHIND = (("._", b"\0\5\x16\7"), ("thumbs.db", b"\xd0\xcf\x11\xe0"), (".ds_store", b"\0\0\0\1Bud1"))
INI_MARKS = (b"[", b"\xff\xfe[", b"\xef\xbb\xbf[", b"\r\n[")  # of a desktop.ini
HEAD = 256  # bytes by which a file is told


@lru_cache(maxsize=1)
def registered() -> tuple[str, ...]:
    """Pillow's formats, all loaded."""
    Image.preinit()
    Image.init()
    return tuple(Image.ID)


def is_named_picture(name: str) -> bool:
    """Whether a name alone tells a picture; a Mac's file beside another has the other's suffix too."""
    return PurePath(name).suffix.lower() in SUFFIXES and not PurePath(name).name.startswith("._")


def looks_like_picture(name: str, head: bytes) -> bool:
    """Whether a file is taken for a picture: by its name, or by its first HEAD bytes."""
    if PurePath(name).suffix.lower() in SUFFIXES:
        return True
    marked = (Image.OPEN[kind][1] for kind in registered() if kind in MARKED)
    with suppress(Exception):  # a mark that some format's code stumbles over
        return any(accept(head[:16]) is True for accept in marked if accept is not None)
    return False


def looks_unread(name: str, head: bytes) -> bool:
    """Whether a file is a picture of a kind that others read and this does not, by its name or its first HEAD bytes."""
    if PurePath(name).suffix.lower() in UNREAD_SUFFIXES:
        return True
    marked = any(head.startswith(mark, at) for at, mark in UNREAD_MARKS)
    return marked and not looks_like_picture(name, head)


def is_left_behind(name: str, head: bytes) -> bool:
    """Whether a system may have left this file, by its name and its first HEAD bytes."""
    plain = PurePath(name).name.lower()
    if plain == "desktop.ini":
        return head.startswith(INI_MARKS)
    return any(head.startswith(mark) and (plain.startswith(end) or plain == end) for end, mark in LEFT_BEHIND)
