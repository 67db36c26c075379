"""A fitted detector as a folder: card.json, references and calibration as safetensors, heads by skops. No pickle.

Loading runs no code that the bundle names: the head's types must be among those that `heads` lists, and a classifier
is rebuilt only if it is an architecture of advconn's, timm's or torchvision's; any other is given at every use.
Whatever is wrong with a folder is told when it is loaded: a trial verdict is part of that.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advconn import card as cards
from advconn import heads, models, pretrained, zoo
from advconn.calibration import CLEAN
from advconn.card import CARD, COMPANION, FORMAT, TENSORS, WEIGHTS
from advconn.card import HEAD as HEAD
from advconn.classifier import Classifier
from advconn.connectivity import Connectivity
from advconn.detector import Detector, Fitted
from advconn.errors import AdvconnError, AdvconnWarning, BundleError, line_of
from advconn.files import shipped
from advconn.kinds import MIXTURE
from advconn.likeness import alike, size_of
from advconn.modes import References
from advconn.preprocessing import names_of
from advconn.probing import probe_images
from advconn.saving import save as save
from advconn.stages import GATED, Cascade, Missed, Stage, walks_of

LARGEST_CARD = 2**20
LARGEST_FILE = 2**32
SHIPPED = ("cifar10", "cifar10-hardened", "digits", "imagenet")
HELD = {  # where a network's weights are, and how it is given where they are not
    "classifier": (WEIGHTS, "--model SPEC"),
    "companion": (COMPANION, "bundle.load(..., companion=) in Python"),
}


def default(name: str = "cifar10") -> Path:
    """The folder of a detector that advconn ships, one of SHIPPED; 'imagenet' is for photographs."""
    return shipped(name)


def folder_of(named: Path | str) -> Path:
    """The folder itself, or where there is none, that of the shipped detector of this name."""
    path = Path(named)
    return default(str(named)) if str(named) in SHIPPED and not path.exists() else path


def load(
    folder: Path | str,
    *,
    model: Classifier | None = None,
    companion: Classifier | None = None,
    device: str | None = None,
    same_weights: bool = True,
) -> Detector:
    """The detector in a folder, ready to judge.

    Args:
        folder: as `save` wrote it.
        model: the classifier it was fitted for, where the bundle does not hold it. Another form of it is taken too
            (scripted, exported, of another precision, an ONNX file, an endpoint, a function) if it answers the same.
        companion: the network that was fitted beside it, where the bundle does not hold that.
        device: for networks that the bundle holds.
        same_weights: False takes a classifier of the same input and classes whatever its weights: its scores mean
            nothing until they are calibrated anew (recalibration.recalibrated).

    Raises:
        BundleError: missing, truncated or edited files, another format, a head of unknown types, other weights, or a
            trial verdict that fails.
    """
    folder = Path(folder)
    try:
        card = read_card(folder)
        beside = _companion(folder, card, companion, device)
        detector = _load(folder, card, model, beside, device, same_weights)
        _trial(detector)
        return detector
    except AdvconnError as error:
        where = "" if str(folder) in str(error) else f"{folder}: "
        raise BundleError(f"{where}{error}") from error
    except Exception as error:  # a forged or damaged folder makes safetensors, NumPy and torch raise anything
        raise BundleError(f"{folder}: cannot be loaded ({type(error).__name__}: {line_of(error, 100)})") from error


def _trial(detector: Detector) -> None:
    """Judge a grey image and a noisy one, so that nothing fails at the first image."""
    classifier = detector.connectivity.classifier
    noisy = probe_images(1, classifier.channels, *size_of(classifier, detector.connectivity.references))
    judged = detector.judge(torch.cat([torch.full_like(noisy, 0.5), noisy]))
    sound = np.array([error is None for error in judged.errors])
    if not np.isfinite(judged.score[sound]).all() or len(judged.score) != 2:
        raise BundleError("a trial verdict is not finite")


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a bundle whose files are all there and unchanged."""
    folder = Path(folder)
    path = folder / CARD
    try:
        if not path.is_file():
            raise BundleError(
                f"{folder}: no detector here ({CARD} is missing); expected a folder that `advconn fit` wrote"
            )
        if path.stat().st_size > LARGEST_CARD:
            raise BundleError(f"{path}: too large for a card")
        card = json.loads(path.read_text())
        digest = cards.digest(card) if isinstance(card, dict) else None
    except BundleError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not readable as a card; fit or copy the detector again") from error
    if not isinstance(card, dict) or card.get("format") not in (1, 2, FORMAT):
        raise BundleError(
            f"{path}: not a card of format 1, 2 or {FORMAT}; fit the detector again with this version of advconn"
        )
    if card.get("card") != digest:
        raise BundleError(f"{path}: was changed since it was written; fit or copy the detector again")
    card = cards.checked(card, str(folder))
    for name in (TENSORS, *cards.head_files(1 if card["stages"] is None else len(card["exits"]) + 1)):
        if name not in card["files"]:
            raise BundleError(f"{folder}: the card lists no {name}; fit or copy the detector again")
    for name, digest in card["files"].items():
        file = folder / name
        try:
            if not file.is_file():
                raise BundleError(f"{folder}: {name} is missing; fit or copy the detector again")
            if file.stat().st_size > LARGEST_FILE:
                raise BundleError(f"{file}: too large")
            if cards.sha256(file) != digest:
                raise BundleError(f"{file}: damaged or changed since it was written; fit or copy the detector again")
        except OSError as error:
            raise BundleError(f"{file}: cannot be read: {error.strerror}") from error
    return card


