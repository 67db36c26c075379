"""Classifiers without a gradient: a function, an ONNX file, a model served over HTTP."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from advconn.errors import ModelError, Unanswered, first_line
from advconn.runtime.trace_context import trace_headers

LARGEST_ANSWER = 2**26  # bytes
MOST_LISTS = 2**14  # in an answer: one an image, and some
ROOM = 2**16  # bytes of an answer beside its numbers
LONGER = 8  # times that an answer's numbers may take more bytes than those of the first
LARGEST_REQUEST = 2**20  # values
MOST = 256  # images in a request
FAILED = (OSError, ValueError, http.client.HTTPException)  # what a server that answers nonsense makes urllib raise
PATIENCE = 2.0  # seconds for whether a model is ready
MOST_CHANNELS = 16  # of images whose layout is told by it
_TYPES = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "UINT8": np.uint8}
_ONNX = {"tensor(float16)": "FP16", "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(uint8)": "UINT8"}


class CallableModule(nn.Module):
    """A function of float32 images (n, c, h, w) in [0, 1], as an array or else as a tensor, as a module."""

    fingerprint = "function"  # nothing is known of it: a detector's folder tells it by its answers

    def __init__(self, call: Callable[[Any], Any]) -> None:
        super().__init__()
        if not callable(call):
            raise ModelError(f"expected a function of images, got {type(call).__name__}")
        self._call = [call]  # in a list, so that a module in it is not registered here
        self._array: bool | None = None  # what it takes, once that is known
        self.eval()

    def __deepcopy__(self, memo: object) -> CallableModule:
        return self

    def forward(self, images: Tensor) -> Any:
        """Whatever the function answers."""
        with torch.no_grad():
            plain = images.detach().cpu().to(torch.float32).contiguous()
            return self._answer(plain)

    def _answer(self, images: Tensor) -> Any:
        call = self._call[0]
        if self._array is None:
            try:
                answer = call(images.numpy().copy())
                self._array = True
            except Exception as error:  # the user's own code; perhaps it takes tensors
                try:
                    answer = call(images)
                    self._array = False
                except Exception as second:
                    raise ModelError(
                        f"the function takes neither an array ({first_line(error, 100)}) nor a tensor "
                        f"({first_line(second, 100)}) of shape {tuple(images.shape)}"
                    ) from second
        else:
            answer = call(images.numpy().copy() if self._array else images)
        return np.asarray(answer) if isinstance(answer, list) and answer and not hasattr(answer[0], "shape") else answer


class ArrayModule(CallableModule):
    """A network whose input is described as (n, c, h, w) or (n, h, w, c), of a type, perhaps of one batch size only.

    Args:
        kind: type of its input: 'FP16', 'FP32', 'FP64' or 'UINT8'.
        shape: four sides of its input; one that is no whole number above 0 is open.
        where: the file or address that error messages name.

    Raises:
        ModelError: another type, or not four sides.
    """

    def __init__(self, kind: str, shape: list[Any], where: str) -> None:
        super().__init__(self.ask)
        self._array = True
        sides = [v if isinstance(v, int) and v > 0 else None for v in shape]
        if kind not in _TYPES or len(sides) != 4:
            raise ModelError(
                f"{where}: its input is {kind} {shape}; expected images (n, c, h, w) or (n, h, w, c) of "
                f"{', '.join(_TYPES)}"
            )
        self.kind, self.last, self.named = kind, _channels_last(sides[1], sides[3]), False
        self.fixed_batch = sides[0] or 0
        self.channels = sides[3] if self.last else sides[1]
        self.size = tuple(sides[1:3] if self.last else sides[2:])

    def name_outputs(self) -> None:
        """Answer with all outputs by their names, for whoever says which of them are logits."""
        self.named = True

    def options(self) -> dict[str, Any]:
        """What its description says, as options of Classifier."""
        options: dict[str, Any] = {"channels": self.channels} if self.channels else {}
        return options | ({"size": self.size} if all(self.size) else {})

    def given(self, images: np.ndarray) -> np.ndarray:
        """Images (n, c, h, w) as its input."""
        batch = images.transpose(0, 2, 3, 1) if self.last else images
        if self.kind == "UINT8":
            batch = (batch * 255).round().clip(0, 255)
        return np.ascontiguousarray(batch.astype(_TYPES[self.kind]))

    def ask(self, images: np.ndarray) -> Any:
        """What it answers for images (n, c, h, w)."""
        raise NotImplementedError


def _channels_last(second: int | None, fourth: int | None) -> bool:
    """Whether an input's channels are its fourth side: images have few, and rarely fewer rows than channels."""
    if fourth in (1, 3) or second in (1, 3):
        return second not in (1, 3)
    return fourth is not None and fourth <= MOST_CHANNELS and (second is None or second > MOST_CHANNELS)


