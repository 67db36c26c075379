"""The Open Inference Protocol, version 2: requests to images, verdicts to answers; JSON, and its binary extension."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advconn.data import sandbox
from advconn.data.formats import HEAD, looks_like_picture
from advconn.errors import DataError

HEADER = "inference-header-content-length"
LENGTH_DIGITS = 18  # of the number in it
NEAR_JSON = 2**20  # bytes that are read in this process
MOST_LISTS = 2**19  # in a request; an image of 224 rows in nested lists has 900
MOST_SIDE = 2**20
LONGEST_ID = 10_000
TYPES: Mapping[str, type] = {
    "FP32": np.float32,
    "FP64": np.float64,
    "FP16": np.float16,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
TAKEN = ("FP32", "UINT8")
_ODD = re.compile(r"[^A-Za-z0-9+/=\s]")  # in base64
_NAMES = {np.dtype(v): k for k, v in TYPES.items()}


@dataclass(frozen=True)
class InferRequest:
    """A request: images (n, ...) as they were sent, its id, the outputs wanted (None: all), and which as bytes.

    pictures: files of images, where these were sent instead.
    """

    images: np.ndarray
    id: str | None
    wanted: tuple[str, ...] | None
    binary: Mapping[str, bool]
    all_binary: bool
    pictures: tuple[bytes, ...] = ()


def parse_header_length(text: str | None) -> int | None:
    """The number of bytes in the header HEADER; None without it.

    Raises:
        DataError: no number, or an impossible one.
    """
    if text is not None and not (text.isdecimal() and len(text) <= LENGTH_DIGITS):
        raise DataError(f"{HEADER}: expected a number of bytes")
    return None if text is None else int(text)


def parse_request(body: bytes | bytearray, header_length: int | None, most: int) -> InferRequest:
    """The request in a body, of which the first `header_length` bytes are JSON if it has binary parts.

    JSON of more than NEAR_JSON bytes is read by a worker: the interpreter's lock would stop everything else.

    Args:
        body: of the request.
        header_length: see above.
        most: images in a request.

    Raises:
        DataError: anything else than one input of images: FP32, UINT8, or BYTES that are files of pictures.
    """
    cut = len(body) if header_length is None else header_length
    if not 0 <= cut <= len(body):
        raise DataError(f"{HEADER} is {cut}, and the body has {len(body)} bytes")
    text, blob = bytes(body[:cut]), bytes(body[cut:])
    if text.count(b"[") + text.count(b"{") > MOST_LISTS:
        raise DataError(
            f"the request holds more than {MOST_LISTS} lists and objects: send flat data, or binary tensors"
        )
    about, arrays = (
        parse_body(text, blob, most)
        if len(text) <= NEAR_JSON
        else sandbox.call(f"{__name__}:parse_body", text, blob, most)
    )
    name, outputs, all_binary, files = about
    binary = dict(outputs)
    images = np.zeros(0, np.uint8) if files else arrays[0]
    pictures = tuple(array.tobytes() for array in arrays) if files else ()
    return InferRequest(images, name, tuple(binary) or None, binary, all_binary, pictures)


def parse_body(text: bytes, blob: bytes, most: int) -> tuple[Any, list[np.ndarray]]:
    """What a request's JSON says, and its images, or the bytes of each file of a picture.

    The first value holds its id, the outputs and whether each is binary, whether all are, and whether it holds files.

    Args:
        text: the request's JSON.
        blob: the bytes behind it; empty where the request has no binary part.
        most: images in a request, at most.

    Raises:
        DataError: no JSON, or not one input of images.
    """
    try:
        said = json.loads(text, object_pairs_hook=unique_names)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"the request body is not valid JSON{where}") from None
    inputs = said.get("inputs") if isinstance(said, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        count = len(inputs) if isinstance(inputs, list) else "no"
        raise DataError(f"the request has {count} inputs; expected one, of images")
    _refuse_other_data(inputs[0], said)
    outputs = said.get("outputs") or []
    if not isinstance(outputs, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs
    ):
        raise DataError("outputs: expected a list of objects with a name")
    binary = {o["name"]: bool(_parameters(o).get("binary_data", False)) for o in outputs}
    name = str(said["id"])[:LONGEST_ID] if said.get("id") is not None else None
    all_binary = bool(_parameters(said).get("binary_data_output", False))
    if inputs[0].get("datatype") == "BYTES":
        files = [np.frombuffer(file, np.uint8) for file in _files(inputs[0], blob, most)]
        return (name, list(binary.items()), all_binary, True), files
    return (name, list(binary.items()), all_binary, False), [_array(inputs[0], blob, most)]


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that stands in it twice, readers take the first or the last value.

    Raises:
        DataError: such a name.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DataError("the request's JSON has a name twice in one object; expected each once")
    return found


def _refuse_other_data(given: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """Refuse what another server would take for the images: a gate refuses what it does not read."""
    elsewhere = [key for key in _parameters(given) if key.startswith("shared_memory")]
    elsewhere += [key for key in given if key in ("contents", "raw_data")]
    elsewhere += [key for key in whole if key in ("raw_input_contents", "instances")]
    if elsewhere:
        raise DataError(f"{elsewhere[0]} is not read: give the images as data, or as binary data")


def _numbers(data: list[Any], depth: int = 4) -> int | None:
    """How many numbers are in nested lists of nothing else; None where something else is."""
    kinds = set(map(type, data))
    if kinds <= {int, float, type(None)}:
        return len(data)
    if kinds != {list} or depth == 0:
        return None
    counts = [_numbers(part, depth - 1) for part in data]
    return None if None in counts else sum(count or 0 for count in counts)


def _files(given: Mapping[str, Any], blob: bytes, most: int) -> list[bytes]:
    """Files of pictures from BYTES: base64 in JSON, or lengths and bytes behind it."""
    shape, data = given.get("shape"), given.get("data")
    if not isinstance(shape, list) or (
        shape not in ([1], [1, 1])
        and not (
            len(shape) in (1, 2) and all(type(side) is int and side > 0 for side in shape) and shape[1:] in ([], [1])
        )
    ):
        raise DataError(f"BYTES of the shape {_cut(shape)}; expected [n]: a file of a picture each")
    if shape[0] > most:
        raise DataError(f"{_cut(shape[0])} images in a request; expected {most} or fewer")
    if blob and data is not None:
        raise DataError("the input has data and binary data too: expected one of them")
    size = _parameters(given).get("binary_data_size")
    if size is not None and (type(size) is not int or size != len(blob)):
        raise DataError(f"{len(blob)} bytes of files (said: {_cut(size)})")
    if blob:
        files: list[bytes] = []
        at = 0
        while at < len(blob):
            end = at + 4 + int.from_bytes(blob[at : at + 4], "little")
            if end > len(blob):
                raise DataError("the binary data are cut off: expected each file behind its length of 4 bytes")
            if len(files) == shape[0]:
                raise DataError(f"more than {shape[0]} files of pictures; the shape asks for {shape[0]}")
            files.append(blob[at + 4 : end])
            at = end
    elif isinstance(data, list) and all(isinstance(value, str) for value in data):
        try:
            files = [_decoded(value) for value in data]
        except DataError:
            raise
        except ValueError:
            raise DataError(
                "BYTES that are no base64: expected files of pictures in it, or send them to /score"
            ) from None
    else:
        raise DataError(
            "the input has no data: expected texts in base64, or binary data; /score takes files as they are"
        )
    if len(files) != shape[0]:
        raise DataError(f"{len(files)} files of pictures; the shape asks for {shape[0]}")
    return files


def _decoded(text: str) -> bytes:
    """The file that a text in base64 stands for, which may have line ends, a data: URL's head, or - and _ in it.

    Raises:
        ValueError: no base64.
        DataError: a reader that drops what is not of the standard's alphabet, as many do, would see another picture.
    """
    plain = text.partition(",")[2] if text.startswith("data:") else text
    plain = "".join(plain.split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    file = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    if _ODD.search(text):
        kept = re.sub(r"[^A-Za-z0-9+/]", "", text)
        other = base64.b64decode(kept[: len(kept) - (len(kept) % 4 == 1)] + "=" * (-len(kept) % 4))
        if other != file and looks_like_picture("", other[:HEAD]):
            raise DataError("BYTES in base64 that readers take differently: use A-Z, a-z, 0-9, + and / alone")
    return file


def _cut(value: Any) -> str:
    """The beginning of a value as JSON, whose numbers may be too long for a text."""
    try:
        return json.dumps(value)[:60]
    except (ValueError, RecursionError):
        return "of such numbers"


def _parameters(said: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = said.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _array(given: Mapping[str, Any], blob: bytes, most: int) -> np.ndarray:
    kind, shape = given.get("datatype"), given.get("shape")
    if kind not in TAKEN:
        raise DataError(f"the input's datatype is {_cut(kind)}; expected {' or '.join(TAKEN)}, or BYTES of files")
    if not isinstance(shape, list) or not 3 <= len(shape) <= 4 or not all(type(s) is int and s > 0 for s in shape):
        raise DataError(f"the input's shape is {_cut(shape)}; expected [n, c, h, w] or [n, h, w, c]")
    if shape[0] > most:
        raise DataError(f"{_cut(shape[0])} images in a request; expected {most} or fewer")
    if max(shape) > MOST_SIDE:
        raise DataError(f"the input's shape is {_cut(shape)}; expected sides of {MOST_SIDE} or fewer")
    count, dtype = math.prod(shape), np.dtype(TYPES[kind])
    size = _parameters(given).get("binary_data_size")
    if size is not None:
        if size != count * dtype.itemsize or len(blob) != size:
            raise DataError(
                f"{len(blob)} bytes of images (said: {_cut(size)}); the shape asks for {count * dtype.itemsize}"
            )
        return np.frombuffer(blob, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    data = given.get("data")
    if data is not None and blob:
        raise DataError("the input has data and binary data too: expected one of them")
    if not isinstance(data, list):
        raise DataError("the input has no data")
    found = _numbers(data)
    if found is None:
        raise DataError("the input's data are not numeric")
    if found != count:
        raise DataError(f"the input's data are {found} numbers; its shape asks for {count}")
    try:
        values = np.asarray(data, dtype=np.float64)  # null stands for NaN
    except (TypeError, ValueError, OverflowError):
        raise DataError("the input's data are not numeric") from None
    if values.size != count:
        raise DataError(f"the input's data are {values.size} numbers; its shape asks for {count}")
    if kind == "UINT8" and not bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all()):
        raise DataError("the input's data must be integers from 0 to 255")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told image by image
        return values.astype(dtype).reshape(shape)


def build_response(outputs: Mapping[str, np.ndarray], said: InferRequest, model: str) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON if there are binary parts.

    Args:
        outputs: all there are, by name, each with a row an image.
        said: the request.
        model: the detector's name.

    Raises:
        DataError: an output is wanted that there is none of.
    """
    wanted = said.wanted or tuple(outputs)
    unknown = [name for name in wanted if name not in outputs]
    if unknown:
        raise DataError(f"there is no output {unknown[0][:40]!r}; expected some of {', '.join(outputs)}")
    described, blobs = [], []
    for name in wanted:
        values = outputs[name]
        kind = "BYTES" if values.dtype == object else _NAMES[values.dtype]
        about: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(values.shape)}
        if said.binary.get(name, said.all_binary):
            blob = _blob(values)
            blobs.append(blob)
            about["parameters"] = {"binary_data_size": len(blob)}
        else:
            about["data"] = [_finite(v) for v in values.ravel().tolist()]
        described.append(about)
    whole: dict[str, Any] = {"model_name": model, "outputs": described}
    if said.id is not None:
        whole["id"] = said.id
    head = json.dumps(whole).encode()
    return head + b"".join(blobs), len(head) if blobs else None


