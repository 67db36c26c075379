"""The parts of a detector, from the card and the tensors of a bundle, held against one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advconn import models
from advconn.bundle import card_schema as cards
from advconn.bundle import shipped
from advconn.bundle.card_schema import COMPANION, TENSORS, WEIGHTS
from advconn.cascade import head_files
from advconn.cascade.cascade import GATED, Cascade, Stage, stage_extractors
from advconn.cascade.early_exit import EarlyExitMisses
from advconn.data.conditions import CLEAN
from advconn.data.preprocessing import parse_class_names
from advconn.detector.efficacy import Efficacy
from advconn.detector.picture_groups import MAX_GROUPS, Groups
from advconn.errors import AdvconnError, BundleError
from advconn.features.connectivity import Connectivity
from advconn.features.references import References
from advconn.models.classifier import Classifier
from advconn.models.equivalence import same_outputs
from advconn.models.loading import parse_architecture_spec

HELD = {  # where a network's weights are, and how it is given where they are not
    "classifier": (WEIGHTS, "--model SPEC, or load(folder, model=) in Python"),
    "companion": (COMPANION, "--companion SPEC, or load(folder, companion=) in Python"),
}


def classifier_and_references(
    folder: Path,
    card: dict[str, Any],
    tensors: dict[str, np.ndarray],
    model: Classifier | None,
    device: str | None,
    same_weights: bool,
) -> tuple[Classifier, References | None]:
    """The classifier, given or held, if it is the one that was fitted for, and the references.

    Args:
        folder: of the detector.
        card: of the detector, checked.
        tensors: of the folder, by name.
        model: the classifier, where it is given.
        device: for a classifier that the folder holds.
        same_weights: whether the classifier must answer as the one that was fitted for.

    Raises:
        BundleError: it does not, takes other images, or cannot be had.
    """
    size = card["classifier"]["preprocessing"]["size"]
    if "references" in tensors and size is not None and list(tensors["references"].shape[2:]) != size:
        raise BundleError(f"{folder}: references of {tensors['references'].shape} for a classifier of {size}")
    classifier = _held(folder, card, "classifier", device) if model is None else model
    if classifier.class_names is None and card["classifier"]["num_classes"] == classifier.num_classes:
        classifier.class_names = parse_class_names(card["classifier"]["class_names"], classifier.num_classes)
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
    known = None if references is None else (references.images, references.logits)
    if not same_outputs(classifier, card["classifier"], tensors, known):
        raise BundleError(
            f"{folder}: was fitted for other weights than this model's; fit a detector for it, or, if it was only "
            f"trained on a little, set a new threshold: advconn calibrate --detector {folder} --model SPEC"
        )
    return classifier, references


def cascade_of(
    folder: Path,
    card: dict[str, Any],
    tensors: dict[str, np.ndarray],
    connectivity: Connectivity,
    stages: tuple[Stage, ...] | None,
) -> tuple[Cascade, np.ndarray, tuple[Stage, ...] | None]:
    """The stages that this classifier can walk, fitted; a typical clean image's features (d,) at the last; the stages.

    One that gives no gradient is judged by those before bypass: their scores are calibrated too.

    Args:
        folder: of the detector.
        card: of the detector, checked.
        tensors: of the folder, by name.
        connectivity: what is walked.
        stages: of the detector, or None.

    Raises:
        BundleError: stages, features or heads that do not fit one another.
    """
    names, count = list(card["features"]), len(card["exits"]) + 1
    bypass = any(name.startswith("complexity.") for name in names)
    cut = bypass and stages is not None and not connectivity.classifier.differentiable and count > 1
    if cut and stages is not None:
        stages, count = tuple(stage for stage in stages if not stage.paths), count - 1
    connectivities = stage_extractors(connectivity, stages, bypass=bypass)
    if len(connectivities) != count:
        raise BundleError(f"{folder}: {len(connectivities)} stages, and {count - 1} exits between them")
    columns = tuple(tuple(map(str, stage_walk.get_feature_names_out())) for stage_walk in connectivities)
    if list(columns[-1]) != [name for name in names if not cut or name in set(columns[-1])]:
        raise BundleError(f"{folder}: was fitted on other features than this version's; fit the detector again")
    files = cards.head_files(len(card["exits"]) + 1)[:count]
    fitted_heads = tuple(head_files.load(folder / file, len(c)) for file, c in zip(files, columns, strict=True))
    exits = tuple(-math.inf if limit is None else float(limit) for limit in card["exits"][: count - 1])
    typical = _array(tensors, "typical", (len(names),))[[names.index(name) for name in columns[-1]]]
    if card["gate"] is not None and not set(GATED) <= set(columns[0]):
        raise BundleError(f"{folder}: has a gate and no companion; fit the detector again")
    return Cascade(connectivities, columns, fitted_heads, exits, card["gate"]), typical, stages


def _array(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of numbers of this shape."""
    array = tensors[name]
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise BundleError(f"{name} is {array.dtype} {array.shape} or not finite; expected finite numbers {shape}")
    return array


