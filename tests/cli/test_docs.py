"""The guide: every page opens, every link leads somewhere, and its tables say what the code says."""

import re
import runpy
import sys
from dataclasses import fields

import pytest
from click.testing import CliRunner

from advconn import bundle
from advconn.attacks.catalog import KINDS
from advconn.cli import main
from advconn.cli.docs import GUIDE, PAGES
from advconn.data.conditions import CONDITIONS, USES
from advconn.features.pixel_features import NEAR, PIXELS
from advconn.scoring.records import Failure, Record

TEXTS = {page: (GUIDE / f"{page}.md").read_text(encoding="utf-8") for page in PAGES}
EXAMPLES = sorted((GUIDE / "examples").glob("*.py"))
STANDS_FOR = {"COPY": r"[\w+]+", "STAT": "(mean|sd|min|max)", "PAIR": r"\d\d", "I": r"\d+"}


def named(page, heading):
    """The names in the first column of the table under a heading."""
    section = TEXTS[page].partition(f"{heading}\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def test_every_feature_stands_in_the_table():
    """And nothing else does."""
    patterns = {}
    for name in named("how-it-decides", "## The features"):
        pattern = re.escape(name)
        for word, meaning in STANDS_FOR.items():
            pattern = re.sub(rf"(?<=\.){word}$", lambda _, m=meaning: m, pattern)
        patterns[name] = re.compile(pattern)
    known = {str(name) for kind in ("digits", "cifar10-hardened") for name in bundle.load(bundle.default(kind)).names_}
    known |= {f"pixels.{name}" for name in PIXELS} | {f"near.{name}" for name in NEAR}
    assert not [name for name in known if not any(p.fullmatch(name) for p in patterns.values())]
    told = [p for name, p in patterns.items() if name != "latent.*"]
    assert not [p.pattern for p in told if not any(map(p.fullmatch, known))]


def test_conditions_attacks_and_fields_stand_in_their_tables():
    """In the order of the code, with the use and the family of each."""
    assert named("fitting-and-calibrating", "## Benign conditions") == list(CONDITIONS)
    for name, use in USES.items():
        assert re.search(rf"^\| `{name}` \| .* \| {use} \|$", TEXTS["fitting-and-calibrating"], re.MULTILINE)
    assert named("benchmarking", "## Attacks") == list(KINDS)
    for name, kind in KINDS.items():
        gradient = "yes" if kind.gradient else "no"
        told = rf"{gradient} \| {kind.atlas} \| {kind.nist} \| {re.escape(kind.source)}"
        row = rf"^\| `{name}` \| {kind.family} \| .* \| {told} \|$"
        assert re.search(row, TEXTS["benchmarking"], re.MULTILINE), name
    told = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| .*$", TEXTS["verdicts-and-fields"], re.MULTILINE))))
    assert {field.name for kind in (Record, Failure) for field in fields(kind)} <= told | {"copies", "agreeing"}
    assert {"`copies`", "`agreeing`"} <= set(re.findall(r"`copies`|`agreeing`", TEXTS["verdicts-and-fields"]))


def test_routes_and_metrics_stand_in_their_tables():
    """What the server answers and counts."""
    pytest.importorskip("starlette")
    pytest.importorskip("prometheus_client")
    from advconn.serving.framework_callable import OUTPUTS

    text = TEXTS["serving"]
    assert all(f"`{name}`" in text for name in OUTPUTS)
    source = (GUIDE.parent / "serving" / "metrics.py").read_text(encoding="utf-8")
    counters = {f"{name}_total" for name in re.findall(r'Counter\("(\w+)"', source)}
    others = set(re.findall(r'(?:Histogram|Gauge)\("(\w+)"', source))
    others |= {f"{name}_info" for name in re.findall(r'Info\("(\w+)"', source)}
    assert counters | others == set(re.findall(r"`(advconn_\w+)`", text.partition("| metric |")[2]))
    for route in re.findall(r'Route\("([^"{]+)', (GUIDE.parent / "serving" / "app.py").read_text(encoding="utf-8")):
        assert route.rstrip("/") in text


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To pages that are there; the index leads to all of them."""
    for target in re.findall(r"\]\(([^)#]+)", TEXTS[page]):
        assert target.startswith("https://") or (GUIDE / target).exists(), target
    assert page == "index" or f"({page}.md)" in TEXTS["index"]


def test_the_guide_opens_and_prints(tmp_path, monkeypatch):
    """As HTML that needs nothing else, in a browser or in a folder; as text in the terminal."""
    opened = []
    monkeypatch.setattr("click.launch", opened.append)
    monkeypatch.setenv("ADVCONN_CACHE", str(tmp_path / "cache"))
    assert CliRunner().invoke(main, ["docs", "serving"]).exit_code == 0
    assert opened == [str(tmp_path / "cache" / "docs" / "serving.html")]
    assert CliRunner().invoke(main, ["docs", "--out", str(tmp_path / "out")]).exit_code == 0
    assert {file.stem for file in (tmp_path / "out").iterdir()} == set(PAGES)
    html = (tmp_path / "out" / "how-it-decides.html").read_text(encoding="utf-8")
    assert "<td><code>own.barrier.STAT</code></td>" in html
    assert 'href="fitting-and-calibrating.html"' in html
    assert not re.search(r'href="[^"]*\.md|src=', html)
    out = CliRunner().invoke(main, ["docs", "benchmarking", "--text"])
    assert out.output.startswith("# Benchmarking")
    out = CliRunner().invoke(main, ["docs", "nothing"])
    assert (out.exit_code, "expected one of" in out.output) == (2, True)
    assert set(PAGES) == {file.stem for file in GUIDE.glob("*.md")}
    told = CliRunner().invoke(main, ["docs", "--help"]).output
    assert not [name for name in PAGES if name not in told]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs_as_it_stands(file, tmp_path, monkeypatch, capfd):
    """Without arguments, on what ships."""
    if file.stem == "serve_a_model":
        pytest.importorskip("uvicorn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [file.name])
    runpy.run_path(str(file), run_name="__main__")
    assert capfd.readouterr().out.strip()
    assert f"(examples/{file.name})" in TEXTS["index"]
