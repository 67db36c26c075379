"""The Open Inference Protocol, version 2: requests to images, verdicts to answers; JSON, and its binary extension."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advconn.errors import DataError

HEADER = "inference-header-content-length"
TYPES: Mapping[str, type] = {
    "FP32": np.float32,
    "FP64": np.float64,
    "FP16": np.float16,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
TAKEN = ("FP32", "UINT8")
_NAMES = {np.dtype(v): k for k, v in TYPES.items()}


@dataclass(frozen=True)
class Asked:
    """A request: images (n, ...) as they were sent, its id, the outputs wanted (None: all), and which as bytes."""

    images: np.ndarray
    id: str | None
    wanted: tuple[str, ...] | None
    binary: Mapping[str, bool]
    all_binary: bool


def asked(body: bytes, header_length: int | None, most: int) -> Asked:
    """The request in a body, of which the first `header_length` bytes are JSON if it has binary parts.

    Args:
        most: images in a request.

    Raises:
        DataError: anything else than one input of images, FP32 or UINT8.
    """
    cut = len(body) if header_length is None else header_length
    if not 0 <= cut <= len(body):
        raise DataError(f"{HEADER} is {cut}, and the body has {len(body)} bytes")
    try:
        said = json.loads(body[:cut])
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"the request is no JSON that can be read{where}") from None
    inputs = said.get("inputs") if isinstance(said, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        count = len(inputs) if isinstance(inputs, list) else "no"
        raise DataError(f"the request has {count} inputs; expected one, of images")
    outputs = said.get("outputs") or []
    if not isinstance(outputs, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs
    ):
        raise DataError("outputs: expected a list of objects with a name")
    binary = {o["name"]: bool(_parameters(o).get("binary_data", False)) for o in outputs}
    return Asked(
        _array(inputs[0], body[cut:], most),
        str(said["id"]) if said.get("id") is not None else None,
        tuple(binary) or None,
        binary,
        bool(_parameters(said).get("binary_data_output", False)),
    )


def _parameters(said: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = said.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def _array(given: Mapping[str, Any], blob: bytes, most: int) -> np.ndarray:
    kind, shape = given.get("datatype"), given.get("shape")
    if kind not in TAKEN:
        raise DataError(f"the input's datatype is {str(kind)[:20]}; expected {' or '.join(TAKEN)}")
    if not isinstance(shape, list) or not 3 <= len(shape) <= 4 or not all(type(s) is int and s > 0 for s in shape):
        raise DataError(f"the input's shape is {str(shape)[:60]}; expected [n, c, h, w] or [n, h, w, c]")
    if shape[0] > most:
        raise DataError(f"{str(shape[0])[:20]} images in a request; expected {most} or fewer")
    count, dtype = math.prod(shape), np.dtype(TYPES[kind])
    size = _parameters(given).get("binary_data_size")
    if size is not None:
        if size != count * dtype.itemsize or len(blob) != size:
            raise DataError(
                f"{len(blob)} bytes of images (said: {str(size)[:20]}); the shape asks for {count * dtype.itemsize}"
            )
        return np.frombuffer(blob, dtype.newbyteorder("<")).astype(dtype).reshape(shape)
    data = given.get("data")
    if not isinstance(data, list):
        raise DataError("the input has no data")
    try:
        values = np.asarray(data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError("the input's data are no table of numbers") from None
    if values.size != count:
        raise DataError(f"the input's data are {values.size} numbers; its shape asks for {count}")
    if kind == "UINT8" and not bool(((values >= 0) & (values <= 255) & (values == np.floor(values))).all()):
        raise DataError("the input's data are no bytes: expected whole numbers from 0 to 255")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is told image by image
        return values.astype(dtype).reshape(shape)


def answer(outputs: Mapping[str, np.ndarray], said: Asked, model: str) -> tuple[bytes, int | None]:
    """The body of an answer, and how many bytes of it are JSON if there are binary parts.

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


def described(model: str, channels: int, size: tuple[int, int] | None, classes: int) -> dict[str, Any]:
    """What the protocol tells of a model."""
    height, width = size or (-1, -1)
    kinds = {
        "logits": ("FP32", [-1, classes]),
        "advconn_score": ("FP64", [-1]),
        "advconn_p_value": ("FP64", [-1]),
        "advconn_flag": ("BOOL", [-1]),
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
