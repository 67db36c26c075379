"""The container of the guide, without Docker: its packages, its variables, a home that cannot be written, its check."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

from advconn import bundle
from advconn.cli.serve import serve

ROOT = Path(__file__).resolve().parents[2]
TEXT = re.search(r"```dockerfile\n(.*?)```", (ROOT / "advconn/docs/serving.md").read_text(encoding="utf-8"), re.DOTALL)[
    1
]


def said(word):
    """What follows an instruction, lines that go on joined."""
    return re.findall(rf"^{word} (.*)$", TEXT.replace("\\\n", " "), re.MULTILINE)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def test_it_installs_extras_that_there_are():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (asked,) = re.findall(r'"/src\[([a-z,]+)\]"', TEXT)
    assert set(asked.split(",")) <= set(extras)
    assert said("USER") == ["advconn"]


def test_it_serves_with_a_read_only_home(tmp_path):
    """As its variables and its command say, on other ports; its health check then ends with 0."""
    pytest.importorskip("uvicorn")
    variables = dict(pair.split("=") for pair in shlex.split(" ".join(said("ENV"))))
    options = {f"ADVCONN_SERVE_{option.name.upper()}" for option in serve.params}
    assert {name for name in variables if name != "HOME"} <= options
    ports = {variables[f"ADVCONN_SERVE_{name}"]: str(free_port()) for name in ("PORT", "METRICS_PORT")}
    assert said("EXPOSE") == [" ".join(ports)]
    variables = {name: ports.get(value, value) for name, value in variables.items()}
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables, "HOME": str(home)}
    environment["ADVCONN_SERVE_DETECTOR"] = str(bundle.default("digits"))
    (command,) = said("CMD")
    program, *rest = json.loads(command)
    assert program == "advconn"
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", program, *rest], env=environment, cwd="/", stderr=log)
        (check,) = re.findall(r"CMD python -c (.*)$", said("HEALTHCHECK")[0])
        check = shlex.split(check)[0]
        for number in ports.items():
            check = check.replace(*number)
        for _ in range(120):
            if subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0:
                break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.5)
        served, told = (f"http://127.0.0.1:{port}/metrics" for port in ports.values())
        with urllib.request.urlopen(told) as answered:
            assert b"advconn_detector_info" in answered.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(served)
        process.terminate()
        assert process.wait(30) in (0, -15)
    assert not list(home.iterdir())


def test_a_port_for_metrics_that_is_taken_is_one_line():
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        line = [sys.executable, "-m", "advconn", "serve", "--detector", "digits", "--port", "0"]
        done = subprocess.run([*line, "--metrics-port", str(port)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be served for metrics" in done.stderr.splitlines()[-1]
