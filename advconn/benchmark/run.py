"""One benchmark from its settings to a report: attack, prepare, measure, freeze, evade, report."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks
from advconn.attacks.catalog import MIXTURE
from advconn.benchmark import result_rows
from advconn.benchmark.adaptive_evaluation import STRICT, AdaptiveBudget, evasion_rows
from advconn.benchmark.attack_sources import AttackProtocol, NamedAttack, SavedAttack, to_attacks
from advconn.benchmark.barrier_controls import controls
from advconn.benchmark.baselines import BASELINES, BY_NAME_ALONE
from advconn.benchmark.baselines.advconn import AdvconnAsGiven, AdvconnRefitted
from advconn.benchmark.baselines.logits import SecondClassifier
from advconn.benchmark.candidate import Candidate
from advconn.benchmark.cost import bare_milliseconds, cost_rows
from advconn.benchmark.error_examples import false_alarm_examples, missed_examples
from advconn.benchmark.feature_tables import FeatureTables, ImageSetKey, is_cached, measure
from advconn.benchmark.fitted_detector import fit_and_threshold, reference_rows
from advconn.benchmark.result_types import PUBLISHED, Control, LeaveOneOutRow, Report, Row
from advconn.benchmark.splits import BenchmarkData, PrecomputedAttack, classifier_key
from advconn.data.conditions import CONDITIONS, noise_of_size, usable
from advconn.data.datasets import Data
from advconn.data.input_conversion import image_hashes
from advconn.data.laundering import parse_laundering
from advconn.detector.calibration import check_calibration_size
from advconn.detector.detector import Detector
from advconn.errors import AdvconnError, DataError, FitError
from advconn.models.classifier import Classifier
from advconn.runtime.parallel import Runner

Note = Callable[[str], None]
SPOILT = ("jpeg75", "blur", "brighter")


@dataclass(frozen=True)
class Settings:
    """What a benchmark is to do.

    attacks: specifications tested on, or objects with a name and a run, see attackers. baselines: names in BASELINES,
    or classes of one's own, see Candidate. mixture: attacks trained on. limit: images attacked by each (and a quarter
    more clean ones in every part). conditions: benign ones that false alarms are counted under. save_as: ways of saving
    (data.laundering) that attacked and clean images are put through too. published: whether what learns is also trained
    on each attack alone that it is tested on, as papers have it. effort: of the attack that knows the detector; None
    leaves it out.
    """

    attacks: tuple[str | AttackProtocol, ...]
    baselines: tuple[str | type[Candidate], ...] = tuple(BASELINES)
    mixture: tuple[str, ...] = MIXTURE
    limit: int | None = None
    fpr: float = 0.05
    seed: int = 0
    conditions: tuple[str, ...] = SPOILT
    save_as: tuple[str, ...] = ()
    published: bool = False
    leave_one_out: bool = False
    effort: AdaptiveBudget | None = None

    @property
    def per_attack(self) -> int:
        """So that attacked training images are about as many as clean ones."""
        return 400 if self.limit is None else max(10, 5 * self.limit // (4 * len(self.mixture)))


@dataclass(frozen=True)
class Attacked:
    """What was attacked: taught by the mixture, on the training part; tested by the attacks asked for.

    saved: the same attacks, saved in each way; `tested` holds, by their names, the copies that survive it.
    alone: the attacks asked for on the training part, where what learns is also trained on each alone.
    """

    mixture: tuple[NamedAttack, ...]
    taught: Mapping[str, SuccessfulAttacks]
    attacks: tuple[NamedAttack, ...]
    tested: Mapping[str, SuccessfulAttacks]
    saved: tuple[SavedAttack, ...] = ()
    alone: Mapping[str, SuccessfulAttacks] = field(default_factory=dict)

    @property
    def first(self) -> SuccessfulAttacks | None:
        """Of the first attack that succeeded at all."""
        return next((self.tested[a.name] for a in self.attacks if len(self.tested[a.name].rows)), None)

    @property
    def families(self) -> frozenset[str]:
        """Those trained on."""
        return frozenset(a.family for a in self.mixture if a.name in self.taught)


def run(
    data: Data,
    detector: Detector,
    settings: Settings,
    runner: Runner,
    *,
    second: Classifier | Sequence[Classifier] | None = None,
    ready: Sequence[PrecomputedAttack] = (),
    note: Note = lambda text: None,
) -> Report:
    """Compare a detector with others on the same images, each at one frozen threshold.

    Args:
        data: clean images.
        detector: a fitted one; images that it was fitted on are left out.
        settings: what is attacked, compared and counted.
        runner: what spreads the work and keeps its results.
        second: another classifier of the same classes, or several, for candidates that need one: the baseline
            `second-model` is measured with each.
        ready: attacked images that somebody made of `data`.
        note: told, a line each, what is left out and which attacks often fail.

    Raises:
        FitError: too few images.
        DataError: attacked images of none of these.
    """
    bench = make_splits(data, detector, settings, runner, ready, note)
    attacked = attack(bench, settings, note)
    sets = image_sets(bench, attacked, settings)
    others = () if second is None else (second,) if isinstance(second, Classifier) else tuple(second)
    candidates = prepare(detector, bench, settings, others, sets, note)
    measured = measure(candidates, sets, runner)
    frozen = [
        fit_and_threshold(candidate, measured[candidate.name], attacked.taught, bench, settings.fpr)
        for candidate in candidates
    ]
    left = leave_one_family_out(candidates, measured, attacked, bench, settings) if settings.leave_one_out else []
    aware = evasion_rows(bench, frozen, attacked.taught, settings.effort) if settings.effort else []
    bare = bare_milliseconds(bench)
    return Report(
        settings=run_metadata(data, bench, settings, attacked, candidates),
        rows=tuple(
            result_rows.row(fitted, a, attacked.tested[a.name], bench, a.family in attacked.families, frozen[0])
            for fitted in frozen
            for a in attacked.attacks
        ),
        alarms=tuple(alarm for fitted in frozen for alarm in result_rows.false_positive_rows(fitted, bench)),
        attacks=tuple(
            bench.size(a.name, a.family, a.key in {m.key for m in attacked.mixture}, attacked.tested[a.name])
            for a in attacked.attacks
        ),
        expenses=tuple(cost for fitted in frozen for cost in cost_rows(fitted, attacked.attacks, bare)),
        evasions=tuple(aware),
        saved=tuple(
            result_rows.row(fitted, a, attacked.tested[a.name], bench, a.family in attacked.families, frozen[0])
            for fitted in frozen
            for a in attacked.saved
        ),
        published=tuple(train_on_each_attack(candidates, measured, attacked, bench, settings, note)),
        left=tuple(left),
        controls=tuple(barriers(bench, attacked.first)),
        scores={fitted.name: result_rows.scores(fitted, attacked.attacks) for fitted in frozen},
        missed=tuple(missed_examples(bench, frozen[0], attacked.attacks, attacked.tested)),
        alarmed=tuple(false_alarm_examples(bench, frozen[0])),
        split={name: bench.rows(name).numpy() for name in ("train", "calibrate", "test")},
        attacked={a.name: (attacked.tested[a.name].images.numpy(), attacked.tested[a.name].rows.numpy())
         for a in attacked.attacks},
    )  # fmt: skip


def make_splits(
    data: Data, detector: Detector, settings: Settings, runner: Runner, ready: Sequence[PrecomputedAttack], note: Note
) -> BenchmarkData:
    """The images that the detector was not fitted on, in their parts; ready-made ones follow their originals.

    Args:
        data: clean images.
        detector: a fitted one, whose classifier is attacked.
        settings: the limit, the false-alarm rate and the seed of the parts.
        runner: what spreads the work and keeps its results.
        ready: attacked images that somebody made of `data`; those of a left-out image are left out.
        note: told, a line each, how many images are left out.
    """
    images, indices = unseen(data, detector, note)
    place = torch.full((len(data),), -1, dtype=torch.int64, device="cpu")
    place[indices] = torch.arange(len(indices), dtype=torch.int64, device="cpu")
    moved = [replace(r, images=r.images[place[r.rows] >= 0], rows=place[r.rows][place[r.rows] >= 0]) for r in ready]
    bench = BenchmarkData(
        detector.classifier, images.images, images.labels, runner=runner, limit=settings.limit,
        fpr=settings.fpr, seed=settings.seed, ready=moved,
    )  # fmt: skip
    if settings.effort:
        check_calibration_size(len(bench.parts.calibrate), STRICT)  # its own threshold: better told now than at the end
    return bench


def unseen(data: Data, detector: Detector, note: Note) -> tuple[Data, Tensor]:
    """The images that the detector was not fitted on, every one once, and their rows (n,) in `data`.

    Args:
        data: clean images.
        detector: a fitted one.
        note: told, a line each, how many images are left out.
    """
    hashes = image_hashes(data.images)
    first = np.zeros(len(hashes), dtype=bool)
    first[np.unique(hashes, return_index=True)[1]] = True
    fitted_on = np.isin(hashes, detector.fitted_.image_hashes)
    left = torch.from_numpy(first & ~fitted_on)
    if fitted_on.any():
        note(f"{int(fitted_on.sum())} of {len(hashes)} images are left out: the detector was fitted on them")
    if not (first | fitted_on).all():
        note(f"{int((~first & ~fitted_on).sum())} of {len(hashes)} images are left out: they are there twice")
    labels = None if data.labels is None else data.labels[left]
    return replace(data, images=data.images[left], labels=labels), left.nonzero()[:, 0]


def attack(bench: BenchmarkData, settings: Settings, note: Note) -> Attacked:
    """The mixture on the training part, the attacks asked for on the test part.

    Args:
        bench: the images in their parts, and ready-made attacked ones.
        settings: the mixture, the attacks asked for, and how many images each is run on.
        note: told, a line each, which attacks succeed on fewer than 90 % of their images.

    Raises:
        DataError: ready-made images are called like an attack, or images to save are no pictures.
    """
    channels = bench.images.shape[1]
    if settings.save_as and channels not in (1, 3):
        raise DataError(f"--save-as: images of {channels} channels are no pictures, and are not saved as such")
    mixture, asked = to_attacks(settings.mixture), to_attacks(settings.attacks)
    taught = bench.attack("train", mixture, settings.per_attack)
    left = [a for a in mixture if settings.leave_one_out and a.name not in {b.name for b in asked}]
    tested = bench.attack("test", (*asked, *left), settings.limit)
    for ready in bench.ready:
        if ready.name in tested:
            raise DataError(f"two attacks are called {ready.name}: rename the file or folder of --attacked")
        tested[ready.name] = bench.tried(ready, settings.limit)
        asked = (*asked, NamedAttack(ready.name, "given", ready, ready.name))
    for a in asked:
        hits = tested[a.name]
        if len(hits.rows) < 0.9 * hits.tried:
            note(f"{a.name} succeeded on {len(hits.rows)} of {hits.tried}: only those count")
    saved = [SavedAttack.of(a, way) for a in asked for way in settings.save_as]
    for copy in saved:
        tested[copy.name] = bench.survivors(tested[copy.attack], copy.saved_as)
    own = [a for a in asked if settings.published and not isinstance(a.made_by, PrecomputedAttack)]
    alone = bench.attack("train", own, settings.limit) if own else {}
    taught = {name: hits for name, hits in taught.items() if len(hits.rows)}
    return Attacked((*mixture,), taught, asked, tested, tuple(saved), {k: v for k, v in alone.items() if len(v.rows)})


def image_sets(bench: BenchmarkData, attacked: Attacked, settings: Settings) -> dict[ImageSetKey, Tensor]:
    """Everything that candidates are asked of.

    Args:
        bench: the clean images in their parts.
        attacked: what was made of them.
        settings: the benign conditions, how many images are put under them, and the seed of these.
    """
    sets = {ImageSetKey(part): bench.part(part) for part in ("train", "calibrate", "test")}
    sets |= {ImageSetKey("train", name): hits.images for name, hits in attacked.taught.items()}
    sets |= {ImageSetKey("alone", name): hits.images for name, hits in attacked.alone.items()}
    sets |= {ImageSetKey("test", name): hits.images for name, hits in attacked.tested.items()}
    few = bench.part("test")[: (settings.limit or 1000) // 4]
    first = attacked.first
    l2 = 1.0 if first is None else bench.mean_l2(first)
    kinds = {f"noise of L2 {l2:.2f}": noise_of_size(l2)}
    kinds |= {name: CONDITIONS[name] for name in usable(settings.conditions, few.shape[1])}
    kinds |= {way: parse_laundering(way).change for way in settings.save_as}
    return sets | {ImageSetKey("test", condition=name): change(few, settings.seed) for name, change in kinds.items()}


def prepare(
    detector: Detector,
    bench: BenchmarkData,
    settings: Settings,
    others: Sequence[Classifier],
    sets: Mapping[ImageSetKey, Tensor],
    note: Note,
) -> list[Candidate]:
    """Every candidate that can be had, ready to measure what is not kept from an earlier run.

    Args:
        detector: the one that is compared with others.
        bench: the clean images in their parts.
        settings: the baselines asked for.
        others: further classifiers of the same classes, for candidates that need one.
        sets: the images (n, c, h, w) that will be measured, by what they are.
        note: told, a line each, which candidates are left out, and why.

    Raises:
        DataError: two detectors of one name.
    """
    train = bench.part("train")
    made: list[Candidate] = [AdvconnAsGiven(detector, train), AdvconnRefitted(detector, train)]
    for asked in settings.baselines:
        kind = {**BASELINES, **BY_NAME_ALONE}[asked] if isinstance(asked, str) else asked
        several = kind.name == SecondClassifier.name
        if several and not others:
            note(f"{kind.name} is left out: give another classifier with --second")
            continue
        clean = bench.images[reference_rows(bench)] if kind.apart else train
        for number, other in enumerate(others if several else (others or (None,))[:1], 1):
            name = kind.name if number == 1 else f"{kind.name}-{number}"
            if name in {one.name for one in made}:
                raise DataError(f"two detectors are called {name!r}: give each a name of its own")
            try:
                candidate = kind(bench.classifier, clean, other)
                if number > 1:
                    candidate.name = name  # type: ignore[misc]
                if not is_cached(candidate, sets, bench.runner):
                    candidate.prepare()
            except ImportError as error:
                note(f"{name} is left out: {error.name} is not installed{_installed_by(error.name)}")
                continue
            except AdvconnError as error:
                note(f"{name} is left out: {str(error).removeprefix(f'{kind.name}: ')}")
                continue
            made.append(candidate)
    return made


def _installed_by(package: str | None) -> str:
    """How to install a package that a baseline needs; '' if it has no name."""
    if package == "pytorch_ood":
        return ": pip install 'advconn[ood]'"
    return f": pip install {package.replace('_', '-')}" if package else ""


def train_on_each_attack(
    candidates: Sequence[Candidate], measured: Mapping[str, FeatureTables], attacked: Attacked, bench: BenchmarkData,
    settings: Settings, note: Note,
) -> list[Row]:  # fmt: skip
    """Every candidate that learns from attacks, trained on one attack alone and tested on it: the papers' own setting.

    Args:
        candidates: those compared; one that does not learn is passed over.
        measured: their columns, by name.
        attacked: what was made of the training and the test part.
        bench: the clean images in their parts.
        settings: the false-alarm rate of the thresholds.
        note: told, a line each, of what too few copies could train.
    """
    out = []
    for candidate in (c for c in candidates if c.learns):
        for a in (a for a in attacked.attacks if a.name in attacked.alone):
            try:
                fitted = fit_and_threshold(
                    candidate, measured[candidate.name], {a.name: attacked.alone[a.name]}, bench, settings.fpr, "alone"
                )
            except FitError as error:
                note(f"{candidate.name} is not trained on {a.name} alone: {error}")
                continue
            row = result_rows.row(fitted, a, attacked.tested[a.name], bench, in_training=True)
            out.append(replace(row, setting=PUBLISHED))
    return out


def leave_one_family_out(
    candidates: Sequence[Candidate], measured: Mapping[str, FeatureTables], attacked: Attacked, bench: BenchmarkData,
    settings: Settings,
) -> list[LeaveOneOutRow]:  # fmt: skip
    """Every candidate that learns from attacks, fitted without each family, on attacks of that family.

    Args:
        candidates: those compared; one that does not learn is passed over.
        measured: their columns, by name.
        attacked: what was made of the training and the test part.
        bench: the clean images in their parts.
        settings: the false-alarm rate of the thresholds.
    """
    families = {a.name: a.family for a in attacked.mixture}
    tested = (*attacked.attacks, *(a for a in attacked.mixture if a.name not in {b.name for b in attacked.attacks}))
    out = []
    for family in dict.fromkeys(families[name] for name in attacked.taught):
        rest = {name: hits for name, hits in attacked.taught.items() if families[name] != family}
        mine = [a for a in tested if a.family == family and len(attacked.tested[a.name].rows)]
        if not rest or not mine:
            continue
        for candidate in candidates:
            if candidate.learns:
                fitted = fit_and_threshold(candidate, measured[candidate.name], rest, bench, settings.fpr)
                out += [result_rows.leave_one_out_rows(fitted, family, a) for a in mine]
    return out


def barriers(bench: BenchmarkData, hits: SuccessfulAttacks | None, count: int = 100) -> list[Control]:
    """What barriers there are between images that no one attacked, beside attacked ones.

    Args:
        bench: whose clean test images are connected.
        hits: images that an attack made; None gives no rows.
        count: clean images, and attacked ones, at most.
    """
    if hits is None:
        return []
    truth = bench.labels[hits.rows[:count]]
    arrays = (bench.part("test")[:count].numpy(), hits.images[:count].numpy(), truth.numpy())
    call, key = (*arrays, bench.seed, bench.classifier), (*arrays, bench.seed, classifier_key(bench.classifier))
    return list(bench.runner.map("controls", controls, [call], [key])[0])


def run_metadata(
    data: Data, bench: BenchmarkData, settings: Settings, attacked: Attacked, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """What the figures rest on: settings, data, parts, versions, machine.

    Args:
        data: whose name is told.
        bench: the images and their parts, and the classifier.
        settings: told as they are.
        attacked: the attacks that were tested.
        candidates: each with its source.
    """
    plain = {k: v for k, v in vars(settings).items() if k not in ("attacks", "baselines", "effort")}
    return {
        "data": data.name,
        "data_sha256": hashlib.sha256(bench.images.numpy().tobytes()).hexdigest(),
        "test_sha256": hashlib.sha256(bench.part("test").numpy().tobytes()).hexdigest(),
        "fingerprint": bench.classifier.fingerprint,
        "accuracy": bench.accuracy,
        "parts": {name: len(bench.rows(name)) for name in ("train", "calibrate", "test")},
        "versions": {"python": platform.python_version()}
        | {n: version(n) for n in ("advconn", "torch", "torchattacks", "scikit-learn", "numpy")},
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "attacks": [a.name for a in attacked.attacks],
        "sources": {candidate.name: candidate.source for candidate in candidates},
        "second": next((c.second.fingerprint for c in candidates if c.second is not None), None),
        "effort": None if settings.effort is None else vars(settings.effort),
        **plain,
    }
