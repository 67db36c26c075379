"""Names that are imported when they are first used: public ones of a package, and modules under their former names."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORMER = {  # modules of advconn by the names that they had before they stood in folders; accepted for one version
    "agreement": "data.labels",
    "arrays": "data.arrays",
    "band": "paths.band",
    "blackbox": "models.black_box",
    "bypass": "paths.bypass",
    "calibration": "detector.calibration",
    "classifier": "models.classifier",
    "conditions": "data.conditions",
    "connection": "paths.connection",
    "connectivity": "features.connectivity",
    "copies": "features.transforms",
    "datasets": "data.datasets",
    "decoder": "paths.decoder",
    "exits": "cascade.early_exit",
    "explain": "detector.explanation",
    "fingerprint": "models.fingerprint",
    "fitting": "detector.fitting",
    "guard": "detector.guard",
    "images": "data.collection",
    "items": "data.collection",
    "judgement": "detector.result",
    "kinds": "attacks.catalog",
    "layout": "data.layout",
    "margins": "models.margin",
    "modes": "features.references",
    "nets": "models.architectures",
    "perturb": "attacks.custom",
    "pictures": "data.pictures",
    "preprocessing": "data.preprocessing",
    "reading": "data.inputs",
    "recalibration": "detector.recalibration",
    "runner": "parallel",
    "space": "paths.space",
    "stages": "cascade.cascade",
    "store": "parallel",
    "watch": "detector.drift",
    "zoo": "bundle.shipped",
}

FORMER_NAMES = {  # of functions in these modules, and in rooms
    "ordered": "cascade_score",
    "readings": "decode_variants",
    "recalibrated": "recalibrate",
    "succeeded": "is_misclassified",
    "successful": "attack_correct_images",
}


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its name.
        homes: of each public name the module below the package that defines it.
    """

    def get(name: str) -> Any:
        name = FORMER_NAMES.get(name, name)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)


class FormerModules(MetaPathFinder, Loader):
    """Finds modules of advconn under their former names, with a warning that gives the new one."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's specification; None of any other name.

        Args:
            name: dotted, of the module that is imported.
            path: of its package.
            target: a module that is reloaded.
        """
        package, _, last = name.rpartition(".")
        return ModuleSpec(name, self) if package == "advconn" and last in FORMER else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module whose names are those of the one that it became."""
        home = f"advconn.{FORMER[spec.name.rpartition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {home}", DeprecationWarning, stacklevel=2)
        module, known = ModuleType(spec.name), importlib.import_module(home)

        def get(name: str) -> Any:
            return getattr(known, name if hasattr(known, name) else FORMER_NAMES.get(name, name))

        vars(module)["__getattr__"] = get
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: its names are looked up when they are asked for."""


def accept_former_names() -> None:
    """Let modules be imported under their former names, after all others were tried."""
    if not any(isinstance(finder, FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(FormerModules())
