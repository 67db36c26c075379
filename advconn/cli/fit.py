"""advconn fit: a detector for a classifier and clean images."""

from __future__ import annotations

from pathlib import Path

import click

from advconn.cli.common import (
    PATH,
    SPEC,
    classifier_of,
    data_option,
    device_option,
    note,
    progress_bar,
    read,
    seed_option,
    vacant,
    weights_option,
)


@click.command()
@click.option("--model", required=True, metavar="SPEC", help=SPEC)
@weights_option
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The detector's folder.")
@click.option("--fpr", type=float, default=0.05, show_default=True, help="False-alarm rate.")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most so many images.")
@click.option(
    "--references",
    type=click.Choice(["choose", "synthesise"]),
    default="choose",
    show_default=True,
    help="Take references from the images (they are stored in the detector), or make them.",
)
@seed_option
@device_option
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

    vacant(out)
    collection = Collection(data).sample(limit, seed)
    classifier = classifier_of(model, weights, collection, device)
    images, labels = read(collection, classifier)
    with progress_bar() as progress:
        detector = fit_detector(
            classifier,
            images,
            labels,
            fpr=fpr,
            seed=seed,
            synthesised=references == "synthesise",
            progress=progress,
            note=note,
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
