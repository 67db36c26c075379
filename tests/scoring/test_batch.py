"""Many images: read ahead, judged in steps that are kept, gone on from, and spread over processes."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

from advconn import bundle
from advconn.cascade import cascade
from advconn.cli import main
from advconn.data.collection import Collection
from advconn.data.prefetch import prefetch
from advconn.detector.detector import Detector
from advconn.errors import DataError
from advconn.runtime.forward_passes import tf32_disabled
from advconn.runtime.parallel import Runner
from advconn.scoring.batch import BatchScorer
from advconn.scoring.records import Failure
from advconn.scoring.resume_journal import SUFFIX, Journal
from advconn.scoring.writers import COLUMNS, as_csv, as_parquet

judge = Detector.judge
PIXELS = (load_digits().images * 255 / 16).round().astype(np.uint8)


@pytest.fixture(scope="module")
def digits():
    return bundle.load(bundle.default("digits"))


@pytest.fixture
def many(tmp_path):
    """Pictures in two folders, one of which is none, and an array."""
    for i in range(60):
        (tmp_path / "in" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[i]).save(tmp_path / "in" / str(i % 2) / f"{i:03d}.png")
    (tmp_path / "in" / "0" / "zz.png").write_text("no picture")
    np.save(tmp_path / "more.npy", PIXELS[60:100])
    return tmp_path


def run(*args):
    return CliRunner().invoke(main, ["score", "--detector", "digits", *map(str, args)])


def without_cost(records):
    return [{k: v for k, v in record.items() if k != "cost"} for record in records]


def told(steps):
    """The results of all steps as JSON objects."""
    return [scored.result.to_dict() for step in steps for scored in step]


def kept(path):
    return without_cost(map(json.loads, path.read_text().splitlines()))


def test_values_come_in_order_ahead_of_time():
    """Two are ready before they are asked for; an error comes in its turn; the thread ends when nobody asks."""
    made = []

    def values():
        for i in range(5):
            made.append(i)
            yield i
        raise ValueError("the sixth")

    found = prefetch(values(), 2)
    assert next(found) == 0
    for _ in range(100):
        time.sleep(0.01)
        if len(made) == 4:
            break
    assert made == [0, 1, 2, 3]  # one given, two ready, one that waits to be
    assert [next(found) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(found)
    before = threading.active_count()
    left = prefetch(iter(range(100)), 1)
    next(left)
    left.close()
    for _ in range(100):
        time.sleep(0.01)
        if threading.active_count() <= before:
            break
    assert threading.active_count() <= before


def test_a_step_is_judged_alike_alone_and_in_other_processes(digits, many, monkeypatch):
    """Same records to the digit, in the same order; what cannot be read has its own."""
    monkeypatch.setattr(cascade, "BLOCK", 16)
    found = [Collection(many / "in", 1), Collection(many / "more.npy", 1)]
    refused = [("nothing", DataError("nothing: no such file"))]
    alone = [s for step in BatchScorer(digits, found, refused).run() for s in step]
    spread = [s for step in BatchScorer(digits, found, refused, runner=Runner(2)).run() for s in step]
    assert len(alone) == 60 + 1 + 40 + 1
    assert [s.place for s in alone] == [s.place for s in spread]
    assert without_cost(told([alone])) == without_cost(told([spread]))
    assert [isinstance(s.result, Failure) for s in alone].count(True) == 2
    names = [s.result.image for s in alone]
    assert names[0] == "nothing"
    assert names[-1].endswith("more.npy[39]")
    rest = [s for step in BatchScorer(digits, found, refused).run(after=3) for s in step]
    assert without_cost(told([rest])) == without_cost(told([alone[33:]]))


def test_a_detector_that_cannot_be_sent_is_asked_here(digits, many):
    """A network with a lock in it stays in this process; the verdicts are the same."""
    found = [Collection(many / "more.npy", 1)]
    expected = told(BatchScorer(digits, found).run())
    held = copy.copy(digits)
    held.lock = threading.Lock()
    steps = BatchScorer(held, found, runner=Runner(2))
    assert steps.runner.alone
    assert without_cost(told(steps.run())) == without_cost(expected)


def test_torchs_precision_is_what_it_was_after_threads_changed_it():
    """Each sets it for a while, one at a time."""
    known = torch.backends.cudnn.allow_tf32

    def work(_):
        with tf32_disabled():
            time.sleep(0.002)
            return torch.backends.cudnn.allow_tf32

    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(work, range(40)))
    assert torch.backends.cudnn.allow_tf32 == known


def test_a_bad_image_does_not_break_up_the_others(digits, many, monkeypatch):
    """They are judged together all the same, and stand in their order."""
    judged = []
    monkeypatch.setattr(type(digits), "judge", lambda self, x, **how: judged.append(len(x)) or judge(self, x, **how))
    (step,) = list(BatchScorer(digits, [Collection(many / "in", 1)]).run())
    assert judged == [60]
    assert [s.place for s in step] == [(0, i) for i in range(61)]
    assert isinstance(step[30].result, Failure)


def test_a_file_of_each_kind(many):
    """JSON lines, CSV and Parquet hold the same verdicts; a file that is there is refused before the work."""
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        out = run(many / "in", "--out", many / name)
        assert out.exit_code == 2  # one file is no picture
        assert "61 images" in out.stderr
    records = [json.loads(line) for line in (many / "a.jsonl").read_text().splitlines()]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(many / "a.parquet").to_pylist()
    assert [r["image"] for r in table] == [r["image"] for r in records]
    assert [r["p_value"] for r in table] == [r.get("p_value") for r in records]
    assert list(table[0]) == list(COLUMNS)
    assert len((many / "a.csv").read_text().splitlines()) == 62
    assert not list(many.glob(f"*{SUFFIX}"))
    assert "is there already" in run(many / "in", "--out", many / "a.csv").stderr


def test_without_pyarrow_parquet_is_refused_in_one_line(many, monkeypatch):
    """Before the work."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = run(many / "in", "--out", many / "b.parquet")
    assert (out.exit_code, out.stderr.count("\n")) == (2, 1)
    assert "pip install 'advconn[parquet]'" in out.stderr


