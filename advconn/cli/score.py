"""advconn score: a verdict on every image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.arguments import ModelOptions, detector_of, tell_skipped
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
    spread_options,
)
from advconn.cli.output import note, print_error, progress_bar
from advconn.errors import DataError
from advconn.files import require_empty

if TYPE_CHECKING:
    from advconn.data.collection import Collection

CLEAN, FLAGGED, FAILED = 0, 1, 2
OTHER_FILES = {".json", ".ndjson", ".tsv", ".txt", ".xls", ".xlsx", ".html", ".pq"}  # that nobody means a folder by
COLOUR = 3  # channels of the detectors that are taken where none is named
SMALL = 64  # pixels of the shorter side: more is a photograph


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """The options of `advconn score`, as they were given."""

    sources: tuple[Path, ...]
    detector: Path | None
    asked: ModelOptions
    style: str
    header: bool
    features: bool
    explain: bool
    full: bool
    strict: bool
    out: Path | None
    resume: bool
    reading: str | None
    frames: str | None
    threshold: dict[str, Any]
    jobs: int
    backend: str
    device: str


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
@click.argument("images", nargs=-1, type=PATH, metavar="IMAGE...")
@click.option(
    "--from",
    "sources",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="A list of images, a path a line, or a .csv with a column of paths; '-' reads standard input.",
)
@detector_option
@model_options
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "sarif", "ocsf", "junit"]),
    default="text",
    show_default=True,
    help="json: a line an image. sarif, ocsf and junit: flagged images, for code hosts, SIEMs and build servers.",
)
@click.option("--features", is_flag=True, help="Add every feature to the JSON records.")
@click.option("--header", is_flag=True, help="A first line of JSON with threshold, rate, detector and classifier.")
@click.option(
    "--reading",
    type=click.Choice(["plain", "upright", "both"]),
    help="plain: as most loaders decode (no EXIF rotation, transparency ignored, 16 bits cut off). upright: as people "
    "see it. both: judge both [default: both; upright if the detector was fitted so].",
)
@frames_option
@click.option(
    "--strict",
    is_flag=True,
    help="Also exit with status 2 if a file is no image, or holds pictures or arrays that were not judged.",
)
@click.option(
    "--full",
    is_flag=True,
    help="Run all stages on every image, without early exit: slower, but every record contains the barriers.",
)
@click.option(
    "--out",
    type=PATH,
    metavar="PATH",
    help="A new folder for results.jsonl, results.csv and report.html, or a new file .jsonl, .csv or .parquet.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run with this --out.")
@click.option(
    "--explain",
    is_flag=True,
    help="Explain every image in report.html, not only flagged ones. Without --out, write NAME.html for one image.",
)
@threshold_options
@spread_options
@device_option
def score(images: tuple[Path, ...], **given: Any) -> None:
    """Tell which images were attacked.

    IMAGE is a file, a folder, an array, an archive or a list. Exit status: 0 if none is flagged, 1 if any
    is, 2 if any could not be judged, whether or not others are flagged (the rest are still judged).

    \b
    Example:
      advconn score photo.png
      advconn score --detector detector/ --format json images/
      advconn score --detector detector/ --out verdicts/ images/
      advconn score --detector detector/ --out verdicts.parquet --resume --jobs 8 images/
      advconn score --explain photo.png
    """
    from advconn import bundle
    from advconn.cli.score_output import ScoreRun, describe_detector
    from advconn.runtime.parallel import Runner, cluster
    from advconn.scoring.batch import BatchScorer
    from advconn.scoring.records import Failure
    from advconn.scoring.resume_journal import Journal

    options = ScoreOptions(**given)
    images = _listed(images, options.sources)
    target, single = _written(images, options)
    shipped = options.detector is None
    if options.detector is None and options.asked.model is None:
        reading = options.reading or "both"
        collections, refused = _opened(images, COLOUR, reading, options.frames)
        folder, said = shipped_for(collections)
        if collections:
            note(said)
        detector = detector_of(folder, options.asked, options.device)
    else:
        detector = detector_of(options.detector, options.asked, options.device)
        folder = options.detector or bundle.default()
        reading = options.reading or detector.fitted_.shown_reading
        collections, refused = _opened(images, detector.classifier.channels, reading, options.frames)
    if options.threshold:
        detector.set_params(**options.threshold)
    header = describe_detector(detector, folder)
    if options.header:
        click.echo(json.dumps({"header": header}))
    journal = None
    if target is not None:
        how = {"reading": reading, "frames": options.frames, "full": options.full, "features": options.features}
        what = {"images": [*map(str, images)], "count": sum(map(len, collections))}
        journal = Journal(target, header | how | what, resume=options.resume)
    run = ScoreRun(detector, options.style, options.features, journal)
    try:
        with cluster(options.backend, options.jobs), progress_bar() as progress:
            runner = Runner(options.jobs, options.backend, progress=progress)
            full = options.full or options.explain
            run.all(BatchScorer(detector, collections, refused, full=full, runner=runner))
    except BaseException:  # what was judged is shown, also when it is interrupted
        run.stopped()
        run.show(shipped)
        run.tell_findings(Failure("advconn", "advconn: the run ended before all images were judged"))
        raise
    run.show(shipped)
    if journal is not None and target is not None:
        run.write(journal, target, collections, explain=options.explain, single=single)
        journal.remove()
    for collection in collections:
        tell_skipped(collection)
    run.close()
    passed_over = run.others or any(collection.skipped or collection.other_arrays for collection in collections)
    if options.strict and passed_over and not run.failed:
        print_error("--strict: not all that lies there was judged; the notes above say what")
    not_all = bool(options.strict and passed_over)
    run.tell_findings(Failure("advconn", "advconn: --strict: not all that lies there was judged") if not_all else None)
    failed = run.failed or not_all
    click.get_current_context().exit(FAILED if failed else FLAGGED if run.flagged else CLEAN)


def _listed(images: Sequence[Path], sources: Sequence[Path]) -> tuple[Path, ...]:
    """The images named on the command line, and those of lists: of --from, of '-', of a .txt or a .csv."""
    from advconn.cli.path_lists import LISTS, read_lists

    out: list[Path] = []
    for path in images:
        is_list = str(path) == "-" or (path.suffix.lower() in LISTS and path.is_file())
        out += read_lists(path) if is_list else [path]
    for path in sources:
        out += read_lists(path)
    if not out:
        raise click.UsageError("Missing argument 'IMAGE...': files, folders, arrays, or --from a list")
    return tuple(out)


def _written(images: Sequence[Path], options: ScoreOptions) -> tuple[Path | None, bool]:
    """The folder or file that is asked for, or the page of one image, which can be written; whether it is that page."""
    from advconn.scoring.writers import writer_for

    out = options.out
    if options.header and options.style != "json":
        raise click.UsageError("--header goes with --format json")
    if out is not None:
        if writer_for(out) is None:
            if out.suffix.lower() in OTHER_FILES:
                raise click.UsageError(f"--out {out}: expected a folder's name, or a file .jsonl, .csv or .parquet")
            require_empty(out)
        elif options.explain:
            raise click.UsageError("--explain makes a page: give --out a folder, or leave it out for one image")
        elif out.exists():
            done = ": the run that wrote it was finished" * options.resume
            raise DataError(f"{out}: is there already{done}; give a new name or remove it")
        return out, False
    if options.resume:
        raise click.UsageError("--resume goes with --out")
    if not options.explain:
        return None, False
    if len(images) != 1 or images[0].is_dir():
        raise click.UsageError("--explain writes one page of one image; for more give a folder for it: --out DIR")
    page = Path(f"{images[0].stem}.html")
    if page.exists():
        raise DataError(f"{page}: is there already; remove it, or name a folder for the page: --out DIR")
    return page, True


def _opened(
    images: Sequence[Path], channels: int, reading: str, frames: str | None
) -> tuple[list[Collection], list[tuple[str, DataError]]]:
    """The collections behind these paths for a classifier of so many channels, and paths that are none, with why."""
    from advconn.data.collection import Collection, merge_collections

    collections, refused = [], []
    for path in images:
        try:
            collections.append(Collection(path, channels, reading=reading, frames=frames))
        except DataError as error:
            refused.append((str(path), error))
    named = {path.absolute() for path in images}
    for collection in collections:  # an archive in a folder is judged where it is named itself
        collection.failed = [e for e in collection.failed if e.name is None or Path(e.name).absolute() not in named]
    return merge_collections(collections), refused


def shipped_for(collections: Sequence[Collection]) -> tuple[Path, str]:
    """The shipped detector that suits these images, and what to say of it: photographs have one of their own."""
    from advconn import bundle
    from advconn.bundle import shipped

    large = False
    for collection in collections:
        with suppress(DataError):
            large = large or min(collection.sample(1).size()) > SMALL
    if large and shipped.photographs_installed():
        return bundle.default("imagenet"), (
            "no --detector given: using `imagenet`, which resizes images to 224x224 and judges them through "
            "EfficientNet-Lite0 (ImageNet)"
        )
    said = (
        "no --detector given: using `cifar10`, which resizes images to 32x32 and judges them through a CIFAR-10 "
        "classifier"
    )
    return bundle.default(), said + f"; for photographs there is another: {shipped.EXTRA}" * large
