"""A fitted detector as a folder: card.json, references and calibration as safetensors, heads by skops. No pickle.

Loading runs no code that the bundle names: the head's types must be among those that `heads` lists, and a classifier
is rebuilt only if it is an architecture of advconn's, timm's or torchvision's; any other is given at every use.
Whatever is wrong with a folder is told when it is loaded: a trial verdict is part of that.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advconn.attacks.catalog import MIXTURE
from advconn.bundle import card_schema as cards
from advconn.bundle import restoring
from advconn.bundle.card_schema import CARD, FORMAT, LARGEST_CARD, TENSORS
from advconn.bundle.signature import LARGEST_SIGNATURE, SIGNATURE, verify
from advconn.cascade import pretrained
from advconn.cascade.cascade import Stage
from advconn.cascade.early_exit import cascade_score
from advconn.cascade.heads import highest_log_odds
from advconn.detector.detector import Detector, FitSummary
from advconn.detector.fit_plan import FitPlan
from advconn.errors import AdvconnError, AdvconnWarning, BundleError, ModelError, first_line
from advconn.features.connectivity import Connectivity
from advconn.files import SHIPPED
from advconn.models.classifier import Classifier
from advconn.models.equivalence import input_size
from advconn.models.sanity_checks import probe_images

LARGEST_LOG_ODDS = 1e4  # that a head gives an image
LARGEST_FILE = 2**32
CHUNK = 2**20


def load(
    folder: Path | str,
    *,
    model: Classifier | None = None,
    companion: Classifier | None = None,
    device: str | None = None,
    same_weights: bool = True,
    verify_key: Path | str | None = None,
) -> Detector:
    """The detector in a folder, ready to judge.

    Args:
        folder: as `save` wrote it.
        model: the classifier it was fitted for, where the bundle does not hold it. Another form of it is taken too
            (scripted, exported, of another precision, an ONNX file, an endpoint, a function) if it answers the same.
        companion: the network that was fitted beside it, where the bundle does not hold that.
        device: for networks that the bundle holds.
        same_weights: False takes a classifier of the same input and classes whatever its weights: its scores mean
            nothing until they are calibrated anew (recalibration.recalibrate).
        verify_key: file of an Ed25519 public key; the folder must be signed with its private key, see signature.sign.

    Raises:
        ModelError: a model or a companion that is no Classifier.
        BundleError: missing, truncated or edited files, another format, a head of unknown types, other weights, or a
            trial verdict that fails; with `verify_key` no signature by that key.
        DataError: `verify_key` is no such file.

    Example:
        >>> from advconn import bundle
        >>> from advconn.data import datasets
        >>> detector = bundle.load(bundle.default("digits"))
        >>> detector.judge(datasets.digits()[0][1000:1003]).adversarial
        array([False, False, False])
    """
    folder = Path(folder)
    for name, given in (("model", model), ("companion", companion)):
        if given is not None and not isinstance(given, Classifier):
            raise ModelError(f"{name}= takes a Classifier, got {type(given).__name__}: Classifier(module, size=...)")
    if verify_key is None:
        return _loaded(folder, folder, model, companion, device, same_weights)
    with tempfile.TemporaryDirectory(prefix="advconn-", ignore_cleanup_errors=True) as place:
        private = Path(place) / "detector"  # nobody changes its files between the look at the signature and the load
        try:
            _copy_signed(folder, private, verify_key)
            return _loaded(private, folder, model, companion, device, same_weights)
        except AdvconnError as error:
            raise type(error)(str(error).replace(str(private), str(folder))) from error


def _copy_signed(folder: Path, private: Path, key: Path | str) -> None:
    """Copy the files that a card lists, once the card is known to be signed.

    Raises:
        BundleError: no card, no signature by that key, or a file that cannot be read.
        DataError: no such key.
    """
    _require_card(folder)
    private.mkdir()
    _copy_file(folder, private, CARD, LARGEST_CARD)
    if (folder / SIGNATURE).is_file():
        _copy_file(folder, private, SIGNATURE, LARGEST_SIGNATURE)
    verify(private, key)
    try:
        names = list(json.loads((private / CARD).read_text())["files"])
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return  # read_card says what is wrong with it
    for name in names:
        if isinstance(name, str) and name == Path(name).name and (folder / name).exists():
            _copy_file(folder, private, name, LARGEST_FILE)


def _copy_file(folder: Path, private: Path, name: str, most: int) -> None:
    """Copy a regular file of at most so many bytes, or what a link to one holds.

    Raises:
        BundleError: it is none, is larger, or cannot be copied.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as given, (private / name).open("wb") as out:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleError(f"{folder}: {name} is no regular file")
            left = most
            while part := given.read(min(CHUNK, left + 1)):
                left -= len(part)
                if left < 0:
                    raise BundleError(f"{folder}: {name} is too large")
                out.write(part)
    except OSError as error:
        raise BundleError(f"{folder}: {name} cannot be copied to be verified: {error.strerror}") from error


def _loaded(
    folder: Path,
    shown: Path,
    model: Classifier | None,
    companion: Classifier | None,
    device: str | None,
    same_weights: bool,
) -> Detector:
    """As told in `load`; `shown`: the folder that warnings name.

    Raises:
        BundleError: as told there.
    """
    try:
        card = read_card(folder)
        beside = restoring.companion_of(folder, card, companion, device)
        detector = _load(folder, card, model, beside, device, same_weights)
        _trial(detector)
        _warn_of_cut_stages(shown, card, detector)
        _warn_of_no_flags(shown, detector)
        return detector
    except AdvconnError as error:
        where = "" if str(folder) in str(error) else f"{folder}: "
        raise BundleError(f"{where}{error}") from error
    except Exception as error:  # a forged or damaged folder makes safetensors, NumPy and torch raise anything
        raise BundleError(f"{folder}: cannot be loaded ({type(error).__name__}: {first_line(error, 100)})") from error


