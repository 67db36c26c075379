"""advconn benchmark: how well, against which baselines, at which cost, and what an attacker who knows leaves of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advconn.cli.arguments import classifier_of, default_subject, detector_of, other_classifier, read
from advconn.cli.options import (
    PATH,
    SPEC,
    SharedOptions,
    detector_option,
    device_option,
    list_attacks_option,
    model_options,
    reading_options,
    seed_option,
    spread_options,
)
from advconn.cli.output import note, print_table, progress_bar
from advconn.errors import DataError
from advconn.files import require_empty

if TYPE_CHECKING:
    from advconn.benchmark.result_types import Report
    from advconn.benchmark.splits import PrecomputedAttack
    from advconn.data.collection import Item
    from advconn.data.datasets import Data
    from advconn.detector.detector import Detector
    from advconn.models.classifier import Classifier
    from advconn.runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(SharedOptions):
    """The options of `advconn benchmark`, as they were given."""

    attacks: tuple[str, ...]
    attacked: tuple[Path, ...]
    detector: Path | None
    data: Path | None
    baselines: tuple[str, ...]
    second: tuple[str, ...]
    second_weights: tuple[Path, ...]
    limit: int | None
    save_as: tuple[str, ...]
    setting: str
    fpr: float
    adaptive: bool
    leave_one_out: bool
    repeats: int
    out: Path | None
    extras: tuple[str, ...]
    table: str | None
    preset: str | None

    def completed(self) -> BenchmarkOptions:
        """With what the preset stands for where nothing else was asked for."""
        if self.preset is None:
            return self
        return replace(self, attacks=self.attacks or CARD, save_as=self.save_as or CARD_WAYS, setting="both")


STAMP = re.compile(r"^\d{5}-")  # which `advconn attack` puts before a file's name
CARD = (  # the attacks of a table for a paper, and how their images are saved again
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "fgsm:eps=8/255",
    "cw:c=1,kappa=0,steps=100",
    "deepfool",
    "square:eps=8/255,n_queries=500",
    "pgd-jpeg:eps=8/255,quality=75",
)
CARD_WAYS = ("jpeg75", "webp80")
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


def baselines_of(names: Sequence[str]) -> tuple[Any, ...]:
    """Names of BASELINES and BY_NAME_ALONE, and classes by FILE.py:CLASS."""
    from advconn.benchmark.baselines import BASELINES, BY_NAME_ALONE
    from advconn.benchmark.candidate import Candidate
    from advconn.models import user_code

    out: list[Any] = []
    for name in names or BASELINES:
        if ".py:" in name:
            kind = user_code.load_attribute(name)
            is_candidate = isinstance(kind, type) and issubclass(kind, Candidate)
            if not is_candidate or not kind.name or kind.measure is Candidate.measure:
                raise DataError(
                    f"--baseline {name}: expected a class of advconn.benchmark.Candidate's with a name and `measure`"
                )
            out.append(kind)
        elif name in BASELINES or name in BY_NAME_ALONE:
            out.append(name)
        else:
            known = ", ".join((*BASELINES, *BY_NAME_ALONE))
            raise DataError(f"no baseline {name!r}: expected FILE.py:CLASS or some of {known}")
    return tuple(out)


def subject_of(options: BenchmarkOptions, progress: Progress) -> tuple[Detector, Data, list[Item]]:
    """The detector that is measured, images that it has not seen, and what they are called."""
    import numpy as np
    import torch

    from advconn.data.collection import Collection
    from advconn.data.datasets import Data
    from advconn.detector.fitting import fit
    from advconn.runtime.parallel import Runner

    data, folder, asked, device = options.data, options.detector, options.asked, options.device
    reading = (options.labels, options.max_bad, options.accept)
    if data is None:
        if asked.model is not None or folder is not None or options.attacked:
            raise DataError(
                "--data is needed with --detector, --model or --attacked: clean images that the classifier takes"
            )
        return (*default_subject(device), [])
    collection = Collection(data, **options.how)
    if asked.model is None or folder is not None:
        detector = detector_of(folder, asked, device)
        pixels, labels, items = read(collection, detector.classifier, *reading)
        return detector, Data(data.name, pixels, labels), items
    classifier = classifier_of(asked, collection, device)
    pixels, labels, items = read(collection, classifier, *reading)
    order = torch.from_numpy(np.random.default_rng(options.seed).permutation(len(pixels)))
    apart, rest = order[: len(order) // 2], order[len(order) // 2 :]
    note(f"a detector is fitted on {len(apart)} of the images first; the other {len(rest)} are measured on")
    detector = fit(
        classifier, pixels[apart], None if labels is None else labels[apart], fpr=options.fpr, seed=options.seed,
        runner=Runner(progress=progress), note=note, accept_accuracy=True,
    )  # fmt: skip
    remaining = [items[i] for i in rest.tolist()]
    return detector, Data(data.name, pixels[rest], None if labels is None else labels[rest]), remaining


def precomputed_attack(
    path: Path, originals: Sequence[Item], classifier: Classifier, clean: Path, how: dict[str, Any]
) -> PrecomputedAttack:
    """Attacked images of a path, with the rows of the clean ones of the same name, or of the same row of an array.

    Args:
        path: of a folder, a file or an array of attacked images.
        originals: the clean images, in order.
        classifier: gives the size and the channels that the images are brought to.
        clean: path of the clean images.
        how: to open the path, see Collection.

    Raises:
        DataError: no attacked image has an original, or the rows of two arrays do not go together.
    """
    import torch

    from advconn.benchmark.splits import PrecomputedAttack
    from advconn.data.collection import Collection

    collection = Collection(path, classifier.channels, **how)
    batches = list(collection.batches(classifier.preprocessing))
    if any(any(batch.resized) for batch in batches):
        note(f"images of {path} are of another size than the classifier's: they were resized, which changes them too")
    _same_rows(path, collection.items, originals)
    index = {_called(item, clean): i for i, item in enumerate(originals)}
    stems = {name.rpartition("/")[2]: i for name, i in index.items()}
    stems = stems if len(stems) == len(index) else {}
    names = [_called(item, path) for batch in batches for item in batch.items]
    indices = [index.get(name, stems.get(STAMP.sub("", name.rpartition("/")[2]), -1)) for name in names]
    rows = torch.tensor(indices, dtype=torch.int64, device="cpu")
    if not bool((rows >= 0).any()):
        inside = next(iter(collection.arrays), None)
        array = f" ({Path(path) / Path(inside).name} may be one)" if inside else ""
        raise DataError(
            f"--attacked {path}: none is called like an image of --data; give copies under the originals' names, or an "
            f"array of as many rows{array}"
        )
    if bool((rows < 0).any()):
        note(f"{int((rows < 0).sum())} of {len(rows)} images of {path} have no original in --data: they are left out")
    images = torch.cat([batch.images for batch in batches])
    return PrecomputedAttack(path.name, images[rows >= 0], rows[rows >= 0])


def _same_rows(path: Path, attacked: Sequence[Item], originals: Sequence[Item]) -> None:
    """Raise DataError where an array has other rows than the clean images' one, or labels that contradict theirs."""
    rows = [item.row for item in originals if item.row is not None]
    count = len([item for item in attacked if item.row is not None])
    if not rows or not count:
        return
    if count != max(rows) + 1:
        raise DataError(
            f"--attacked {path}: {count} rows, and --data has {max(rows) + 1}: each row is the attacked copy of "
            "the same row; give as many, or folders of pictures under the same names"
        )
    labels = {item.row: item.label for item in originals}
    other = [i for i in attacked if None not in (i.label, labels.get(i.row)) and i.label != labels[i.row]]
    if other:
        raise DataError(
            f"--attacked {path}: {len(other)} of {count} labels are others than --data's in the same rows: the rows "
            "do not go together"
        )


