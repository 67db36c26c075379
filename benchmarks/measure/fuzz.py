"""Mutated pictures, arrays, weights, bundles, requests and journals: what fails, how long it takes, what is run.

    python -m benchmarks.measure.fuzz [--images 10000] [--bundles 5000] [--requests 2500] [--journals 200] [--seed 0]
        [--only KIND:NUMBER] [--record DIR]

Claim: 10,000 mutated images and arrays and 5,000 mutated bundles whose hashes were put right, in a few minutes: no
exception other than advconn's own one-line errors, no hang over 10 s for a single input, peak memory under 1.5 GB, and
no code run. A tenth of the pictures are spliced from two; of every picture that is judged, the pixels are those that
Image.open reads, from the file and from its bytes. No answer of a server under --block to 2,500 mutated requests is
another than it should be (hostile.py), and no run that goes on from a mutated journal ends without a record of every
image. KIND is image, bundle, request or journal. Cases run in a process of their own: a crash is a failure of its case.
"""

from __future__ import annotations

import atexit
import collections
import io
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import types
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import advconn
from advconn import bundle, models
from advconn.data.collection import Collection
from advconn.data.decoding import views
from advconn.data.preprocessing import Preprocessing
from advconn.errors import AdvconnError, DataError
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.hostile import Served, journal_faults
from benchmarks.common.mutations import Rng, bundle_seeds, forged, image_seeds, mutated
from benchmarks.common.provenance import write_record

LIMIT, STUCK, MOST_MIB = 11.0, 120.0, 1.5e9 / 2**20
RUNS = re.compile(r"os\.(system|exec|posix_spawn|spawn|fork)|pty\.|subprocess|socket\.(connect|bind|geta)|pickle\.")
CHANGES = re.compile(r"os\.(remove|rename|mkdir|rmdir|chmod|symlink|link|truncate)")
PARTS = ("card", "head", "tensors", "card", "head", "mixed", "classifier", "bytes", "weights")
held = types.SimpleNamespace(armed=False, seen=[])  # by the process that runs the cases


class Hang(BaseException):
    """A case that took longer than LIMIT; no Exception, so that nothing takes it for a damaged file."""


def watch(event: str, given: tuple[Any, ...]) -> None:
    """Note what a case does beside reading: programs, connections, pickles, and writing outside its folder."""
    if not held.armed:
        return
    wrote = (event == "open" and given[2] & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC)) or CHANGES.match(event)
    if wrote and isinstance(given[0], (str, bytes, os.PathLike)):
        path = os.path.abspath(os.fsdecode(given[0]))
        wrote = not (path.startswith(str(held.folder)) or "__pycache__" in path or path == os.devnull)
    own = event == "subprocess.Popen" and "advconn.data.sandbox" in str(given[1])  # what decodes under limits
    if (wrote or RUNS.match(event)) and not own:
        held.seen.append(f"{event} {given[:2]!r}"[:150])


def prepare(folder: Path, seed: int, quiet: bool) -> None:
    """Make the seeds, in the process that runs the cases, and read each of them once, which imports what is needed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["ADVCONN_CANARY"] = str(folder.with_name("canary"))
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes there by itself
    held.folder, held.seed, held.images = folder, seed, image_seeds()
    held.bundles = bundle_seeds(Path(tempfile.mkdtemp(dir=folder)))
    for i in range(len(held.images)):
        attempt("image", -1 - i)
    sys.addaudithook(watch)


def read(path: Path, rng: Rng) -> None:
    """Every image behind a path; the first that is refused is raised."""
    refused: list[AdvconnError] = []
    collection = Collection(path, rng.choice((1, 3)), reading="both", frames=rng.choice(("all", "all", "first", None)))
    preprocessing = Preprocessing(size=(16, 16), channels=collection.channels or 3)
    for batch in collection.batches(preprocessing, bad=lambda _, error: refused.append(error)):
        values = batch.images
        sound = len(values) and values.shape[2:] == (16, 16) and bool(((values >= 0) & (values <= 255)).all())
        assert sound, f"a batch {values.dtype} {tuple(values.shape)}"
    if path.suffix not in (".npy", ".npz", ".pt", ".pth"):
        differ(path)
    if refused:
        raise refused[0]


def differ(path: Path) -> None:
    """Compare the pixels that are judged with those that a plain loader reads, in both orders of Pillow's formats."""
    try:
        (ways,), _ = views(path.read_bytes(), "x", Preprocessing(), "plain", "first")
    except DataError:
        return
    if isinstance(ways, DataError):
        return
    for opened in (path, io.BytesIO(path.read_bytes())):
        try:
            with Image.open(opened) as image:
                theirs = np.asarray(image.convert("RGB"))
        except Exception:  # a plain loader fails: nothing is classified
            continue
        same = any(np.array_equal(way.pixels.transpose(1, 2, 0), theirs) for way in ways)
        assert same, f"OTHER PIXELS than a plain loader reads ({type(opened).__name__})"


def judge(path: Path, rng: Rng) -> None:
    """One random image, by the detector in a folder, or by the classifier of a file of weights."""
    if path.is_file():
        models.load("advconn:compact", path, size=(8, 8), channels=1).logits(torch.rand(1, 1, 8, 8))
        return
    detector = advconn.load(path)
    classifier = detector.classifier
    judged = detector.judge(torch.rand(1, classifier.channels, *(classifier.preprocessing.size or (8, 8))))
    if judged.errors[0] is not None:
        raise AdvconnError(judged.errors[0])
    assert np.isfinite(judged.score).all(), f"a score {judged.score}"


