"""advconn connect: the path between two images of a class, to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.arguments import ModelOptions, classifier_of, detector_of
from advconn.cli.options import PATH, detector_option, device_option, model_options
from advconn.cli.output import note, progress_bar
from advconn.errors import DataError

if TYPE_CHECKING:
    from advconn.models.classifier import Classifier
    from advconn.paths.connection import Connection
    from advconn.paths.decoder import Decoder
    from advconn.paths.space import Space

KINDS = (".html", ".png", ".json")


@click.command()
@click.argument("first", type=PATH, metavar="A.png")
@click.argument("second", type=PATH, metavar="B.png")
@model_options
@detector_option
@click.option("--class", "wanted", metavar="C", help="Class to stay in, as index or name [default: A's prediction].")
@click.option(
    "--space",
    "layer",
    default="pixel",
    show_default=True,
    metavar="pixel|LAYER",
    help="Space of the path: pixels, or the output of a layer.",
)
@click.option(
    "--method",
    type=click.Choice(["line", "bypass", "band"]),
    default="band",
    show_default=True,
    help="How the path is found: line (straight), bypass (bent around each barrier), band (an elastic band, relaxed).",
)
@click.option(
    "--delta", type=float, default=1e-3, show_default=True, help="Cross-entropy above which a path has a barrier."
)
@click.option(
    "--decoder",
    "decoder_file",
    type=PATH,
    metavar="FILE",
    help="File of a decoder that turns a latent path into images.",
)
@click.option(
    "--data",
    type=PATH,
    metavar="PATH",
    help="If --decoder FILE does not exist, train a decoder on these images and save it there.",
)
@click.option(
    "--out", type=PATH, metavar="FILE", help="Write the path as .html (a page), .png (a picture) or .json (numbers)."
)
@device_option
def connect(
    first: Path,
    second: Path,
    asked: ModelOptions,
    detector: Path | None,
    wanted: str | None,
    layer: str,
    method: str,
    delta: float,
    decoder_file: Path | None,
    data: Path | None,
    out: Path | None,
    device: str,
) -> None:
    """Find a path between two images of a class.

    Along the path from A to B the predicted class stays the same.

    Without --model and --detector the shipped CIFAR-10 classifier is used.

    \b
    Example:
      advconn connect a.png b.png --out path.html
      advconn connect a.png b.png --space stage1 --method bypass --out path.png
    """
    from advconn.data.collection import Collection
    from advconn.paths.connection import connect as joined
    from advconn.paths.space import Space

    if out is not None and out.suffix.lower() not in KINDS:
        raise DataError(f"--out {out}: expected a file that ends in {', '.join(KINDS)}")
    if out is not None and out.exists():
        raise DataError(f"--out {out}: is there already; give a new name or remove it")
    if not delta > 0:
        raise DataError(f"--delta {delta:g}: expected a cross-entropy above 0")
    collections = [Collection(first), Collection(second)]
    if asked.model is not None and detector is None:
        classifier = classifier_of(asked, collections[0], device)
    else:
        classifier = detector_of(detector, asked, device).classifier
        if detector is None:
            note("no --model or --detector given: the shipped 32x32 CIFAR-10 classifier is asked")
    images = [_single(c, classifier) for c in collections]
    predicted = classifier.logits(_stack(images)).argmax(1)
    label = int(predicted[0]) if wanted is None else _class(wanted, classifier)
    names = classifier.label_names([label, *predicted.tolist()])
    if any(int(p) != label for p in predicted):
        raise DataError(
            f"A is predicted as {names[1]}, B as {names[2]}: expected two images that the classifier puts in "
            f"{names[0]}, for the path to stay there"
        )
    space = Space(classifier, layer)
    decoder = _decoder(space, decoder_file, data)
    connection = joined(space, images[0], images[1], predicted.new_tensor([label]), method=method, delta=delta)
    facts = _facts(connection, names[0], first, second)
    for name, value in facts:
        click.echo(f"{name:<24} {value}")
    if out is not None:
        _write(out, connection, facts, decoder, images)
        click.echo(f"{out}: written")


def _stack(images: list[Any]) -> Any:
    import torch

    return torch.cat(images)


def _single(collection: Any, classifier: Classifier) -> Any:
    collection = collection.for_channels(classifier.channels)
    if len(collection) != 1:
        raise DataError(f"{collection.path}: {len(collection)} images; expected one")
    batch = next(collection.batches(classifier.preprocessing))
    if batch.resized[0]:
        note(f"{collection.path}: brought to the classifier's size, as its preprocessing does it")
    return classifier.check(batch.images)


def _class(wanted: str, classifier: Classifier) -> int:
    names = classifier.class_names or ()
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < classifier.num_classes:
        return int(wanted)
    some = f", or a name such as {names[0]}" if names else ""
    raise DataError(f"--class {wanted}: expected an index from 0 to {classifier.num_classes - 1}{some}")


def _decoder(space: Space, file: Path | None, data: Path | None) -> Decoder | None:
    from advconn.cli.arguments import read
    from advconn.data.collection import Collection
    from advconn.paths import decoder as decoders

    if file is None:
        if space.layer != "pixel":
            note("no --decoder given: images along a latent path are not shown")
        return None
    if file.exists():
        return decoders.load(file, space)
    if data is None:
        raise DataError(f"{file}: no such file; give --data with images to train a decoder on")
    images, _, _ = read(Collection(data), space.classifier, "none", 0.01, True)
    with progress_bar() as progress:
        decoder = decoders.train(space, images, progress=progress)
    decoder.save(file)
    note(f"{file}: a decoder of {space.layer}, trained on {len(images)} images; mean square error {decoder.loss:.4f}")
    return decoder


def _facts(connection: Connection, name: str, first: Path, second: Path) -> list[tuple[str, Any]]:
    from advconn.paths.plots import relative_displacement

    out: list[tuple[str, Any]] = [
        ("first", first),
        ("second", second),
        ("class", name),
        ("space", connection.space.layer),
        ("method", connection.method),
        ("outcome", {"line": "connected by a line", "curve": "connected by a curved path", "none": "not connected"}[
            connection.outcome[0]
        ]),
        ("ceiling", f"{float(connection.ceiling[0]):.4g} (--delta, and where an end is above it that end's more)"),
        ("barrier of the line", f"{float(connection.line.barrier[0]):.4g} at {float(connection.line.place[0]):.2f}"),
        ("barrier of the path", f"{float(connection.curve.barrier[0]):.4g} at {float(connection.curve.place[0]):.2f}"),
        ("length ratio", f"{float(connection.length_ratio[0]):.4f}"),
        ("largest B' - B", f"{relative_displacement(connection, 0):.2%} of B's largest value"),
        ("gradients", int(connection.gradients[0])),
    ]  # fmt: skip
    if connection.barriers is not None:
        out.append(("barriers by level", connection.barriers[0].tolist()))
    return out


def _figures(connection: Connection, facts: list[tuple[str, Any]]) -> dict[str, Any]:
    """The facts as numbers."""
    from advconn.paths.plots import relative_displacement

    told = {k: str(v) for k, v in facts if k in ("first", "second", "class", "space", "method")}
    return told | {
        "outcome": connection.outcome[0],
        "ceiling": float(connection.ceiling[0]),
        "barrier": {"line": float(connection.line.barrier[0]), "path": float(connection.curve.barrier[0])},
        "place": {"line": float(connection.line.place[0]), "path": float(connection.curve.place[0])},
        "length_ratio": float(connection.length_ratio[0]),
        "largest_change": relative_displacement(connection, 0),
        "gradients": int(connection.gradients[0]),
        "barriers_by_level": None if connection.barriers is None else connection.barriers[0].tolist(),
    }


def _write(
    out: Path, connection: Connection, facts: list[tuple[str, Any]], decoder: Decoder | None, given: list[Any]
) -> None:
    import json

    from advconn.files import atomic_file
    from advconn.paths import plots

    kind = out.suffix.lower()
    if kind == ".json":
        curves = {
            "positions": connection.line.t.tolist(),
            "line": connection.line.energies[0].tolist(),
            "path": connection.curve.energies[0].tolist(),
        }
        content = (json.dumps(_figures(connection, facts) | curves, indent=1) + "\n").encode()
    else:
        drawn = plots.connection(connection, 0, decoder, given)
        content = plots.png(drawn) if kind == ".png" else plots.page("advconn connect", [drawn], facts).encode()
    with atomic_file(out) as partial:
        partial.write_bytes(content)
