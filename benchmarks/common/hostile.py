"""Mutated requests to a server under --block, and mutated journals of a run that goes on, for fuzz.py."""

from __future__ import annotations

import base64
import contextlib
import copy
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.common.mutations import ODD, Rng

PIXELS = (load_digits().images[1000:1040] * 255 / 16).round().astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
NAMES = (
    b"a.png", b"", b"../x.png", b"a\x00b", "\u202e.png".encode(), b"\xff\xfe.png", b"x" * 500, b'a\\"b.png', b".png",
    b"CON",
)  # fmt: skip
PATHS = (
    "/", "/flagged", "/metrics", "/v2", "/v2/models/d", "/v2/models/d/ready", "/v2/models/e",
    "/v2/models/d/versions/2/infer", "/v2/models/d%00/infer", "/%2e%2e/etc/passwd", "/score%2f",
    "/v2/health/live", "/v2/health/ready", "//score",
)  # fmt: skip
Request = tuple[str, str, bytes | None, dict[str, str]]


def png(array: np.ndarray) -> bytes:
    """As a PNG file."""
    Image.fromarray(array).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def damaged(rng: Rng, data: bytes) -> bytes:
    """Some bytes changed, or the end cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out[: rng.randrange(len(out))]) if rng.random() < 0.2 else bytes(out)


def edited(rng: Rng, node: Any) -> Any:
    """A JSON value in which some values are odd, or gone."""
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        holder, key = node, None
        while isinstance(holder, (dict, list)) and holder:
            parent, key = holder, rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            holder = parent[key]
            if rng.random() < 0.3:
                break
        if key is None:
            break
        if rng.random() < 0.2:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(rng.choice(ODD))
    return node


def tensor(rng: Rng) -> Request:
    """A request of the Open Inference Protocol: JSON, binary tensors, or files as BYTES."""
    count = rng.choice((1, 2, 5))
    images = np.stack([rng.choice((PIXELS, PIXELS, NOISE))[rng.randrange(8)] for _ in range(count)])
    kind = rng.choice(("UINT8", "FP32", "BYTES"))
    given: dict[str, Any] = {"name": "i", "datatype": kind, "shape": [count] if kind == "BYTES" else [count, 1, 8, 8]}
    values = images if kind == "UINT8" else (images / 255).astype("<f4")
    files = [png(image) for image in images]
    blob = b""
    if rng.random() < 0.4:
        packed = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        blob = packed if kind == "BYTES" else values.tobytes()
        given["parameters"] = {"binary_data_size": len(blob)}
    else:
        given["data"] = [base64.b64encode(f).decode() for f in files] if kind == "BYTES" else values.ravel().tolist()
    outputs = [{"name": "advconn_flag"}, {"name": "logits", "parameters": {"binary_data": rng.random() < 0.3}}]
    said = edited(rng, {"id": "1", "inputs": [given], "outputs": outputs})
    text = json.dumps(said).encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16")))
    text = damaged(rng, text) if rng.random() < 0.1 else text
    headers = {"Content-Type": rng.choice(("application/json", "text/plain", "application/octet-stream"))}
    if blob or rng.random() < 0.1:
        headers["Inference-Header-Content-Length"] = str(len(text) + rng.choice((0, 0, 0, 0, 1, -1, 10**6)))
    return "POST", rng.choice(("/v2/models/d/infer", "/v2/models/d/versions/1/infer")), text + blob, headers


def form(rng: Rng) -> Request:
    """A form of files, or one file as the body."""
    mark = rng.choice((b"b", b"b0undary", b"a'b", b"x" * 60))
    files = [png(rng.choice((PIXELS, PIXELS, NOISE))[rng.randrange(8)]) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
    files = [damaged(rng, file) if rng.random() < 0.3 else file for file in files]
    path = rng.choice(("/score", "/score", "/score?page=1", "/score?page=2&page=1"))
    if rng.random() < 0.2:
        return (
            "POST",
            path,
            b"".join(files),
            {"Content-Type": rng.choice(("image/png", "text/html", "multipart/mixed"))},
        )
    body = b""
    for file in files:
        name = rng.choice(NAMES)
        said = rng.choice((b'; filename="' + name + b'"', b"; filename*=UTF-8''x.png", b'; filename*0="a"', b""))
        body += b"--" + mark + b'\r\nContent-Disposition: form-data; name="f"' + said + b"\r\n\r\n" + file + b"\r\n"
    body += b"--" + mark + b"--\r\n"
    body = damaged(rng, body) if rng.random() < 0.25 else body
    return "POST", path, body, {"Content-Type": f"multipart/form-data; boundary={mark.decode()}"}


def request(rng: Rng) -> Request:
    """Any request."""
    luck = rng.random()
    if luck < 0.9:
        made = tensor(rng) if luck < 0.5 else form(rng)
        odd = ("Host", "Origin", "Content-Encoding", "Expect", "Content-Type", "Accept-Encoding")
        if rng.random() < 0.1:
            made[3][rng.choice(odd)] = rng.choice(("attacker.example", "null", "gzip", "100-continue", "", "x" * 5000))
        return made
    return rng.choice(("GET", "PUT", "HEAD", "POST", "OPTIONS")), rng.choice(PATHS), None, {}


class Served:
    """A server of its own for the digits, under --block."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        line = [sys.executable, "-m", "advconn", "serve", "--detector", "digits", "--name", "d", "--block"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*line, "--port", str(self.port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                break
            time.sleep(0.1)
        self.sound = json.dumps(
            {"inputs": [{"name": "i", "datatype": "UINT8", "shape": [1, 1, 8, 8], "data": PIXELS[3].ravel().tolist()}]}
        ).encode()
        self.first = self.ask("POST", "/v2/models/d/infer", self.sound)[1]
        self.before = self.mib

    @property
    def mib(self) -> float:
        """Memory that it holds."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Any = ()) -> tuple[int, bytes]:
        """Status and body of an answer."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, dict(headers))
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def faults(self, number: int, rng: Rng) -> Iterator[str]:
        """What is wrong with the answer to a random request, and at times with the server."""
        made = request(rng)
        started = time.perf_counter()
        try:
            status, body = self.ask(*made)
        except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
            if not isinstance(error, (http.client.RemoteDisconnected, ConnectionError, ValueError)):
                yield f"{made[1]}: {type(error).__name__}"
            status, body = 0, b""
        if status >= 500 and status != 503:
            yield f"{made[1]}: {status}"
        if time.perf_counter() - started > 5:
            yield f"{made[1]}: {time.perf_counter() - started:.1f} s"
        if made[1] == "/score" and status == 200 and any(r["adversarial"] is not False for r in json.loads(body)):
            yield "an open verdict"
        if number % 50 == 0:
            started = time.perf_counter()
            self.ask("GET", "/v2/health/live")
            if time.perf_counter() - started > 1:
                yield "health waits"
            if self.ask("POST", "/v2/models/d/infer", self.sound)[1] != self.first:
                yield "a sound image has another verdict"
            if self.mib > self.before + 100:
                yield f"memory grew by {self.mib - self.before:.0f} MiB"

    def end(self) -> float:
        """Seconds that it takes to stop."""
        started = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        return time.perf_counter() - started


