"""The scripts behind the figures: each can be started, none leans on another, every record says where it comes from."""

import ast
import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("measure", "ship", "research")
SCRIPTS = sorted(f"{room}.{file.stem}" for room in ROOMS for file in (ROOT / "benchmarks" / room).glob("[a-z]*.py"))
RECORDS = sorted((ROOT / "benchmarks" / "records").glob("*/*.json"))
WITHOUT_COMMIT = {  # made before a record held one; no other may join them
    "ablation", "benchmark", "hardening", "study-architectures", "study-barriers", "study-barriers-photographs",
    "study-bypass", "study-linear-or-not", "study-percolation", "study-training", "study-untrained",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_clone(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_how_it_is_used(name, monkeypatch, capsys):
    """It imports what is there, and its help is its claim."""
    try:
        script = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("advconn", "benchmarks"):
            raise
        pytest.skip(f"needs {error.name}")
    if not hasattr(script, "main"):
        pytest.fail("no main")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_no_script_imports_another():
    """What two of them need stands in common/."""
    for name in SCRIPTS:
        file = ROOT.joinpath("benchmarks", *name.split(".")).with_suffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
                assert node.module.startswith("benchmarks.common"), f"{name} imports {node.module}"


@pytest.mark.parametrize("file", RECORDS, ids=lambda f: f"{f.parent.name} {f.stem}")
def test_a_record_says_where_it_comes_from(file):
    """The commit that it was made at."""
    record = json.loads(file.read_text(encoding="utf-8"))
    machine = record.get("machine")
    commit = record.get("commit") or (machine.get("commit") if isinstance(machine, dict) else None)
    assert bool(commit) != (file.parent.name in WITHOUT_COMMIT and file.stem < "2026-11-27")


def test_a_record_is_written_whole_with_its_script(tmp_path):
    """By the one function that writes them."""
    from benchmarks.common.provenance import SEED, latest, write_record

    write_record(tmp_path, "subject", {"seed": SEED, "n": 3}, __file__)
    found = latest("subject", tmp_path)
    assert found is not None
    assert (found[1]["n"], found[1]["script"], len(found[1]["script_sha256"])) == (3, "tests/test_benchmarks.py", 16)
    write_record(None, "subject", {}, __file__)
    assert [file.suffix for file in (tmp_path / "subject").iterdir()] == [".json"]
    assert latest("another", tmp_path) is None
