"""advconn benchmark: how well, against which baselines, at which cost, and what an attacker who knows leaves of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli import subjects
from advconn.cli.common import note, put
from advconn.cli.options import (
    PATH,
    SPEC,
    detector_option,
    device_option,
    list_attacks_option,
    model_options,
    reading_options,
    seed_option,
    spread_options,
)
from advconn.cli.progress import progress_bar
from advconn.files import require_vacant

if TYPE_CHECKING:
    from advconn.benchmark.results import Report
    from advconn.parallel import Progress


def _list_baselines(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from advconn.benchmark.baselines import BASELINES

    for name, kind in BASELINES.items():
        about = (kind.__doc__ or "").partition("\n")[0]
        click.echo(f"{name:<18} {about} ({kind.source})")
    context.exit()


def _extras(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    choices = ("scores", "split", "images")
    names = tuple(filter(None, (text or "").split(",")))
    unknown = next((name for name in names if name not in choices), None)
    if unknown is not None:
        raise click.BadParameter(f"{unknown!r}: expected some of {','.join(choices)}")
    return names


@click.command()
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="SPEC",
    help="Attack to test: NAME[:key=value,...], FILE.py:FACTORY, or foolbox:, torchattacks:, art:, "
    "advlib:CLASS(key=value, ...); repeat for more [default: eleven].",
)
@click.option(
    "--attacked",
    multiple=True,
    type=PATH,
    metavar="PATH",
    help="Images that were attacked before, of those of --data, by name or row; repeat for more.",
)
@detector_option
@model_options
@click.option("--data", type=PATH, metavar="PATH", help="Clean images; else CIFAR-10's test images, or digits.")
@click.option(
    "--baseline", "baselines", multiple=True, metavar="NAME", help="Or FILE.py:CLASS; repeat for more; all if none."
)
@click.option("--second", metavar="SPEC", help=f"Another classifier of the same classes: {SPEC}")
@click.option("--second-weights", type=PATH, help="Its state dict.")
@click.option(
    "--limit",
    type=click.IntRange(min=10),
    help="Attack at most so many test images by each; a quarter more clean ones are kept in every part.",
)
@click.option("--fpr", type=float, default=0.05, show_default=True, help="False-alarm rate of every threshold.")
@click.option("--adaptive", is_flag=True, help="Also the attack that knows the detector (slow).")
@click.option("--leave-one-out", is_flag=True, help="Also train without each family of attacks in turn.")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="Runs, each of another seed.")
@spread_options
@click.option("--cache", type=PATH, help="Folder for finished work [default: ~/.cache/advconn].")
@click.option("--out", type=PATH, metavar="DIR", help="For results.json, results.csv, report.html and figures.")
@click.option("--save", "extras", metavar="LIST", callback=_extras, help="Into --out too: some of scores,split,images.")
@click.option("--table", type=click.Choice(["md", "latex", "csv"]), help="Print AUROC / caught like this alone.")
@click.option(
    "--list-baselines", is_flag=True, is_eager=True, expose_value=False, callback=_list_baselines,
    help="Show the detectors compared with, and exit.",
)  # fmt: skip
@list_attacks_option
@reading_options
@seed_option
@device_option
def benchmark(**given: Any) -> None:
    """Compare a detector with baselines: one split by image, one frozen threshold each, only successful attacks.

    Without --detector and --model the shipped one is measured; without --data on CIFAR-10's test images, or where they
    cannot be had, on the digits inside scikit-learn. Attacks and detectors of your own are Python files, see README.

    \b
    Example:
      advconn benchmark --attack pgd --limit 200
      advconn benchmark --detector detector/ --data images/ --attack pgd --attack cw --adaptive --out report/
      advconn benchmark --attack my_attack.py:make --baseline my_detector.py:Mine --table latex
    """
    from advconn.benchmark.attacks import attackers
    from advconn.parallel import cluster

    if given["out"] is not None:
        require_vacant(given["out"])
    elif given["extras"]:
        raise click.UsageError("--save goes with --out")
    kinds = subjects.baselines(given["baselines"])
    attackers(given["attacks"])
    with cluster(given["backend"], given["jobs"]), progress_bar() as progress:
        reports = list(_reports(given, kinds, progress))
    _show(reports, given["table"])
    if given["out"] is not None:
        _saved(reports, given["out"], given["extras"])


def _reports(given: dict[str, Any], kinds: tuple[Any, ...], progress: Progress) -> Iterator[Report]:
    """One report of each repeat."""
    from advconn.attacks.attack import made_for
    from advconn.attacks.catalog import MIXTURE
    from advconn.benchmark.adaptive import Effort
    from advconn.benchmark.run import Settings, run
    from advconn.data.datasets import DIGIT_MIXTURE
    from advconn.parallel import Runner, Store, cache_folder

    detector, images, items = subjects.subject(given, progress)
    classifier = detector.connectivity.classifier
    attacks = given["attacks"] or (() if given["attacked"] else subjects.suited(detector, note))
    settings = Settings(
        attacks=subjects.named(attacks, images, bool(given["attacks"])),
        baselines=kinds,
        mixture=DIGIT_MIXTURE if images.attacks else made_for(classifier, MIXTURE),
        limit=given["limit"],
        fpr=given["fpr"],
        leave_one_out=given["leave_one_out"],
        effort=Effort(eps=images.adaptive_eps) if given["adaptive"] else None,
    )
    ready = [subjects.ready(path, items, classifier, given) for path in given["attacked"]]
    other = subjects.second(given, classifier)
    folder = cache_folder(given["cache"])
    runner = Runner(given["jobs"], given["backend"], Store(folder, note), progress)
    for i in range(given["repeats"]):
        once = replace(settings, seed=given["seed"] + i)
        yield run(images, detector, once, runner, second=other, ready=ready, note=note)


def _show(reports: Sequence[Report], kind: str | None) -> None:
    """The tables in the terminal: of the first run, and of repeats their mean and spread; or one table alone."""
    from advconn.benchmark.report import tables
    from advconn.benchmark.report.folder import as_record
    from advconn.benchmark.report.tables import benchmark_tables

    if kind is None:
        for table in benchmark_tables(reports[0]):
            put(table, max(160, 80 + 26 * len(reports[0].attacks)))
    if kind is not None or len(reports) > 1:
        records = {"": [as_record(report) for report in reports]}
        click.echo(tables.printed(kind or "md", records, spread=True))


def _saved(reports: Sequence[Report], out: Path, extras: Sequence[str]) -> None:
    """One folder, or of repeats one for each seed inside it."""
    from advconn.benchmark.report.folder import save
    from advconn.files import writing

    if len(reports) == 1:
        save(reports[0], out, extras)
    else:
        with writing(out) as partial:
            for report in reports:
                save(report, partial / f"seed-{report.settings['seed']}", extras)
    seeds = f" in each of {len(reports)} folders, one a seed" * (len(reports) > 1)
    click.echo(f"{out}: results.json, results.csv, report.html, figures{seeds}", err=True)
