"""What spreading, reading ahead and streaming are worth: the same verdicts, faster, in the same memory.

    python -m benchmarks.measure.scale --data DIR [--images 10000] [--record DIR]

Claim: `score --backend dask --jobs 2` gives the verdicts of one worker to the digit, 1.6 times as fast as one worker of
one core; judging files of PNG reaches .9 of the images a second that judging the same images from memory does; memory
does not grow with the number of images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from advconn import bundle
from advconn.data.collection import Collection
from advconn.scoring.batch import BatchScorer
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import read
from benchmarks.common.provenance import write_record

PARTS = ("spread", "decoding", "memory")
PEAK = """
import resource, sys
from advconn.__main__ import main
try:
    main()
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
"""


def scored(images: Path, out: Path, *more: str) -> tuple[float, list[dict], float]:
    """Seconds, records, and MiB at most, of the command on one thread a process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, "score", str(images), "--out", str(out), *more]
    begun = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    peak = float(done.stderr.splitlines()[-1])
    return time.perf_counter() - begun, [{k: v for k, v in r.items() if k != "cost"} for r in records], peak


def spread(place: Path, images: np.ndarray) -> dict[str, object]:
    """One Dask worker and two, of one core each."""
    np.save(place / "many.npy", images)
    os.environ["DASK_DISTRIBUTED__WORKER__DAEMON"] = "True"
    runs = {}
    for workers in (1, 2):
        from distributed import LocalCluster

        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
            os.environ["DASK_SCHEDULER_ADDRESS"] = cluster.scheduler_address
            runs[workers] = scored(place / "many.npy", place / f"dask-{workers}.jsonl", "--backend", "dask")
        del os.environ["DASK_SCHEDULER_ADDRESS"]
    alone = scored(place / "many.npy", place / "alone.jsonl")
    return {
        "images": len(images),
        "seconds_one_worker": runs[1][0],
        "seconds_two_workers": runs[2][0],
        "times_as_fast": runs[1][0] / runs[2][0],
        "seconds_one_process": alone[0],
        "same_verdicts": runs[1][1] == runs[2][1] == alone[1],
    }


def decoding(place: Path, images: np.ndarray) -> dict[str, object]:
    """Files of PNG beside the same images in memory, judged by the same steps."""
    (place / "png").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / "png" / f"{i:05d}.png")
    np.save(place / "same.npy", images)
    detector, rates = bundle.load(bundle.default()), {}
    for _ in range(2):  # the first time warms up
        for name in ("same.npy", "png"):
            begun = time.perf_counter()
            count = sum(
                len(step) for step in BatchScorer(detector, [Collection(place / name, 3, reading="both")]).run()
            )
            rates[name] = count / (time.perf_counter() - begun)
    return {
        "images": len(images),
        "a_second_from_files": rates["png"],
        "a_second_from_memory": rates["same.npy"],
        "ratio": rates["png"] / rates["same.npy"],
    }


def memory(place: Path, counts: list[int]) -> dict[str, float]:
    """MiB at most, of so many digits."""
    out = {}
    for count in counts:
        rows = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        np.save(place / f"{count}.npy", rows)
        out[f"mib_{count}"] = scored(place / f"{count}.npy", place / f"{count}.jsonl", "--detector", "digits")[2]
    return out


def main() -> None:
    parser = parser_of(__doc__, "data")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--digits", type=int, nargs="+", default=[2_000, 20_000], help="whose memory is measured")
    args = parse(parser, "data", images=20, files=5, digits=[20], only=["decoding", "memory"])
    torch.set_num_threads(1)
    test = read(args.data / "test.npz").images.permute(0, 2, 3, 1).numpy()
    many = np.concatenate([test, test[:, :, ::-1], test])[: args.images]
    with tempfile.TemporaryDirectory() as folder:
        record: dict[str, object] = {}
        for name, made in (
            ("spread", lambda: spread(Path(folder), many)),
            ("decoding", lambda: decoding(Path(folder), many[: args.files])),
            ("memory", lambda: memory(Path(folder), args.digits)),
        ):
            if name in args.only:
                record[name] = made()
                print(name, json.dumps(record[name]), flush=True)
    write_record(args.record, "scale", {**record}, __file__)


if __name__ == "__main__":
    main()
