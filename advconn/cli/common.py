"""What the commands share: options, models and images from their arguments, and notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from advconn.errors import DataError, ModelError
from advconn.files import vacant as vacant
from advconn.shown import shown

if TYPE_CHECKING:
    from torch import Tensor

    from advconn.calibration import Calibration
    from advconn.classifier import Classifier
    from advconn.datasets import Data
    from advconn.detector import Detector
    from advconn.images import Collection, Item

F = TypeVar("F", bound=Callable[..., Any])
SPEC = (
    "file.py:factory, package.module:factory, timm:NAME, torchvision:NAME, hf:FOLDER, onnx:FILE or an endpoint's URL."
)
PATH = click.Path(path_type=Path, readable=False)
data_option = click.option(
    "--data", type=PATH, required=True, metavar="PATH", help="Clean images: an image, a folder or an array file."
)
detector_option = click.option("--detector", type=PATH, metavar="DIR", help="A fitted detector's folder.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed for splits and attacks."
)


def _list_attacks(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Print every attack by family, and end."""
    if not value:
        return
    from advconn.attacks import Attack
    from advconn.kinds import FAMILIES, KINDS

    for family, what in FAMILIES.items():
        click.echo(f"{family}: {what}")
        for name in (name for name, kind in KINDS.items() if kind.family == family):
            attack, kind = Attack(name), KINDS[name]
            settings = ", ".join(f"{k}={v:.4g}" for k, v in attack.settings.items())
            wants = ["gradients"] * attack.needs_gradient + ["foolbox"] * kind.made_by.startswith("foolbox:")
            click.echo(f"  {name:<14} {settings:<40} {kind.source}" + f" (needs {', '.join(wants)})" * bool(wants))
    ctx.exit()


list_attacks_option = click.option(
    "--list-attacks",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_attacks,
    help="Show attacks by family, with their parameters, and exit.",
)
accept_option = click.option(
    "--accept-accuracy", "accept", is_flag=True, help="Go on with a classifier that is no better than chance."
)


class _Confidence(click.ParamType):  # type: ignore[type-arg]
    name = "SHARE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if str(value).lower() == NONE:
            return NONE
        try:
            found = float(value)
        except ValueError:
            found = 0.0
        if not 0 < found < 1:
            self.fail(f"{value!r}: expected a share such as 0.95, or none", param, ctx)
        return found


class _Names(click.ParamType):  # type: ignore[type-arg]
    name = "NAME,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from advconn.conditions import usable

        return (
            usable((part.strip() for part in value.split(",") if part.strip()), 3) if isinstance(value, str) else value
        )


NONE = "none"
fpr_option = click.option("--fpr", type=float, help="False-alarm rate; the detector's own unless told.")
confidence_option = click.option(
    "--confidence",
    type=_Confidence(),
    help="Of the rate, such as 0.95; none: it holds on average [default: as fitted].",
)
conditions_option = click.option(
    "--conditions",
    type=_Names(),
    help="Benign changes under each of which the rate is to hold: clean,jpeg75,webp80,...",
)
by_class_option = click.option(
    "--by-class/--no-by-class",
    default=None,
    help="A threshold for each predicted class that has enough calibration images.",
)


def model_options(function: F) -> F:
    """--model and what it cannot say itself, handed on as one `asked` of type Asked."""
    from functools import wraps

    names = ("model", "weights", "size", "channels", "mean", "std", "classes")

    @wraps(function)
    def command(**given: Any) -> Any:
        return function(asked=Asked(**{name: given.pop(name) for name in names}), **given)

    for option in reversed(_MODEL):
        command = option(command)
    return command  # type: ignore[return-value]