def _blob(values: np.ndarray) -> bytes:
    if values.dtype != object:
        return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes()
    parts = [str(v).encode() for v in values.ravel()]
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def _finite(value: Any) -> Any:
    """As JSON has it: what is infinite is the largest number there is, and what is none is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(np.finfo(np.float64).max, value)
    return value


def model_metadata(model: str, channels: int, size: tuple[int, int] | None, classes: int) -> dict[str, Any]:
    """What the protocol tells of a model.

    Args:
        model: the detector's name.
        channels: of the images.
        size: (height, width) of the images in pixels; None where any size is taken.
        classes: how many the classifier tells apart.
    """
    height, width = size or (-1, -1)
    kinds = {
        "logits": ("FP32", [-1, classes]),
        "advconn_score": ("FP64", [-1]),
        "advconn_p_value": ("FP64", [-1]),
        "advconn_flag": ("BOOL", [-1]),
        "advconn_doubtful": ("BOOL", [-1]),
        "advconn_consensus": ("INT64", [-1]),
        "advconn_stage": ("INT64", [-1]),
        "advconn_error": ("BYTES", [-1]),
    }
    return {
        "name": model,
        "versions": ["1"],
        "platform": "advconn",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, channels, height, width]}],
        "outputs": [{"name": n, "datatype": kind, "shape": shape} for n, (kind, shape) in kinds.items()],
    }
