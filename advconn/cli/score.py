"""advconn score: a verdict on every image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.common import (
    PATH,
    complain,
    detector_of,
    detector_option,
    device_option,
    model_option,
    note,
    progress_bar,
    weights_option,
)
from advconn.errors import DataError

if TYPE_CHECKING:
    from advconn.detector import Detector
    from advconn.images import Batch

CLEAN, FLAGGED, FAILED = 0, 1, 2


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@detector_option
@model_option
@weights_option
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
@device_option
def score(
    images: tuple[Path, ...], detector: Path | None, model: str | None, weights: Path | None, style: str, device: str
) -> None:
    """Say of each image (files, folders or .npz) whether it was adversarially perturbed.

    Exit status: 0 none flagged, 1 some flagged, 2 some image could not be judged (the others are).

    \b
    Example:
      advconn score photo.png
      advconn score --detector detector/ --format json images/
    """
    from advconn.images import Collection

    unread: list[DataError] = []
    collections = []
    for path in images:
        try:
            collections.append(Collection(path))
        except DataError as error:
            unread.append(error)
    found = detector_of(detector, model, weights, device)
    walk = found.connectivity
    if detector is None:
        note("no --detector given: the shipped one judges a 32x32 CIFAR-10 classifier's view of the image")
    records: list[dict[str, Any]] = []
    resized, flagged, done, total = False, False, 0, sum(map(len, collections))
    look, channels = walk.classifier.preprocessing, walk.classifier.channels
    with progress_bar() as progress:
        for batch in (b for c in collections for b in c.batches(look, channels, walk.batch_size, unread.append)):
            if any(batch.resized) and not resized:
                resized = True
                note(_resize_note(found))
            for record in _judged(found, batch):
                flagged |= record["adversarial"]
                if style == "json":
                    click.echo(_json(record))
                else:
                    records.append({k: v for k, v in record.items() if k != "features"})
            done += len(batch.items)
            progress("score", done, total)
    if records:
        _table(found, records)
    for refused in unread:
        complain(str(refused))
    sys.exit(FAILED if unread else FLAGGED if flagged else CLEAN)


def _judged(detector: Detector, batch: Batch) -> list[dict[str, Any]]:
    from time import perf_counter

    from advconn.report import rows

    started = perf_counter()
    judgement = detector.judge(batch.images)
    return rows(detector, [item.name for item in batch.items], judgement, perf_counter() - started)


def _json(record: dict[str, Any]) -> str:
    from advconn.report import as_json

    return as_json(record)


def _table(detector: Detector, records: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from advconn.report import as_table

    console = Console(width=None if sys.stdout.isatty() else 120)
    calibration = detector.calibration_
    console.print(as_table(records, calibration.threshold, calibration.fpr))


def _resize_note(detector: Detector) -> str:
    h, w = detector.connectivity.classifier.preprocessing.size or (0, 0)
    return (
        f"images were brought to the classifier's {w}x{h}: what it sees is judged, and a perturbation made at another "
        "size may not survive the resize"
    )
