"""Models, detectors and images from a command's arguments."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advconn.cli.output import note
from advconn.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from advconn.data.collection import Batch, Collection, Item
    from advconn.data.datasets import Data
    from advconn.detector.detector import Detector
    from advconn.models.classifier import Classifier


RESIZES = {"stretch": "squash", "crop": "center", "pad": "border"}  # as Preprocessing.crop calls them
RESIZED = {
    "squash": "stretched",
    "center": "the middle is cut out",
    "cover": "the middle is cut out",
    "border": "padded",
}


class ModelOptions:
    """The classifier that the command line names, and what it says of it."""

    def __init__(
        self,
        model: str | None,
        weights: Path | None = None,
        size: tuple[int, int] | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        classes: Path | None = None,
        companion: str | None = None,
        companion_weights: Path | None = None,
        headers: tuple[str, ...] = (),
        resize: str | None = None,
        interpolation: str | None = None,
        verify_key: Path | None = None,
    ) -> None:
        self.model, self.weights, self.classes = model, weights, classes
        self.companion, self.companion_weights = companion, companion_weights
        told: dict[str, Any] = {"size": size, "channels": channels, "mean": mean, "std": std}
        told |= {"crop": None if resize is None else RESIZES[resize], "interpolation": interpolation}
        self.options: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        if resize in ("stretch", "pad"):
            self.options["resize"] = None  # straight to the input's size
        self.headers, self.verify_key = headers, verify_key
        if model is None and (weights is not None or classes is not None or self.options):
            raise DataError(
                "--weights, --size, --channels, --resize, --interpolation, --mean, --std and --classes go with "
                "--model: name the model"
            )

    def load(self, device: str, collection: Collection | None = None, **defaults: Any) -> Classifier:
        """It, at the size of the images where neither it nor the command line states one."""
        from advconn import models

        if self.model is None:
            raise DataError("--model is needed")
        options = defaults | self.options
        if self.model.startswith(("http://", "https://")):
            kept = os.environ.get("ADVCONN_UPSTREAM_HEADER")  # where a list of processes does not show it
            options["headers"] = _headers(self.headers or ((kept,) if kept else ()))
        if self.classes is not None:
            options["class_names"] = class_names(self.classes)
        wanted = resolve_device(device)
        try:
            return models.load(self.model, self.weights, device=wanted, note=note, **options)
        except ModelError as error:
            if collection is None or "size" in options or "does not take images" not in str(error):
                raise
        return models.load(self.model, self.weights, device=wanted, note=note, size=collection.size(), **options)


def _headers(lines: tuple[str, ...]) -> dict[str, str]:
    """Headers for a served model, from lines 'NAME: VALUE'."""
    out = {}
    for line in lines:
        name, found, value = line.partition(":")
        if not found or not name.strip() or not value.strip() or not (line.isascii() and line.isprintable()):
            raise DataError("--upstream-header: expected 'NAME: VALUE', such as 'Authorization: Bearer TOKEN'")
        out[name.strip()] = value.strip()
    return out


def class_names(file: Path) -> Any:
    """Class names from a file: one a line, a JSON list, or a JSON object from index to name (or the other way)."""
    import json

    try:
        text = file.read_text(encoding="utf-8-sig")
        names = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable class names: {error}") from error
    names = names.get("id2label", names) if isinstance(names, dict) else names
    plain = isinstance(names, (dict, list)) and all(
        isinstance(value, (str, int)) for value in (names.values() if isinstance(names, dict) else names)
    )
    if not plain:
        raise DataError(f"{file}: no class names: expected one a line, a JSON list, or an object from index to name")
    if isinstance(names, dict) and not all(str(key).isdecimal() for key in names):
        names = {value: key for key, value in names.items()}
    return names if isinstance(names, dict) else [str(name).strip() for name in names if str(name).strip()]


def classifier_of(asked: ModelOptions, collection: Collection, device: str) -> Classifier:
    """The classifier named on the command line; one that takes images of any size is given those of the images.

    Args:
        asked: what the command line says of it.
        collection: the images, whose size is taken where nothing else states one.
        device: 'auto', 'cpu', 'cuda', or one of several such as 'cuda:0'.
    """
    classifier = asked.load(device, collection)
    if classifier.preprocessing.size is None:
        classifier = asked.load(device, None, size=collection.size())
    return classifier


def detector_of(detector: Path | None, asked: ModelOptions, device: str, *, same_weights: bool = True) -> Detector:
    """The detector named on the command line; the shipped one where none is. `same_weights`: see bundle.load.

    Args:
        detector: its folder, or None.
        asked: what the command line says of the classifier and of the companion.
        device: 'auto', 'cpu', 'cuda', or one of several such as 'cuda:0'.
        same_weights: whether the classifier must have the weights that the detector was fitted for.
    """
    import warnings

    from advconn.errors import AdvconnWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", AdvconnWarning)
        loaded = _loaded(detector, asked, device, same_weights)
    efficacy = loaded.fitted_.efficacy
    if efficacy is not None and efficacy.weak:
        note(efficacy.warning)
    for warning in said:
        if issubclass(warning.category, AdvconnWarning):
            note(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return loaded


def _loaded(detector: Path | None, asked: ModelOptions, device: str, same_weights: bool) -> Detector:
    from advconn import bundle
    from advconn.bundle.signature import verify

    if detector is None and (asked.model is not None or asked.companion is not None):
        name = "--model" if asked.model is not None else "--companion"
        raise DataError(f"{name} needs the --detector that was fitted for it: make one with advconn fit")
    folder = detector or bundle.default()
    if asked.verify_key is not None:
        verify(folder, asked.verify_key)  # before anything of the folder, or a factory, is used
    beside = None if asked.companion is None else _companion(folder, asked, device)
    if asked.model is None:
        return bundle.load(folder, companion=beside, device=resolve_device(device), verify_key=asked.verify_key)
    options = _described(bundle.read_card(folder)["classifier"])
    for name in ("crop", "interpolation"):
        if asked.options.get(name, options[name]) != options[name]:
            raise DataError(
                f"--resize, --interpolation: {folder} was fitted with {options['crop']}, {options['interpolation']}: "
                "leave them out, or fit it anew"
            )
    classifier = asked.load(device, None, **options)
    return bundle.load(
        folder, model=classifier, companion=beside, same_weights=same_weights, verify_key=asked.verify_key
    )


def _companion(folder: Path, asked: ModelOptions, device: str) -> Classifier:
    """The companion that is given for a detector, as its card describes it."""
    from advconn import bundle, models

    entry = bundle.read_card(folder)["companion"]
    if entry is None:
        raise DataError(f"{folder}: was fitted without a companion: leave --companion out")
    return models.load(
        str(asked.companion), asked.companion_weights, device=resolve_device(device), note=note, **_described(entry)
    )


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    """Options of a network, as a card holds them."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["preprocessing"].items()}
    return options | {"channels": entry["channels"], "class_names": entry["class_names"]}


