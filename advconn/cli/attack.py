"""advconn attack: attacked copies of images, to see a flag go up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from advconn.cli.arguments import ModelOptions, classifier_of, detector_of, read
from advconn.cli.options import (
    PATH,
    data_option,
    detector_option,
    device_option,
    list_attacks_option,
    model_options,
    reading_options,
    seed_option,
    spread_options,
)
from advconn.cli.output import note, progress_bar
from advconn.files import require_empty


@click.command()
@click.option(
    "--attack", "spec", required=True, metavar="NAME[:key=value,...]", help="Attack, e.g. pgd:eps=8/255,steps=10."
)
@model_options
@detector_option
@data_option
@click.option("--out", type=PATH, required=True, metavar="DIR", help="New folder for the attacked images.")
@click.option("--limit", type=click.IntRange(min=1), help="Attack at most N images.")
@click.option("--float", "floats", is_flag=True, help="Write float images without rounding to bytes (images.npz only).")
@click.option(
    "--save-as",
    metavar="WAY",
    help="How the files are saved: jpeg90, jpeg75, jpeg50, webp80, resize, screenshot, phone, noise4, or any quality, "
    "such as jpeg60 or webp70. advconn then says how many attacks survive it [default: lossless PNG].",
)
@list_attacks_option
@reading_options
@seed_option
@spread_options
@device_option
def attack(
    spec: str,
    asked: ModelOptions,
    detector: Path | None,
    data: Path,
    out: Path,
    limit: int | None,
    floats: bool,
    save_as: str | None,
    how: dict[str, Any],
    labels: str,
    max_bad: float,
    accept: bool,
    seed: int,
    jobs: int,
    backend: str,
    device: str,
) -> None:
    """Attack images, to see them flagged.

    The attacked copies are written as lossless PNG files, or as --save-as says, and as images.npz.

    \b
    Example:
      advconn attack --attack pgd:eps=8/255 --data photo.png --out attacked/
      advconn score attacked/
      advconn attack --attack pgd:eps=8/255 --save-as jpeg75 --data photo.png --out saved/
    """
    import torch

    from advconn.attacks.attack import Attack, is_misclassified, round_to_bytes
    from advconn.data.collection import Collection
    from advconn.data.input_conversion import as_bytes
    from advconn.data.laundering import parse_laundering
    from advconn.runtime.parallel import Runner, cluster
    from advconn.scoring.writers import save_images

    if floats and save_as is not None:
        raise click.UsageError("--float writes no files: leave --save-as out")
    require_empty(out)
    made, way = Attack.parse(spec), None if save_as is None else parse_laundering(save_as)
    collection = Collection(data, **how)
    if asked.model is not None and detector is None:
        classifier = classifier_of(asked, collection, device)
    else:
        classifier = detector_of(detector, asked, device).classifier
    images, true_labels, items = read(collection, classifier, labels, max_bad, accept, limit=limit, seed=seed)
    clean = classifier.check(images)
    predicted = torch.cat([classifier.logits(x) for x in clean.split(64)]).argmax(1)
    truth = predicted if true_labels is None else true_labels.to(predicted)
    done: list[torch.Tensor] = []
    runner = Runner(jobs, backend)
    with cluster(backend, jobs), progress_bar() as progress:
        for part in made.batches(classifier, clean, truth, seed=seed, batch_size=64, runner=runner):
            done.append(part if floats else round_to_bytes(part))
            progress(str(made), sum(map(len, done)), len(clean))
    attacked = torch.cat(done)
    right = predicted == truth
    hit = is_misclassified(classifier, attacked, truth) & right
    hits = int(hit.sum())
    change = (attacked - clean).flatten(1)
    shown, saved = attacked, hit
    if way is not None:
        shown = classifier.check(way.change(as_bytes(attacked), 0))
        saved = is_misclassified(classifier, shown, truth) & hit
    names = [f"{i:05d}-{item.path.stem}" for i, item in enumerate(items)]
    save_images(
        shown, truth, names, out, succeeded=saved, floats=floats, lossy=None if way is None else (attacked, way)
    )
    which = "" if true_labels is None else f" that were classified right ({int((~right).sum())} were not)"
    click.echo(
        f"{out}: {made} changed the prediction of {hits} of {int(right.sum())} images{which}; "
        f"mean L2 {change.norm(dim=1).mean():.3f}, "
        f"largest Linf {change.abs().max() * 255:.1f}/255; `succeeded` in images.npz says which"
    )
    if way is not None:
        click.echo(f"saved as {save_as}, {int(saved.sum())} of these {hits} survive (still fool the classifier)")
    if hits < 0.9 * int(right.sum()):
        note("the attack failed on more than a tenth of them: it is weaker than it looks")
