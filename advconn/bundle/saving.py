"""A fitted detector written as a folder, see bundle."""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from advconn.bundle import card_schema as cards
from advconn.bundle import shipped
from advconn.bundle.card_schema import CARD, COMPANION, FORMAT, TENSORS, WEIGHTS
from advconn.cascade import head_files
from advconn.cascade.cascade import Stage
from advconn.data.conditions import MEASURED, USES, usable
from advconn.data.input_conversion import as_bytes
from advconn.detector.detector import Detector
from advconn.detector.efficacy import Efficacy
from advconn.files import atomic_folder
from advconn.models.classifier import Classifier
from advconn.models.equivalence import dtype_of, is_plain_module, probe_logits


def save(detector: Detector, folder: Path | str, *, figures: dict[str, Any] | None = None) -> Path:
    """Write a fitted detector to a folder, which appears only whole.

    The classifier's weights, and its companion's, go in where their architecture can be named (advconn, timm,
    torchvision); else only their fingerprint.

    Args:
        detector: a fitted one.
        folder: not there yet, or empty.
        figures: anything JSON that belongs on the card.

    Raises:
        FitError: not fitted.
        BundleError: the head cannot be saved without pickle.
        DataError: the folder is not empty, or cannot be written.

    Example:
        >>> import tempfile
        >>> from advconn import bundle
        >>> detector = bundle.load(bundle.default("digits"))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = bundle.save(detector, f"{place}/mine")
        ...     print(bundle.load(folder).calibration_.threshold == detector.calibration_.threshold)
        True
    """
    from safetensors.numpy import save_file

    detector._fitted()
    connectivity, classifier = detector.connectivity, detector.classifier
    tensors = {"typical": detector.typical_}
    tensors |= {f"calibration.{name}": scores for name, scores in detector.clean_.items()}
    tensors |= {f"predicted.{name}": labels for name, labels in (detector.predicted_ or {}).items()}
    if detector.groups_ is not None:
        tree = {k: v for k, v in vars(detector.groups_).items() if k != "names"}
        tensors |= {f"groups.{name}": values for name, values in tree.items()}
        tensors |= {f"group.{name}": labels for name, labels in (detector.group_ or {}).items()}
    tensors |= {"seen": detector.fitted_.image_hashes} if len(detector.fitted_.image_hashes) else {}
    references = connectivity.references
    tensors |= {"answers": probe_logits(classifier, None if references is None else references.images)}
    if references is not None:
        tensors |= {
            "references": as_bytes(references.images).numpy(),
            "reference_logits": references.logits.cpu().numpy(),
        }
    folder = Path(folder)
    with atomic_folder(folder) as partial:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial / TENSORS)
        for name, head in zip(cards.head_files(len(detector.cascade_.heads)), detector.cascade_.heads, strict=True):
            head_files.save(head, partial / name)
        for network, name in ((classifier, WEIGHTS), (connectivity.companion, COMPANION)):
            if network is not None and network.state is not None:
                from safetensors.torch import save_file as save_weights

                state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state.items()}
                save_weights(state, partial / name)
        card = _card(detector, figures)
        card["files"] = {p.name: cards.sha256(p) for p in sorted(partial.iterdir())}
        card["card"] = cards.digest(card)
        (partial / CARD).write_text(json.dumps(card, indent=1) + "\n")
    return folder


def _card(detector: Detector, figures: dict[str, Any] | None) -> dict[str, Any]:
    connectivity, classifier, fitted = detector.connectivity, detector.classifier, detector.fitted_
    return {
        "format": FORMAT,
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("advconn", "torch", "torchvision", "scikit-learn", "numpy", "skops")},
        "classifier": _network(classifier),
        "companion": None if connectivity.companion is None else _network(connectivity.companion),
        "connectivity": {name: _plain(value) for name, value in connectivity.settings().items()},
        "references": connectivity.references.origin if connectivity.references is not None else None,
        "fitted": {"train": fitted.train, "calibrate": fitted.calibrate, "seed": detector.seed}
        | {"attacks": {k: {"tried": t, "succeeded": s} for k, (t, s) in fitted.attacks.items()}}
        | {"pretrained": fitted.pretrained}
        | {"mixture": [str(attack) for attack in detector.attacks], "per_attack": detector.per_attack}
        | {"held_out": detector.calibrate, "refine": detector.refine, "evasive": detector.evasive}
        | {"reading": fitted.reading, "plan": None if fitted.plan is None else fitted.plan.to_dict()},
        "stages": None if detector.stages is None else [_stage(stage) for stage in detector.stages],
        "exits": [_number(limit) for limit in detector.cascade_.exits],
        "gate": detector.cascade_.gate,
        "missed": None
        if fitted.missed is None
        else {k: {"missed": n, "of": of} for k, (n, of) in fitted.missed.by_attack.items()},
        "conditions": {
            "fitted": list(usable(detector.benign, classifier.channels)),
            "calibrated": list(detector.calibration_.conditions),
            "measured": [name for name, use in USES.items() if use == MEASURED],
        },
        "calibration": {
            "fpr": detector.calibration_.fpr,
            "confidence": detector.confidence,
            "by_class": detector.by_class,
            "precision": detector.fitted_.precision,
            "threshold": detector.calibration_.threshold,
            "doubt": detector.doubt_,
        },
        "picture": [] if detector.groups_ is None else list(detector.groups_.names),
        "efficacy": _efficacy(fitted.efficacy),
        "features": [str(name) for name in detector.names_],
        "figures": figures if figures is not None else getattr(detector, "figures_", {}),
    }


def _network(classifier: Classifier) -> dict[str, Any]:
    return {
        "name": classifier.name if classifier.state is not None or classifier.name in shipped.NETWORKS else None,
        "fingerprint": classifier.fingerprint,
        "num_classes": classifier.num_classes,
        "class_names": classifier.class_names,
        "channels": classifier.channels,
        "dtype": dtype_of(classifier),
        "kind": "module" if is_plain_module(classifier) else "other",
        "preprocessing": {k: v for k, v in vars(classifier.preprocessing).items() if k != "channels"},
    }


def _efficacy(efficacy: Efficacy | None) -> dict[str, Any] | None:
    if efficacy is None:
        return None
    return vars(efficacy) | {"prices": dict(efficacy.prices), "weak": efficacy.weak}


def _stage(stage: Stage) -> dict[str, Any]:
    return {name: _plain(value) for name, value in vars(stage).items()}


def _number(value: float) -> float | None:
    """As JSON has it: null for minus infinity, where no image leaves."""
    return None if math.isinf(value) else value


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
