"""advconn card: what a detector is, for people to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from advconn.cli.options import DETECTOR, PATH
from advconn.cli.output import note
from advconn.errors import printable


@click.command()
@click.argument("detector", type=DETECTOR, metavar="DETECTOR")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "markdown", "json", "cyclonedx"]),
    default="text",
    show_default=True,
    help="json: the card as it is. cyclonedx: a model card for a bill of materials (1.7).",
)
@click.option(
    "--sign",
    "key",
    type=PATH,
    metavar="FILE",
    help="Sign the detector with this Ed25519 private key (PEM) instead of printing it. --verify-key of other commands "
    "checks the signature.",
)
def card(detector: Path, style: str, key: Path | None) -> None:
    """Print what a detector is.

    The card names its classifier, what it was fitted on, what it guarantees, and what it caught.

    DETECTOR is a folder that `advconn fit` wrote, or the name of a shipped one (cifar10, digits, ...). It needs no
    classifier.

    \b
    Example:
      advconn card detector/
      advconn card cifar10
      advconn card detector/ --format cyclonedx > detector.cdx.json
    """
    from advconn import bundle

    read, name = bundle.read_card(detector), detector.resolve().name
    if key is not None:
        if style != "text":
            raise click.UsageError("--sign prints no card: leave --format out")
        from advconn.bundle.signature import sign

        note(f"{sign(detector, key)}: the signature; give others the public key")
        return
    if style in ("json", "cyclonedx"):
        click.echo(json.dumps(read if style == "json" else as_cyclonedx(name, read), indent=1))
        return
    if style == "markdown":
        click.echo(f"# Detector {printable(name)}")
        for title, lines in _sections(read):
            click.echo(f"\n## {title}\n")
            for line in lines:
                click.echo(f"- {printable(line)}")
        return
    click.echo(printable(f"Detector {name}"))
    for title, lines in _sections(read):
        click.echo(f"\n{title}")
        for line in lines:
            click.echo(f"  {printable(line)}")


def as_cyclonedx(name: str, read: dict[str, Any]) -> dict[str, Any]:
    """A detector as a CycloneDX 1.7 bill of materials: itself with a model card, and the packages it was made with.

    Args:
        name: of its folder.
        read: its card.
    """
    efficacy, calibration = read["efficacy"], read["calibration"]
    metrics = [{"type": "false-alarm rate guaranteed", "value": f"{calibration['fpr']:g}", "slice": "clean images"}]
    if efficacy is not None:
        of = f"{efficacy['attack']}, {efficacy['count']} images"
        metrics += [
            {"type": "detection rate", "value": f"{efficacy['caught']:.4f}", "slice": of},
            {"type": "AUROC", "value": f"{efficacy['auroc']:.4f}", "slice": of},
        ]
    attacks = ", ".join(read["fitted"]["attacks"]) or "none: heads were trained on other networks"
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "component": {
                "type": "machine-learning-model",
                "bom-ref": f"advconn:{read['card']}",
                "name": name,
                "description": "Detects adversarially perturbed images for the classifier with fingerprint "
                + read["classifier"]["fingerprint"],
                "hashes": [{"alg": "SHA-256", "content": read["card"]}],
                "modelCard": {
                    "modelParameters": {
                        "task": "adversarial image detection",
                        "architectureFamily": "cascade of linear heads",
                        "inputs": [{"format": "image"}],
                        "outputs": [{"format": "score, p-value, verdict"}],
                    },
                    "quantitativeAnalysis": {"performanceMetrics": metrics},
                    "considerations": {
                        "useCases": [f"Gating images for one classifier. Heads trained on: {attacks}."],
                        "technicalLimitations": [
                            *(f"Guaranteed: {line}." for line in _guarantee(read)),
                            "The detector does not hold against an attacker who knows the detector.",
                        ],
                    },
                },
            }
        },
        "components": [
            {"type": "library", "name": package, "version": number}
            for package, number in read["versions"].items()
            if number != "not installed"
        ],
    }


def _sections(read: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Titles, and the lines under them."""
    efficacy, fitted = read["efficacy"], read["fitted"]
    if efficacy is not None and efficacy["weak"]:
        yield "WEAK", ["It calls most images of the attack below clean."]
    yield "Classifier", _classifier(read["classifier"])
    if read["companion"] is not None:
        yield "Companion", _classifier(read["companion"])
    made = "trained on other networks" if fitted["pretrained"] else "trained on attacks on this classifier"
    hits = {name: counts for name, counts in fitted["attacks"].items() if counts["succeeded"]}
    lines = [f"heads {made}, {len(read['exits']) + 1} stages, {len(read['features'])} features"]
    lines += [f"{fitted['train']} clean images to fit, {fitted['calibrate']} others to calibrate"]
    lines += [f"attacked by {name}: {n['succeeded']} of {n['tried']} succeeded" for name, n in hits.items()]
    yield "Fit", lines
    yield "Guarantee", _guarantee(read)
    yield "Efficacy", _efficacy(efficacy)
    versions = ", ".join(f"{name} {number}" for name, number in read["versions"].items())
    yield "Made with", [versions]


def _classifier(entry: dict[str, Any]) -> list[str]:
    size = entry["preprocessing"]["size"]
    sides = "any size" if size is None else f"{size[1]} x {size[0]} pixels"
    return [
        f"{entry['name'] or 'given at every use'}: {entry['num_classes']} classes, {entry['channels']} channel"
        f"{'s' * (entry['channels'] > 1)}, {sides}",
        f"fingerprint {entry['fingerprint']}",
    ]


def _guarantee(read: dict[str, Any]) -> list[str]:
    calibration = read["calibration"]
    sure = calibration["confidence"]
    how = "on average over draws of the calibration images" if sure is None else f"with {sure:.0%} confidence"
    lines = [f"at most {calibration['fpr']:.3g} of clean images are flagged, {how}"]
    grouped = read["picture"] and sure is None and not calibration["by_class"]
    every = ", ".join(read["conditions"]["calibrated"])
    lines += [f"unchanged, and under these taken together: {every}" if grouped else f"under each of: {every}"]
    if grouped:
        lines += ["an image is compared with clean pictures of like noise and sharpness"]
    if calibration["by_class"]:
        lines += ["predicted classes with enough images have thresholds of their own"]
    return lines


def _efficacy(efficacy: dict[str, Any] | None) -> list[str]:
    if efficacy is None:
        return ["not measured: advconn benchmark --detector measures it on images of your own"]
    lines = [
        f"{efficacy['attack']}: caught {efficacy['caught']:.0%} of {efficacy['count']} attacked images, AUROC "
        f"{efficacy['auroc']:.3f}"
    ]
    dear = {name: price for name, price in efficacy["prices"].items() if price > 0}
    lines += [f"the guarantee under {name} costs {100 * p:.0f} points of a weak attack" for name, p in dear.items()]
    return lines