def choose_output(outputs: dict[str, np.ndarray], where: str) -> np.ndarray:
    """The logits among named outputs: 'logits', or the one there is with a row an image."""
    if "logits" in outputs:
        return outputs["logits"]
    fits = {k: v for k, v in outputs.items() if v.dtype.kind == "f" and v.ndim <= 2}
    if len(fits) != 1:
        listing = ", ".join(f"{k} {v.dtype} {v.shape}" for k, v in outputs.items()) or "nothing"
        raise ModelError(f"{where}: expected one output of logits (n, k), got {listing}")
    return next(iter(fits.values()))


class Onnx(ArrayModule):
    """An ONNX file."""

    def __init__(self, file: Path | str) -> None:
        path = Path(file)
        try:
            import onnxruntime
        except ImportError:
            raise ModelError(
                "ONNX files need onnxruntime: pip install 'advconn[onnx]', or '.[onnx]' in a checkout"
            ) from None
        if not path.is_file():
            raise ModelError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own types, which cannot be imported by name
            raise ModelError(f"{path}: not a readable ONNX file: {first_line(error)}") from error
        inputs = [
            i for i in session.get_inputs() if i.name not in {o.name for o in session.get_overridable_initializers()}
        ]
        if len(inputs) != 1:
            raise ModelError(f"{path}: has {len(inputs)} inputs; expected one, of images")
        super().__init__(_ONNX.get(inputs[0].type, inputs[0].type), list(inputs[0].shape), str(path))
        self.path, self.name, self.session = path, inputs[0].name, session
        self.outputs = [o.name for o in session.get_outputs()]
        digest = hashlib.sha256()  # large weights lie in a file beside it
        for part in sorted(p for p in path.parent.iterdir() if p.name.startswith(path.name) and p.is_file()):
            digest.update(part.read_bytes())
        self.fingerprint = "onnx:" + digest.hexdigest()

    def __reduce__(self) -> Any:
        return Onnx, (self.path,)

    def ask(self, images: np.ndarray) -> Any:
        """What it answers for images (n, c, h, w)."""
        answers = self.session.run(self.outputs, {self.name: self.given(images)})
        arrays = {n: v for n, v in zip(self.outputs, answers, strict=True) if isinstance(v, np.ndarray)}
        return arrays if self.named else choose_output(arrays, str(self.path))