def _called(item: Item, root: Path) -> str:
    """What an image and its attacked copy have in common: the row, or the path under the folder without its ending."""
    if item.row is not None:
        return str(item.row)
    inside = item.path.relative_to(root) if root.is_dir() else Path(item.path.name)
    return inside.with_suffix("").as_posix()


def default_attacks(detector: Detector, told: Callable[[str], None]) -> tuple[str, ...]:
    """Every attack that the classifier can be attacked with."""
    if detector.classifier.num_classes >= 4:
        return EVERY
    told("autoattack is left out: it needs four classes or more")
    return tuple(name for name in EVERY if name != "autoattack")


def resolved_attacks(attacks: Sequence[str], images: Data, asked: bool) -> tuple[str, ...]:
    """Full specifications: a bare name, or one that was not asked for, stands for strengths that suit the images.

    Args:
        attacks: specifications.
        images: whose `attacks` are specifications of suitable strength, by name.
        asked: whether the user named the attacks.
    """
    out = []
    for spec in attacks:
        name = spec.partition(":")[0]
        bare = spec == name or (not asked and name in images.attacks)
        out.append(images.attacks.get(name, spec) if bare else spec)
    return tuple(dict.fromkeys(out))


def _list_baselines(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from advconn.benchmark.baselines import BASELINES, BY_NAME_ALONE

    for names, heading in ((BASELINES, ""), (BY_NAME_ALONE, "Only if asked for by name:")):
        click.echo(heading, nl=bool(heading))
        for name, kind in names.items():
            about = (kind.__doc__ or "").partition("\n")[0]
            click.echo(f"{name:<18} {about} ({kind.source})")
    context.exit()


def _ways(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    from advconn.data.laundering import parse_laundering

    names = tuple(dict.fromkeys(filter(None, (text or "").split(","))))
    for name in names:
        parse_laundering(name)
    return names


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
    help="Attack to test: NAME[:key=value,...], FILE.py:FUNCTION, or LIBRARY:CLASS(key=value, ...), where LIBRARY is "
    "foolbox, torchattacks, art or advlib; repeat for more [default: eleven built-in attacks].",
)
@click.option(
    "--attacked",
    multiple=True,
    type=PATH,
    metavar="PATH",
    help="Attacked copies of the --data images, matched by name or row; repeat for more.",
)
@detector_option
@model_options
@click.option("--data", type=PATH, metavar="PATH", help="Clean images [default: CIFAR-10's test images, or digits].")
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="NAME",
    help="Baseline, or FILE.py:CLASS; repeat for more [default: all].",
)
@click.option(
    "--second",
    multiple=True,
    metavar="SPEC",
    help=f"A second classifier with the same classes, for the baseline `second-model`; repeat for more: {SPEC}",
)
@click.option("--second-weights", type=PATH, multiple=True, help="State dict; one for each --second, in order.")
@click.option(
    "--limit",
    type=click.IntRange(min=10),
    help="Attack at most N test images with each attack. Each part of the split keeps at most 1.25 N clean images.",
)
@click.option(
    "--save-as",
    callback=_ways,
    metavar="WAY,...",
    help="Also judge the attacked images after they were saved: jpeg90, jpeg75, webp80, resize, screenshot, phone, "
    "noise4, or any quality. Only those that still fool the classifier count.",
)
@click.option(
    "--setting",
    type=click.Choice(["used", "both"]),
    default="used",
    show_default=True,
    help="used: as deployed, one detector and one threshold for all attacks. both: in addition, a separate "
    "detector trained for each attack, as in most papers.",
)
@click.option("--fpr", type=float, default=0.05, show_default=True, help="False-alarm rate of every threshold.")
@click.option("--adaptive", is_flag=True, help="Also run an adaptive attack, which knows the detector (slow).")
@click.option("--leave-one-out", is_flag=True, help="Also train without each family of attacks in turn.")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of runs, each with another seed.",
)
@spread_options
@click.option("--cache", type=PATH, help="Cache folder for finished work [default: ~/.cache/advconn].")
@click.option(
    "--out", type=PATH, metavar="DIR", help="For results.json, results.csv, table.tex, report.html and figures."
)
@click.option(
    "--save", "extras", metavar="LIST", callback=_extras, help="Also write these into --out: scores,split,images."
)
@click.option(
    "--preset",
    type=click.Choice(["card"]),
    help="card: what a table for a paper needs: seven attacks, also saved as JPEG 75 and WebP 80, in both settings, "
    "beside all baselines.",
)
@click.option(
    "--table", type=click.Choice(["md", "latex", "csv"]), help="Print only AUROC / detection rate in this format."
)
@click.option(
    "--list-baselines", is_flag=True, is_eager=True, expose_value=False, callback=_list_baselines,
    help="Show the baselines, and exit.",
)  # fmt: skip
@list_attacks_option
@reading_options
@seed_option
@device_option
def benchmark(**given: Any) -> None:
    """Compare a detector with baselines.

    There is one split by image and one frozen threshold for each detector; only successful attacks count.

    Without --detector and --model, the shipped detector is measured. Without --data, CIFAR-10's test images are used
    or, if they cannot be downloaded, scikit-learn's digits. Attacks and detectors of your own are Python files, see
    README.

    \b
    Example:
      advconn benchmark --attack pgd --limit 200
      advconn benchmark --detector detector/ --data images/ --attack pgd --attack cw --adaptive --out report/
      advconn benchmark --attack my_attack.py:make --baseline my_detector.py:Mine --table latex
    """
    from advconn.benchmark.attack_sources import to_attacks
    from advconn.runtime.parallel import cluster

    options = BenchmarkOptions(**given).completed()
    if options.out is not None:
        require_empty(options.out)
    elif options.extras:
        raise click.UsageError("--save goes with --out")
    kinds = baselines_of(options.baselines)
    to_attacks(options.attacks)
    with cluster(options.backend, options.jobs), progress_bar() as progress:
        reports = list(_reports(options, kinds, progress))
    _show(reports, options.table)
    if options.out is not None:
        _saved(reports, options.out, options.extras)