FEWEST_COMPARED = 50  # images on which two networks must agree more often than by chance


def other_classifier(
    name: str, spec: str | None, weights: Path | None, subject: Classifier, images: Tensor
) -> Classifier | None:
    """A second network of the same classes that the command line names, if it does.

    What it does not reveal of its input is taken from the first: size, channels, and mean and std if it then agrees
    more often with the first.

    Args:
        name: what it is here: surrogate, companion or second model.
        spec: see models.loading.SPEC.
        weights: its state dict.
        subject: the first network.
        images: (n, c, h, w), on some of which the two must agree more often than by chance.

    Raises:
        DataError: they do not.
        ModelError: no such network, or one of other classes.
    """
    from advconn import models
    from advconn.data.labels import sample_rows
    from advconn.metrics import clopper_pearson
    from advconn.models.equivalence import agreement, scaled_like

    if spec is None:
        return None
    how, some = subject.preprocessing, images[sample_rows(len(images))]
    make = partial(
        models.load, spec, weights, size=how.size, channels=subject.channels, device=str(subject.device), note=note
    )
    other = scaled_like(subject, make, some)
    if other.num_classes != subject.num_classes:
        raise ModelError(f"the {name} has {other.num_classes} classes, the classifier {subject.num_classes}")
    if len(some):
        same = agreement(subject, other, some)
        if clopper_pearson(same)[0] <= 1 / subject.num_classes and len(same) >= FEWEST_COMPARED:
            raise DataError(
                f"the {name} and the classifier agree on {same.mean():.0%} of {len(same)} images, as by chance: are "
                "its weights, mean and std, and the order of its classes right?"
            )
        scale = "as they are" if other.preprocessing.mean is None else "with a mean and std"
        note(f"the {name} sees images {scale}, and agrees with the classifier on {same.mean():.0%} of {len(same)}")
    return other


