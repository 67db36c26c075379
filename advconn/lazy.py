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

FORMER = {  # modules of advconn by former names, each with where its names are now; accepted for one version
    "agreement": "data.labels",
    "arrays": "data.arrays",
    "attacks.custom": "attacks.own_attacks",
    "band": "paths.elastic_band",
    "benchmark.adaptive": "benchmark.adaptive_evaluation",
    "benchmark.adaptive_check": "benchmark.planted_examples",
    "benchmark.attacks": "benchmark.attack_sources",
    "benchmark.baselines.layers": "benchmark.baselines.lid_and_mahalanobis",
    "benchmark.baselines.squeezing": "benchmark.baselines.feature_squeezing",
    "benchmark.controls": "benchmark.barrier_controls",
    "benchmark.measure": "benchmark.feature_tables benchmark.fitted_detector",
    "benchmark.results": "benchmark.result_types",
    "benchmark.rows": "benchmark.result_rows benchmark.cost benchmark.error_examples",
    "blackbox": "models.onnx_and_http",
    "bundle.card": "bundle.card_schema",
    "bypass": "paths.bypass",
    "calibration": "detector.calibration",
    "cascade.augmentation": "cascade.attacked_copies",
    "cascade.differentiable": "cascade.differentiable_score",
    "classifier": "models.classifier",
    "cli.config": "cli.config_file",
    "cli.findings": "scoring.sarif_ocsf_junit",
    "cli.guide": "cli.guide_html",
    "cli.lists": "cli.path_lists",
    "cli.loading": "cli.arguments",
    "cli.score_run": "cli.score_output",
    "conditions": "data.conditions",
    "connection": "paths.connection",
    "connectivity": "features.connectivity",
    "copies": "features.transforms",
    "data.hidden": "data.hidden_pictures",
    "data.inputs": "data.input_conversion",
    "data.isolation": "data.sandbox",
    "data.layout": "data.axis_order",
    "data.pictures": "data.decoding",
    "datasets": "data.datasets",
    "decoder": "paths.decoder",
    "detector.groups": "detector.picture_groups",
    "detector.preparation": "detector.clean_images",
    "detector.result": "detector.judgement",
    "detector.trial": "detector.trial_attack",
    "exits": "cascade.early_exit",
    "explain": "detector.explanation",
    "features.families": "features.path_features",
    "features.noise": "features.noise_level",
    "features.pixels": "features.pixel_features",
    "fingerprint": "models.fingerprint",
    "fitting": "detector.fitting",
    "guard": "detector.guard",
    "images": "data.collection",
    "inference": "runtime.forward_passes",
    "items": "data.collection",
    "judgement": "detector.judgement",
    "kinds": "attacks.catalog",
    "layout": "data.axis_order",
    "margins": "models.margin",
    "models.black_box": "models.onnx_and_http",
    "models.checks": "models.sanity_checks",
    "modes": "features.references",
    "nets": "models.architectures",
    "parallel": "runtime.parallel runtime.cache runtime.progress",
    "paths.band": "paths.elastic_band",
    "perturb": "attacks.own_attacks",
    "pictures": "data.decoding",
    "preprocessing": "data.preprocessing",
    "reading": "data.input_conversion",
    "recalibration": "detector.recalibration",
    "runner": "runtime.parallel",
    "scoring.html": "scoring.report_page",
    "scoring.journal": "scoring.resume_journal",
    "serving.browser": "serving.web_security",
    "serving.connections": "serving.connection_limits",
    "serving.judge": "serving.framework_callable",
    "serving.protocol": "serving.open_inference_protocol",
    "serving.requests": "serving.request_body",
    "space": "paths.space",
    "stages": "cascade.cascade",
    "store": "runtime.cache",
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
        package, _, rest = name.partition(".")
        return ModuleSpec(name, self) if package == "advconn" and rest in FORMER else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module whose names are those of the one that it became."""
        homes = [f"advconn.{home}" for home in FORMER[spec.name.removeprefix("advconn.")].split()]
        warnings.warn(f"{spec.name} is now {' and '.join(homes)}", DeprecationWarning, stacklevel=2)
        module, known = ModuleType(spec.name), [importlib.import_module(home) for home in homes]

        def get(name: str) -> Any:
            for wanted in (name, FORMER_NAMES.get(name, name)):
                for home in known:
                    if hasattr(home, wanted):
                        return getattr(home, wanted)
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = get
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: its names are looked up when they are asked for."""


def accept_former_names() -> None:
    """Let modules be imported under their former names, after all others were tried."""
    if not any(isinstance(finder, FormerModules) for finder in sys.meta_path):
        sys.meta_path.append(FormerModules())