def _reports(options: BenchmarkOptions, kinds: tuple[Any, ...], progress: Progress) -> Iterator[Report]:
    """One report of each repeat."""
    from advconn.attacks.attack import compatible_attacks
    from advconn.attacks.catalog import MIXTURE
    from advconn.benchmark.adaptive_evaluation import AdaptiveBudget
    from advconn.benchmark.run import Settings, run
    from advconn.data.datasets import DIGIT_MIXTURE
    from advconn.runtime.cache import DiskCache, cache_folder
    from advconn.runtime.parallel import Runner

    detector, images, items = subject_of(options, progress)
    classifier = detector.classifier
    attacks = options.attacks or (() if options.attacked else default_attacks(detector, note))
    settings = Settings(
        attacks=resolved_attacks(attacks, images, bool(options.attacks)),
        baselines=kinds,
        mixture=DIGIT_MIXTURE if images.attacks else compatible_attacks(classifier, MIXTURE),
        limit=options.limit,
        fpr=options.fpr,
        save_as=options.save_as,
        published=options.setting == "both",
        leave_one_out=options.leave_one_out,
        effort=AdaptiveBudget(eps=images.adaptive_eps) if options.adaptive else None,
    )
    clean = options.data or Path()
    ready = [precomputed_attack(path, items, classifier, clean, options.how) for path in options.attacked]
    weights: Sequence[Path | None] = options.second_weights or [None] * len(options.second)
    if len(weights) != len(options.second):
        raise click.UsageError("--second-weights: one for each --second, in order, or none")
    loaded = (
        other_classifier("second model", spec, path, classifier, images.images)
        for spec, path in zip(options.second, weights, strict=True)
    )
    others = [other for other in loaded if other is not None]
    folder = cache_folder(options.cache)
    runner = Runner(options.jobs, options.backend, DiskCache(folder, note), progress)
    for i in range(options.repeats):
        once = replace(settings, seed=options.seed + i)
        yield run(images, detector, once, runner, second=others, ready=ready, note=note)


def _show(reports: Sequence[Report], kind: str | None) -> None:
    """The tables in the terminal: of the first run, and of repeats their mean and spread; or one table alone."""
    from advconn.benchmark.report import tables
    from advconn.benchmark.report.folder import as_record
    from advconn.benchmark.report.tables import benchmark_tables

    if kind is None:
        for table in benchmark_tables(reports[0]):
            print_table(table, max(160, 80 + 26 * len(reports[0].attacks)))
    if kind is not None or len(reports) > 1:
        records = {"": [as_record(report) for report in reports]}
        click.echo(tables.print_tables(kind or "md", records, spread=True))


def _saved(reports: Sequence[Report], out: Path, extras: Sequence[str]) -> None:
    """One folder, or of repeats one for each seed inside it."""
    from advconn.benchmark.report.folder import save
    from advconn.files import atomic_folder

    if len(reports) == 1:
        save(reports[0], out, extras)
    else:
        with atomic_folder(out) as partial:
            for report in reports:
                save(report, partial / f"seed-{report.settings['seed']}", extras)
    seeds = f" in each of {len(reports)} folders, one a seed" * (len(reports) > 1)
    click.echo(f"{out}: results.json, results.csv, report.html, figures{seeds}", err=True)
