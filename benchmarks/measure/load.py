"""A server under load: 16 clients at once, 2,000 requests; nothing lost, p50 and p99, throughput, memory.

    python -m benchmarks.measure.load [--detector cifar10] [--requests 2000] [--clients 16] [--images 1] [--record DIR]

Claim: every request is answered, with the verdict that the detector gives by itself; memory does not grow. Beside it
stands the bare classifier behind the same server. Images are random pictures of 32 x 32 with some structure, and a
tenth of them noise. Server and clients share this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import uvicorn
from torch import Tensor

from advconn import bundle
from advconn.serving import Judge
from advconn.serving.app import Server
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import write_record

POOL = 256


class Bare(Judge):
    """Only the classifier: what a server of it alone costs."""

    def judged(self, images: Tensor) -> dict[str, Any]:
        model, n = self.detector.classifier, len(images)
        with torch.no_grad():
            logits = model.logits(model.check(images)).cpu().numpy()
        none = {"advconn_score": np.zeros(n), "advconn_p_value": np.ones(n), "advconn_flag": np.zeros(n, bool)}
        none |= {"advconn_consensus": logits.argmax(1), "advconn_stage": np.ones(n, np.int64)}
        return {"logits": logits} | none | {"advconn_error": np.array([""] * n, dtype=object)}


def pictures(count: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 3, 6, 6, generator=generator), (32, 32), mode="bicubic").clamp(0, 1)
    smooth[::10] = (smooth[::10] + 0.2 * torch.randn(smooth[::10].shape, generator=generator)).clamp(0, 1)
    return (smooth * 255).byte().numpy()


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def served(judge: Judge) -> tuple[uvicorn.Server, threading.Thread, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = Server(judge, "model", "", note=lambda text: None).app()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    return server, thread, f"http://127.0.0.1:{port}/v2/models/model/infer"


def loaded(judge: Judge, pool: np.ndarray, expected: np.ndarray | None, args: argparse.Namespace) -> dict[str, Any]:
    server, thread, url = served(judge)
    bodies = []
    for i in range(0, len(pool) - args.images + 1, args.images):
        batch = pool[i : i + args.images]
        given = {"name": "x", "datatype": "UINT8", "shape": list(batch.shape), "data": batch.ravel().tolist()}
        bodies.append((i, json.dumps({"inputs": [given]}).encode()))
    taken: list[float] = []
    wrong, lost = [0], [0]
    left, lock = iter(range(args.requests)), threading.Lock()

    def client() -> None:
        while True:
            with lock:
                k = next(left, None)
            if k is None:
                return
            start, body = bodies[k % len(bodies)]
            started = time.perf_counter()
            try:
                with urllib.request.urlopen(url, body, timeout=120) as answered:
                    said = {o["name"]: o["data"] for o in json.loads(answered.read())["outputs"]}
            except OSError:
                lost[0] += 1
                continue
            taken.append(time.perf_counter() - started)
            if expected is not None:
                same = np.array_equal(said["advconn_flag"], expected[start : start + args.images])
                wrong[0] += not same

    before, started = resident(), time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(args.clients)]
    for worker in threads:
        worker.start()
    for worker in threads:
        worker.join()
    seconds = time.perf_counter() - started
    after = resident()
    server.should_exit = True
    thread.join(30)
    p50, p99 = np.percentile(taken, [50, 99])
    return {
        "requests": args.requests, "answered": len(taken), "lost": lost[0], "other_verdict": wrong[0],
        "p50_ms": round(1000 * p50, 1), "p99_ms": round(1000 * p99, 1),
        "requests_a_second": round(args.requests / seconds, 1), "memory_before_mb": round(before),
        "memory_after_mb": round(after),
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--detector", default="cifar10", choices=["cifar10", "cifar10-hardened"])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=1, help="of a request")
    parser.add_argument("--warm", type=int, default=100, help="requests before anything is timed")
    args = parse(parser, requests=8, clients=2, warm=2)

    detector = bundle.load(bundle.default(args.detector))
    pool = pictures(POOL)
    expected = detector.judge(torch.from_numpy(pool)).adversarial
    results = {}
    for name, judge, flags in (("advconn", Judge(detector), expected), ("bare classifier", Bare(detector), None)):
        loaded(judge, pool, flags, argparse.Namespace(**vars(args) | {"requests": args.warm}))  # warm
        results[name] = loaded(judge, pool, flags, args)
        print(name, results[name], flush=True)
    about = {"claim": __doc__.strip().split("\n")[0], "seed": 0, "detector": args.detector}
    about |= {"clients": args.clients, "images": args.images, "flagged": float(expected.mean())}
    write_record(args.record, "load", about | {"results": results}, __file__)


if __name__ == "__main__":
    main()