class _Side(click.ParamType):  # type: ignore[type-arg]
    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
            self.fail(f"{value!r}: expected a side or HEIGHTxWIDTH, such as 224 or 480x640", param, ctx)
        return int(parts[0]), int(parts[-1])


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    name = "R,G,B"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return tuple(float(v) for v in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected a number a channel, such as 0.485,0.456,0.406", param, ctx)


_MODEL = (
    click.option("--model", metavar="SPEC", help=SPEC),
    click.option("--weights", type=PATH, help="State dict: .safetensors, or a torch file."),
    click.option("--size", type=_Side(), help="Input size, 224 or 480x640, if not what the --model says."),
    click.option("--channels", type=click.IntRange(min=1), help="Channels it takes; 3, or 1 for grey."),
    click.option("--mean", type=_Numbers(), help="Per channel, of images in [0, 1]; goes with --std."),
    click.option("--std", type=_Numbers(), help="Per channel."),
    click.option("--classes", type=PATH, metavar="FILE", help="Class names: one a line, a JSON list, or id2label."),
)


class Asked:
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
    ) -> None:
        self.model, self.weights, self.classes = model, weights, classes
        told = {"size": size, "channels": channels, "mean": mean, "std": std}
        self.options = {name: value for name, value in told.items() if value is not None}
        if model is None and (weights is not None or classes is not None or self.options):
            raise DataError(
                "--weights, --size, --channels, --mean, --std and --classes go with --model: name the model"
            )

    def load(self, device: str, collection: Collection | None = None, **known: Any) -> Classifier:
        """It, at the size of the images where neither it nor the command line states one."""
        from advconn import models

        if self.model is None:
            raise DataError("--model is needed")
        options = known | self.options
        if self.classes is not None:
            options["class_names"] = class_names(self.classes)
        wanted = place(device)
        try:
            return models.load(self.model, self.weights, device=wanted, note=note, **options)
        except ModelError as error:
            if collection is None or "size" in options or "does not take images" not in str(error):
                raise
        return models.load(self.model, self.weights, device=wanted, note=note, size=collection.size(), **options)


def class_names(file: Path) -> Any:
    """Class names from a file: one a line, a JSON list, or a JSON object from index to name (or the other way)."""
    import json

    try:
        text = file.read_text(encoding="utf-8-sig")
        found = json.loads(text) if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable class names: {error}") from error
    found = found.get("id2label", found) if isinstance(found, dict) else found
    if isinstance(found, dict) and not all(str(key).isdecimal() for key in found):
        found = {value: key for key, value in found.items()}
    return found if isinstance(found, dict) else [str(name).strip() for name in found if str(name).strip()]


def complain(message: str) -> None:
    """One line on stderr."""
    click.echo(f"advconn: {shown(' '.join(message.split()))}", err=True)


def note(message: str) -> None:
    """What the user should know, on stderr."""
    click.echo(f"note: {shown(' '.join(message.split()))}", err=True)


def promised(calibration: Calibration) -> str:
    """The false-alarm rate, and how sure it is."""
    sure = "on average" if calibration.confidence is None else f"with {calibration.confidence:.0%} confidence"
    return f"false-alarm rate {calibration.fpr:g} {sure}"


def put(table: Any, width: int) -> None:
    """A table on stdout, so wide where that is no terminal."""
    import sys

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width)
    with console.capture() as text:  # rich would end the process with status 1 at a closed pipe
        console.print(table)
    click.echo(text.get(), nl=False)


def classifier_of(asked: Asked, collection: Collection, device: str) -> Classifier:
    """The classifier named on the command line; one that takes images of any size is given those of the images."""
    found = asked.load(device, collection)
    if found.preprocessing.size is None:
        found = asked.load(device, None, size=collection.size())
    return found