def _load(
    folder: Path,
    card: dict[str, Any],
    model: Classifier | None,
    companion: Classifier | None,
    device: str | None,
    same_weights: bool,
) -> Detector:
    from safetensors.numpy import load_file

    tensors = load_file(folder / TENSORS)
    classifier, references = _given(folder, card, tensors, model, device, same_weights)
    known, fitted = card["calibration"], card["fitted"]
    connectivity = Connectivity(classifier, references, companion=companion, **_tuples(card["connectivity"]))
    stages = None if card["stages"] is None else tuple(Stage(**_tuples(stage)) for stage in card["stages"])
    cascade, typical, stages = _cascade(folder, card, tensors, connectivity, stages)
    attacks = {k: (v["tried"], v["succeeded"]) for k, v in fitted["attacks"].items()}
    seen = np.asarray(tensors.get("seen", np.zeros(0, np.uint64)), dtype=np.uint64).reshape(-1)
    made = Fitted(fitted["train"], fitted["calibrate"], attacks, seen, _missed(card["missed"]), fitted["pretrained"])
    conditions, number, count = tuple(card["conditions"]["calibrated"]), len(card["exits"]) + 1, len(cascade.walks)
    scores, classes = _calibration(tensors, conditions, number, card["format"])
    detector = Detector.restore(
        connectivity,
        cascade,
        typical,
        made,
        {name: values[:, :count] for name, values in scores.items()},
        classes,
        attacks=tuple(fitted["mixture"] or fitted["attacks"] or MIXTURE),
        per_attack=fitted["per_attack"],
        fpr=known["fpr"],
        calibrate=fitted["held_out"],
        seed=fitted["seed"],
        stages=stages,
        benign=tuple(card["conditions"]["fitted"]),
        conditions=conditions,
        confidence=known["confidence"],
        by_class=known["by_class"],
        pretrained=pretrained.load() if fitted["pretrained"] else None,
        refine=fitted["refine"],
        evasive=fitted["evasive"],
    )
    at = detector.calibration_.threshold
    if count == number and not np.isclose(at, known["threshold"], rtol=1e-9, atol=1e-9):
        raise BundleError(f"{folder}: the card's threshold is not that of its calibration; fit the detector again")
    detector.figures_ = card["figures"]
    return detector


