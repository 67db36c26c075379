"""A fitted detector as a folder: card.json, references and calibration as safetensors, the head by skops. No pickle.

Loading runs no code that the bundle names: the head's types must be among scikit-learn's listed here, and a classifier
is rebuilt only if it is an architecture of advconn's, timm's or torchvision's; any other is given at every use.
"""

from __future__ import annotations

import hashlib
import json
import platform
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advconn import models
from advconn.calibration import Calibration
from advconn.classifier import Classifier
from advconn.connectivity import Connectivity
from advconn.detector import Detector, Fitted
from advconn.errors import AdvconnError, BundleError
from advconn.files import writing
from advconn.modes import References

FORMAT = 1
CARD = "card.json"
WEIGHTS, TENSORS, HEAD = "classifier.safetensors", "detector.safetensors", "head.skops"
LARGEST_CARD = 2**20
_WALK = ("families", "copies", "halves", "per_class", "rivals", "samples", "layer", "levels", "steps")
# Beside what skops trusts by itself. Trees stay out: compiled code walks their node tables without checking bounds.
TRUSTED = ("sklearn.neural_network._stochastic_optimizers.AdamOptimizer",)


def default(name: str = "cifar10") -> Path:
    """The folder of a detector that advconn ships: 'cifar10' or 'digits'."""
    installed = Path(__file__).parent / "_models"
    return (installed if installed.is_dir() else Path(__file__).parents[1] / "models") / name


def save(detector: Detector, folder: Path | str, *, figures: dict[str, Any] | None = None) -> Path:
    """Write a fitted detector to a folder, which appears only whole.

    The classifier's weights go in where its architecture can be named (advconn, timm, torchvision); else only their
    fingerprint. `figures`: anything JSON that belongs on the card.

    Raises:
        FitError: not fitted. BundleError: the head cannot be saved without pickle. DataError: the folder is not empty.
    """
    from safetensors.numpy import save_file
    from skops.io import dump, get_untrusted_types

    detector._fitted()
    walk, classifier = detector.connectivity, detector.connectivity.classifier
    tensors = {"calibration": detector.calibration_.scores, "typical": detector.typical_}
    tensors |= {"seen": detector.fitted_.seen} if len(detector.fitted_.seen) else {}
    if walk.references is not None:
        images = (walk.references.images * 255).round().byte()
        tensors |= {"references": images.cpu().numpy(), "reference_logits": walk.references.logits.cpu().numpy()}
    folder = Path(folder)
    with writing(folder) as partial:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial / TENSORS)
        dump(detector.head_, partial / HEAD)
        foreign = sorted(set(get_untrusted_types(file=partial / HEAD)) - set(TRUSTED))
        if foreign:
            raise BundleError(
                f"this head cannot be saved safely: it holds {foreign[0]}; use a linear model or a network"
            )
        if classifier.state is not None:
            from safetensors.torch import save_file as save_weights

            state = {k: v.detach().cpu().contiguous().clone() for k, v in classifier.state.items()}
            save_weights(state, partial / WEIGHTS)
        card = _card(detector, figures)
        card["files"] = {p.name: _sha256(p) for p in sorted(partial.iterdir())}
        card["card"] = _digest(card)
        (partial / CARD).write_text(json.dumps(card, indent=1) + "\n")
    return folder


def _card(detector: Detector, figures: dict[str, Any] | None) -> dict[str, Any]:
    walk, classifier, fitted = detector.connectivity, detector.connectivity.classifier, detector.fitted_
    look = classifier.preprocessing
    return {
        "format": FORMAT,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("advconn", "torch", "torchvision", "scikit-learn", "numpy", "skops")},
        "classifier": {
            "name": classifier.name if classifier.state is not None else None,
            "fingerprint": classifier.fingerprint,
            "num_classes": classifier.num_classes,
            "class_names": classifier.class_names,
            "channels": classifier.channels,
            "preprocessing": vars(look) | {},
        },
        "connectivity": {name: _plain(getattr(walk, name)) for name in _WALK},
        "references": walk.references.origin if walk.references is not None else None,
        "fitted": {"train": fitted.train, "calibrate": fitted.calibrate, "seed": detector.seed}
        | {"attacks": {k: {"tried": t, "succeeded": s} for k, (t, s) in fitted.attacks.items()}},
        "calibration": {"fpr": detector.calibration_.fpr, "threshold": detector.calibration_.threshold},
        "features": [str(name) for name in detector.names_],
        "figures": figures or {},
    }


