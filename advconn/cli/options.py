"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from advconn.cli.arguments import RESIZES, ModelOptions

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """Options of the commands that read images with labels, and spread work that is kept."""

    asked: ModelOptions
    how: dict[str, Any]
    labels: str
    max_bad: float
    accept: bool
    jobs: int
    backend: str
    cache: Path | None
    seed: int
    device: str


SPEC = (
    "FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, timm:NAME, torchvision:NAME, hf:FOLDER, onnx:FILE or an endpoint's URL."
)


class _Path(click.Path):
    """A path; an empty one is no folder, and not this one."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if value == "":
            self.fail("is empty: expected a path", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path, readable=False)
data_option = click.option(
    "--data", type=PATH, required=True, metavar="PATH", help="Clean images: an image, a folder or an array file."
)


class _Detector(_Path):
    """A detector's folder. A shipped name is the shipped one, whatever lies in the current folder: ./NAME is that."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from advconn.files import SHIPPED, shipped_path

        return (
            shipped_path(value) if isinstance(value, str) and value in SHIPPED else super().convert(value, param, ctx)
        )


DETECTOR = _Detector(path_type=Path, readable=False)
detector_option = click.option(
    "--detector",
    type=DETECTOR,
    metavar="DIR",
    help="A fitted detector's folder, or a shipped one's name: cifar10, cifar10-hardened, digits, imagenet.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed for splits and attacks."
)