def test_a_column_has_its_kind_where_nothing_is_known(tmp_path):
    """A file of failures alone is a table too."""
    pytest.importorskip("pyarrow")
    as_parquet([Failure("a.png", "a.png: broken")], tmp_path / "a.parquet")
    as_csv([Failure("=1+1.png", "broken")], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[1].startswith('"\'=1+1.png",')


def test_a_journal_forgets_what_no_step_ended(tmp_path):
    """A torn line, and lines after the last step, are cut off; another run's is refused."""
    journal = Journal(tmp_path / "out", {"images": ["a"]}, resume=False)
    said = [((0, i), (3, 4), Failure(f"{i}.png", "broken")) for i in range(3)]
    journal.add(said[:2], 1)
    journal.add(said[2:], 2)
    journal.close()
    file = tmp_path / f"out{SUFFIX}"
    whole = file.read_bytes()
    for cut, done in ((len(whole), 2), (len(whole) - 1, 1), (len(whole) - 5, 1), (len(whole) - 30, 1)):
        file.write_bytes(whole[:cut] + b'[[0, 3], [], {"image": "a", "error": "b"}]\n' * (cut == len(whole)))
        again = Journal(tmp_path / "out", {"images": ["a"]}, resume=True)
        assert (again.done, again.resumed) == (done, True)
        assert [r.image for _, _, r in again.entries()] == ["0.png", "1.png", "2.png"][: done + 1]
        again.close()
    with pytest.raises(DataError, match="images was"):
        Journal(tmp_path / "out", {"images": ["b"]}, resume=True)
    with pytest.raises(DataError, match="go on with --resume"):
        Journal(tmp_path / "out", {"images": ["a"]}, resume=False)
    file.write_bytes(b"\x00not a journal")
    with pytest.raises(DataError, match="no record of a run"):
        Journal(tmp_path / "out", {"images": ["a"]}, resume=True)


def test_a_full_disk_is_one_line(many):
    """What was written stays to go on from; what is no journal is refused."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); from advconn.__main__ import main; main()"
    )
    command = [sys.executable, "-c", script, "score", "--detector", "digits", many / "in", "--out", many / "out"]
    out = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert out.returncode == 2, out.stderr
    assert "cannot be written: File too large" in out.stderr.splitlines()[-1]
    assert "Traceback" not in out.stderr
    assert not (many / "out").exists()
    again = run(many / "in", "--out", many / "out", "--resume")
    assert len(kept(many / "out" / "results.jsonl")) == 61, again.output
    (many / f"other{SUFFIX}").symlink_to("/dev/full")
    assert "no record of a run" in run(many / "in", "--out", many / "other", "--resume").stderr


def test_a_run_that_is_killed_goes_on_to_the_same_verdicts(many):
    """Killed as soon as a step is kept; no file is half-written."""
    np.save(many / "long.npy", np.concatenate([PIXELS[:1500]] * 2))
    command = [sys.executable, "-m", "advconn", "score", "--detector", "digits", str(many / "long.npy"), "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*command, str(many / "a.jsonl")], env=environment, stderr=subprocess.DEVNULL)
    journal = many / f"a.jsonl{SUFFIX}"
    for _ in range(1200):
        time.sleep(0.05)
        if journal.exists() and b'{"done": 2}' in journal.read_bytes():
            break
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert journal.exists()
    assert not (many / "a.jsonl").exists()
    again = [*command, str(many / "a.jsonl"), "--resume"]
    resumed = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
    assert "were judged before" in resumed.stderr
    subprocess.run([*command, str(many / "b.jsonl")], env=environment, capture_output=True, check=False)
    assert kept(many / "a.jsonl") == kept(many / "b.jsonl")
    assert len(kept(many / "a.jsonl")) == 3000


def test_of_a_million_images_little_more_than_the_names_is_held(tmp_path):
    """An array of a million rows is listed at once, and any of its images is read from where it lies."""
    header = np.lib.format.open_memmap(tmp_path / "large.npy", mode="w+", dtype=np.uint8, shape=(10**6, 8, 8, 1))
    header[999_999] = 7
    header.flush()
    started = time.perf_counter()
    found = Collection(tmp_path / "large.npy", 1)
    last = found.items[-1]
    assert time.perf_counter() - started < 1
    assert (len(found), last.row, last.name) == (10**6, 999_999, f"{tmp_path / 'large.npy'}[999999]")
    digits = bundle.load(bundle.default("digits")).classifier
    assert int(found.read([last], digits.preprocessing).images.max()) == 7


def test_an_attack_is_the_same_in_other_processes(digits):
    """Also one that draws at random."""
    from advconn.attacks.attack import Attack

    model = digits.classifier
    images, labels = torch.from_numpy(PIXELS[:100])[:, None], torch.from_numpy(load_digits().target[:100])
    made = Attack.parse("pgd:eps=0.2,steps=5")
    alone, spread = (
        torch.cat([*made.batches(model, images, labels, batch_size=40, runner=runner)]) for runner in (None, Runner(2))
    )
    assert torch.equal(alone, spread)
    assert float((alone - model.check(images)).abs().max()) > 0.1


def test_other_processes_may_stand_in_another_folder(digits, many, monkeypatch):
    """Relative names go on being shown, and are found from where the command was given."""
    monkeypatch.chdir(many)
    for paths in (["in"], ["more.npy"]):
        assert len(list(BatchScorer(digits, [Collection(path, 1) for path in paths], runner=Runner(2)).run())) == 1
    monkeypatch.chdir(many / "in")
    here = [Collection(path, 1) for path in ("0", "../more.npy")]
    said = told(BatchScorer(digits, here, runner=Runner(2)).run())
    assert ["error" in record for record in said].count(True) == 1
    assert said[0]["image"] == "0/000.png"
    assert said[-1]["image"] == "../more.npy[39]"


def test_what_was_asked_for_by_mistake_is_told(many):
    """A suffix that no writer has, a run that was finished, and arrays that lie in a folder."""
    assert "expected a folder's name, or a file" in run(many / "in", "--out", many / "a.xlsx").stderr
    run(many / "more.npy", "--out", many / "b.jsonl")
    again = run(many / "more.npy", "--out", many / "b.jsonl", "--resume")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "the run that wrote it was finished" in again.stderr
    (many / "arrays").mkdir()
    np.save(many / "arrays" / "x.npy", PIXELS[:3])
    assert "arrays are read where they are named themselves" in run(many / "arrays").stderr
    Image.fromarray(PIXELS[0]).save(many / "arrays" / "a.png")
    assert "arrays inside a folder are not read" in run(many / "arrays").stderr


def test_files_beside_a_factory_hide_no_library(tmp_path):
    """They can be imported from by the factory, and stand last when the command imports what it needs."""
    (tmp_path / "skops.py").write_text("raise RuntimeError('a file of the user')")
    (tmp_path / "beside.py").write_text("CLASSES = 10")
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom beside import CLASSES\n\n\ndef build():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, CLASSES)).eval()\n"
    )
    np.savez(tmp_path / "clean.npz", images=PIXELS[:200])
    line = [sys.executable, "-m", "advconn", "fit", "--model", f"{tmp_path / 'mine.py'}:build", "--size", "8"]
    line += ["--channels", "1", "--data", tmp_path / "clean.npz", "--accept-accuracy", "--out", tmp_path / "d"]
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, check=False, cwd=tmp_path.parent)
    assert done.returncode == 0, done.stderr
    assert "a file of the user" not in done.stderr