def detector_of(detector: Path | None, asked: Asked, device: str, *, same_weights: bool = True) -> Detector:
    """The detector named on the command line; the shipped one where none is. `same_weights`: see bundle.load."""
    import warnings

    from advconn.errors import AdvconnWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", AdvconnWarning)
        found = _loaded(detector, asked, device, same_weights)
    for warning in said:
        if issubclass(warning.category, AdvconnWarning):
            note(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return found


def _loaded(detector: Path | None, asked: Asked, device: str, same_weights: bool) -> Detector:
    from advconn import bundle

    detector = None if detector is None else bundle.folder_of(detector)
    if asked.model is None:
        return bundle.load(detector or bundle.default(), device=place(device))
    if detector is None:
        raise DataError("--model needs the --detector that was fitted for it: make one with advconn fit")
    card = bundle.read_card(detector)["classifier"]
    look = {k: tuple(v) if isinstance(v, list) else v for k, v in card["preprocessing"].items()}
    look |= {"channels": card["channels"], "class_names": card["class_names"]}
    return bundle.load(detector, model=asked.load(device, None, **look), same_weights=same_weights)


def unasked(device: str) -> tuple[Detector, Data]:
    """What stands in where no images are named: CIFAR-10's test images, or digits, with the detector shipped for them.

    And a note that says which, and why.
    """
    from advconn import bundle
    from advconn.datasets import cifar10, unseen_digits

    try:
        images = cifar10()
        note("no --data given: CIFAR-10's test images, and the shipped CIFAR-10 detector")
        return detector_of(None, Asked(None), device), images
    except DataError as error:
        note(f"{error}; the digits inside scikit-learn, and the shipped digits detector, stand in")
    return detector_of(bundle.default("digits"), Asked(None), device), unseen_digits()


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
        torch.empty(0, dtype=torch.float32, device=device)
    except RuntimeError:
        raise DataError(f"--device {device}: there is no such device here; expected auto, cpu or cuda") from None
    return device


READING = click.option(
    "--reading",
    type=click.Choice(["plain", "upright"]),
    default="plain",
    show_default=True,
    help="Pictures as a plain loader reads them, or turned by EXIF with transparency on white.",
)
LABELS = click.option(
    "--labels",
    type=click.Choice(["auto", "index", "name", "sorted", "none"]),
    default="auto",
    show_default=True,
    help="What class folders mean; auto: what the classifier agrees with best.",
)
MAX_BAD = click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Share of files that may be unreadable; they are left out.",
)


frames_option = click.option(
    "--frames", type=click.Choice(["first", "all"]), help="Of animated files; without it they are refused."
)


def reading_options(function: F) -> F:
    """--reading and --frames, handed on as `how` to open a collection, and --labels, --max-bad, --accept-accuracy."""
    from functools import wraps

    @wraps(function)
    def command(reading: str, frames: str | None, **given: Any) -> Any:
        return function(how={"reading": reading, "frames": frames}, **given)

    for option in (accept_option, MAX_BAD, LABELS, frames_option, READING):
        command = option(command)
    return command  # type: ignore[return-value]


def read(
    collection: Collection, classifier: Classifier, labels: str, max_bad: float, accept: bool
) -> tuple[Tensor, Tensor | None, list[Item]]:
    """All images at the classifier's size, their true labels where known, and what each is called.

    Says on stderr how well the classifier and the labels go together.

    Raises:
        DataError: too many unreadable files, or a classifier no better than chance.
    """
    import torch

    from advconn.agreement import checked, chosen

    bad: list[DataError] = list(collection.failed)
    look, channels = classifier.preprocessing, classifier.channels
    batches = list(collection.batches(look, channels, bad=lambda item, error: bad.append(error)))
    tell_skipped(collection)
    count = len(collection.items) + len(collection.failed)
    if bad and (len(bad) > max_bad * count or not batches):
        more = f" ({len(bad)} of {count} cannot be read: --max-bad {len(bad) / count:.2g} leaves them out)"
        raise DataError(f"{bad[0]}{more * (len(bad) < count)}")
    for error in bad:
        note(f"left out: {error}")
    if any(any(b.resized) for b in batches):
        note("images of another size were brought to the classifier's own, as its preprocessing does it")
    items = [item for b in batches for item in b.items]
    images = torch.cat([b.images for b in batches])
    predicted = classifier.predict(images)
    truth = chosen(items, classifier, predicted, labels, note)
    note(checked(predicted, truth, classifier.num_classes, accept=accept))
    return images, truth, items


def tell_skipped(collection: Collection) -> None:
    """A line on files that are no images, if there are any."""
    if collection.skipped:
        first = ", ".join(collection.skipped[:3]) + ", ..." * (len(collection.skipped) > 3)
        many = len(collection.skipped) > 1
        note(f"{len(collection.skipped)} file{'s' * many} {'were no images' if many else 'was no image'}: {first}")