def _list_attacks(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Print every attack by family, and end."""
    if not value:
        return
    from advconn.attacks.attack import Attack
    from advconn.attacks.catalog import FAMILIES, KINDS, TARGETED, TARGETS

    for family, what in FAMILIES.items():
        click.echo(f"{family}: {what}")
        for name in (name for name, kind in KINDS.items() if kind.family == family):
            attack, kind = Attack(name), KINDS[name]
            settings = ", ".join(f"{k}={v:.4g}" for k, v in attack.settings.items())
            wants = ["gradients"] * attack.needs_gradient + ["foolbox"] * kind.made_by.startswith("foolbox:")
            needs = f" (needs {', '.join(wants)})" * bool(wants)
            click.echo(f"  {name:<14} {settings:<40} {kind.atlas}, {kind.nist}; {kind.source}{needs}")
    aimed = " or ".join(f"target={target}" for target in TARGETS)
    click.echo(f"{', '.join(TARGETED)} take {aimed}: they then aim at that wrong class, and any wrong class counts.")
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
    "--accept-accuracy", "accept", is_flag=True, help="Continue with a classifier that is no better than chance."
)
NONE = "none"


class _Confidence(click.ParamType):  # type: ignore[type-arg]
    name = "SHARE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if str(value).lower() == NONE:
            return NONE
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r}: expected a share such as 0.95, or none", param, ctx)
        return share


class _Names(click.ParamType):  # type: ignore[type-arg]
    name = "NAME,..."

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        from advconn.data.conditions import usable

        return (
            usable((part.strip() for part in value.split(",") if part.strip()), 3) if isinstance(value, str) else value
        )


fpr_option = click.option("--fpr", type=float, help="False-alarm rate [default: the detector's].")
confidence_option = click.option(
    "--confidence",
    type=_Confidence(),
    help="Confidence, such as 0.95, with which the false-alarm rate is kept; `none` keeps it on average only [default: "
    "none in `fit`, else the detector's].",
)
conditions_option = click.option(
    "--conditions",
    type=_Names(),
    help="Benign changes that the guarantee covers: clean,jpeg75,webp80,... All names: advconn docs "
    "fitting-and-calibrating.",
)
by_class_option = click.option(
    "--by-class/--no-by-class",
    default=None,
    help="Give each predicted class with enough calibration images its own threshold.",
)


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


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
INPUTS = ("size", "channels", "resize", "interpolation", "mean", "std")
_INPUTS = (
    click.option(
        "--size",
        type=_Side(),
        help="Input size in pixels: one side, or HEIGHTxWIDTH, such as 224 or 480x640 [default: read from the model].",
    ),
    click.option("--channels", type=click.IntRange(min=1), help="Input channels: 3, or 1 for grey."),
    click.option(
        "--resize",
        type=click.Choice(list(RESIZES)),
        help="How images of another size are resized, if the model does not define it: stretch, crop (keep the "
        "centre), pad (fill the shorter side) [default: crop].",
    ),
    click.option(
        "--interpolation",
        type=click.Choice(list(INTERPOLATIONS)),
        help="Interpolation for resizing [default: bilinear].",
    ),
    click.option("--mean", type=_Numbers(), help="Per-channel mean for images in [0, 1]; requires --std."),
    click.option("--std", type=_Numbers(), help="Per-channel standard deviation."),
)
_MODEL = (
    click.option("--model", metavar="SPEC", help=f"The classifier: {SPEC}"),
    click.option("--weights", type=PATH, help="State dict: .safetensors, or a torch file."),
    *_INPUTS,
    click.option("--classes", type=PATH, metavar="FILE", help="Class names: one a line, a JSON list, or id2label."),
    click.option(
        "--companion",
        metavar="SPEC",
        help="A second, adversarially trained network with the same classes; a detector fitted with it is harder to "
        "evade. When you use the detector, give it again only if the detector's folder does not contain it.",
    ),
    click.option("--companion-weights", type=PATH, help="State dict of the companion."),
    click.option(
        "--upstream-header",
        "headers",
        multiple=True,
        metavar="TEXT",
        help="'NAME: VALUE' for a served classifier, such as 'Authorization: Bearer TOKEN'. ADVCONN_UPSTREAM_HEADER "
        "is safer: other users of the machine can see command lines.",
    ),
    click.option(
        "--verify-key",
        type=PATH,
        metavar="FILE",
        help="Ed25519 public key (PEM): reject a --detector that was not signed with its private key (extra sign).",
    ),
)


def model_options(function: F) -> F:
    """--model and what it cannot say itself, handed on as one `asked` of type ModelOptions."""
    names = (
        "model", "weights", "size", "channels", "resize", "interpolation", "mean", "std", "classes", "companion",
        "companion_weights", "headers", "verify_key",
    )  # fmt: skip

    @wraps(function)
    def command(**given: Any) -> Any:
        if given["verify_key"] is not None and given.get("detector") is None:
            raise click.UsageError("--verify-key checks the signature of a --detector: name one")
        return function(asked=ModelOptions(**{name: given.pop(name) for name in names}), **given)

    for option in reversed(_MODEL):
        command = option(command)
    return command  # type: ignore[return-value]


def input_options(function: F) -> F:
    """What --model cannot say of its input, handed on as `inputs`."""

    @wraps(function)
    def command(**given: Any) -> Any:
        return function(inputs={name: given.pop(name) for name in INPUTS}, **given)

    for option in reversed(_INPUTS):
        command = option(command)
    return command  # type: ignore[return-value]


READING = click.option(
    "--reading",
    type=click.Choice(["plain", "upright"]),
    default="plain",
    show_default=True,
    help="How pictures are read: plain as most loaders do, or upright (EXIF turn, transparency on white).",
)
READING_AS_FITTED = click.option(
    "--reading",
    type=click.Choice(["plain", "upright"]),
    help="How pictures are read: plain as most loaders do, or upright [default: as fitted].",
)
LABELS = click.option(
    "--labels",
    type=click.Choice(["auto", "index", "name", "sorted", "none"]),
    default="auto",
    show_default=True,
    help="How folder names give classes: index (a number), name (a class name), sorted (alphabetical, as ImageFolder), "
    "none (no labels), auto (whichever fits the classifier's predictions best).",
)
MAX_BAD = click.option(
    "--max-bad",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Leave unreadable files out, and stop if they are more than this share.",
)
frames_option = click.option(
    "--frames",
    type=click.Choice(["first", "all"]),
    help="Frames of animated files to read; without it such files are rejected.",
)


def reading_options(function: F, reading_option: Callable[[Any], Any] = READING) -> F:
    """--reading and --frames, handed on as `how` to open a collection, and --labels, --max-bad, --accept-accuracy."""

    @wraps(function)
    def command(reading: str | None, frames: str | None, **given: Any) -> Any:
        return function(how={"reading": reading, "frames": frames}, **given)

    wrapped: Any = command
    for option in (accept_option, MAX_BAD, LABELS, frames_option, reading_option):
        wrapped = option(wrapped)
    return wrapped


def reading_as_fitted_options(function: F) -> F:
    """The same, where --reading is the fit's unless given."""
    return reading_options(function, READING_AS_FITTED)


def spread_options(function: F) -> F:
    """--jobs and --backend: where work is spread."""
    jobs = click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes.")
    backend = click.option(
        "--backend",
        type=click.Choice(["loky", "ray", "dask"]),
        default="loky",
        show_default=True,
        help="Where the processes run: on this machine (loky), or on a cluster.",
    )
    return jobs(backend(function))
