"""advconn fit: a detector for a classifier and clean images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from advconn.cli.arguments import classifier_of, other_classifier, read
from advconn.cli.options import (
    PATH,
    SPEC,
    SharedOptions,
    conditions_option,
    confidence_option,
    device_option,
    list_attacks_option,
    model_options,
    reading_options,
    seed_option,
    spread_options,
)
from advconn.cli.output import format_duration, format_guarantee, note, progress_bar
from advconn.errors import AttackError, DataError
from advconn.files import require_empty

if TYPE_CHECKING:
    from torch import Tensor

    from advconn.detector.detector import Detector
    from advconn.models.classifier import Classifier
    from advconn.runtime.cache import DiskCache
    from advconn.runtime.parallel import Runner


@dataclass(frozen=True, kw_only=True)
class FitOptions(SharedOptions):
    """The options of `advconn fit`, as they were given."""

    data: tuple[Path, ...]
    apart: Path | None
    out: Path
    fpr: float
    confidence: float | str | None
    conditions: tuple[str, ...] | None
    accuracy: float | None
    limit: int | None
    accept_weak: bool
    quick: bool | None
    refine: int | None
    attacks: tuple[str, ...]
    limit_attacked: int | None
    surrogate: str | None
    surrogate_weights: Path | None
    references: str


UNREMARKABLE = 0.8  # share of attacked images caught: under it, fit says what may catch more


def say_fitted(detector: Detector, out: Path) -> None:
    """What was fitted, on what, and where the threshold is."""
    fitted, calibration = detector.fitted_, detector.calibration_
    for name, (tried, hits) in fitted.attacks.items():
        low = "   (it rarely changes a prediction of this classifier)" if tried and hits < 0.5 * tried else ""
        click.echo(f"  {name:<32} succeeded on {hits} of {tried}{low}")
    if fitted.missed is not None:
        worst = ", ".join(f"{n} of {of} {name}" for name, (n, of) in fitted.missed.by_attack.items() if n)
        click.echo(
            f"  attacked images that leave early though the whole walk catches them: {fitted.missed.count} of "
            f"{fitted.missed.of}, at most {fitted.missed.at_most:.1%} with 95 % confidence"
            + f" ({worst})"
            * bool(worst)
        )
    hits = sum(n for _, n in fitted.attacks.values())
    if fitted.pretrained:
        made_of = f"standardised by {fitted.train} clean images" + f" and moved by {hits} attacked ones" * (hits > 0)
    else:
        made_of = f"fitted on {fitted.train} clean images and their attacked copies"
    click.echo(
        f"{out}: {made_of}, calibrated on {fitted.calibrate} others ({', '.join(calibration.conditions)}): score above "
        f"{calibration.threshold:.3f} is flagged ({format_guarantee(calibration)})"
    )
    beside = detector.connectivity.companion
    if beside is not None and beside.state is None:
        note("the folder does not hold the companion, whose architecture has no name: give --companion with it again")


def say_efficacy(detector: Detector) -> None:
    """How well the detector caught the attack that it was tried on."""
    found = detector.fitted_.efficacy
    if found is None:
        note("how well it catches attacks was not measured: run advconn benchmark on other images")
        return
    better = ": --refine 100 or --full may catch more" if found.caught < UNREMARKABLE else ""
    note(found.warning or f"it catches {found}{better}; advconn benchmark measures more attacks, on other images")


@click.command()
@model_options
@click.option("--data", multiple=True, required=True, type=PATH, metavar="PATH", help="Clean images; repeat for more.")
@click.option("--calibrate", "apart", type=PATH, metavar="PATH", help="Other clean images, used only for calibration.")
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The detector's folder.")
@click.option("--fpr", type=float, default=0.05, show_default=True, help="False-alarm rate.")
@confidence_option
@conditions_option
@click.option(
    "--accuracy",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="The classifier's accuracy on held-out images. fit warns if it does much better on --data: these may be its "
    "training images.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use at most N images.")
@click.option(
    "--accept-weak",
    is_flag=True,
    help="Write the detector even if it detects less than half of the attacked images it is tested on.",
)
@click.option(
    "--quick/--full",
    "quick",
    default=None,
    help="quick: use heads that were trained on other networks; the only attack is the final test. full: attack this "
    "classifier and train heads of its own, which takes many times as long [default: quick; full with --attack, "
    "--surrogate, --limit-attacked or --companion, unless --refine is given].",
)
@click.option(
    "--refine",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Stay with --quick, but attack about N images and adapt the heads to them. Use 100 or more: fewer may make "
    "them worse.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[:key=value,...]",
    help="Attack to train on; repeat for more. `auto` searches for strengths that fool this "
    "classifier [default: a mixture up to 8/255, or auto where that is too weak].",
)
@click.option("--limit-attacked", type=click.IntRange(min=1), help="Attack at most N images with each attack.")
@click.option("--surrogate", metavar="SPEC", help=f"For a --model without gradients, one to attack instead: {SPEC}")
@click.option("--surrogate-weights", type=PATH, help="State dict of the surrogate.")
@click.option(
    "--references",
    type=click.Choice(["choose", "synthesise"]),
    default="choose",
    show_default=True,
    help="choose: take reference images from --data (they are stored in the detector). synthesise: generate them from "
    "the classifier.",
)
@spread_options
@click.option("--cache", type=PATH, help="Cache folder for finished attacks [default: ~/.cache/advconn].")
@list_attacks_option
@reading_options
@seed_option
@device_option
def fit(**given: Any) -> None:
    """Fit a detector for your classifier.

    Clean images are enough, preferably ones that the classifier was not trained on. The detector's heads were trained
    on other networks and are scaled to what this classifier outputs on your images. With --full, fit attacks the
    classifier with a mixture of attacks and trains new heads. It keeps finished attacks: repeat the command to continue
    an interrupted fit.

    At the end fit tests the detector with one attack. If the detector misses more than half, fit attacks 100 images and
    adapts the heads. If that is not enough, fit trains new heads. It skips a step that it expects to take more than 15
    minutes. If the detector still misses more than half, fit writes nothing and exits with status 2.

    \b
    Example:
      advconn fit --model my_model.py:build --data images/ --out detector/
      advconn fit --full --model timm:efficientnet_lite0 --weights w.safetensors --data images/ --out detector/
    """
    from advconn import bundle
    from advconn.attacks.attack import parse_all
    from advconn.detector.calibration import check_calibration_size
    from advconn.runtime.cache import DiskCache, cache_folder
    from advconn.runtime.parallel import Runner, cluster

    options = FitOptions(**given)
    if options.asked.model is None:
        raise click.UsageError("Missing option '--model'.")
    check_calibration_size(10**9, options.fpr)
    quick = _is_quick(options)
    auto = "auto" in options.attacks
    if auto and len(options.attacks) > 1:
        raise AttackError("--attack auto finds the whole mixture: give no other attack beside it")
    parse_all(() if auto else options.attacks)
    require_empty(options.out)
    classifier, images = _images(options)
    parameters = _parameters(options, classifier, images)
    store = DiskCache(cache_folder(options.cache), note)
    others = {
        name: other_classifier(name, spec, weights, classifier, images.clean)
        for name, spec, weights in (
            ("surrogate", options.surrogate, options.surrogate_weights),
            ("companion", options.asked.companion, options.asked.companion_weights),
        )
    }
    sure = {"confidence": options.confidence if isinstance(options.confidence, float) else None}
    seconds, phases = _expected(classifier, others["companion"], len(images.clean), parameters | sure, quick)
    _tell(seconds, len(images.clean), 1 if quick else options.jobs, phases, store)
    kept = DiskCache(None) if quick else store
    with cluster(options.backend, options.jobs), progress_bar(seconds, phases) as progress, _going_on(kept):
        runner = Runner(options.jobs, options.backend, store, progress)
        detector = _fitted(options, classifier, images, parameters | others, quick, runner)
    detector.fitted_ = replace(detector.fitted_, reading=options.how["reading"])
    bundle.save(detector, options.out)
    say_fitted(detector, options.out)
    say_efficacy(detector)


def _is_quick(options: FitOptions) -> bool:
    """Whether heads are taken that were taught on other networks, which some options rule out."""
    made: dict[str, Any] = {"--limit-attacked": options.limit_attacked, "--companion": options.asked.companion}
    made |= {} if options.refine else {"--attack": options.attacks, "--surrogate": options.surrogate}
    useless = [name for name, value in made.items() if value]
    quick = options.quick
    if options.refine and (quick is False or useless):
        raise click.UsageError(f"--refine goes with --quick, not with {useless[0] if useless else '--full'}")
    if quick and useless:
        raise click.UsageError(f"{useless[0]} goes with --full: a quick fit makes no attack and fits no heads")
    return not useless if quick is None else quick


class _Images(NamedTuple):
    """Clean images, others to calibrate on if there are any, and the labels of both where known."""

    clean: Tensor
    labels: Tensor | None
    apart: Tensor | None
    apart_labels: Tensor | None


def _images(options: FitOptions) -> tuple[Classifier, _Images]:
    """The classifier and its images."""
    from advconn.data.collection import Collection

    how, reading = options.how, (options.labels, options.max_bad, options.accept)
    collections = [Collection(path, **how) for path in options.data]
    classifier = classifier_of(options.asked, collections[0], options.device)
    note(f"the classifier sees {_input_of(classifier)}")
    images, truth = _joined(
        [read(c, classifier, *reading, limit=options.limit, seed=options.seed)[:2] for c in collections]
    )
    apart = options.apart
    others = (None, None) if apart is None else read(Collection(apart, **how), classifier, *reading)[:2]
    return classifier, _Images(images, truth, *others)


def _input_of(classifier: Classifier) -> str:
    """What a classifier is given of an image, in words."""
    how = classifier.preprocessing
    height, width = how.size or (0, 0)
    plain = how.mean is None or (set(how.mean) == {0.0} and set(how.std or (1.0,)) == {1.0})
    scale = "as they are" if plain else f"less mean {_few(how.mean)}, by std {_few(how.std)}"
    return f"{classifier.channels} x {height} x {width} values in [0, 1], {scale} (else: --size, --mean, --std)"


def _few(values: Sequence[float] | None) -> str:
    return ", ".join(f"{value:.3g}" for value in values or ())


def _parameters(options: FitOptions, classifier: Classifier, images: _Images) -> dict[str, Any]:
    """Parameters of the detector that were given."""
    out: dict[str, Any] = {
        "per_attack": options.limit_attacked,
        "refine": options.refine,
        "conditions": options.conditions,
    }
    out = {name: value for name, value in out.items() if value is not None}
    if options.attacks:
        auto = "auto" in options.attacks
        out["attacks"] = _suited(classifier, images.clean, images.labels, options.seed) if auto else options.attacks
    return out


def _fitted(
    options: FitOptions,
    classifier: Classifier,
    images: _Images,
    parameters: dict[str, Any],
    quick: bool,
    runner: Runner,
) -> Detector:
    """The detector."""
    from advconn.detector.fitting import fit as fit_detector

    return fit_detector(
        classifier,
        images.clean,
        images.labels,
        apart=images.apart,
        apart_labels=images.apart_labels,
        on_plan=lambda plan: note(str(plan)),
        synthesised=options.references == "synthesise",
        quick=quick,
        accept_accuracy=True,  # looked at while reading
        accept_weak=options.accept_weak,
        runner=runner,
        note=note,
        fpr=options.fpr,
        confidence=options.confidence,
        seed=options.seed,
        accuracy=options.accuracy,
        **parameters,
    )


@contextmanager
def _going_on(store: DiskCache) -> Iterator[None]:
    """Say at an interrupt that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        if store.folder is not None:
            note("finished attacks are kept: the same command goes on")
        raise


