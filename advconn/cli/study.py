"""advconn study: an experiment of the two papers, on anyone's classifier."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.arguments import ModelOptions, classifier_of, default_subject, detector_of, read
from advconn.cli.options import PATH, SPEC, device_option, input_options, seed_option
from advconn.cli.output import note, progress_bar
from advconn.errors import DataError, expected_one_of
from advconn.files import require_empty

if TYPE_CHECKING:
    from advconn.studies import Study, Subject

NAMES = ("linear-or-not", "barriers", "bypass", "untrained", "training", "percolation", "architectures")


class _Name(click.ParamType):  # type: ignore[type-arg]
    name = "name"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value not in NAMES:
            self.fail(f"no study {value!r}: {expected_one_of(str(value), NAMES)}", param, ctx)
        return value


@click.command()
@click.argument("name", type=_Name(), metavar="NAME")
@click.option("--fast", is_flag=True, help="Run a short version (minutes on two cores) instead of the papers' setting.")
@click.option("--model", "models", multiple=True, metavar="SPEC", help=f"{SPEC} Repeat for `architectures`.")
@click.option("--weights", "weights", multiple=True, type=PATH, help="State dict; one for each --model, in order.")
@input_options
@click.option("--data", type=PATH, metavar="PATH", help="Images [default: CIFAR-10's test images, or digits].")
@click.option("--out", type=PATH, metavar="DIR", help="For results.json, figure.png and text.md.")
@seed_option
@device_option
def study(
    name: str,
    fast: bool,
    models: tuple[str, ...],
    weights: tuple[Path, ...],
    inputs: dict[str, Any],
    data: Path | None,
    out: Path | None,
    seed: int,
    device: str,
) -> None:
    """Repeat an experiment from one of the two papers that advconn builds on.

    They are Vrabel et al. (2025) and Gu & Borovykh (2023); the figures stand beside theirs.

    Without --model the shipped CIFAR-10 classifier is used.

    \b
    NAME is one of:
      linear-or-not, barriers, bypass, untrained, training, percolation, architectures

    \b
    Example:
      advconn study linear-or-not --fast
      advconn study barriers --model torchvision:resnet18 --weights w.pt --data images/ --out study/
    """
    from advconn.studies import studies

    if out is not None:
        require_empty(out)
    with progress_bar() as progress:
        subject = _subject(
            [ModelOptions(*named, **inputs) for named in _named(models, weights)], data, device, seed, progress
        )
        result = studies()[name](subject, fast=fast)
    click.echo(result.text)
    if out is not None:
        _save(name, fast, subject, result, out)
        click.echo(f"{out}: results.json, figure.png, text.md")


def _named(models: tuple[str, ...], weights: tuple[Path, ...]) -> list[tuple[str | None, Path | None]]:
    """Each model with its weights; one of None where none is named."""
    if weights and len(weights) != len(models):
        raise DataError(f"{len(weights)} --weights for {len(models)} --model: give one for each, in order, or none")
    return list(zip(models or (None,), weights or (None,) * max(1, len(models)), strict=True))


def _subject(asked: list[ModelOptions], data: Path | None, device: str, seed: int, progress: Any) -> Subject:
    from advconn.data.collection import Collection
    from advconn.studies import Subject

    if data is None:
        if asked[0].model is not None:
            raise DataError("--data is needed with --model: images that the classifier takes")
        detector, images = default_subject(device)
        return Subject(
            detector.classifier, images.images, images.labels, images.name,
            attacks=dict(images.attacks), seed=seed, progress=progress,
        )  # fmt: skip
    collection = Collection(data)
    if asked[0].model is None:
        note("no --model given: the shipped 32x32 CIFAR-10 classifier is used")
        classifiers = [detector_of(None, ModelOptions(None), device).classifier]
    else:
        classifiers = [classifier_of(each, collection, device) for each in asked]
    pixels, labels, _ = read(collection, classifiers[0], "auto", 0.01, True)
    for other in classifiers[1:]:
        if (
            other.num_classes != classifiers[0].num_classes
            or other.preprocessing.size != classifiers[0].preprocessing.size
        ):
            raise DataError(
                f"{other} takes other images or gives other classes than {classifiers[0]}: compare like with like"
            )
    return Subject(classifiers[0], pixels, labels, data.name, classifiers[1:], seed=seed, progress=progress)


def _save(name: str, fast: bool, subject: Subject, result: Study, out: Path) -> None:
    import hashlib
    import json
    import platform

    from advconn.files import atomic_folder
    from advconn.paths.plots import png

    about = {
        "study": name,
        "setting": "fast" if fast else "paper",
        "classifier": str(subject.classifier),
        "fingerprint": subject.classifier.fingerprint,
        "data": subject.name,
        "data_sha256": hashlib.sha256(subject.images.numpy().tobytes()).hexdigest(),
        "seed": subject.seed,
        "machine": platform.processor() or platform.machine(),
        "versions": {n: _version(n) for n in ("advconn", "torch", "torchattacks", "numpy")},
    }
    with atomic_folder(out) as partial:
        record = about | {"figures": _plain(result.figures)}
        (partial / "results.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        (partial / "figure.png").write_bytes(png(result.draw()))
        (partial / "text.md").write_text(f"# {name}\n\n{result.text}\n\n![figure](figure.png)\n")


def _plain(value: Any) -> Any:
    """The same with None for numbers that are none, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(name: str) -> str | None:
    """Of a package, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None
