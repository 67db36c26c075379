"""The command line: parses, calls, prints, exits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.errors import AdvconnError, DataError

if TYPE_CHECKING:
    from advconn.classifier import Classifier
    from advconn.detector import Detector, Progress
    from advconn.images import Batch, Collection

CLEAN, FLAGGED, FAILED = 0, 1, 2
SHOWN_AFTER = 2.0  # seconds


class _Group(click.Group):
    """Turns what advconn refuses into one line on stderr and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AdvconnError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("interrupted")


def _complain(message: str) -> None:
    click.echo(f"advconn: {' '.join(message.split())}", err=True)


def _fail(message: str) -> None:
    _complain(message)
    sys.exit(FAILED)


def _note(message: str) -> None:
    click.echo(f"note: {message}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="advconn")
def main() -> None:
    """Tell whether an image was adversarially perturbed, from how it is connected to what its class looks like.

    \b
    Example:
      advconn score photo.png
      advconn fit --model my_model.py:build --data images/ --out detector/
      advconn score --detector detector/ --model my_model.py:build photo.png
    """


SPEC = "file.py:factory, package.module:factory, timm:NAME or torchvision:NAME."
_PATH = click.Path(path_type=Path)
_model = click.option("--model", metavar="SPEC", help=SPEC)
_data = click.option(
    "--data", type=_PATH, required=True, metavar="PATH", help="Clean images: an image, a folder or .npz."
)
_weights = click.option("--weights", type=_PATH, help="State dict: .safetensors, or a torch file.")
_detector = click.option("--detector", type=_PATH, metavar="DIR", help="A fitted detector's folder.")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
_seed = click.option("--seed", type=int, default=0, show_default=True, help="Of every split and attack.")


@main.command()
@click.argument("images", nargs=-1, required=True, type=_PATH, metavar="IMAGE...")
@_detector
@_model
@_weights
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
@_device
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

    collections = [Collection(path) for path in images]
    found = _load(detector, model, weights, device)
    walk = found.connectivity
    if detector is None:
        _note("no --detector given: the shipped one judges a 32x32 CIFAR-10 classifier's view of the image")
    records: list[dict[str, Any]] = []
    unread: list[DataError] = []
    resized, flagged, done, total = False, False, 0, sum(map(len, collections))
    look, channels = walk.classifier.preprocessing, walk.classifier.channels
    with _progress() as progress:
        for batch in (b for c in collections for b in c.batches(look, channels, walk.batch_size, unread.append)):
            if any(batch.resized) and not resized:
                resized = True
                _note(_resize_note(found))
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
    for error in unread:
        _complain(str(error))
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


@main.command()
@click.option("--model", required=True, metavar="SPEC", help=SPEC)
@_weights
@_data
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="The detector's folder.")
@click.option("--fpr", type=float, default=0.05, show_default=True, help="False-alarm rate.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most so many images.")
@click.option(
    "--references",
    type=click.Choice(["choose", "synthesise"]),
    default="choose",
    show_default=True,
    help="Take references from the images (they are stored in the detector), or make them.",
)
@_seed
@_device
def fit(
    model: str,
    weights: Path | None,
    data: Path,
    out: Path,
    fpr: float,
    limit: int | None,
    references: str,
    seed: int,
    device: str,
) -> None:
    """Fit a detector for a classifier on clean images, which it was not trained on if possible.

    The attacked images are made here, over a mixture of attacks and strengths.

    \b
    Example:
      advconn fit --model my_model.py:build --data images/ --out detector/
      advconn fit --model timm:efficientnet_lite0 --weights w.safetensors --data images/ --out detector/
    """
    from advconn import bundle
    from advconn.fitting import fit as fit_detector
    from advconn.images import Collection

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not empty; give a new name or remove it")
    collection = Collection(data).sample(limit, seed)
    classifier = _classifier(model, weights, collection, device)
    images, labels = _read(collection, classifier)
    with _progress() as progress:
        detector = fit_detector(
            classifier,
            images,
            labels,
            fpr=fpr,
            seed=seed,
            synthesised=references == "synthesise",
            progress=progress,
            note=_note,
        )
    bundle.save(detector, out)
    fitted, calibration = detector.fitted_, detector.calibration_
    for name, (tried, hits) in fitted.attacks.items():
        low = "   (weak: few images to learn it from)" if tried and hits < 0.9 * tried else ""
        click.echo(f"  {name:<32} succeeded on {hits} of {tried}{low}")
    click.echo(
        f"{out}: fitted on {fitted.train} clean images and their attacked copies, calibrated on {fitted.calibrate} "
        f"others: "
        f"score above {calibration.threshold:.2f} is flagged (false-alarm rate {calibration.fpr:g})"
    )