def made(family: str, number: int, rng: Rng) -> tuple[str, Path]:
    """(kind, path) of a case, written."""
    path = held.folder / "case"
    names = list(held.images)
    kind = names[number % len(names)] if family == "image" else PARTS[number % len(PARTS)]
    if family == "image" or kind == "weights":
        path = path.with_suffix(Path(kind).suffix or ".safetensors")
        source = held.images if family == "image" else {kind: held.bundles[0][bundle.WEIGHTS]}
        data, other = source[kind], source[rng.choice(list(source))]
        content = mutated(rng, data, other, path.suffix) if number >= 0 else data
        if family == "image" and number >= 0 and rng.random() < 0.1:  # one picture's head over another, or behind it
            cut = rng.choice((4, 8, 12, 18, 64, len(data)))
            content = data[:cut] + (other[cut:] if cut < len(data) and rng.random() < 0.5 else other)
        path.write_bytes(content)
        return path.suffix[1:] if family == "image" else kind, path
    path.mkdir(exist_ok=True)
    for name, data in forged(rng, kind, held.bundles).items():
        (path / name).write_bytes(data)
    return kind, path


def ring(*_: object) -> None:
    raise Hang(f"more than {LIMIT} s")


def attempt(family: str, number: int) -> tuple[str, str, str, float, float]:
    """(kind, outcome, what was said, seconds, MiB) of a case, which seed, family and number determine."""
    rng = Rng(f"{held.seed}:{family}:{number}")
    if family in ("request", "journal"):
        return hostile_case(family, number, rng)
    kind, path = made(family, number, rng)
    signal.signal(signal.SIGALRM, ring)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted anew
    outcome, text, wrong, started = "judged", "", [], time.perf_counter()
    held.seen, held.armed = [], True
    try:
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        (read if family == "image" else judge)(path, rng)
    except AdvconnError as error:
        outcome, text = "refused", str(error)
        wrong = [] if len(text.splitlines()) == 1 else ["an error of no or several lines"]
    except BaseException as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/advconn/" in f.filename]
        wrong = [f"{type(error).__name__} at {[f'{Path(f.filename).name}:{f.lineno}' for f in frames][-1:]}: {error}"]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        held.armed = False
    taken, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gone = Path(os.environ["ADVCONN_CANARY"]).read_text() != "alive"
    limits = {f"{taken:.1f} s": taken > LIMIT, f"{peak:.0f} MiB": peak > MOST_MIB, "canary": gone}
    wrong += held.seen[:1] + [said for said, over in limits.items() if over]
    return kind, "failed" if wrong else outcome, "; ".join([*wrong, text])[:300], taken, peak


def hostile_case(family: str, number: int, rng: Rng) -> tuple[str, str, str, float, float]:
    """The same of a request, or of a journal."""
    started = time.perf_counter()
    if family == "journal":
        wrong = list(journal_faults(rng, held.folder))
    else:
        if not hasattr(held, "server"):
            held.server = Served()
            atexit.register(held.server.end)
        wrong = list(held.server.faults(number, rng))
    return family, "failed" if wrong else "judged", "; ".join(wrong)[:300], time.perf_counter() - started, 0.0


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--bundles", type=int, default=5_000)
    parser.add_argument("--requests", type=int, default=2_500)
    parser.add_argument("--journals", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="KIND:NUMBER", help="one case, with what is written to stderr")
    args = parse(parser, images=3, bundles=3, requests=3, journals=1)
    todo = [("image", i) for i in range(args.images)] + [("bundle", i) for i in range(args.bundles)]
    todo += [("request", i) for i in range(args.requests)] + [("journal", i) for i in range(args.journals)]
    if args.only:
        todo = [(args.only.partition(":")[0], int(args.only.partition(":")[2]))]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures, slowest, peak, pool, started = [], (0.0, ""), 0.0, None, time.time()
    told_at = started
    with tempfile.TemporaryDirectory(prefix="advconn-fuzz-") as root:
        (folder := Path(root, "cases")).mkdir()
        Path(root, "canary").write_text("alive")
        for done, (family, number) in enumerate(todo, 1):
            setting = {"initializer": prepare, "initargs": (folder, args.seed, not args.only)}
            pool = pool or ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **setting)
            try:
                kind, outcome, text, taken, memory = pool.submit(attempt, family, number).result(STUCK)
            except Exception as error:  # the process crashed, or hangs where no signal reaches it
                for child in multiprocessing.active_children():
                    child.kill()
                kind, outcome, text, taken, memory, pool = "crash", "failed", repr(error), 0.0, 0.0, None
            counts[f"{family} {kind}"][outcome] += 1
            slowest, peak = max(slowest, (taken, f"{family}:{number} {kind}")), max(peak, memory)
            if outcome == "failed":
                failures.append(f"{family}:{number} {kind}: {text}")
            if args.only or (outcome == "failed" and len(failures) <= 40):
                print(f"{family}:{number} {kind} {outcome} {taken:.2f} s {text!r}", flush=True)
            if time.time() > told_at + 10:
                told_at = time.time()
                print(f"{done} of {len(todo)}, {len(failures)} failed, {told_at - started:.0f} s", file=sys.stderr)
        if pool:
            pool.shutdown()
    for name, row in sorted(counts.items()):
        print(f"{name:20}", *(f"{n} {row[n]:5}  " for n in ("judged", "refused", "failed")), f"of {row.total()}")
    wall = time.time() - started
    print(
        f"{len(failures)} failed; slowest {slowest[0]:.2f} s ({slowest[1]}); peak {peak:.0f} MiB; {wall:.0f} s in all"
    )
    versions = {n: version(n) for n in ("advconn", "torch", "numpy", "pillow", "skops", "safetensors")}
    record = {"versions": versions, "seed": args.seed, "counts": counts, "failures": failures}
    record |= {"slowest": slowest, "peak_mib": peak, "seconds": wall}
    write_record(args.record, "fuzz", record, __file__)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
