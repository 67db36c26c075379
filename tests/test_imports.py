"""Data flows one way, and so do imports; the package is light until it is used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import advconn

PACKAGE = Path(advconn.__file__).parent
ORDER = [
    {"shown"},
    {"errors", "ahead", "nets", "grain", "progress", "kinds", "scaling", "efficacy", "groups"},
    {
        "copies",
        "margins",
        "metrics",
        "given",
        "files",
        "calibration",
        "folding",
        "fingerprint",
        "preprocessing",
        "blackbox",
        "store",
        "layout",
        "specs",
    },
    {"paths", "exits", "runner", "journal", "writers", "isolation"},
    {"bypass", "band", "adapters", "conditions", "pictures", "weights"},
    {"probing", "arrays", "items", "architectures"},
    {"classifier", "containers"},
    {"images"},
    {"datasets", "untrained", "reading", "factories"},
    {"modes", "models", "space", "agreement", "perturb", "imitation", "toolboxes"},
    {"attacks", "likeness", "pixels"},
    {"features", "connection", "decoder"},
    {"connectivity", "watch"},
    {"making", "stages"},
    {"heads"},
    {"evading", "judgement"},
    {"teaching"},
    {"reasons"},
    {"explain"},
    {"pretrained"},
    {"judging"},
    {"calibrating"},
    {"detector"},
    {"suiting", "trial"},
    {"preparing", "assurance"},
    {"fitting", "guard", "card"},
    {"zoo"},
    {"saving", "restoring"},
    {"bundle", "recalibration"},
    {"report", "figures"},
    {"pages", "scoring"},
    {"benchmark", "studies", "serving"},
    {"cli", "__init__"},
    {"__main__"},
]
RANK = {name: i for i, names in enumerate(ORDER) for name in names}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "advconn":
                found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_what_stands_before_it(path):
    """By the order above; every module or folder of modules has a place in it."""
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in RANK
    for name in imported(path) & set(RANK) - ({own} if path.parent != PACKAGE else set()):
        assert RANK[name] < RANK[own], f"{path} imports {name}"


INSIDE = {
    "benchmark": (
        {"following", "keys", "planted", "results", "tables"},
        {"attackers", "candidate", "controls", "ranking"},
        {"bench", "plots", "detectors"},
        {"measuring"},
        {"evasion", "examples", "rows"},
        {"page", "run", "terminal"},
        {"folder"},
    ),
    "benchmark/baselines": ({"layers", "logits", "noise", "ours", "paper", "second", "squeezing"},),
    "cli": (
        {"common", "lists", "progress", "sarif"},
        {"fitted", "options", "subjects", "verdicts"},
        {"attack", "benchmark", "calibrate", "card", "compare", "connect", "fit", "score", "serve", "study"},
    ),
    "serving": ({"batching", "browser", "connections", "judge", "metrics", "protocol", "requests"}, {"app"}),
    "studies": (
        {"common"},
        {"barriers", "linear_or_not", "percolation", "training", "untrained"},
        {"architectures", "bypass"},
    ),
}


@pytest.mark.parametrize("folder", INSIDE)
def test_inside_a_folder_imports_go_one_way_too(folder):
    """Every module has a place; __init__ gathers what is public, and stands last."""
    rank = {name: i for i, names in enumerate(INSIDE[folder]) for name in names}
    inside, prefix = PACKAGE / folder, ["advconn", *folder.split("/")]
    for path in sorted(inside.glob("*.py")):
        if path.stem.startswith("__"):
            continue
        assert path.stem in rank, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[: len(prefix)] == prefix:
                rest = node.module.split(".")[len(prefix) :]
                for name in rest[:1] or [alias.name for alias in node.names if alias.name in rank]:
                    assert rank[name] < rank[path.stem], f"{path} imports {name}"


def test_every_module_stands_in_the_floor_plan():
    """advconn/README.md, which ships with the source."""
    plan = (PACKAGE / "README.md").read_text().partition("## Where things live")[2]
    named = set(re.findall(r"`(\w+)/?`", plan))
    assert {path.stem for path in PACKAGE.glob("[a-z]*.py")} <= named
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} <= named
    assert {name for name in named if name != "tests/test_imports.py"} <= set(RANK)


MAKERS = {
    "rand",
    "randn",
    "zeros",
    "ones",
    "tensor",
    "arange",
    "full",
    "linspace",
    "empty",
    "eye",
    "randint",
    "randperm",
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_tensor_that_is_made_names_its_dtype_and_device(path):
    """The process's defaults, which any library may change, must not change a verdict."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            maker = ast.unparse(node.func)
            named = {keyword.arg for keyword in node.keywords}
            if maker.removeprefix("torch.") in MAKERS and maker.startswith("torch.") and None not in named:
                assert {"dtype", "device"} <= named, f"{path}:{node.lineno}"
            if maker == "torch.Generator":
                assert "device" in named, f"{path}:{node.lineno}"


def test_public_names_are_there_and_importing_them_is_lazy():
    """`import advconn` brings neither torch nor scikit-learn."""
    for name in advconn.__all__:
        assert getattr(advconn, name) is not None
    code = "import sys, advconn; sys.exit(bool({'torch', 'sklearn', 'torchattacks'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scoring_does_not_need_torchattacks():
    """It is imported only where attacks are made."""
    code = (
        "import sys; sys.modules['torchattacks'] = None\n"
        "import torch, advconn\nfrom advconn.bundle import default\n"
        "print(advconn.load(default()).score_samples(torch.rand(2, 3, 32, 32)).shape)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "(2,)", out.stderr
