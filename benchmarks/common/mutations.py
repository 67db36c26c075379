"""Seeds and mutations for fuzz.py: pictures, arrays, weights and bundles, damaged in bytes or in what they say."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import math
import os
import random
import re
import types
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import advconn
from advconn import bundle, models
from advconn.bundle import card_schema as cards
from advconn.cascade.early_exit import cascade_score
from advconn.detector import calibration
from advconn.models.fingerprint import fingerprint

Rng = random.Random
DEEP = re.compile(r'"@(\d+)@"')  # stands for so many brackets
# fmt: off
ENDINGS = (
    "png", "jpg", "webp", "avif", "gif", "tif", "bmp", "ppm", "tga", "ico", "jp2", "j2k", "mpo", "sgi", "pcx", "dds",
    "icns", "im", "qoi",
)
NUMBERS = (0, -1, 1, 3, 64, 1024, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, 1e-320, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (
    *NUMBERS, None, True, "", "a\nb\r\x1b[31m", "\ud800", "A" * 10**5, "../../etc/passwd",
    "os:getcwd", "flip", "F32", "advconn:none", "onnx:a",
    "canary.py:build", "timm:resnet18", "torchvision:resnet18", "hf:.", "http://127.0.0.1:9/v2/models/a", [], {},
    [8, 8], [1024, 1024], [[]], [None], list(range(2000)), ["flip"] * 200, {"a": {"a": []}},
    *(f"@{n}@" for n in (100, 900, 985, 9000, 300000)),
)
NODE = ("__module__", "__class__", "__loader__", "content", "type")
NODES: tuple[tuple[Any, ...], ...] = (
    ("posix", "system", "FunctionNode", "true", ""), ("posix", "system", "TypeNode", {"__class__": "system"}, ""),
    ("functools", "partial", "PartialNode", {"func": 0}, ""), ("operator", "methodcaller", "OperatorFuncNode", {}, ""),
    ("builtins", "eval", "ObjectNode", "1", ""), ("builtins", "object", "MethodNode", {"func": "system"}, ""),
    ("sklearn.tree._tree", "Tree", "TreeNode", {}, ""), ("builtins", "str", "JsonNode", '"\\ud800"', "numpy"),
    ("numpy", "ndarray", "NdArrayNode", [], "json"), ("builtins", "dict", "DictNode", {}, ""), ("a", 0, "", 0, 0),
    ("numpy.random.mtrand", "RandomState", "RandomStateNode", {}, ""), ("builtins", "str", "JsonNode", "[" * 3000, ""),
)


class Evil:
    """Writes over the canary where a pickle of it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo gone > $ADVCONN_CANARY",)


