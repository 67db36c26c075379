"""What the commands share: options, models and images from their arguments, notes, and a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.errors import DataError

if TYPE_CHECKING:
    from advconn.classifier import Classifier
    from advconn.detector import Detector
    from advconn.evaluation.data import Data
    from advconn.images import Collection
    from advconn.progress import Progress

SHOWN_AFTER = 2.0  # seconds

SPEC = "file.py:factory, package.module:factory, timm:NAME or torchvision:NAME."
PATH = click.Path(path_type=Path)
model_option = click.option("--model", metavar="SPEC", help=SPEC)
data_option = click.option(
    "--data", type=PATH, required=True, metavar="PATH", help="Clean images: an image, a folder or .npz."
)
weights_option = click.option("--weights", type=PATH, help="State dict: .safetensors, or a torch file.")
detector_option = click.option("--detector", type=PATH, metavar="DIR", help="A fitted detector's folder.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every split and attack."
)


def complain(message: str) -> None:
    """One line on stderr."""
    click.echo(f"advconn: {' '.join(message.split())}", err=True)


def note(message: str) -> None:
    """What the user should know, on stderr."""
    click.echo(f"note: {message}", err=True)


def vacant(folder: Path) -> None:
    """Refuse a folder that holds something or cannot be made, before the work that is to fill it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; give a new name or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error


def classifier_of(spec: str, weights: Path | None, collection: Collection, device: str) -> Classifier:
    """The classifier named on the command line, at the size of the images where it states none."""
    from advconn import models

    return models.load(spec, weights, size=collection.size(), device=place(device))


def detector_of(detector: Path | None, model: str | None, weights: Path | None, device: str) -> Detector:
    """The detector named on the command line; the shipped one where none is."""
    from advconn import bundle, models

    if model is None:
        if weights is not None:
            raise DataError("--weights goes with --model: name the model they belong to")
        return bundle.load(detector or bundle.default(), device=place(device))
    if detector is None:
        raise DataError("--model needs the --detector that was fitted for it: make one with advconn fit")
    card = bundle.read_card(detector)["classifier"]
    look = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocessing"].items()}
    look |= {"channels": card["channels"], "class_names": card["class_names"]}
    return bundle.load(detector, model=models.load(model, weights, device=place(device), **look))


def unasked(device: str) -> tuple[Detector, Data]:
    """What stands in where no images are named: CIFAR-10's test images, or digits, with the detector shipped for them.

    And a note that says which, and why.
    """
    from advconn import bundle
    from advconn.evaluation.data import cifar10, unseen_digits

    try:
        images = cifar10()
        note("no --data given: CIFAR-10's test images, and the shipped CIFAR-10 detector")
        return detector_of(None, None, None, device), images
    except DataError as error:
        note(f"{error}; the digits inside scikit-learn, and the shipped digits detector, stand in")
    return detector_of(bundle.default("digits"), None, None, device), unseen_digits()


def place(device: str) -> str:
    """The device named on the command line."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU here; use cpu")
    if not device.startswith(("cpu", "cuda")):
        raise DataError(f"--device {device}: expected auto, cpu or cuda")
    try:
        torch.empty(0, device=device)
    except RuntimeError:
        raise DataError(f"--device {device}: there is no such device here; expected auto, cpu or cuda") from None
    return device


def read(collection: Collection, classifier: Classifier) -> tuple[Any, Any]:
    """All images at the classifier's size, and their true labels where they are known."""
    import torch

    from advconn.images import labels

    batches = list(collection.batches(classifier.preprocessing, classifier.channels))
    if any(any(b.resized) for b in batches):
        note("images of another size were brought to the classifier's own, as its preprocessing does it")
    truth = labels(collection.items, classifier.class_names, classifier.num_classes)
    if truth is None:
        note("no true labels are known: the classifier's own predictions stand in for them")
    return torch.cat([b.images for b in batches]), truth


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr that appears once the work has taken two seconds."""
    from time import monotonic

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, Any] = {}
    started, shown = monotonic(), False

    def report(stage: str, done: int, total: int) -> None:
        nonlocal shown
        if not shown and monotonic() - started > SHOWN_AFTER:
            shown = True
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total)
        bars.update(tasks[stage], completed=done, total=total, visible=done < total)

    try:
        yield report
    finally:
        if shown:
            bars.stop()