@main.command()
@click.option("--attack", "spec", required=True, metavar="NAME[:key=value,...]", help="Such as pgd:eps=8/255,steps=10.")
@_model
@_weights
@_detector
@_data
@click.option("--out", type=_PATH, required=True, metavar="DIR", help="Where the attacked images go.")
@click.option("--limit", type=click.IntRange(min=1), help="Attack at most so many images.")
@_seed
@_device
def attack(
    spec: str,
    model: str | None,
    weights: Path | None,
    detector: Path | None,
    data: Path,
    out: Path,
    limit: int | None,
    seed: int,
    device: str,
) -> None:
    """Write attacked copies of images as lossless PNG files and as images.npz, to see a flag go up.

    \b
    Example:
      advconn attack --attack pgd:eps=8/255 --data photo.png --out attacked/
      advconn score attacked/
    """
    import torch

    from advconn.attacks import Attack, round_to_bytes, succeeded
    from advconn.images import Collection, save

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not empty; give a new name or remove it")
    made = Attack.parse(spec)
    collection = Collection(data).sample(limit, seed)
    if model is not None and detector is None:
        classifier = _classifier(model, weights, collection, device)
    else:
        classifier = _load(detector, model, weights, device).connectivity.classifier
    images, labels = _read(collection, classifier)
    clean = classifier.check(images)
    predicted = torch.cat([classifier.logits(x) for x in clean.split(64)]).argmax(1)
    truth = predicted if labels is None else labels.to(predicted)
    done: list[torch.Tensor] = []
    with _progress() as progress:
        for part in made.batches(classifier, clean, truth, seed=seed, batch_size=64):
            done.append(round_to_bytes(part))
            progress(str(made), sum(map(len, done)), len(clean))
    attacked = torch.cat(done)
    right = predicted == truth
    hits = int((succeeded(classifier, attacked, truth) & right).sum())
    change = (attacked - clean).flatten(1)
    names = [f"{i:05d}-{item.path.stem}" for i, item in enumerate(collection.items)]
    save(attacked, truth, names, out)
    click.echo(
        f"{out}: {made} changed the prediction of {hits} of {int(right.sum())} images that were classified right "
        f"({int((~right).sum())} were not); mean L2 {change.norm(dim=1).mean():.3f}, "
        f"largest Linf {change.abs().max() * 255:.1f}/255"
    )
    if hits < 0.9 * int(right.sum()):
        _note("the attack failed on more than a tenth of them: it is weaker than it looks")


def _classifier(spec: str, weights: Path | None, collection: Collection, device: str) -> Classifier:
    from advconn import models

    return models.load(spec, weights, size=collection.size(), device=_place(device))


def _load(detector: Path | None, model: str | None, weights: Path | None, device: str) -> Detector:
    from advconn import bundle, models

    if model is None:
        if weights is not None:
            raise DataError("--weights goes with --model: name the model they belong to")
        return bundle.load(detector or bundle.default(), device=_place(device))
    if detector is None:
        raise DataError("--model needs the --detector that was fitted for it: make one with advconn fit")
    look = bundle.read_card(detector)["classifier"]["preprocessing"]
    size = tuple(look["size"]) if look["size"] else None
    return bundle.load(detector, model=models.load(model, weights, size=size, device=_place(device)))


def _place(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DataError("--device cuda: torch sees no GPU here; use cpu")
    if not device.startswith(("cpu", "cuda")):
        raise DataError(f"--device {device}: expected auto, cpu or cuda")
    return device


def _read(collection: Collection, classifier: Classifier) -> tuple[Any, Any]:
    """All images at the classifier's size, and their true labels where they are known."""
    import torch

    from advconn.images import labels

    batches = list(collection.batches(classifier.preprocessing, classifier.channels))
    if any(any(b.resized) for b in batches):
        _note("images of another size were brought to the classifier's own, as its preprocessing does it")
    truth = labels(collection.items, classifier.class_names, classifier.num_classes)
    if truth is None:
        _note("no true labels are known: the classifier's own predictions stand in for them")
    return torch.cat([b.images for b in batches]), truth


@contextmanager
def _progress() -> Iterator[Progress]:
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


if __name__ == "__main__":
    main()