def calibration_of(
    tensors: dict[str, np.ndarray], conditions: Sequence[str], stages: int, number: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Scores (n, stages) by condition, and the classes (n,) that the images are given, if they are kept.

    Args:
        tensors: of the folder, by name.
        conditions: that were calibrated under.
        stages: how many there are.
        number: of the card's format.

    Raises:
        BundleError: scores or classes that are missing, or of another shape.
    """
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


def pictures_of(
    tensors: dict[str, np.ndarray], names: Sequence[str], conditions: Sequence[str], columns: Sequence[str]
) -> tuple[Groups, dict[str, np.ndarray]] | None:
    """The groups of pictures, and that of each calibration image by condition; None where the card names none.

    Args:
        tensors: of the folder, by name.
        names: of the features that the groups are told by.
        conditions: that were calibrated under.
        columns: of the last stage.

    Raises:
        BundleError: a tree that leads nowhere, or groups that do not fit the scores.
    """
    if not names:
        return None
    feature, left, right = (tensors[f"groups.{name}"] for name in ("feature", "left", "right"))
    threshold, count = tensors["groups.threshold"], len(feature)
    sound = 0 < count <= 2 * MAX_GROUPS and threshold.shape == (count,) and np.isfinite(threshold).all()
    sound &= all(a.shape == (count,) and a.dtype == np.int64 for a in (feature, left, right))
    inner = feature >= 0 if sound else feature[:0]
    below = np.arange(count)[inner] if sound else left[:0]
    sound = sound and bool(
        (feature < len(names)).all()
        and all((a[inner] > below).all() and (a[inner] < count).all() for a in (left, right))  # no way back
    )
    if not sound or not set(names) <= set(columns):
        raise BundleError(f"{TENSORS}: the groups of pictures are damaged; fit the detector again")
    labels = {name: tensors.get(f"group.{name}") for name in conditions}
    for name, values in labels.items():
        if values is None or values.shape != (len(tensors[f"calibration.{name}"]),) or values.dtype != np.int64:
            raise BundleError(f"{TENSORS}: group.{name} is missing, or does not fit the scores")
    return Groups(tuple(names), feature, threshold, left, right), {k: v for k, v in labels.items() if v is not None}


def missed_of(counts: dict[str, dict[str, int]] | None) -> EarlyExitMisses | None:
    """What the card says of attacked images that leave early."""
    if counts is None:
        return None
    each = {name: (v["missed"], v["of"]) for name, v in counts.items()}
    return EarlyExitMisses(sum(m for m, _ in each.values()), sum(of for _, of in each.values()), each)


def efficacy_of(entry: dict[str, Any] | None) -> Efficacy | None:
    """What the card says of how well the detector caught one attack."""
    return None if entry is None else Efficacy(**{k: v for k, v in entry.items() if k != "weak"})


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """The same with tuples for lists, which is how parameters are given."""
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
    settings = tuples(card["preprocessing"])
    actual = vars(classifier.preprocessing) | {"num_classes": classifier.num_classes}
    expected = settings | {"channels": card["channels"], "num_classes": card["num_classes"]}
    for name in ("mean", "std", "size", "channels", "num_classes"):
        if actual[name] != expected[name] and not _close(actual[name], expected[name]):
            raise BundleError(
                f"{folder}: was fitted with {name} {expected[name]}, and this classifier has {actual[name]}; give the "
                "same"
            )


def _close(actual: Any, expected: Any) -> bool:
    """Whether two means or deviations differ by rounding only."""
    pair = isinstance(actual, tuple) and isinstance(expected, tuple) and len(actual) == len(expected)
    return pair and bool(np.allclose(actual, expected, rtol=1e-6, atol=0))


def companion_of(folder: Path, card: dict[str, Any], given: Classifier | None, device: str | None) -> Classifier | None:
    """The companion, given or held, if it is the one that was fitted beside the classifier; None where there was none.

    Args:
        folder: of the detector.
        card: of the detector, checked.
        given: the companion, where it is given.
        device: for a companion that the folder holds.

    Raises:
        BundleError: another companion, or none that can be had.
    """
    if card["companion"] is None:
        return None
    companion = _held(folder, card, "companion", device) if given is None else given
    if companion.fingerprint != card["companion"]["fingerprint"]:
        raise BundleError(f"{folder}: was fitted with another companion than this; give the same, or fit it again")
    return companion


def _held(folder: Path, card: dict[str, Any], which: str, device: str | None) -> Classifier:
    """The classifier or the companion, whose weights the bundle holds, or which installs."""
    entry, (weights, how) = card[which], HELD[which]
    name = entry["name"]
    if name is None:
        raise BundleError(f"{folder}: holds no {which}; give the one it was fitted for ({how})")
    if name in shipped.NETWORKS:
        return shipped.NETWORKS[name](device)
    if parse_architecture_spec(name) is None or weights not in card["files"]:
        raise BundleError(
            f"{folder}: refers to {name!r}, which advconn does not load by itself; pass the {which} ({how})"
        )
    about = {"device": device, "channels": entry["channels"], "class_names": entry["class_names"]}
    try:
        return models.load(name, folder / weights, **about, **tuples(entry["preprocessing"]))
    except AdvconnError as error:
        raise BundleError(f"{folder}: its {which} cannot be rebuilt: {error}") from error