def _given(
    folder: Path,
    card: dict[str, Any],
    tensors: dict[str, np.ndarray],
    model: Classifier | None,
    device: str | None,
    same_weights: bool,
) -> tuple[Classifier, References | None]:
    """The classifier, given or held, if it is the one that was fitted for, and the references."""
    size = card["classifier"]["preprocessing"]["size"]
    if "references" in tensors and size is not None and list(tensors["references"].shape[2:]) != size:
        raise BundleError(f"{folder}: references of {tensors['references'].shape} for a classifier of {size}")
    classifier = _held(folder, card, "classifier", device) if model is None else model
    if classifier.class_names is None and card["classifier"]["num_classes"] == classifier.num_classes:
        classifier.class_names = names_of(card["classifier"]["class_names"], classifier.num_classes)
    _same_input(folder, classifier, card["classifier"])
    references = _references(tensors, card, classifier)
    told = classifier.fingerprint == card["classifier"]["fingerprint"]
    mute = classifier.fingerprint.startswith(("function", "endpoint:", "onnx:"))  # which say nothing of weights
    if told and not mute:
        return classifier, references
    if not same_weights:
        return classifier, references and References(
            references.images, classifier.logits(classifier.check(references.images)).cpu(), references.origin
        )
    if not alike(classifier, card["classifier"], tensors, references):
        raise BundleError(
            f"{folder}: was fitted for other weights than this model's; fit a detector for it, or, if it was only "
            f"trained on a little, set a new threshold: advconn calibrate --detector {folder} --model SPEC"
        )
    return classifier, references


def _cascade(
    folder: Path,
    card: dict[str, Any],
    tensors: dict[str, np.ndarray],
    connectivity: Connectivity,
    stages: tuple[Stage, ...] | None,
) -> tuple[Cascade, np.ndarray, tuple[Stage, ...] | None]:
    """The stages that this classifier can walk, fitted; a typical clean image's features (d,) at the last; the stages.

    One that gives no gradient is judged by those before bypass: their scores are calibrated too.
    """
    names, count = list(card["features"]), len(card["exits"]) + 1
    bypass = any(name.startswith("complexity.") for name in names)
    cut = bypass and stages is not None and not connectivity.classifier.differentiable and count > 1
    if cut and stages is not None:
        stages, count = tuple(stage for stage in stages if not stage.paths), count - 1
        warnings.warn(
            f"{folder}: this classifier gives no gradient, which the last stage needs: images are judged by the others",
            AdvconnWarning,
            stacklevel=4,
        )
    walks = walks_of(connectivity, stages, bypass=bypass)
    if len(walks) != count:
        raise BundleError(f"{folder}: {len(walks)} stages, and {count - 1} exits between them")
    columns = tuple(tuple(map(str, walk.get_feature_names_out())) for walk in walks)
    if list(columns[-1]) != [name for name in names if not cut or name in set(columns[-1])]:
        raise BundleError(f"{folder}: was fitted on other features than this version's; fit the detector again")
    files = cards.head_files(len(card["exits"]) + 1)[:count]
    found = tuple(heads.load(folder / file, len(c)) for file, c in zip(files, columns, strict=True))
    exits = tuple(-math.inf if at is None else float(at) for at in card["exits"][: count - 1])
    typical = _array(tensors, "typical", (len(names),))[[names.index(name) for name in columns[-1]]]
    if card["gate"] is not None and not set(GATED) <= set(columns[0]):
        raise BundleError(f"{folder}: has a gate and no companion; fit the detector again")
    return Cascade(walks, columns, found, exits, card["gate"]), typical, stages