def _joined(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Images of several paths as one; their labels where all have some."""
    import torch

    if len({images.dtype for images, _ in parts}) > 1:
        raise DataError("--data: some images are bytes and some floats: store them alike")
    labelled = [labels for _, labels in parts if labels is not None]
    return torch.cat([images for images, _ in parts]), torch.cat(labelled) if len(labelled) == len(parts) else None


def _suited(classifier: Classifier, images: Tensor, truth: Tensor | None, seed: int) -> tuple[str, ...]:
    from advconn.attacks.strength import attacks_at_breaking_strength

    some = images[:256]
    labels = classifier.logits(classifier.check(some)).argmax(1).cpu() if truth is None else truth[:256]
    specs = attacks_at_breaking_strength(classifier, some, labels, seed=seed)
    note(f"attacks that suit this classifier: {' '.join(specs)}")
    return specs


def _expected(
    classifier: Classifier, companion: Classifier | None, count: int, options: dict[str, Any], quick: bool
) -> tuple[float, tuple[str, ...]]:
    """Seconds that a fit is expected to take, and of a quick one its phases."""
    from advconn.attacks.catalog import BLACK_BOX
    from advconn.cascade import pretrained
    from advconn.detector.detector import Detector
    from advconn.detector.fitting import estimate, phases_of
    from advconn.features.connectivity import Connectivity

    if quick:
        options = options | {"pretrained": pretrained.load(), "calibrate": 0.75}
    elif not classifier.differentiable and "attacks" not in options:
        options = options | {"attacks": BLACK_BOX}
    detector = Detector(Connectivity(classifier, companion=companion), **options)
    return estimate(detector, count), phases_of(detector) if quick else ()


def _tell(seconds: float, count: int, jobs: int, phases: Sequence[str], store: DiskCache) -> None:
    kept = "; what is finished is kept" if store.folder is not None and not phases else ""
    many = f" with {jobs} processes sharing it" if jobs > 1 else ""
    steps = f", in {len(phases)} phases; fewer --conditions take less" if phases else ""
    note(f"fitting on {count} images takes about {format_duration(seconds)} here{many}{steps}{kept}")
