"""advconn benchmark: how well, against which baselines, at which cost, and what an attacker who knows leaves of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.common import (
    PATH,
    SPEC,
    Asked,
    classifier_of,
    detector_of,
    detector_option,
    device_option,
    list_attacks_option,
    model_options,
    note,
    put,
    read,
    reading_options,
    seed_option,
    unasked,
    vacant,
)
from advconn.cli.progress import progress_bar
from advconn.errors import DataError

if TYPE_CHECKING:
    from advconn.benchmark.record import Report
    from advconn.datasets import Data
    from advconn.detector import Detector
    from advconn.progress import Progress

EVERY = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "pgd-l2",
    "fgsm",
    "bim",
    "cw",
    "deepfool",
    "autoattack",
    "square",
    "jitter",
    "pgd-stop",
)


@click.command()
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME[:key=value,...]",
    help="Attack to test; repeat for more [default: all].",
)
@detector_option
@model_options
@click.option("--data", type=PATH, metavar="PATH", help="Clean images; else CIFAR-10's test images, or digits.")
@click.option("--baseline", "baselines", multiple=True, metavar="NAME", help="Repeat for more; all if none.")
@click.option("--second", metavar="SPEC", help=f"Another classifier of the same classes: {SPEC}")
@click.option("--second-weights", type=PATH, help="Its state dict.")
@click.option("--limit", type=click.IntRange(min=10), help="Attack at most so many test images by each.")
@click.option("--fpr", type=float, default=0.05, show_default=True, help="False-alarm rate of every threshold.")
@click.option("--adaptive", is_flag=True, help="Also the attack that knows the detector (slow).")
@click.option("--leave-one-out", is_flag=True, help="Also train without each attack in turn.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--backend", type=click.Choice(["loky", "ray", "dask"]), default="loky", show_default=True)
@click.option("--cache", type=PATH, help="Folder for finished work [default: ~/.cache/advconn].")
@click.option("--out", type=PATH, metavar="DIR", help="For results.json, results.csv and report.html.")
@list_attacks_option
@reading_options
@seed_option
@device_option
def benchmark(
    attacks: tuple[str, ...],
    detector: Path | None,
    asked: Asked,
    data: Path | None,
    baselines: tuple[str, ...],
    second: str | None,
    second_weights: Path | None,
    limit: int | None,
    fpr: float,
    adaptive: bool,
    leave_one_out: bool,
    jobs: int,
    backend: str,
    cache: Path | None,
    out: Path | None,
    how: dict[str, Any],
    labels: str,
    max_bad: float,
    accept: bool,
    seed: int,
    device: str,
) -> None:
    """Compare a detector with baselines: one split by image, one frozen threshold each, only successful attacks.

    Without --detector and --model the shipped one is measured; without --data on CIFAR-10's test images, or where they
    cannot be had, on the digits inside scikit-learn.

    \b
    Example:
      advconn benchmark --attack pgd --limit 200
      advconn benchmark --detector detector/ --data images/ --attack pgd --attack cw --adaptive --out report/
    """
    from advconn import models
    from advconn.attacks import made_for, parse_all
    from advconn.benchmark import run as runs
    from advconn.benchmark.record import save
    from advconn.benchmark.roster import BASELINES
    from advconn.benchmark.runner import Runner
    from advconn.datasets import DIGIT_MIXTURE
    from advconn.files import cache_folder
    from advconn.kinds import MIXTURE

    if out is not None:
        vacant(out)
    unknown = sorted(set(baselines) - set(BASELINES))
    if unknown:
        raise DataError(f"no baseline {unknown[0]!r}: expected some of {', '.join(BASELINES)}")
    parse_all(attacks)
    with _cluster(backend, jobs), progress_bar() as progress:
        reading = {"labels": labels, "max_bad": max_bad, "accept": accept}
        found, images = _subject(detector, asked, data, device, fpr, seed, progress, how, reading)
        settings = runs.Settings(
            attacks=_named(attacks or _suited(found, note), images, bool(attacks)),
            baselines=baselines or tuple(BASELINES),
            mixture=DIGIT_MIXTURE if images.attacks else made_for(found.connectivity.classifier, MIXTURE),
            limit=limit,
            fpr=fpr,
            seed=seed,
            adaptive=adaptive,
            adaptive_eps=images.adaptive_eps,
            leave_one_out=leave_one_out,
        )
        other = None
        if second is not None:
            subject = found.connectivity.classifier
            size, classes = subject.preprocessing.size, subject.num_classes
            other = models.load(second, second_weights, size=size, num_classes=classes, device=str(subject.device))
        folder = cache_folder(cache)
        runner = Runner(jobs, backend, None if folder is None else str(folder), progress, note)
        report = runs.run(images, found, settings, runner, second=other, note=note)
    _show(report)
    if out is not None:
        save(report, out)
        click.echo(f"{out}: results.json, results.csv, report.html")


def _subject(
    folder: Path | None,
    asked: Asked,
    data: Path | None,
    device: str,
    fpr: float,
    seed: int,
    progress: Progress,
    how: dict[str, Any],
    reading: dict[str, Any],
) -> tuple[Detector, Data]:
    """The detector that is measured, and images that it has not seen."""
    import numpy as np
    import torch

    from advconn.datasets import Data
    from advconn.fitting import fit
    from advconn.images import Collection

    if data is None:
        if asked.model is not None or folder is not None:
            raise DataError("--data is needed with --detector or --model: images that the classifier takes")
        return unasked(device)
    collection = Collection(data, **how)
    if asked.model is None or folder is not None:
        found = detector_of(folder, asked, device)
        pixels, labels, _ = read(collection, found.connectivity.classifier, **reading)
        return found, Data(data.name, pixels, labels)
    classifier = classifier_of(asked, collection, device)
    pixels, labels, _ = read(collection, classifier, **reading)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(pixels)))
    apart, rest = order[: len(order) // 2], order[len(order) // 2 :]
    note(f"a detector is fitted on {len(apart)} of the images first; the other {len(rest)} are measured on")
    found = fit(
        classifier, pixels[apart], None if labels is None else labels[apart], fpr=fpr, seed=seed, progress=progress,
        note=note, accept_accuracy=True,
    )  # fmt: skip
    return found, Data(data.name, pixels[rest], None if labels is None else labels[rest])


def _suited(detector: Detector, note: Callable[[str], None]) -> tuple[str, ...]:
    """Every attack that the classifier can be attacked with."""
    if detector.connectivity.classifier.num_classes >= 4:
        return EVERY
    note("autoattack is left out: it needs four classes or more")
    return tuple(name for name in EVERY if name != "autoattack")


def _named(attacks: tuple[str, ...], images: Data, asked: bool) -> tuple[str, ...]:
    """Full specifications: a bare name, or one that was not asked for, stands for strengths that suit the images."""
    from advconn.attacks import Attack

    out = []
    for spec in attacks:
        name = spec.partition(":")[0]
        bare = spec == name or (not asked and name in images.attacks)
        out.append(str(Attack.parse(images.attacks.get(name, spec) if bare else spec)))
    return tuple(dict.fromkeys(out))


@contextmanager
def _cluster(name: str, jobs: int) -> Iterator[None]:
    """Joblib's backend, with what it runs on: the cluster that the environment names, or one on this machine.

    Ray's is named by RAY_ADDRESS, Dask's by DASK_SCHEDULER_ADDRESS or Dask's settings.
    """
    try:
        if name == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif name == "dask":
            import dask
            from distributed import Client

            here = {"processes": True, "threads_per_worker": 1, "dashboard_address": None}
            here |= {"n_workers": jobs} if jobs > 1 else {}
            with Client(**({} if dask.config.get("scheduler-address", None) else here)):
                yield
            return
    except ImportError:
        raise DataError(f"--backend {name} needs its package: pip install 'advconn[{name}]'") from None
    yield


def _show(report: Report) -> None:
    """The tables in the terminal."""
    from advconn.report import benchmark_tables

    for table in benchmark_tables(report):
        put(table, max(160, 80 + 26 * len(report.attacks)))