def default_subject(device: str) -> tuple[Detector, Data]:
    """What stands in where no images are named: CIFAR-10's test images, or digits, with the detector shipped for them.

    And a note that says which, and why.
    """
    from advconn import bundle
    from advconn.data.datasets import cifar10, unseen_digits

    try:
        images = cifar10()
        note("no --data given: CIFAR-10's test images, and the shipped CIFAR-10 detector")
        return detector_of(None, ModelOptions(None), device), images
    except DataError as error:
        note(f"{error}; the digits inside scikit-learn, and the shipped digits detector, stand in")
    return detector_of(bundle.default("digits"), ModelOptions(None), device), unseen_digits()


def resolve_device(device: str) -> str:
    """The device named on the command line."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU here; use cpu")
    if not device.startswith(("cpu", "cuda")):
        raise DataError(f"--device {device}: expected auto, cpu or cuda")
    try:
        torch.empty(0, dtype=torch.float32, device=device)
    except RuntimeError:
        raise DataError(f"--device {device}: there is no such device here; expected auto, cpu or cuda") from None
    return device


def read(
    collection: Collection,
    classifier: Classifier,
    labels: str,
    max_bad: float,
    accept: bool,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor | None, list[Item]]:
    """All images at the classifier's size, or so many picked at random, their labels where known, and what they are.

    Says on stderr how well the classifier and the labels go together.

    Args:
        collection: the images.
        classifier: what they are shown to.
        labels: how labels are read: 'auto', 'name', 'index', 'sorted' or 'none'.
        max_bad: share of the files that may be unreadable, in [0, 1].
        accept: whether to go on with a classifier that is no better than chance.
        limit: images that are picked, at most; None takes all.
        seed: of the pick.

    Raises:
        DataError: too many unreadable files, or a classifier no better than chance.
    """
    import torch

    from advconn.data.labels import check_accuracy, resolve_labels, sample_rows

    collection = collection.for_channels(classifier.channels).sample(limit, seed)
    bad: list[DataError] = list(collection.failed)
    batches = list(collection.batches(classifier.preprocessing, bad=lambda item, error: bad.append(error)))
    tell_skipped(collection)
    count = len(collection.items) + len(collection.failed)
    if bad and (len(bad) > max_bad * count or not batches):
        share = math.ceil(1000 * len(bad) / count) / 1000
        more = f" ({len(bad)} of {count} cannot be read: --max-bad {share:g} leaves them out)"
        raise DataError(f"{bad[0]}{more * bool(batches)}")
    for error in bad:
        note(f"left out: {error}")
    if any(any(b.resized) for b in batches):
        how = RESIZED[classifier.preprocessing.crop]
        note(f"images of another size were brought to the classifier's own: {how} (--resize stretch, crop or pad)")
    if _mostly_white(batches):
        note("most pictures are nearly white: a plain loader cuts off 16 bits; --reading upright scales them")
    items = [item for b in batches for item in b.items]
    images = torch.cat([b.images for b in batches])
    rows = sample_rows(len(images))
    predicted = classifier.predict(images[rows])
    truth = resolve_labels(items, classifier.class_names, classifier.num_classes, predicted, labels, note, rows)
    said = check_accuracy(predicted, None if truth is None else truth[rows], classifier.num_classes, accept=accept)
    note(said + f", of the {len(images)} here" * (len(rows) < len(images)))
    return images, truth, items


def _mostly_white(batches: Sequence[Batch]) -> bool:
    """Whether more than half of the pictures are white almost everywhere, as those of 16 bits are when cut off."""
    import torch

    plain = [b.images.flatten(1) for b in batches if b.readings[0] == "plain"]
    shares = [(images == 255).float().mean(1) for images in plain]
    return bool(shares) and bool((torch.cat(shares) > 0.9).float().mean() > 0.5)


def tell_skipped(collection: Collection) -> None:
    """Lines on what is not judged: files that are no images, arrays in a folder, and arrays under unusual names."""
    inside = collection.other_arrays
    others = [name for name in collection.skipped if name not in collection.arrays]
    many = len(others) > 1
    for names, what in (
        (collection.arrays, "arrays inside a folder are not read, name them themselves"),
        (inside, "arrays that could be images, and are not judged (name them images, x, adv or arr_0)"),
        (others, f"{len(others)} file{'s' * many} {'were no images' if many else 'was no image'}"),
    ):
        if names:
            note(f"{what}: {', '.join(names[:3])}" + ", ..." * (len(names) > 3))
