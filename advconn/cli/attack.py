"""advconn attack: attacked copies of images, to see a flag go up."""

from __future__ import annotations

from pathlib import Path

import click

from advconn.cli.common import (
    PATH,
    classifier_of,
    data_option,
    detector_of,
    detector_option,
    device_option,
    model_option,
    note,
    progress_bar,
    read,
    seed_option,
    vacant,
    weights_option,
)


@click.command()
@click.option("--attack", "spec", required=True, metavar="NAME[:key=value,...]", help="Such as pgd:eps=8/255,steps=10.")
@model_option
@weights_option
@detector_option
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="Where the attacked images go.")
@click.option("--limit", type=click.IntRange(min=1), help="Attack at most so many images.")
@seed_option
@device_option
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

    vacant(out)
    made = Attack.parse(spec)
    collection = Collection(data).sample(limit, seed)
    if model is not None and detector is None:
        classifier = classifier_of(model, weights, collection, device)
    else:
        classifier = detector_of(detector, model, weights, device).connectivity.classifier
    images, labels = read(collection, classifier)
    clean = classifier.check(images)
    predicted = torch.cat([classifier.logits(x) for x in clean.split(64)]).argmax(1)
    truth = predicted if labels is None else labels.to(predicted)
    done: list[torch.Tensor] = []
    with progress_bar() as progress:
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
        note("the attack failed on more than a tenth of them: it is weaker than it looks")