class Endpoint(ArrayModule):
    """A model behind the Open Inference Protocol's REST interface, version 2.

    Args:
        url: of the server, such as http://localhost:8080.
        model: its name there.
        version: of the model; empty for the server's own choice.
        timeout: seconds for one answer, all of it.
        shape: of its input, (n, c, h, w), where the server describes none.
        headers: sent along with every request, such as an Authorization.

    Raises:
        ModelError: no such address, no answer, or not one input of images.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: str = "",
        timeout: float = 60.0,
        shape: list[int] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ModelError(f"{url}: expected the address of a server, such as http://localhost:8080")
        path = f"/v2/models/{quote(model)}" + (f"/versions/{quote(version)}" if version else "")
        address = url.rstrip("/") + path
        sent = dict(headers or {})
        about = _request(address, None, timeout, sent)[0]
        inputs = about.get("inputs") or []
        if not isinstance(inputs, list):
            raise ModelError(f"{address}: not a response of the Open Inference Protocol")
        if not inputs and shape is not None:
            inputs = [{"name": "input", "datatype": "FP32", "shape": shape}]
        if len(inputs) != 1 or not isinstance(inputs[0], dict) or not isinstance(inputs[0].get("shape"), list):
            raise ModelError(
                f"{address}: describes {len(inputs)} inputs; expected one, of images (size= and channels=, or "
                "--size and --channels, say what a server does not)"
            )
        super().__init__(str(inputs[0].get("datatype")), inputs[0]["shape"], address)
        self.headers = sent
        self.address, self.name, self.timeout = address, str(inputs[0].get("name")), timeout
        self.arguments = (url, model, version, timeout, shape, self.headers)
        self.row_bytes = 0  # of an answer, once there was one
        self.fingerprint = f"endpoint:{model}"

    def __reduce__(self) -> Any:
        return Endpoint, self.arguments

    def ready(self) -> bool:
        """Whether the server says, in a few seconds, that the model can be asked."""
        request = urllib.request.Request(f"{self.address}/ready", headers=self.headers)
        try:
            _exchanged(request, min(PATIENCE, self.timeout), ROOM)
            return True
        except ModelError:
            return False

    def options(self) -> dict[str, Any]:
        """What the server says of it; batches small enough for JSON."""
        options = super().options()
        values = (self.channels or 3) * (self.size[0] or 32) * (self.size[1] or 32)
        return options | {"batch_size": max(1, min(MOST, LARGEST_REQUEST // values))}

    def ask(self, images: np.ndarray) -> Any:
        """What it answers for images (n, c, h, w)."""
        batch = self.given(images)
        asked = {"name": self.name, "shape": list(batch.shape), "datatype": self.kind, "data": batch.ravel().tolist()}
        most = ROOM + LONGER * self.row_bytes * len(batch) if self.row_bytes else LARGEST_ANSWER
        answer, size = _request(
            f"{self.address}/infer", {"inputs": [asked]}, self.timeout, trace_headers() | self.headers, most
        )
        self.row_bytes = self.row_bytes or max(64, size // len(batch))
        try:
            arrays = {str(o["name"]): _array(o) for o in answer["outputs"] if o["datatype"] != "BYTES"}
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{self.address}: not a response of the Open Inference Protocol: {error}") from error
        return arrays if self.named else choose_output(arrays, self.address)


def _array(output: dict[str, Any]) -> np.ndarray:
    kind = _TYPES.get(str(output["datatype"]), np.int64)
    return np.asarray(output["data"], dtype=kind).reshape([int(side) for side in output["shape"]])


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What a server answers is taken from it, and from nowhere else."""

    def redirect_request(self, *args: Any) -> None:
        """Follow none."""


class _Ended(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Keeps the sockets that it opens, so that an exchange can be ended from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: list[socket.socket] = []

    def http_open(self, request: Any) -> Any:
        """Over HTTP."""
        return self.do_open(self._held(http.client.HTTPConnection), request)

    def https_open(self, request: Any) -> Any:
        """Over HTTPS."""
        return self.do_open(self._held(http.client.HTTPSConnection), request)

    def _held(self, kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        sockets = self.sockets

        class Held(kind):  # type: ignore[misc,valid-type]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Held

    def end(self) -> None:
        """Nothing more is read."""
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _exchanged(request: urllib.request.Request, timeout: float, most: int) -> bytes:
    """What a server answers, all of it in `timeout` seconds: a server that sends byte after byte is late too.

    Raises:
        Unanswered: no connection, or not all in time. ModelError: a longer answer than `most` bytes, or a failure.
    """
    handler = _Ended()
    opener = urllib.request.build_opener(_NoRedirect, handler)
    done: list[bytes | Exception] = []

    def work() -> None:
        try:
            with opener.open(request, timeout=timeout) as answer:
                done.append(answer.read(most + 1))
        except urllib.error.HTTPError as error:
            with suppress(*FAILED):
                done.append(ModelError(f"the server answers {error.code}: {' '.join(_start(error).split())[:200]}"))
            if not done:
                done.append(ModelError(f"the server answers {error.code}"))
        except FAILED as error:
            done.append(Unanswered(f"no answer: {first_line(error)}"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout)
    if not done:
        handler.end()
        raise Unanswered(f"no answer: not all of it came in {timeout:g} s")
    if isinstance(done[0], Exception):
        raise done[0]
    if len(done[0]) > most:
        raise ModelError(f"an answer of more than {most} bytes")
    return done[0]


def _start(error: urllib.error.HTTPError) -> str:
    return error.read(300).decode(errors="replace")


def _request(
    address: str, body: dict[str, Any] | None, timeout: float, headers: Mapping[str, str], most: int = LARGEST_ANSWER
) -> tuple[dict[str, Any], int]:
    """A server's answer, as JSON, and how many bytes it had."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json", **headers})
    try:
        text = _exchanged(request, timeout, most)
        if text.count(b"[") > MOST_LISTS:
            raise ModelError(f"an answer of more than {MOST_LISTS} lists")
        reply = json.loads(text)
    except ModelError as error:
        raise type(error)(f"{address}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{address}: an answer that is no JSON: {first_line(error)}") from error
    if not isinstance(reply, dict):
        raise ModelError(f"{address}: not a response of the Open Inference Protocol")
    return reply, len(text)
