"""advconn calibrate: a new threshold for a detector, from clean images, without a new fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from advconn.cli.arguments import ModelOptions, detector_of, read
from advconn.cli.options import (
    DETECTOR,
    NONE,
    PATH,
    conditions_option,
    confidence_option,
    device_option,
    fpr_option,
    model_options,
    reading_as_fitted_options,
)
from advconn.cli.output import format_guarantee, note, progress_bar
from advconn.files import require_empty


@click.command()
@click.option("--detector", type=DETECTOR, required=True, metavar="DIR", help="The fitted detector's folder.")
@model_options
@click.option("--data", type=PATH, required=True, metavar="PATH", help="Clean images that it was not fitted on.")
@fpr_option
@confidence_option
@conditions_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="The new folder.")
@reading_as_fitted_options
@device_option
def calibrate(
    detector: Path,
    asked: ModelOptions,
    data: Path,
    fpr: float | None,
    confidence: Any,
    conditions: tuple[str, ...] | None,
    out: Path,
    how: dict[str, Any],
    labels: str,
    max_bad: float,
    accept: bool,
    device: str,
) -> None:
    """Set a new threshold from clean images.

    Use it too after the classifier was fine-tuned slightly.

    One attack is made on the images first: if the scores no longer tell it from clean ones, a new fit is needed.

    \b
    Example:
      advconn calibrate --detector detector/ --model new.py:build --data images/ --out calibrated/
      advconn calibrate --detector detector/ --model my_model.py:build --data images/ --fpr 0.01 --out strict/
      advconn calibrate --detector detector/ --data photos/ --conditions clean,jpeg75,noise4 --out tolerant/
    """
    from advconn import bundle
    from advconn.data.collection import Collection
    from advconn.detector.calibration import check_calibration_size
    from advconn.detector.recalibration import recalibrate

    if fpr is not None:
        check_calibration_size(10**9, fpr)
    require_empty(out)
    old = detector_of(detector, asked, device, same_weights=False)
    how["reading"] = how["reading"] or old.fitted_.reading or "plain"
    collection = Collection(data, **how)
    images, truth, _ = read(collection, old.classifier, labels, max_bad, accept)
    with progress_bar() as progress:
        asked_for: dict[str, Any] = (
            {} if confidence is None else {"confidence": None if confidence == NONE else confidence}
        )
        new, order = recalibrate(
            old, images, truth, fpr=fpr, conditions=conditions, note=note, progress=progress, **asked_for
        )
    new.fitted_ = replace(new.fitted_, reading=how["reading"])
    bundle.save(new, out)
    calibration = new.calibration_
    was = f"it was {old.calibration_.threshold:.3f}; {format_guarantee(calibration)}"
    click.echo(
        f"{out}: calibrated on {len(calibration.scores)} clean images ({', '.join(calibration.conditions)}); scores "
        f"still tell {order.attack} from them (AUROC {order.auroc:.3f} on {order.count}): score above "
        f"{calibration.threshold:.3f} is flagged ({was})"
    )