def journal_faults(rng: Rng, folder: Path) -> Iterator[str]:
    """What is wrong with a run that goes on from a mutated journal: it has a record of every image, or is refused."""
    from click.testing import CliRunner

    from advconn.cli import main
    from advconn.scoring.resume_journal import SUFFIX

    images, out = folder / "in", folder / "out.jsonl"
    if not images.exists():
        images.mkdir()
        for i in range(12):
            Image.fromarray(PIXELS[i]).save(images / f"{i:02}.png")
        line = ["score", "--detector", "digits", "--full", "--out", str(out), str(images)]
        from advconn.cli import score_output

        write, score_output.ScoreRun.write = score_output.ScoreRun.write, _stop  # type: ignore[assignment]
        CliRunner().invoke(main, line)
        score_output.ScoreRun.write = write  # type: ignore[method-assign]
        (folder / "kept").write_bytes(Path(f"{out}{SUFFIX}").read_bytes())
    lines = (folder / "kept").read_bytes().splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2))):
        way, at = rng.randrange(6), rng.randrange(len(lines))
        if way == 0:
            del lines[at]
        elif way == 1:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif way == 2:
            lines[at] = damaged(rng, lines[at])
        elif way == 3:
            lines = lines[: at + 1]
        elif way == 4:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        else:
            lines[at] = (
                json.dumps(edited(rng, json.loads(lines[at]))).encode() + b"\n" if _is_json(lines[at]) else b"x\n"
            )
        if not lines:
            return
    Path(f"{out}{SUFFIX}").write_bytes(b"".join(lines))
    done = CliRunner().invoke(
        main, ["score", "--detector", "digits", "--full", "--out", str(out), "--resume", str(images)]
    )
    if "inside advconn" in done.stderr or (done.exception and not isinstance(done.exception, SystemExit)):
        yield done.stderr[-200:]
    if out.exists():
        names = [json.loads(line)["image"] for line in out.open()]
        if names != [str(images / f"{i:02}.png") for i in range(12)]:
            yield f"{len(names)} records of 12 images"
        out.unlink()
    elif done.exit_code != 2:
        yield f"status {done.exit_code} and no results"
    Path(f"{out}{SUFFIX}").unlink(missing_ok=True)


def _stop(*args: Any, **options: Any) -> None:
    raise KeyboardInterrupt


def _is_json(line: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return json.loads(line) is not None
    return False
