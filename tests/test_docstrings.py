"""What docstrings show runs, and every parameter has a line of its own."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest

import advconn

PACKAGE = Path(advconn.__file__).parent
SHOWN = sorted(
    p for p in (path for path in PACKAGE.rglob("*.py") if path.parent.name != "examples") if ">>> " in p.read_text()
)


@pytest.mark.parametrize("path", SHOWN, ids=lambda p: p.stem)
def test_the_examples_of_a_module(path):
    """As they stand, with the values that they show."""
    name = ".".join(("advconn", *path.relative_to(PACKAGE).with_suffix("").parts))
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_names_one_begins_with_have_an_example():
    """A classifier, a detector and its folder, an attack, a path and its bypass."""
    assert {p.stem for p in SHOWN} >= {
        "classifier",
        "fitting",
        "loading",
        "attack",
        "path",
        "bypass",
        "elastic_band",
        "detector",
    }


@pytest.mark.parametrize(
    "path",
    sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "examples"),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_args_have_one_parameter_a_line(path):
    """In an Args section an entry names one parameter, and one that the function has."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        section = re.search(r"\n\s*Args:\n(.*?)(?:\n\s*\n|\Z)", ast.get_docstring(node) or "", re.S)
        if section is None:
            continue
        known = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
        known |= {a.arg for a in (node.args.vararg, node.args.kwarg) if a is not None}
        for entry in re.findall(r"^    ?\s{0,3}(\S[^:\n]*):", section[1], re.M):
            if re.fullmatch(r"[\w*]+(, [\w*]+)*", entry):
                assert entry.lstrip("*") in known, f"{path.stem}.{node.name}: {entry}"


def is_command(node):
    """Whether click shows the docstring of this function as the help of a command."""
    called = [ast.unparse(d.func) for d in node.decorator_list if isinstance(d, ast.Call)]
    return any(name.rpartition(".")[2] == "command" for name in called)


@pytest.mark.parametrize(
    "path",
    sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "examples"),
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_who_has_three_parameters_tells_all_of_them(path):
    """Public functions, and methods of public classes; the docstring of a command is its help."""
    tree = ast.parse(path.read_text())
    homes = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    for node in (n for home in homes for n in home.body if isinstance(n, ast.FunctionDef)):
        given = [a.arg for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")]
        if len(given) < 3 or node.name.startswith("_") or is_command(node):
            continue
        section = re.search(r"\n\s*Args:\n(.*?)(?:\n\s*\n|\Z)", ast.get_docstring(node) or "", re.S)
        told = re.findall(r"^    ?\s{0,3}(\w+)(?:, \w+)*:", section[1], re.M) if section else []
        told += re.findall(r"(?<=, )\w+(?=[,:])", section[1]) if section else []
        assert set(given) <= set(told), f"{path.stem}.{node.name}: {sorted(set(given) - set(told))}"
