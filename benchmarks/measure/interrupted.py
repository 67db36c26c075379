"""score, fit and benchmark killed again and again, on a full disk, and two at a time on one cache.

    python -m benchmarks.measure.interrupted [--kills 20] [--record DIR]

Claim: a run that is killed at 20 random moments and started again each time ends with the figures of one that was left
alone, and nothing half-written is ever there; on a full disk every command ends with status 2, one line and nothing
left behind but what it goes on from; two runs on one cache give the same figures as one. On the digits in scikit-learn.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from advconn import bundle
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.provenance import write_record

ADVCONN = [sys.executable, "-m", "advconn"]
FULL = (
    "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); from advconn.__main__ import main; main()"
)
MODEL = """
from safetensors.torch import load_file
from advconn import bundle
from advconn.models.architectures import compact

def build():
    state = load_file(bundle.default("digits") / bundle.WEIGHTS)
    widths = (state["stem.weight"].shape[0], *(v.shape[0] for k, v in sorted(state.items()) if "widen.weight" in k))
    net = compact(10, 1, widths)
    net.load_state_dict(state)
    return net.eval()
"""


def prepared(place: Path, images: int) -> dict[str, tuple[list[str], Callable[[Path], object]]]:
    """Commands by name, with --out to be added, and what reads their figures."""
    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    np.save(place / "many.npy", np.concatenate([pixels] * 2)[:images])
    np.savez(place / "clean.npz", images=pixels[900:1400], labels=load_digits().target[900:1400])
    (place / "my_model.py").write_text(MODEL)
    model = ["--model", str(place / "my_model.py:build")]
    score = ["score", "--detector", "digits", str(place / "many.npy"), "--resume"]
    fit = ["fit", "--full", *model, "--data", str(place / "clean.npz"), "--limit-attacked", "60", "--fpr", "0.1"]
    fit += ["--confidence", "none"]
    bench = ["benchmark", "--detector", str(bundle.default("digits")), "--data", str(place / "clean.npz")]
    bench += ["--attack", "pgd:eps=51/255,steps=20", "--limit", "50"]
    return {"score": (score, _records), "fit": (fit, _card), "benchmark": (bench, _rows)}


def _records(out: Path) -> object:
    lines = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "cost"} for line in lines]


def _card(out: Path) -> object:
    card = json.loads((out / bundle.CARD).read_text())
    return card["calibration"], card["exits"], card["fitted"]["attacks"]


def _rows(out: Path) -> object:
    return [
        (r["detector"], r["attack"], r["auroc"], r["tpr"])
        for r in json.loads((out / "results.json").read_text())["rows"]
    ]


def started(command: list[str], cache: Path, launcher: list[str] = ADVCONN) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ADVCONN_CACHE": str(cache)}
    return subprocess.Popen(
        [*launcher, *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def whole(command: list[str], cache: Path) -> float:
    """Seconds that a run takes which is left alone."""
    begun = time.perf_counter()
    process = started(command, cache)
    said = process.communicate()[1]
    assert process.returncode in (0, 1), said
    return time.perf_counter() - begun


def killed(
    command: list[str],
    figures: Callable[[Path], object],
    out: Path,
    cache: Path,
    seconds: float,
    kills: int,
    rng: random.Random,
) -> dict[str, object]:
    """Kill a run at random moments of its first `seconds` until that was done `kills` times; then let it end."""
    alive, half = 0, 0
    while alive < kills:
        process = started([*command, "--out", str(out)], cache)
        try:
            process.wait(rng.uniform(0.5, seconds))
        except subprocess.TimeoutExpired:
            alive += 1
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():  # it ended before it was killed, or left something half-written
            try:
                figures(out)
            except (OSError, ValueError, KeyError):
                half += 1
            shutil.rmtree(out)
    return {
        "killed": alive,
        "half_written": half,
        "seconds_of_the_last_run": whole([*command, "--out", str(out)], cache),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=3594, help="that are scored")
    parser.add_argument("--only", action="append", choices=("score", "fit", "benchmark"))
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser, kills=1, only=["score"], images=64)
    rng, results = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, (command, figures) in prepared(place, args.images).items():
            if args.only and name not in args.only:
                continue
            base = place / f"{name}-whole"
            seconds = whole([*command, "--out", str(base)], place / f"{name}-cache")
            row = {"command": name, "seconds": seconds}
            row |= killed(command, figures, place / f"{name}-out", place / f"{name}-cache-2", seconds, args.kills, rng)
            row["same_figures"] = figures(place / f"{name}-out") == figures(base)
            pair = [
                started([*command, "--out", str(place / f"{name}-{i}")], place / f"{name}-cache-3") for i in range(2)
            ]
            said = [process.communicate()[1] for process in pair]
            row["two_on_one_cache"] = all(process.returncode in (0, 1) for process in pair) and all(
                figures(place / f"{name}-{i}") == figures(base) for i in range(2)
            )
            if not row["two_on_one_cache"]:
                print(said[0][-300:], said[1][-300:])
            launcher = [sys.executable, "-c", FULL.format(size=20_000)]
            full = started([*command, "--out", str(place / f"{name}-full")], place / f"{name}-cache-4", launcher)
            last = (full.communicate()[1].splitlines() or [""])[-1]
            row["full_disk_status"], row["full_disk_line"] = full.returncode, last.replace(str(place), "...")[:160]
            row["full_disk_leaves"] = (place / f"{name}-full").exists()
            results.append(row)
            print(json.dumps(row), flush=True)
    record = {"seed": args.seed, "kills": args.kills, "results": results}
    write_record(args.record, "interrupted", record, __file__)


if __name__ == "__main__":
    main()