def _array(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of numbers of this shape."""
    found = tensors[name]
    if found.shape != shape or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise BundleError(f"{name} is {found.dtype} {found.shape} or not finite; expected finite numbers {shape}")
    return found


def _calibration(
    tensors: dict[str, np.ndarray], conditions: Sequence[str], stages: int, number: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Scores (n, stages) by condition, and the classes (n,) that the images are given, if they are kept."""
    if number < 3:
        return {CLEAN: _array(tensors, "calibration", (len(tensors["calibration"]),))[:, None]}, None
    n = len(tensors.get(f"calibration.{conditions[0]}", ()))
    scores: dict[str, np.ndarray] = {}
    for name in conditions:
        key = f"calibration.{name}"
        if key not in tensors or tensors[key].shape != (n, stages) or tensors[key].dtype != np.float64:
            raise BundleError(f"{TENSORS}: {key} is missing, or not {n} x {stages} scores")
        scores[name] = tensors[key]
    classes = {name: tensors[f"predicted.{name}"] for name in conditions if f"predicted.{name}" in tensors}
    if classes and (
        len(classes) < len(scores) or any(v.shape != (n,) or v.dtype != np.int64 for v in classes.values())
    ):
        raise BundleError(f"{TENSORS}: predicted classes that do not fit the scores")
    return scores, classes or None


def _missed(known: dict[str, dict[str, int]] | None) -> Missed | None:
    if known is None:
        return None
    each = {name: (v["missed"], v["of"]) for name, v in known.items()}
    return Missed(sum(m for m, _ in each.values()), sum(of for _, of in each.values()), each)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _references(tensors: dict[str, np.ndarray], card: dict[str, Any], classifier: Classifier) -> References | None:
    if (card["references"] is None) != ("references" not in tensors):
        raise BundleError("the card and the tensors do not agree on references")
    if card["references"] is None:
        return None
    images = tensors["references"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != classifier.channels or 0 in images.shape:
        raise BundleError(
            f"references are {images.dtype} {images.shape}; expected images of {classifier.channels} channels"
        )
    classifier.check(torch.from_numpy(images[:1]))
    logits = _array(tensors, "reference_logits", (len(images), classifier.num_classes))
    return References(torch.from_numpy(images).to(torch.float32) / 255, torch.from_numpy(logits), card["references"])


def _same_input(folder: Path, classifier: Classifier, card: dict[str, Any]) -> None:
    """The same weights behind another normalisation are another classifier."""
    look = _tuples(card["preprocessing"])
    found = vars(classifier.preprocessing) | {"channels": classifier.channels, "num_classes": classifier.num_classes}
    expected = look | {"channels": card["channels"], "num_classes": card["num_classes"]}
    for name in ("mean", "std", "size", "channels", "num_classes"):
        if found[name] != expected[name] and not _close(found[name], expected[name]):
            raise BundleError(
                f"{folder}: was fitted with {name} {expected[name]}, and this classifier has {found[name]}; give the "
                "same"
            )


def _close(found: Any, expected: Any) -> bool:
    """Whether two means or deviations differ by rounding only."""
    pair = isinstance(found, tuple) and isinstance(expected, tuple) and len(found) == len(expected)
    return pair and bool(np.allclose(found, expected, rtol=1e-6, atol=0))


def _companion(folder: Path, card: dict[str, Any], given: Classifier | None, device: str | None) -> Classifier | None:
    """The companion, given or held, if it is the one that was fitted beside the classifier."""
    if card["companion"] is None:
        return None
    found = _held(folder, card, "companion", device) if given is None else given
    if found.fingerprint != card["companion"]["fingerprint"]:
        raise BundleError(f"{folder}: was fitted with another companion than this; give the same, or fit it again")
    return found


def _held(folder: Path, card: dict[str, Any], which: str, device: str | None) -> Classifier:
    """The classifier or the companion, whose weights the bundle holds, or which installs."""
    known, (weights, how) = card[which], HELD[which]
    name = known["name"]
    if name is None:
        raise BundleError(f"{folder}: holds no {which}; give the one it was fitted for ({how})")
    if name in zoo.NETWORKS:
        return zoo.NETWORKS[name](device)
    if models.architecture(name) is None or weights not in card["files"]:
        raise BundleError(f"{folder}: names {name!r}, which no bundle may; give the {which} ({how})")
    about = {"device": device, "channels": known["channels"], "class_names": known["class_names"]}
    try:
        return models.load(name, folder / weights, **about, **_tuples(known["preprocessing"]))
    except AdvconnError as error:
        raise BundleError(f"{folder}: its {which} cannot be rebuilt: {error}") from error