def mangled(rng: Rng, data: bytes, other: bytes) -> bytes:
    """Bytes overwritten, inserted, deleted, repeated, flipped, cut off, spliced with others, or set to odd numbers."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 8, 30))):
        start, n = rng.randrange(min(len(out), rng.choice((200, len(out)))) or 1), rng.choice((1, 2, 4, 8, 32, 200))
        value, order = (
            rng.choice((0, 1, 255, 256, 4096, 5792, 32767, 65535, 2**31 - 1, 2**32 - 1)),
            rng.choice(("little", "big")),
        )
        new = value.to_bytes(4 if value > 65535 else rng.choice((2, 4)), order)
        ways = [
            (start + n, rng.randbytes(n)),
            (start, rng.randbytes(n)),
            (start + n, b""),
            (start, out[start : start + n] * rng.choice((1, 50))),
        ]
        ways += [(start + 1, bytes(v ^ 1 << rng.randrange(8) for v in out[start : start + 1])), (start + len(new), new)]
        ways += [(len(out), b""), (len(out), other[rng.randrange(len(other)) :])]
        end, new = rng.choices(ways, (3, 1, 1, 1, 4, 4, 0.2, 0.2))[0]
        out[start:end] = new
    return bytes(out)


def changed(rng: Rng, array: np.ndarray) -> np.ndarray:
    """The same array in another shape or type, or with other values; at times a pickle."""
    kind = rng.choice(("f8", "f4", "f2", ">f4", "u1", "i8", "?", "c8", "U3", "S2", "M8[s]", "u8", "O"))
    shape = rng.choice(((1, *array.shape), (*array.shape, 1), (0, 9), array.shape[::-1], (7, 3), (), (array.size,)))
    value = rng.choice((np.nan, np.inf, 1e30, -1e30, 1e300, 0, -1, 2)) if array.dtype.kind == "f" else 1
    spot = np.arange(array.size).reshape(array.shape) == rng.randrange(array.size or 1)
    cast = np.array([Evil()]) if kind == "O" else array.astype(kind)
    poked = np.where(spot, array.dtype.type(value), array)
    others = (np.resize(array, shape), np.full_like(array, value), array.repeat(3), np.asfortranarray(array))
    return rng.choice((cast, poked, *others))


def edited(rng: Rng, text: bytes) -> bytes:
    """A JSON text with some values replaced, moved, removed or added."""
    doc, places, shares, nodes = json.loads(text), [], [], []

    def visit(node: Any, share: float = 1.0) -> None:
        if isinstance(node, (dict, list)):
            nodes.extend([node] if "__loader__" in node else [])
            for key in node if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                shares.append(share / len(node) + 1e-3)  # a value of a short list is picked as often as a long list
                visit(node[key], share / len(node))

    visit(doc)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        (holder, key), (donor, name), how = *rng.choices(places, shares, k=2), rng.random()
        with contextlib.suppress(LookupError, OverflowError):  # of a place that is gone, or a number that is too large
            old, value = holder[key], copy.deepcopy(donor[name] if rng.random() < 0.2 else rng.choice(ODD))
            if nodes and how < 0.4:
                pairs = list(zip(NODE, rng.choice(NODES), strict=True))
                rng.choice(nodes).update(pairs if rng.random() < 0.5 else rng.sample(pairs, 2))
            elif how < 0.5:
                del holder[key]
            elif how < 0.6 and isinstance(holder, dict):
                holder[rng.choice(("a", "", "\ud800", "n_jobs", "A" * 10**4, "memory", "__id__"))] = value
            else:
                number = isinstance(old, (int, float)) and how < 0.8
                near = old * rng.choice((-1, 2, 0.5, 1000)) if number and how < 0.7 else rng.choice(NUMBERS)
                holder[key] = near if number else value
    return DEEP.sub(lambda m: "[" * int(m[1]) + "]" * int(m[1]), json.dumps(doc)).encode()


def mutated(rng: Rng, data: bytes, other: bytes, suffix: str) -> bytes:
    """A mutation that fits the kind of file: one member of an archive, a header, an array, or any bytes."""
    luck = rng.random()
    with contextlib.suppress(Exception):  # damaged, or changed into what has no such form
        if suffix == ".json" and luck < 0.9:
            return edited(rng, data)
        if suffix == ".npy" and luck < 0.6:
            np.save(out := io.BytesIO(), changed(rng, np.load(io.BytesIO(data))))
            return out.getvalue()
        if suffix == ".safetensors" and luck < 0.5:
            arrays = safetensors.numpy.load(data)
            name = rng.choice(list(arrays))
            arrays[rng.choice((name, name, name, "a"))] = changed(rng, arrays.pop(name))
            return safetensors.numpy.save(arrays)
        if suffix == ".safetensors" and luck < 0.8:
            n = int.from_bytes(data[:8], "little")
            header = edited(rng, data[8 : 8 + n])
            return len(header).to_bytes(8, "little") + header + data[8 + n :]
        if luck < 0.6 and data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out := io.BytesIO(), "w") as new:
                chosen = rng.choice(
                    [*old.namelist(), *[n for n in old.namelist() if n.endswith((".json", ".pkl"))] * 3]
                )
                for info in old.infolist():
                    inner, ending = old.read(info), Path(info.filename).suffix
                    inner = mutated(rng, inner, other, ending) if info.filename == chosen else inner
                    new.writestr(info.filename, inner, info.compress_type)
            return out.getvalue()
    damaged, start = bytearray(mangled(rng, data, other)), 8
    while suffix == ".png" and start + 12 <= len(damaged) and luck < 0.9:  # checksums are put right
        end = start + 8 + int.from_bytes(damaged[start : start + 4], "big")
        damaged[end : end + 4] = zlib.crc32(damaged[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(damaged)


def image_seeds() -> dict[str, bytes]:
    """Small pictures and arrays of every kind, by name."""
    pixels = np.arange(6 * 24 * 20 * 4).reshape(6, 24, 20, 4).astype(np.uint8)
    clear, colour = Image.fromarray(pixels[0]), [Image.fromarray(p[..., :3].copy()) for p in pixels]
    wide, turned = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20) * 136), Image.Exif()
    turned[0x0112], more, out = 6, {"save_all": True, "append_images": colour[1:3]}, {}
    looks = {"colour": colour[0], "clear": clear, "wide": wide, "flat": colour[0].quantize(16), "moving": colour[0]}
    looks |= {"ink": colour[0].convert("CMYK"), "bits": colour[0].convert("1"), "mixed": clear.convert("LA")}
    packed = {"clear": "tiff_lzw", "colour": "jpeg", "bits": "group4", "wide": "tiff_adobe_deflate"}
    for ending in ENDINGS:
        for style, image in looks.items():
            options = {"exif": turned, "progressive": style == "colour", "compression": packed.get(style)}
            options |= {"transparency": 3} if style == "flat" else more if style == "moving" or ending == "mpo" else {}
            with contextlib.suppress(OSError, KeyError, ValueError):  # one that this Pillow cannot write
                image.save(stream := io.BytesIO(), Image.registered_extensions()[f".{ending}"], **options)
                out[f"{style}.{ending}"] = stream.getvalue()
    rows, floats, y = pixels[..., :3], np.float32(pixels[:, :3, :16, :1].repeat(16, 3) / 255), np.arange(6)
    for name, array in {
        "rows": rows,
        "floats": floats,
        "back": np.asfortranarray(rows),
        "swapped": floats.astype(">f8"),
    }.items():
        np.save(stream := io.BytesIO(), array)
        out[f"{name}.npy"] = stream.getvalue()
    for name, save in {"stored": np.savez, "packed": np.savez_compressed}.items():
        save(stream := io.BytesIO(), images=rows, labels=np.eye(6)[y])
        out[f"{name}.npz"] = stream.getvalue()
    t, labels = torch.from_numpy(floats), torch.from_numpy(y)
    kinds = {
        "alone.pt": t,
        "pair.pth": (t, labels),
        "named.pt": {"x": t.bfloat16(), "y": labels},
        "sparse.pt": t.to_sparse(),
    }
    kinds |= {
        "spread.pth": t[:1].expand(9, 3, 16, 16),
        "complex.pt": t + 0j,
        "evil.pt": Evil(),
        "old.pt": t,
        "evil.pth": [t, Evil()],
    }
    for name, value in kinds.items():
        torch.save(value, stream := io.BytesIO(), _use_new_zipfile_serialization="old" not in name)
        out[name] = stream.getvalue()
    return out


def bundle_seeds(folder: Path) -> list[dict[str, bytes]]:
    """The shipped bundle, the same saved anew, and a small one of one stage whose head is a network."""
    shipped = bundle.default("digits")
    advconn.save(advconn.load(shipped), folder / "anew")
    digits = torch.from_numpy(load_digits().images[:160] / 16).float()[:, None]
    classifier = models.load("advconn:compact", shipped / bundle.WEIGHTS, channels=1, size=(8, 8))
    settings = {"families": ("self",), "copies": ("flip", "mean3"), "halves": ()}
    head = MLPClassifier((4,), max_iter=20, random_state=0)
    how: dict[str, Any] = {"connectivity": settings, "head": head, "accept_weak": True}
    advconn.save(advconn.fit(classifier, digits, attacks=("fgsm:eps=0.3",), **how), folder / "small")
    return [{p.name: p.read_bytes() for p in sorted(f.iterdir())} for f in (shipped, folder / "anew", folder / "small")]


def forged(rng: Rng, part: str, seeds: list[dict[str, bytes]]) -> dict[str, bytes]:
    """The files of a bundle with one part mutated (or two), and its hashes, fingerprint and threshold put right."""
    files, other = dict(rng.choice(seeds)), rng.choice(seeds)
    names = {"card": [bundle.CARD], "head": [bundle.HEAD], "tensors": [bundle.TENSORS], "classifier": [bundle.WEIGHTS]}
    for name in names.get(part) or rng.sample(list(files), 1 if part == "bytes" else 2):
        files[name] = mutated(
            rng, files[name], other.get(name, files[name]), Path(name).suffix if part != "bytes" else ""
        )
    with contextlib.suppress(Exception):  # a card that is no longer one
        card = json.loads(files[bundle.CARD])
        if part != "card":
            with contextlib.suppress(Exception):
                weights = {k: torch.from_numpy(v) for k, v in safetensors.numpy.load(files[bundle.WEIGHTS]).items()}
                module = types.SimpleNamespace(state_dict=lambda: weights)
                card["classifier"]["fingerprint"] = fingerprint(module)  # type: ignore[arg-type]
            with contextlib.suppress(Exception):
                tensors, stored = safetensors.numpy.load(files[bundle.TENSORS]), card["calibration"]
                exits = [-math.inf if v is None else v for v in card["exits"]]
                names = card["conditions"]["calibrated"]
                scores = {name: cascade_score(tensors[f"calibration.{name}"], exits)[0] for name in names}
                stored["threshold"] = calibration.Calibration(scores, stored["fpr"], stored["confidence"]).threshold
        with contextlib.suppress(Exception):
            card["files"] |= {k: hashlib.sha256(files[k]).hexdigest() for k in set(card["files"]) & set(files)}
        card["card"] = cards.digest(card)
        files[bundle.CARD] = json.dumps(card).encode()
    return files
