"""Data flows one way, and so do imports; the package is light until it is used."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import advconn

PACKAGE = Path(advconn.__file__).parent
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "examples"]
ROOMS = (  # each imports those before it alone
    "lazy", "errors", "metrics", "files", "runtime", "data", "models", "paths", "features", "attacks",
    "cascade", "detector", "bundle", "scoring", "serving", "benchmark", "testing", "studies", "cli",
    "__main__",
)  # fmt: skip
INSIDE = {  # the same of the files in a room, which stand in sets that do not import one another
    "runtime": ({"cache", "forward_passes", "progress", "trace_context"}, {"parallel"}),
    "data": (
        {"conditions", "datasets", "formats", "sandbox", "axis_order", "prefetch", "preprocessing"},
        {"hidden_pictures", "laundering"},
        {"decoding"},
        {"arrays", "containers"},
        {"collection"},
        {"input_conversion", "labels"},
    ),
    "models": (
        {"adapter", "architectures", "onnx_and_http", "sanity_checks", "fingerprint", "margin", "state_dict"},
        {"classifier"},
        {"equivalence", "user_code"},
        {"loading"},
    ),
    "paths": ({"path", "space"}, {"elastic_band", "bypass", "decoder"}, {"connection"}, {"plots"}),
    "features": ({"noise_level", "references", "transforms"}, {"pixel_features"}, {"path_features"}, {"connectivity"}),
    "attacks": ({"catalog", "own_attacks", "libraries", "surrogate"}, {"attack"}, {"adaptive", "strength"}),
    "cascade": (
        {"attacked_copies", "early_exit", "scaling"},
        {"cascade", "head_files", "heads"},
        {"differentiable_score", "pretrained"},
        {"training"},
    ),
    "detector": (
        {"calibration", "clean_images", "doubt", "efficacy", "fit_plan", "picture_groups"},
        {"drift", "judgement"},
        {"explanation"},
        {"detector"},
        {"guard", "trial_attack"},
        {"refinement"},
        {"fitting"},
        {"recalibration"},
    ),
    "bundle": ({"card_schema"}, {"shipped", "signature"}, {"restoring", "saving"}, {"loading"}),
    "scoring": ({"records"}, {"resume_journal", "sarif_ocsf_junit", "writers"}, {"batch", "report_page"}),
    "serving": (
        {
            "batching",
            "connection_limits",
            "framework_callable",
            "log",
            "metrics",
            "open_inference_protocol",
            "query_watch",
            "request_body",
            "web_security",
        },
        {"trace"},
        {"cloudevents", "spans"},
        {"shadow"},
        {"app"},
    ),
    "benchmark": (
        {"planted_examples", "cache_keys", "result_types"},
        {"attack_sources", "candidate", "barrier_controls"},
        {"baselines", "splits"},
        {"feature_tables"},
        {"fitted_detector"},
        {"adaptive_evaluation", "cost", "error_examples", "result_rows"},
        {"run"},
        {"report"},
    ),
    "benchmark/baselines": (
        {
            "advconn",
            "barrier",
            "lid_and_mahalanobis",
            "logits",
            "noise",
            "other_networks",
            "feature_squeezing",
            "transformations",
        },
    ),
    "benchmark/report": ({"plots"}, {"html", "tables"}, {"folder"}),
    "studies": (
        {"common"},
        {"barriers", "linear_or_not", "percolation", "training", "untrained"},
        {"architectures", "bypass"},
    ),
    "cli": (
        {"guide_html", "path_lists", "output"},
        {"arguments", "score_output"},
        {"options"},
        {"config_file"},
        {"attack", "benchmark", "calibrate", "card", "compare", "connect", "docs", "fit", "score", "serve", "study"},
    ),
}
FACES = {
    "advconn.benchmark.baselines",
    "advconn.models",
    "advconn.bundle",
    "advconn.cli",
    "advconn.serving",
    "advconn.studies",
    "advconn.benchmark",
}


def imports_of(path: Path) -> set[tuple[str, ...]]:
    """Modules of advconn that a file imports, each as its parts below advconn."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "advconn":
            parts = tuple(node.module.split(".")[1:])
            inside = PACKAGE.joinpath(*parts)
            for alias in node.names:
                own = inside / alias.name
                named = own.is_dir() or own.with_suffix(".py").exists()
                found.add((*parts, alias.name) if named else parts)
    return found - {()}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_rooms_before_its_own(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in ROOMS
    for room, *_ in imports_of(path):
        assert room == own or ROOMS.index(room) < ROOMS.index(own), f"{path} imports {room}"


@pytest.mark.parametrize("folder", INSIDE)
def test_inside_a_room_imports_go_one_way_too(folder):
    """Every file has a place; __init__ gathers what is public, and stands last."""
    rank = {name: i for i, names in enumerate(INSIDE[folder]) for name in names}
    room = tuple(folder.split("/"))
    inside = PACKAGE.joinpath(*room)
    there = {
        p.stem if p.is_file() else p.name for p in inside.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert {name for name in there if not name.startswith("__")} == set(rank)
    for path in inside.rglob("*.py"):
        own = path.relative_to(inside).with_suffix("").parts[0]
        for target in imports_of(path):
            name = target[len(room)] if target[: len(room)] == room and len(target) > len(room) else own
            if not own.startswith("__") and name != own:
                assert rank[name] < rank[own], f"{path} imports {name}"


def test_no_file_imports_from_the_face_of_a_room():
    """But from its modules: a face that imports half the room makes circles. Lazy faces with few names may be used."""
    for path in MODULES:
        for target in imports_of(path):
            dotted = ".".join(("advconn", *target))
            if PACKAGE.joinpath(*target).is_dir():
                assert dotted in FACES, f"{path} imports {dotted}"


def test_every_room_says_what_it_is_for():
    """In its docstring, which is the floor plan, and in advconn/README.md, which ships with the source."""
    plan = (PACKAGE / "README.md").read_text().partition("# Where things live")[2]
    named = set(re.findall(r"`(\w+)/?`", plan))
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert {path.stem for path in PACKAGE.glob("[a-z]*.py")} | rooms <= named
    doors = {name for line in plan.splitlines() for name in re.findall(r"`(\w+)/?`", line.partition(" | ")[0])}
    assert doors == {room for room in ROOMS if room != "__main__"}
    for room in rooms:
        said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        assert said is not None
        assert len(said) > 60


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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
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


def test_modules_are_found_under_their_former_names():
    """For one version, with a warning; every new home is there, and none is loaded before it is asked for."""
    import importlib

    from advconn.lazy import FORMER

    for former, homes in FORMER.items():
        sys.modules.pop(f"advconn.{former}", None)
        with pytest.warns(DeprecationWarning, match="is now"):
            module = importlib.import_module(f"advconn.{former}")
        for home in homes.split():
            known = importlib.import_module(f"advconn.{home}")
            own = [n for n, v in vars(known).items() if getattr(v, "__module__", "") == known.__name__ and n[0] != "_"]
            for name in own:
                assert getattr(module, name) is getattr(known, name)
    for name in ("parallel", "watch", "inference"):  # which may be anybody's
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("advconn.parallel").nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("advconn.nothing")
    from advconn.exits import ordered

    from advconn.attacks import is_misclassified, succeeded
    from advconn.cascade.early_exit import cascade_score

    assert (succeeded, ordered) == (is_misclassified, cascade_score)


def test_tests_stand_in_the_rooms_that_they_test():
    """The folders are those of the package; files of one name in two of them would hide one another."""
    tests = Path(__file__).parent
    folders = {file.parent.name for file in tests.glob("*/test_*.py")}
    assert folders == {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    names = [file.name for file in tests.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
