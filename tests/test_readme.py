"""Every command and snippet of README, in its order, in a folder as a reader has it."""

import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from advconn import bundle
from advconn.cli import main
from advconn.models.architectures import compact

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(<!-- \w+ -->\n)?```(sh|python)\n(.*?)```", README, re.S)
MODEL = """
from advconn import bundle
from advconn.models.architectures import compact
from safetensors.torch import load_file

def build():
    net = compact(10, 1, {widths})
    net.load_state_dict(load_file(bundle.default("digits") / bundle.WEIGHTS))
    return net.eval()
"""
SMALLER = {"--limit 200": "--limit 20", "--table md": "--table md --limit 20"}


def digits_net():
    state = load_file(bundle.default("digits") / bundle.WEIGHTS)
    widths = (state["stem.weight"].shape[0], *(v.shape[0] for k, v in sorted(state.items()) if "widen.weight" in k))
    net = compact(10, 1, widths)
    net.load_state_dict(state)
    return net.eval(), widths


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """What README takes for granted: a model file, clean images in class folders, some pictures."""
    place = tmp_path_factory.mktemp("reader")
    data = load_digits()
    pixels = (data.images * 255 / 16).round().astype(np.uint8)
    net, widths = digits_net()
    (place / "my_model.py").write_text(MODEL.format(widths=widths))
    for name, rows in (("images", range(900, 1400)), ("others", range(1400, 1797))):
        for i in rows:
            folder = place / name / str(data.target[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(folder / f"{i}.png")
    np.save(place / "more.npy", pixels[:30])
    shutil.copy(ROOT / "tests" / "images" / "cat.png", place / "photo.png")
    with torch.no_grad():
        right = (net(torch.from_numpy(data.images / 16).float()[:, None]).argmax(1).numpy() == data.target).nonzero()[0]
    same = [i for i in right if data.target[i] == 3][:2]
    for name, i in (("digit.png", right[0]), ("a.png", same[0]), ("b.png", same[1])):
        Image.fromarray(pixels[i]).save(place / name)
    for _, kind, text in BLOCKS:
        name = re.match(r"# (my_\w+\.py)\n", text)
        if kind == "python" and name and name[1] != "my_model.py":
            (place / name[1]).write_text(text)
    return place


def commands():
    for marked, kind, text in BLOCKS:
        if kind == "sh" and not marked:
            yield from (line.partition(" #")[0].strip() for line in text.splitlines() if line.startswith("advconn"))


def test_every_command(reader, monkeypatch, tmp_path):
    """Status 0, or 1 where something is flagged; benchmarks with fewer images; a server until it says where it is."""
    monkeypatch.chdir(reader)
    monkeypatch.setenv("ADVCONN_CACHE", str(tmp_path))
    lines = list(commands())
    assert len(lines) >= 14
    for line in lines:
        for large, small in SMALLER.items():
            line = line.replace(large, small)
        _, name, *rest = shlex.split(line)
        if name == "serve":
            served(rest)
            continue
        out = CliRunner().invoke(main, [name, *rest])
        assert out.exit_code in ((0, 1) if name == "score" else (0,)), f"{line}\n{out.output}"
    assert (reader / "digit.html").exists()
    assert (reader / "report" / "report.html").exists()
    assert {p.name for p in (reader / "verdicts").iterdir()} == {"results.jsonl", "results.csv", "report.html"}


def served(rest):
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "advconn", "serve", *rest, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    watch = threading.Timer(90, process.kill)
    watch.start()
    try:
        said = ""
        for said in process.stderr:
            if "serving" in said:
                break
        assert "serving mine on http://127.0.0.1:" in said
    finally:
        watch.cancel()
        process.terminate()
        process.wait(30)


def test_the_snippets(tmp_path, monkeypatch):
    """They run as they stand, one after the other."""
    monkeypatch.chdir(tmp_path)
    data = load_digits()
    images = torch.from_numpy(data.images[900:1400] / 16).float()[:, None]
    names = {"module": digits_net()[0], "images": images, "labels": data.target[900:1400], "batch": images[:8]}
    ran = 0
    for _, kind, text in BLOCKS:
        if kind == "python" and not text.startswith("# my_"):
            exec(compile(text, "README.md", "exec"), names)  # the document itself
            ran += 1
    assert ran >= 1
    assert names["flag"].dtype == torch.bool
    assert len(names["p_value"]) == 8


def test_the_model_file(tmp_path, monkeypatch):
    """It gives a network that is ready, from weights beside it."""
    from torchvision.models import resnet18

    monkeypatch.chdir(tmp_path)
    torch.save(resnet18(num_classes=10).state_dict(), "resnet18.pt")
    (text,) = (text for _, kind, text in BLOCKS if text.startswith("# my_model.py"))
    names = {}
    exec(compile(text, "README.md", "exec"), names)  # the document itself
    assert not names["build"]().training


def test_links_and_options_are_there():
    """Files that README links to, and options that it names."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
    known = set()
    for command in main.commands.values():
        for parameter in command.params:
            known |= {*parameter.opts, *parameter.secondary_opts}
    for document in (README, (ROOT / "advconn" / "README.md").read_text()):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", document):
            assert option in known, option
