"""advconn score: a verdict on every image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.common import (
    PATH,
    Asked,
    complain,
    detector_of,
    detector_option,
    device_option,
    frames_option,
    model_options,
    note,
    put,
    tell_skipped,
)
from advconn.cli.progress import progress_bar
from advconn.errors import AdvconnError, DataError, line_of

if TYPE_CHECKING:
    from advconn.detector import Detector
    from advconn.images import Batch, Collection

CLEAN, FLAGGED, FAILED = 0, 1, 2


@click.command()
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE...")
@detector_option
@model_options
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--features", is_flag=True, help="Also every feature, in JSON.")
@click.option("--header", is_flag=True, help="A first line of JSON with threshold, rate, detector and classifier.")
@click.option(
    "--reading",
    type=click.Choice(["plain", "upright", "both"]),
    default="both",
    show_default=True,
    help="As a plain loader reads a picture (no EXIF turn, transparency ignored), as people see it, or both.",
)
@frames_option
@click.option("--strict", is_flag=True, help="Exit with 2 also where a file in a folder is no image.")
@device_option
def score(
    images: tuple[Path, ...],
    detector: Path | None,
    asked: Asked,
    style: str,
    features: bool,
    header: bool,
    reading: str,
    frames: str | None,
    strict: bool,
    device: str,
) -> None:
    """Say of each image (files, folders or arrays) whether it was adversarially perturbed.

    Exit status: 0 none flagged, 1 some flagged, 2 some image could not be judged (the others are).

    \b
    Example:
      advconn score photo.png
      advconn score --detector detector/ --format json images/
    """
    from advconn.images import Collection, joined

    if header and style != "json":
        raise click.UsageError("--header goes with --format json")
    run = _Run(style, features)
    collections = []
    for path in images:
        try:
            collections.append(Collection(path, reading=reading, frames=frames))
        except DataError as error:
            run.refuse(str(path), error)
    collections = joined(collections)
    found = detector_of(detector, asked, device)
    if detector is None:
        note("no --detector given: the shipped one judges a 32x32 CIFAR-10 classifier's view of the image")
    if header:
        click.echo(_header(found, detector))
    run.shipped = detector is None
    try:
        with progress_bar() as progress:
            for batch in run.batches(collections, found):
                for record in _judged(found, batch):
                    run.take(record)
                progress("score", run.done, sum(map(len, collections)))
    finally:  # what was judged is shown, also when it is interrupted
        run.show(found)
    for collection in collections:
        tell_skipped(collection)
        for failure in collection.failed:
            run.refuse(str(failure).partition(": ")[0], failure)
    skipped = any(collection.skipped for collection in collections)
    run.close()
    status = FAILED if run.failed or (strict and skipped) else FLAGGED if run.flagged else CLEAN
    click.get_current_context().exit(status)


class _Run:
    """What a run has said so far."""

    def __init__(self, style: str, features: bool) -> None:
        self.style, self.features, self.shipped = style, features, False
        self.records: list[dict[str, Any]] = []
        self.failed: list[AdvconnError] = []
        self.flagged = self.resized = self.twice = False
        self.done = 0

    def refuse(self, name: str, error: AdvconnError) -> None:
        """An image that cannot be judged: a record of its own in JSON, and a line on stderr."""
        self.failed.append(error)
        if self.style == "json":
            click.echo(_json({"image": name, "error": str(error)}))

    def batches(self, collections: list[Collection], detector: Detector) -> Iterator[Batch]:
        walk = detector.connectivity
        look, channels = walk.classifier.preprocessing, walk.classifier.channels
        for collection in collections:
            refuse = lambda item, error: self.refuse(item.name, error)  # noqa: E731
            for batch in collection.batches(look, channels, walk.batch_size, refuse):
                if any(batch.resized) and not self.resized:
                    self.resized = True
                    note(_resize_note(detector))
                self.done += len(batch.items)
                yield batch

    def take(self, record: dict[str, Any]) -> None:
        """A verdict, or why there is none."""
        if "error" in record:
            self.refuse(record["image"], DataError(f"{record['image']}: {record['error']}"))
            return
        self.flagged |= record["adversarial"]
        if len(record["readings"]) > 1 and not self.twice:
            self.twice = True
            note(
                "some files are read in two ways (EXIF turn, transparency, 16 bits): both were judged, and p is twice "
                "the smaller; `reading` tells which spoke"
            )
        if not self.features:
            del record["features"]
        if self.style == "json":
            click.echo(_json(record))
        else:
            self.records.append({k: v for k, v in record.items() if k != "features"})

    def show(self, detector: Detector) -> None:
        """The table, if there is one."""
        if not self.records:
            return
        from advconn.report import as_table

        calibration = detector.calibration_
        size = detector.connectivity.classifier.preprocessing.size
        view = f"{size[1]}x{size[0]}" if size is not None and self.shipped else ""
        put(as_table(self.records, calibration.threshold, calibration.fpr, view), 120)

    def close(self) -> None:
        """Lines on stderr for what was not judged."""
        for error in self.failed:
            complain(str(error))


def _judged(detector: Detector, batch: Batch) -> list[dict[str, Any]]:
    """Records of a batch; one that fails as a whole is judged again one image at a time."""
    try:
        return _records(detector, batch, range(len(batch.items)))
    except Exception:  # the classifier's own code may raise anything at one of the images
        out = []
        for rows in _grouped(batch):
            try:
                out += _records(detector, batch, rows)
            except Exception as error:  # the same
                name = batch.items[rows[0]].name
                out.append({"image": name, "error": f"the classifier fails on it: {line_of(error)}"})
        return out


def _records(detector: Detector, batch: Batch, rows: Any) -> list[dict[str, Any]]:
    from time import perf_counter

    from advconn.report import merged
    from advconn.report import rows as as_rows

    started, index = perf_counter(), list(rows)
    judgement = detector.judge(batch.images[index])
    found = as_rows(detector, [batch.items[i].name for i in index], judgement, perf_counter() - started)
    height, width = batch.images.shape[2:]
    for record, i in zip(found, index, strict=True):
        record |= {"reading": batch.readings[i], "given": list(batch.given[i]), "judged": [width, height]}
    groups = _grouped(batch, index)
    at = {i: n for n, i in enumerate(index)}
    return [merged([found[at[i]] for i in group], detector.calibration_.fpr) for group in groups]


def _grouped(batch: Batch, rows: list[int] | None = None) -> list[list[int]]:
    """Rows of each image: one, or two where it is read in two ways."""
    groups: list[list[int]] = []
    for i in range(len(batch.items)) if rows is None else rows:
        if groups and batch.items[groups[-1][-1]] == batch.items[i]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _json(record: dict[str, Any]) -> str:
    from advconn.report import as_json

    return as_json(record)


def _header(detector: Detector, folder: Path | None) -> str:
    from importlib.metadata import version

    classifier, calibration = detector.connectivity.classifier, detector.calibration_
    about = {
        "advconn": version("advconn"),
        "detector": "cifar10 (shipped)" if folder is None else str(folder),
        "threshold": calibration.threshold,
        "fpr": calibration.fpr,
        "calibrated_on": len(calibration.scores),
        "classifier": classifier.name,
        "fingerprint": classifier.fingerprint,
    }
    return _json({"header": about})


def _resize_note(detector: Detector) -> str:
    h, w = detector.connectivity.classifier.preprocessing.size or (0, 0)
    return (
        f"images were brought to the classifier's {w}x{h}: what it sees is judged, and a perturbation made at another "
        "size may not survive the resize"
    )