def _trial(detector: Detector) -> None:
    """Judge a grey image and a noisy one, so that nothing fails at the first image."""
    classifier = detector.classifier
    references = detector.connectivity.references
    size = input_size(classifier, None if references is None else references.images)
    noisy = probe_images(1, classifier.channels, *size)
    judged = detector.judge(torch.cat([torch.full_like(noisy, 0.5), noisy]))
    sound = np.array([error is None for error in judged.errors])
    if not np.isfinite(judged.score[sound]).all() or len(judged.score) != 2:
        raise BundleError("a trial verdict is not finite")


def _warn_of_cut_stages(folder: Path, card: dict[str, Any], detector: Detector) -> None:
    """Say where the last stage is left out, since the classifier gives no gradient."""
    if len(detector.cascade_.connectivities) <= len(card["exits"]):
        warnings.warn(
            f"{folder}: this classifier gives no gradient, which the last stage needs: images are judged by the others",
            AdvconnWarning,
            stacklevel=4,
        )


def _warn_of_no_flags(folder: Path, detector: Detector) -> None:
    """Say where no image can be flagged: a threshold beyond all scores, or at so many that are the largest there is."""
    calibration = detector.calibration_
    sure = np.array([[min(highest_log_odds(head), LARGEST_LOG_ODDS) for head in detector.cascade_.heads]])
    (furthest,), _ = cascade_score(sure, detector.cascade_.exits)
    highest = max(calibration.every_threshold)
    if highest >= furthest:
        warnings.warn(
            f"{folder}: has a threshold of {highest:.6g}, which no image reaches, so that it can flag nothing: fit it "
            "again, or do not trust where it comes from",
            AdvconnWarning,
            stacklevel=4,
        )
        return
    for condition, scores in calibration.tables.items():
        if float((scores == scores.max()).mean()) > calibration.fpr:
            warnings.warn(
                f"{folder}: more than {calibration.fpr:.0%} of its calibration scores ({condition}) are the largest "
                "there is, so that it can flag nothing: fit it again, or do not trust where it comes from",
                AdvconnWarning,
                stacklevel=4,
            )
            return


def _require_card(folder: Path) -> None:
    if not (folder / CARD).is_file():
        here = f"no detector here ({CARD} is missing)" if folder.is_dir() else "no such folder"
        raise BundleError(
            f"{folder}: {here}; expected a folder that `advconn fit` wrote, or the name of a detector that ships: "
            f"{', '.join(SHIPPED)}"
        )


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a bundle whose files are all there and unchanged."""
    folder = Path(folder)
    path = folder / CARD
    try:
        _require_card(folder)
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
    card = cards.validate(card, str(folder))
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
    classifier, references = restoring.classifier_and_references(folder, card, tensors, model, device, same_weights)
    calibration, fitted = card["calibration"], card["fitted"]
    connectivity = Connectivity(classifier, references, companion=companion, **restoring.tuples(card["connectivity"]))
    stages = None if card["stages"] is None else tuple(Stage(**restoring.tuples(stage)) for stage in card["stages"])
    cascade, typical, stages = restoring.cascade_of(folder, card, tensors, connectivity, stages)
    attacks = {k: (v["tried"], v["succeeded"]) for k, v in fitted["attacks"].items()}
    hashes = np.asarray(tensors.get("seen", np.zeros(0, np.uint64)), dtype=np.uint64).reshape(-1)
    missed = restoring.missed_of(card["missed"])
    precision = calibration["precision"]
    made = FitSummary(
        fitted["train"], fitted["calibrate"], attacks, hashes, missed, fitted["pretrained"], precision,
        restoring.efficacy_of(card["efficacy"]), fitted["reading"],
        None if fitted["plan"] is None else FitPlan.from_dict(fitted["plan"], stages),
    )  # fmt: skip
    conditions, number = tuple(card["conditions"]["calibrated"]), len(card["exits"]) + 1
    count = len(cascade.connectivities)
    scores, classes = restoring.calibration_of(tensors, conditions, number, card["format"])
    detector = Detector.restore(
        connectivity,
        cascade,
        typical,
        made,
        {name: values[:, :count] for name, values in scores.items()},
        classes,
        restoring.pictures_of(tensors, card["picture"], list(scores), [str(name) for name in cascade.names[-1]]),
        calibration["doubt"],
        attacks=tuple(fitted["mixture"] or fitted["attacks"] or MIXTURE),
        per_attack=fitted["per_attack"],
        fpr=calibration["fpr"],
        calibrate=fitted["held_out"],
        seed=fitted["seed"],
        stages=stages,
        benign=tuple(card["conditions"]["fitted"]),
        conditions=conditions,
        confidence=calibration["confidence"],
        by_class=calibration["by_class"],
        pretrained=pretrained.load() if fitted["pretrained"] else None,
        refine=fitted["refine"],
        evasive=fitted["evasive"],
    )
    threshold = detector.calibration_.threshold
    if count == number and not np.isclose(threshold, calibration["threshold"], rtol=1e-9, atol=1e-9):
        raise BundleError(f"{folder}: the card's threshold is not that of its calibration; fit the detector again")
    detector.figures_ = card["figures"]
    return detector