def load(folder: Path | str, *, model: Classifier | None = None, device: str | None = None) -> Detector:
    """The detector in a folder, ready to judge.

    Args:
        folder: as `save` wrote it.
        model: the classifier it was fitted for, where the bundle does not hold it.
        device: for a classifier that the bundle holds.

    Raises:
        BundleError: missing, truncated or edited files, another format, a head of unknown types, other weights.
    """
    folder = Path(folder)
    card = read_card(folder)
    try:
        return _load(folder, card, model, device)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise BundleError(f"{folder}: the card does not describe this detector ({error})") from error


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a bundle whose files are all there and unchanged."""
    path = folder / CARD
    if not path.is_file():
        raise BundleError(f"{folder}: no detector here ({CARD} is missing); expected a folder that `advconn fit` wrote")
    try:
        if path.stat().st_size > LARGEST_CARD:
            raise BundleError(f"{path}: too large for a card")
        card = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: not readable as a card; fit or copy the detector again") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise BundleError(f"{path}: not a card of format {FORMAT}; fit the detector again with this version of advconn")
    if card.get("card") != _digest(card):
        raise BundleError(f"{path}: was changed since it was written; fit or copy the detector again")
    for name, digest in card["files"].items():
        file = folder / Path(name).name
        if not file.is_file():
            raise BundleError(f"{folder}: {name} is missing; fit or copy the detector again")
        if _sha256(file) != digest:
            raise BundleError(f"{file}: damaged or changed since it was written; fit or copy the detector again")
    return card


def _load(folder: Path, card: dict[str, Any], model: Classifier | None, device: str | None) -> Detector:
    from safetensors.numpy import load_file

    classifier = _classifier(folder, card, device) if model is None else model
    if classifier.fingerprint != card["classifier"]["fingerprint"]:
        raise BundleError(f"{folder}: was fitted for other weights than this model's; fit a detector for it")
    _same_input(folder, classifier, card["classifier"])
    for name in (TENSORS, HEAD):
        if name not in card["files"]:
            raise BundleError(f"{folder}: the card lists no {name}; fit or copy the detector again")
    tensors = load_file(folder / TENSORS)
    references = None
    if "references" in tensors:
        images = torch.from_numpy(tensors["references"]).float() / 255
        references = References(images, torch.from_numpy(tensors["reference_logits"]), card["references"])
    walk: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in card["connectivity"].items() if k in _WALK
    }
    detector = Detector(Connectivity(classifier, references, **walk), fpr=card["calibration"]["fpr"])
    detector.head_ = _head(folder / HEAD)
    detector.classes_ = np.array([0, 1])
    detector.typical_ = tensors["typical"]
    detector.names_ = detector.connectivity.get_feature_names_out()
    if [str(n) for n in detector.names_] != card["features"]:
        raise BundleError(f"{folder}: was fitted on other features than this version's; fit the detector again")
    detector.n_features_in_ = len(detector.names_)
    detector.calibration_ = Calibration(tensors["calibration"], card["calibration"]["fpr"])
    attacks = {k: (v["tried"], v["succeeded"]) for k, v in card["fitted"]["attacks"].items()}
    seen = tensors.get("seen", np.zeros(0, np.uint64))
    detector.fitted_ = Fitted(card["fitted"]["train"], card["fitted"]["calibrate"], attacks, seen)
    return detector


def _same_input(folder: Path, classifier: Classifier, card: dict[str, Any]) -> None:
    """The same weights behind another normalisation are another classifier."""
    look = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocessing"].items()}
    found = vars(classifier.preprocessing) | {"channels": classifier.channels}
    for name, expected in (look | {"channels": card["channels"]}).items():
        if name in ("mean", "std", "size", "channels") and found[name] != expected:
            raise BundleError(
                f"{folder}: was fitted with {name} {expected}, and this classifier has {found[name]}; give the same"
            )


def _classifier(folder: Path, card: dict[str, Any], device: str | None) -> Classifier:
    name = card["classifier"]["name"]
    if name is None:
        raise BundleError(f"{folder}: holds no classifier; give the one it was fitted for (--model SPEC)")
    if models.architecture(name) is None or WEIGHTS not in card["files"]:
        raise BundleError(f"{folder}: names {name!r}, which no bundle may; give the classifier (--model SPEC)")
    look = {k: tuple(v) if isinstance(v, list) else v for k, v in card["classifier"]["preprocessing"].items()}
    try:
        return models.load(
            name,
            folder / WEIGHTS,
            device=device,
            channels=card["classifier"]["channels"],
            class_names=card["classifier"]["class_names"],
            **look,
        )
    except AdvconnError as error:
        raise BundleError(f"{folder}: its classifier cannot be rebuilt: {error}") from error


def _head(path: Path) -> Any:
    from skops.io import get_untrusted_types
    from skops.io import load as load_head

    try:
        foreign = sorted(set(get_untrusted_types(file=path)) - set(TRUSTED))
        if foreign:
            raise BundleError(f"{path}: holds {foreign[0]}, which advconn does not load")
        return load_head(path, trusted=list(TRUSTED))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: not a readable head; fit or copy the detector again") from error


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _digest(card: dict[str, Any]) -> str:
    rest = {k: v for k, v in card.items() if k != "card"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
