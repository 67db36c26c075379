"""What `serve --shadow` costs the served model: its latency without copies, with copies to nowhere, and with judging.

    python -m benchmarks.measure.shadow [--requests 600] [--rate 10] [--rounds 3] [--record DIR]

Claim: p50 of the served model within 2 % of what it is without. A classifier is served over HTTP in a process of its
own; a thread there sends each request on as a CloudEvent, as KServe's inference logger does. A client sends requests at
a constant rate over the loopback and waits for each answer. The three ways take turns, round after round, and each
process may use one thread: server, detector and client share this machine.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch

from advconn import bundle
from benchmarks.common.arguments import parse, parser_of, smooth_pictures
from benchmarks.common.provenance import SEED, write_record

WAYS = ("without copies", "copies to nowhere", "copies to advconn --shadow")
KIND = "org.kubeflow.serving.inference.request"
WAITING = 1000  # copies that the served model's logger holds back at most
WARM = 20  # requests of each way that are not timed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as held:
        return int(held.getsockname()[1])


def served_model(port: int, targets: dict[str, str | None]) -> None:
    """Serve the shipped classifier; a request to /WAY is copied to the target of that way."""
    torch.set_num_threads(1)
    classifier = bundle.load(bundle.default()).classifier
    copies: queue.Queue[tuple[str, bytes]] = queue.Queue(WAITING)

    def send() -> None:
        while True:
            target, content = copies.get()
            headers = {"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": uuid.uuid4().hex}
            headers |= {"ce-type": KIND, "ce-source": "http://model"}
            with suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(target, content, headers), timeout=10).close()

    class Model(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            given = json.loads(content)["inputs"][0]
            images = torch.tensor(given["data"], dtype=torch.uint8).view(given["shape"])
            logits = classifier.logits(classifier.check(images)).tolist()
            target = targets[self.path]
            if target is not None:
                with suppress(queue.Full):
                    copies.put_nowait((target, content))
            answer = json.dumps({"logits": logits}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    threading.Thread(target=send, daemon=True).start()
    ThreadingHTTPServer(("127.0.0.1", port), Model).serve_forever()


def nowhere(port: int) -> None:
    """Answer 202 to everything."""

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    ThreadingHTTPServer(("127.0.0.1", port), Sink).serve_forever()


def latencies(url: str, bodies: list[bytes], count: int, rate: float) -> list[float]:
    """Milliseconds of each of so many requests, sent at a constant rate."""
    taken = []
    start = time.perf_counter()
    for i in range(count):
        time.sleep(max(0.0, start + i / rate - time.perf_counter()))
        asked = time.perf_counter()
        urllib.request.urlopen(urllib.request.Request(url, bodies[i % len(bodies)]), timeout=60).read()
        taken.append(1000 * (time.perf_counter() - asked))
    return taken


def wait_until_up(url: str) -> None:
    for _ in range(600):
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=1).close()
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} does not answer")


def wait_until_judged(url: str, sent: int) -> int:
    """How many events were judged, once these are all that were sent, or after a minute."""
    for _ in range(600):
        with urllib.request.urlopen(url, timeout=10) as answered:
            rows = answered.read().decode().splitlines()
        judged = round(sum(float(row.split()[-1]) for row in rows if row.startswith("advconn_images_total")))
        if judged >= sent:
            break
        time.sleep(0.1)
    return judged


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--requests", type=int, default=600, help="of each way, in all rounds")
    parser.add_argument("--rate", type=float, default=10, help="requests a second")
    parser.add_argument("--rounds", type=int, default=3)
    args = parse(parser, requests=6, rate=20, rounds=1)
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    ports = [free_port() for _ in range(3)]
    targets: list[str | None] = [None, *(f"http://127.0.0.1:{port}/" for port in ports[1:])]
    paths = dict(zip(WAYS, ("/none", "/nowhere", "/shadow"), strict=True))
    bodies = []
    for image in smooth_pictures(64, SEED).split(1):
        given = {"name": "x", "datatype": "UINT8", "shape": list(image.shape), "data": image.flatten().tolist()}
        bodies.append(json.dumps({"inputs": [given]}).encode())
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    sent = judged = 0
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        by_path = dict(zip(paths.values(), targets, strict=True))
        for work, given in ((served_model, (ports[0], by_path)), (nowhere, (ports[1],))):
            process = context.Process(target=work, args=given, daemon=True)
            process.start()
            stack.callback(process.kill)
        line = [sys.executable, "-m", "advconn", "serve", "--detector", str(bundle.default()), "--shadow"]
        shadow = subprocess.Popen([*line, "--port", str(ports[2])], stderr=subprocess.DEVNULL, env=alone)
        stack.callback(shadow.kill)
        wait_until_up(f"http://127.0.0.1:{ports[2]}/v2/health/live")
        for _ in range(600):
            with suppress(OSError):
                latencies(f"http://127.0.0.1:{ports[0]}/none", bodies, 1, args.rate)
                break
            time.sleep(0.1)
        for number in range(args.rounds):
            for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:  # each comes first in turn
                url = f"http://127.0.0.1:{ports[0]}{paths[way]}"
                latencies(url, bodies, min(WARM, args.requests), args.rate)
                taken[way] += latencies(url, bodies, args.requests // args.rounds, args.rate)
                sent += (min(WARM, args.requests) + args.requests // args.rounds) * (way == WAYS[-1])
                judged = wait_until_judged(f"http://127.0.0.1:{ports[2]}/metrics", sent)
    rows = {}
    for way, values in taken.items():
        p50, p90, p99 = np.percentile(values, [50, 90, 99]).round(3).tolist()
        rows[way] = {"n": len(values), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
        print(way, rows[way], flush=True)
    base = rows[WAYS[0]]["p50_ms"]
    record = {"claim": __doc__.strip().split("\n")[0], "seed": SEED, "rate": args.rate, "rounds": args.rounds}
    record |= {"ways": rows, "p50_ratio": {way: round(row["p50_ms"] / base, 4) for way, row in rows.items()}}
    record |= {"events_sent": sent, "events_judged": judged, "cores": os.cpu_count()}
    print(record["p50_ratio"], judged, "of", sent, "events judged", flush=True)
    write_record(args.record, "shadow", record, __file__)


if __name__ == "__main__":
    main()
