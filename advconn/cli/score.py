"""advconn score: a verdict on every image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.common import Asked, detector_of, note, tell_skipped, vacant
from advconn.cli.options import (
    NONE,
    PATH,
    F,
    by_class_option,
    conditions_option,
    confidence_option,
    detector_option,
    device_option,
    fpr_option,
    frames_option,
    model_options,
)
from advconn.cli.progress import progress_bar
from advconn.errors import DataError

if TYPE_CHECKING:
    from advconn.images import Collection

CLEAN, FLAGGED, FAILED = 0, 1, 2
SMALL = 64  # pixels of the shorter side: more is a photograph


def threshold_options(function: F) -> F:
    """--fpr, --confidence, --conditions and --by-class, handed on as the parameters of Detector that were told."""

    @wraps(function)
    def command(**given: Any) -> Any:
        told = {name: given.pop(name) for name in ("fpr", "confidence", "conditions", "by_class")}
        told = {name: value for name, value in told.items() if value is not None}
        if told.get("confidence") == NONE:
            told["confidence"] = None
        return function(threshold=told, **given)

    for option in (by_class_option, conditions_option, confidence_option, fpr_option):
        command = option(command)
    return command  # type: ignore[return-value]


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
@click.option("--full", is_flag=True, help="Walk every stage for every image: barriers and votes of all of them.")
@click.option("--out", type=PATH, metavar="DIR", help="A new folder for results.jsonl, results.csv and report.html.")
@click.option(
    "--explain",
    is_flag=True,
    help="The page in detail for every image, not the flagged alone; without --out a page NAME.html for one image.",
)
@threshold_options
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
    full: bool,
    out: Path | None,
    explain: bool,
    threshold: dict[str, Any],
    device: str,
) -> None:
    """Say of each image (files, folders or arrays) whether it was adversarially perturbed.

    Exit status: 0 none flagged, 1 some flagged, 2 some image could not be judged (the others are).

    \b
    Example:
      advconn score photo.png
      advconn score --detector detector/ --format json images/
      advconn score --detector detector/ --out verdicts/ images/
      advconn score --explain photo.png
    """
    from advconn.cli.verdicts import Run, header_of
    from advconn.images import Collection, joined
    from advconn.watch import Watch

    if header and style != "json":
        raise click.UsageError("--header goes with --format json")
    page = None
    if explain and out is None:
        if len(images) != 1 or images[0].is_dir():
            raise click.UsageError("--explain writes one page of one image; for more give a folder for it: --out DIR")
        page = Path(f"{images[0].stem}.html")
        if page.exists():
            raise DataError(f"{page}: is there already; remove it, or name a folder for the page: --out DIR")
    if out is not None:
        vacant(out)
    run = Run(style, features, full, explain, out is not None or explain)
    collections = []
    for path in images:
        try:
            collections.append(Collection(path, reading=reading, frames=frames))
        except DataError as error:
            run.refuse(str(path), error)
    collections = joined(collections)
    folder = detector
    if detector is None and asked.model is None:
        folder, said = shipped_for(collections)
        note(said)
    found = detector_of(folder, asked, device)
    if threshold:
        found.set_params(**threshold)
    run.watch = Watch(found.calibration_)
    if header:
        click.echo(header_of(found, folder, shipped=detector is None))
    run.shipped = detector is None
    try:
        with progress_bar() as progress:
            for batch in run.batches(collections, found):
                for record, rows in run.judged(found, batch):
                    run.take(record, found, batch, rows)
                progress("score", run.done, sum(map(len, collections)))
    finally:  # what was judged is shown and written, also when it is interrupted
        for failure in (failure for collection in collections for failure in collection.failed):
            run.refuse(str(failure).partition(": ")[0], failure)
        run.show(found)
        run.write(found, out, page)
    for collection in collections:
        tell_skipped(collection)
    skipped = any(collection.skipped for collection in collections)
    run.close()
    status = FAILED if run.failed or (strict and skipped) else FLAGGED if run.flagged else CLEAN
    click.get_current_context().exit(status)


def shipped_for(collections: Sequence[Collection]) -> tuple[Path, str]:
    """The shipped detector that suits these images, and what to say of it: photographs have one of their own."""
    from advconn import bundle, zoo

    large = False
    for collection in collections:
        with suppress(DataError):
            large = large or min(collection.sample(1).size()) > SMALL
    if large and zoo.photographs_installed():
        return bundle.default("imagenet"), (
            "no --detector given: the one for photographs judges what EfficientNet-Lite0 (ImageNet) sees at 224x224"
        )
    said = "no --detector given: the shipped one judges a 32x32 CIFAR-10 classifier's view of the image"
    return bundle.default(), said + f"; for photographs there is another: {zoo.EXTRA}" * large
