"""From a classifier and clean images to a fitted detector: references, then the detector, no image in two uses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from advconn.attacks.attack import parse_all
from advconn.attacks.catalog import MIXTURE
from advconn.attacks.strength import choose_mixture, images_per_attack
from advconn.cascade import pretrained
from advconn.cascade.attacked_copies import features_of
from advconn.cascade.cascade import STAGES, Stage, stage_extractors
from advconn.cascade.pretrained import PretrainedHeads
from advconn.data.conditions import BENIGN, CLEAN, PROMISED, usable
from advconn.data.input_conversion import as_labels, as_tensor, image_hashes
from advconn.data.labels import sample_rows
from advconn.detector.calibration import check_calibration_size, min_calibration_size
from advconn.detector.clean_images import (
    FOR_REFERENCES,
    CleanSet,
    add_references,
    drop_non_finite,
    label_preserving,
    prepare_images,
)
from advconn.detector.detector import GROUPED, HELD_OUT, PER_ATTACK, Detector
from advconn.detector.fit_plan import FitPlan
from advconn.detector.refinement import Remedy, refine_until_effective
from advconn.detector.trial_attack import MAX_ATTACKED, Trial
from advconn.errors import AdvconnWarning, FitError, ModelError
from advconn.features.connectivity import Connectivity
from advconn.features.references import References
from advconn.models.classifier import Classifier
from advconn.models.equivalence import scaled_like
from advconn.runtime.parallel import Runner
from advconn.runtime.progress import ignore_progress

DECIDED = {  # parameters of Detector that a plan decides
    "attacks", "per_attack", "calibrate", "stages", "benign", "conditions", "evasive", "pretrained",
}  # fmt: skip
FEW = 20  # attacked images that a head cannot learn much from

EVASIVE = 256  # images that what evades is made from, with a companion
OF_ATTACKS = {"attacks", "per_attack", "head", "surrogate", "companion"}  # options that a quick fit has no use for
FINE = 16  # pixels of a side: in fewer a copy shifted by one is far away, and a few copies clear too much
QUICK_TRAIN = 100  # images that a quick fit takes medians and spreads of; of many images a quarter
REFINED = 100  # images that are attacked where a quick fit turns out weak
DEAR, TOO_DEAR = 0.1, 0.25  # share of a weak attack that a condition may cost before it is named, and left out
CHECK_SECONDS = 60.0  # that the attack on a finished detector may take
FEWEST_LEFT = 60  # images that are never tried on: they train and calibrate


def warn(text: str) -> None:
    """Say it as a warning."""
    warnings.warn(text, AdvconnWarning, stacklevel=3)


def _once(note: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but what it was told before is not repeated: a remedy begins with what the first fit did."""
    told: set[str] = set()

    def tell(text: str) -> None:
        if text not in told:
            told.add(text)
            note(text)

    return tell


def fit(
    classifier: Classifier,
    images: Any,
    labels: Any = None,
    *,
    fpr: float = 0.05,
    confidence: float | str | None = None,
    seed: int = 0,
    synthesised: bool = False,
    apart: Any = None,
    apart_labels: Any = None,
    quick: bool | None = None,
    refine: int = 0,
    surrogate: Classifier | nn.Module | None = None,
    companion: Classifier | nn.Module | None = None,
    accept_accuracy: bool = False,
    accept_weak: bool = False,
    accuracy: float | None = None,
    runner: Runner | None = None,
    note: Callable[[str], None] = warn,
    on_plan: Callable[[FitPlan], None] = lambda plan: None,
    connectivity: dict[str, Any] | None = None,
    **options: Any,
) -> Detector:
    """A detector for `classifier`, fitted and calibrated on clean images.

    References are chosen among a fifth of the images, which are in no other use, or synthesised. Where the images leave
    a class without a reference, own and rival paths are left out, and `note` is told.

    The finished detector is tried on one attack (detector.trial_attack.Trial). Where it catches less than half, a
    quick fit attacks REFINED images and moves its heads, and then fits heads of its own, as far as that takes no more
    than detector.refinement.MAX_SECONDS. What was measured is kept as `detector.fitted_.efficacy`.

    Args:
        classifier: what is to be guarded.
        images: clean ones (n, c, h, w), uint8 or in [0, 1], as tensor or array.
        labels: true classes (n,) where known, as integers or one-hot.
        fpr: false-alarm rate asked for, in (0, 1).
        confidence: with which it is promised, in (0, 1). By default ('none') it holds on average over draws of the
            calibration images, in every group of pictures that are alike (picture_groups.Groups); with a confidence
            there is one lower threshold for all.
        seed: of every split and attack.
        synthesised: make the references instead of choosing them; needs gradients.
        apart: other clean images, to calibrate on; else a part of `images` is kept for it.
        apart_labels: true classes of these where known, as `labels`.
        quick: take heads that were taught on other networks, standardised by the clean images, and make no attack: no
            gradient is needed then, and most of the images are calibrated on. Default: quick, unless an option says
            how attacks are made, images walked or heads fitted (OF_ATTACKS, connectivity, stages, benign).
        refine: of a quick fit, so many images are attacked after all, by the mixture or `attacks` in turn, and move the
            heads towards this classifier.
        surrogate: another network of the same classes, for a classifier without gradients: attacks that need them are
            made on it.
        companion: another network of the same classes, trained against attacks: what it says of the predicted class is
            read beside the paths, and images that evade all else are attacked in training. A quick fit has no use for
            it: the taught heads know of none.
        accept_accuracy: go on with a classifier that is no better than chance.
        accept_weak: return a detector that catches less than half of the images of the attack that it is tried on.
        accuracy: of the classifier on images that it was not trained on, in [0, 1], where known: `note` is told where
            it gets significantly more of these right, and without one where it gets all of them right.
        runner: see Detector.fit.
        note: told what a user should know (else these are warnings).
        on_plan: told what is going to be done, before it is; once more where a remedy is tried.
        connectivity: options of Connectivity.
        options: of Detector; `attacks` are chosen to suit the classifier where they are not given, and of the benign
            `conditions` those that leave it its predictions. Every image is attacked by about seven of the attacks
            (attacks.strength.images_per_attack), unless `per_attack` says otherwise.

    Raises:
        FitError: too few images for the false-alarm rate, no attack succeeded, options that a quick fit has no use
            for, or a detector that stays weak without `accept_weak`.
        DataError: images or labels that do not fit, or a classifier that is no better than chance on them.

    Example:
        >>> from advconn import bundle, fit
        >>> from advconn.data import datasets
        >>> classifier = bundle.load(bundle.default("digits")).classifier
        >>> images, labels = datasets.digits()
        >>> detector = fit(classifier, images[1000:1200], labels[1000:1200], conditions=("clean",))
        >>> detector.predict(images[1200:1204])
        array([0, 0, 0, 0])
    """
    runner, note = Runner() if runner is None else runner, _once(note)
    if classifier.told is not None:
        note(classifier.told)
    quick = _quick(
        options | {"surrogate": surrogate, "companion": companion, "connectivity": connectivity}, quick, refine
    )
    clean = prepare_images(classifier, images, labels, accept=accept_accuracy, accuracy=accuracy, note=note)
    references, chosen, rest = add_references(classifier, clean, synthesised=synthesised, seed=seed, note=note)
    trial, rest = _trial(clean, references, chosen, rest, seed)
    other = _other(surrogate, classifier, "surrogate", clean.images)
    beside = _other(companion, classifier, "companion", clean.images)
    task = _Task(
        classifier=classifier,
        clean=clean,
        references=references,
        chosen=chosen,
        rest=rest,
        fpr=fpr,
        confidence=confidence,
        seed=seed,
        connectivity=connectivity or {},
        companion=beside,
        surrogate=other,
        apart=_apart(classifier, clean.images, apart, apart_labels, note),
        runner=runner,
        note=note,
        on_plan=on_plan,
        trial=len(trial.images),
        options=options,
    )
    detector = refine_until_effective(
        task.fitted(quick, refine),
        trial,
        task.remedies(quick, refine),
        accept_weak=accept_weak,
        note=note,
        progress=runner.progress,
    )
    _tell_prices(detector, note, free=options.get("conditions") is None)
    return detector


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What a fit works with, whichever heads it ends up with.

    Attributes:
        classifier: what is to be guarded.
        clean: the images.
        references: that paths lead to, or None.
        chosen: rows that they were chosen among.
        rest: rows to train and calibrate on.
        trial: images that the finished detector is tried on.
        others: as the parameters of fit.
    """

    classifier: Classifier
    clean: CleanSet
    references: References | None
    chosen: Tensor
    rest: Tensor
    fpr: float
    confidence: float | str | None
    seed: int
    connectivity: dict[str, Any]
    companion: Classifier | None
    surrogate: Classifier | None
    apart: _Apart | None
    runner: Runner
    note: Callable[[str], None]
    on_plan: Callable[[FitPlan], None]
    trial: int
    options: dict[str, Any]

    def fitted(self, quick: bool, refine: int) -> Detector:
        """A detector with pretrained heads, moved by so many attacked images, or with heads of its own."""
        plan = self.plan(quick, refine)
        self.on_plan(plan)
        detector = self.unfitted(plan)
        used, truth = self.clean.images[self.rest], None if self.clean.truth is None else self.clean.truth[self.rest]
        kept: np.ndarray | None = None
        if self.apart is not None:
            used, truth, kept = _joined(self.classifier, used, truth, self.apart)
        surrogate = self.surrogate if refine or not quick else None
        detector.fit(used, labels=truth, kept=kept, surrogate=surrogate, runner=self.runner)
        _tell(detector, self.note)
        hashes = np.union1d(image_hashes(self.clean.images), detector.fitted_.image_hashes)
        detector.fitted_ = replace(detector.fitted_, image_hashes=hashes, plan=plan)
        return detector

    def plan(self, quick: bool, refine: int) -> FitPlan:
        """What such a fit does: as the user asked, and what suits the classifier where nothing was asked for.

        Raises:
            FitError: too few images for the false-alarm rate, or no head serves what the classifier shows.
        """
        asked = {name: value for name, value in self.options.items() if value is not None or name == "stages"}
        left = len(self.rest)
        held_out = asked.get("calibrate", _held_out(left) if quick else HELD_OUT)
        held = round(held_out * left) if self.apart is None else len(self.apart.images)
        train = left - held if self.apart is None else left
        usual = _quick_stages(self.classifier, self.clean) if quick else STAGES
        stages = asked.get("stages", usual)
        if quick:
            stages = _served(self._heads(), self._connectivity(), stages, self.note)
        if self.apart is None:
            _check_enough(len(self.clean.images), left, held_out, self.fpr)
        attacks = tuple(asked.get("attacks", ())) if refine or not quick else ()
        if (refine or not quick) and not attacks:
            attacks = choose_mixture(self.classifier, *self._attacked(), self.surrogate, self.note, self.seed)
        per_attack = PER_ATTACK if quick else images_per_attack(train, len(attacks))
        return FitPlan(
            pretrained=quick,
            refine=refine,
            stages=None if stages is None else tuple(stages),
            images={
                "references": 0 if self.references is None else len(self.references.images),
                "trial": self.trial,
                "train": train,
                "calibrate": held,
            },
            held_out=held_out,
            attacks=attacks,
            per_attack=asked.get("per_attack", per_attack),
            evasive=asked.get("evasive", 0 if self.companion is None else EVASIVE),
            benign=BENIGN if quick else tuple(asked["benign"] if "benign" in asked else self._preserving(BENIGN)),
            conditions=tuple(asked["conditions"] if "conditions" in asked else self._preserving(PROMISED)),
            fpr=self.fpr,
            confidence=_confidence(self.confidence, held, self.fpr),
        )

    def unfitted(self, plan: FitPlan) -> Detector:
        """The detector of a plan before its fit."""
        rest = {name: value for name, value in self.options.items() if name not in DECIDED}
        return Detector(
            self._connectivity(),
            attacks=plan.attacks or MIXTURE,
            per_attack=plan.per_attack,
            fpr=plan.fpr,
            calibrate=plan.held_out,
            seed=self.seed,
            stages=plan.stages,
            benign=plan.benign,
            conditions=plan.conditions,
            confidence=plan.confidence,
            pretrained=self._heads() if plan.pretrained else None,
            refine=plan.refine,
            evasive=plan.evasive,
            **rest,
        )

    def _heads(self) -> PretrainedHeads:
        """Those that the user gave, or those that ship."""
        given = self.options.get("pretrained")
        return pretrained.load() if given is None else given

    def _connectivity(self) -> Connectivity:
        own: dict[str, Any] = {"temperature": self.clean.temperature} | self.connectivity
        own |= {} if self.companion is None else {"companion": self.companion}
        return Connectivity(self.classifier, self.references, **own)

    def _attacked(self) -> tuple[Tensor, Tensor]:
        """Images to choose attacks by, and the classes that these must change."""
        clean = self.clean
        return clean.images[self.rest], (clean.predicted if clean.truth is None else clean.truth)[self.rest]

    def _preserving(self, conditions: Sequence[str]) -> tuple[str, ...]:
        """Those that leave this classifier its predictions."""
        some = self.clean.images[self.chosen if len(self.chosen) else self.rest]
        return label_preserving(self.classifier, some, conditions, self.note, self.seed)

    def remedies(self, quick: bool, refine: int) -> tuple[Remedy, ...]:
        """What is left to try where the detector turns out weak, cheapest first."""
        ways = [] if not quick else [(False, 0)] if refine else [(True, REFINED), (False, 0)]
        return tuple(
            Remedy(
                f"attack {count} images and move the heads by them" if way else "fit heads of its own to attacks on it",
                partial(self._seconds, way, count),
                partial(self.fitted, way, count),
            )
            for way, count in ways
        )

    def _seconds(self, quick: bool, refine: int) -> float:
        return estimate(self.unfitted(self.plan(quick, refine)), len(self.clean.images))


def _trial(
    clean: CleanSet, references: References | None, chosen: Tensor, rest: Tensor, seed: int
) -> tuple[Trial, Tensor]:
    """Images that the finished detector is tried on, and the rows that are left for other uses.

    Images that references were chosen among and that became none come first; too few are filled up from the rest.
    """
    used = np.zeros(0, np.uint64) if references is None else image_hashes(references.images.cpu())
    free = chosen[torch.from_numpy(~np.isin(image_hashes(clean.images[chosen]), used))][:MAX_ATTACKED]
    more = min(MAX_ATTACKED - len(free), max(0, len(rest) - FEWEST_LEFT) // 4)
    free, rest = torch.cat([free, rest[:more]]), rest[more:]
    truth = None if clean.truth is None else clean.truth[free]
    return Trial(clean.images[free], truth, CHECK_SECONDS, seed), rest


def _quick(given: dict[str, Any], quick: bool | None, refine: int) -> bool:
    """Whether heads are taken that were taught on other networks.

    Raises:
        FitError: options that such a fit has no use for.
    """
    told = {name for name, value in given.items() if value is not None}
    useless = told & OF_ATTACKS - ({"attacks", "surrogate"} if refine else set())
    if refine and quick is False:
        raise FitError("refine moves the heads of a quick fit: give no quick=False with it")
    if (quick or refine) and useless:
        raise FitError(f"{', '.join(sorted(useless))}: a quick fit makes no attack and fits no head; give quick=False")
    heads = given.get("pretrained")
    if heads is not None and not isinstance(heads, PretrainedHeads):
        raise FitError(f"pretrained takes PretrainedHeads (cascade.pretrained.load), got {type(heads).__name__}")
    own = not refine and bool(told & {*OF_ATTACKS, "connectivity", "stages", "benign"}) if quick is None else not quick
    if heads is not None and own:
        raise FitError("pretrained: a full fit trains heads of its own; give quick=True, or no pretrained heads")
    return not own


def _quick_stages(classifier: Classifier, clean: CleanSet) -> tuple[Stage, ...]:
    """STAGES; of images with few pixels those with all copies in the first."""
    return single_copy_stage(classifier) if min(clean.images.shape[2:]) < FINE else STAGES


def _held_out(left: int) -> float:
    """Share of so many images that a quick fit calibrates on."""
    train = min(max(min(left // 2, QUICK_TRAIN), left // 4), left - 1) if left > 1 else left
    return min(max(1 - train / max(left, 1), 0.1), 0.9)


def _confidence(asked: float | str | None, held: int, fpr: float) -> float | None:
    """The confidence of the guarantee, if one was asked for; `held`: images to calibrate on.

    Raises:
        FitError: too few for it.
    """
    if asked is None or asked == "none":
        return None
    check_calibration_size(held, fpr, float(asked))
    return float(asked)


def _tell(detector: Detector, note: Callable[[str], None]) -> None:
    """Say what the user should know of a fit."""
    warn_weak_guarantee(detector, note)
    _tell_exits(detector, note)
    if detector.evasive and not any(name.startswith("evasive") for name in detector.fitted_.attacks):
        note("no image could be made that evades the heads, so none was learned from")
    tried, hits = (sum(v[i] for v in detector.fitted_.attacks.values()) for i in (0, 1))
    if detector.pretrained is None and hits < max(0.3 * tried, FEW):
        note(f"there are {hits} attacked images to learn from ({tried} were tried): few, or the attacks are weak")


def warn_weak_guarantee(detector: Detector, note: Callable[[str], None]) -> None:
    """Say where the promise is weaker than it would be with more images."""
    calibration, wanted = detector.calibration_, detector.confidence
    if wanted is not None and calibration.confidence is None:
        note(
            f"{len(calibration.scores)} images to calibrate on: the false-alarm rate {calibration.fpr:g} holds on "
            f"average only ({min_calibration_size(calibration.fpr, wanted)} are needed for {wanted:.0%} confidence)"
        )


def single_copy_stage(classifier: Classifier) -> tuple[Stage, ...]:
    """STAGES with all copies in the first."""
    whole = stage_extractors(Connectivity(classifier), STAGES[:-1])[-1]
    return Stage(tuple(whole.copies), tuple(whole.halves), share=STAGES[-2].share, pixels=True), STAGES[-1]


def _served(
    heads: PretrainedHeads, connectivity: Connectivity, asked: Sequence[Stage] | None, note: Callable[[str], None]
) -> tuple[Stage, ...]:
    """The first stages, as far as a pretrained head serves them.

    Raises:
        FitError: none is left.
    """
    stages = tuple(asked or ())
    served = len(heads.serving(stage_extractors(connectivity, stages))) if stages else 0
    if not served:
        raise FitError(pretrained.UNTAUGHT)
    while len(stage_extractors(connectivity, stages)) > served:
        stages = stages[:-1]
    if len(stages) < len(asked or ()) and connectivity.references is not None:
        note("paths to references are left out: no head was trained for what this classifier shows of them")
    return stages


def _tell_prices(detector: Detector, note: Callable[[str], None], *, free: bool) -> None:
    """Name the conditions whose guarantee costs much; leave out the dearest where the user named none.

    Args:
        detector: a fitted one, whose conditions may change.
        note: told what is dear, and what is left out.
        free: whether the user left the choice of conditions to advconn.
    """
    found = detector.fitted_.efficacy
    dear = {} if found is None else {name: price for name, price in found.prices.items() if price >= DEAR}
    if found is None or not dear:
        return
    said = ", ".join(f"{name} costs {100 * price:.0f} points" for name, price in dear.items())
    dropped = [name for name, price in dear.items() if price >= TOO_DEAR] if free else []
    kept = tuple(name for name in detector.calibration_.conditions if name not in (dropped or dear))
    if dropped:
        detector.set_params(conditions=kept)
        if detector.fitted_.plan is not None:
            detector.fitted_ = replace(detector.fitted_, plan=replace(detector.fitted_.plan, conditions=kept))
        caught = dict(found.prices)
        detector.fitted_ = replace(
            detector.fitted_, efficacy=replace(found, prices={k: v for k, v in caught.items() if k in kept})
        )
        note(
            f"of attacks just beyond the decision boundary, {said}: the false-alarm rate is not guaranteed under "
            f"{', '.join(dropped)} (--conditions names others)"
        )
    else:
        note(
            f"the guarantee is dear: of attacks just beyond the decision boundary, {said}; --conditions "
            f"{','.join(kept)} leaves it out"
        )


def _tell_exits(detector: Detector, note: Callable[[str], None]) -> None:
    """Say where the verdict is dearer than it would be with more images."""
    missed = detector.fitted_.missed
    if missed is not None and not np.isfinite(detector.cascade_.exits).all():
        note(
            f"{missed.of} attacked images do not show that images may leave early without being missed: some or all "
            "go through more stages than they would after a fit on more"
        )


def _check_enough(count: int, rest: int, held_out: float, fpr: float) -> None:
    """Raise FitError where so many images, of which `rest` are in no other use, leave too few to calibrate on.

    Args:
        count: images in all.
        rest: images in no other use.
        held_out: share of these to calibrate on.
        fpr: false-alarm rate asked for.
    """
    left = round(held_out * rest)
    needed = math.ceil(1 / fpr - 1e-9) - 1 if 0 < fpr < 1 else 0
    if left < needed:
        share = held_out * rest / max(count, 1)
        raise FitError(
            f"{count} images leave {left} to calibrate on, and a false-alarm rate of {fpr:g} needs at least "
            f"{needed}: give {math.ceil(needed / share) + 1} images or more, or a higher rate"
        )


def _other(
    given: Classifier | nn.Module | None, classifier: Classifier, name: str, images: Tensor
) -> Classifier | None:
    """A second network of the same classes; a bare module is shown images as scaled_like says."""
    if given is None or isinstance(given, Classifier):
        network = given
    else:
        make = partial(Classifier, given, size=classifier.preprocessing.size, channels=classifier.channels)
        network = scaled_like(classifier, make, images[sample_rows(len(images))])
    if network is not None and network.num_classes != classifier.num_classes:
        raise ModelError(f"the {name} has {network.num_classes} classes, the classifier {classifier.num_classes}")
    return network


class _Apart(NamedTuple):
    """Images to calibrate on alone, and their true classes where known."""

    images: Tensor
    labels: Tensor | None


def _apart(
    classifier: Classifier, used: Tensor, images: Any, labels: Any, note: Callable[[str], None]
) -> _Apart | None:
    """Images to calibrate on, less those in another use and those for which the classifier gives NaN; None of None.

    Args:
        classifier: what is to be guarded.
        used: images in any other use.
        images: as users give them.
        labels: their classes, or None.
        note: told how many are left out.

    Raises:
        FitError: labels without images, or one that is no class.
    """
    if images is None:
        if labels is not None:
            raise FitError("apart_labels are of the images to calibrate on: give these as apart")
        return None
    found = as_tensor(images)
    truth = None if labels is None else as_labels(labels, len(found))
    if truth is not None and len(truth) and int(truth.max()) >= classifier.num_classes:
        raise FitError(
            f"a label in apart_labels is {int(truth.max())}, and the classifier has {classifier.num_classes} classes"
        )
    shared = torch.from_numpy(np.isin(image_hashes(found), image_hashes(used)))
    if shared.any():
        note(f"{int(shared.sum())} of {len(found)} images to calibrate on are among the others too: they are left out")
        found, truth = found[~shared], None if truth is None else truth[~shared]
    found, truth, _ = drop_non_finite(classifier, found, truth, note)
    return _Apart(found, truth)


def _joined(
    classifier: Classifier, used: Tensor, truth: Tensor | None, apart: _Apart
) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """Images to train on and after them those to calibrate on, labels (-1 where unknown), which are the latter."""
    images = used, apart.images
    if used.dtype != apart.images.dtype:
        images = classifier.check(used).cpu(), classifier.check(apart.images).cpu()
    kept = np.repeat([False, True], [len(used), len(apart.images)])
    labels = [
        torch.full((len(some),), -1, dtype=torch.int64, device="cpu") if known is None else known
        for some, known in ((used, truth), apart)
    ]
    return torch.cat(images), torch.cat(labels), kept


EVADING = 1300  # gradients that go into what is made of an image to evade the heads: turns x sizes x steps x stops
TRIED = 12_000  # forwards, of which a gradient counts as three, that trying the finished detector takes


def estimate(detector: Detector, count: int) -> float:
    """About how many seconds a fit on so many images takes on this machine."""
    classifier = detector.classifier
    train = round((1 - detector.calibrate) * count * (1 - FOR_REFERENCES))
    tried = min(detector.per_attack, images_per_attack(train, len(detector.attacks)))
    held = detector.calibrate * count * (1 - FOR_REFERENCES) * len(detector.conditions)
    quick = detector.pretrained is not None
    grouped = min(train, GROUPED) * len(detector.conditions) * (detector.confidence is None)
    walks, gradients = (2 - quick) * train + (held + grouped) / 4, 0.0  # benign ones too; calibration leaves early
    forwards = float(TRIED)
    attacks = parse_all(detector.attacks) if detector.refine or not quick else ()
    tried = min(tried, -(-detector.refine // len(attacks))) if quick and attacks else tried
    for attack in attacks:
        steps = attack.settings.get("steps", attack.settings.get("n_queries", attack.settings.get("tries", 1)))
        walks += 2 * tried  # each copy once more under a benign condition
        forwards += 0 if attack.needs_gradient else tried * steps / 2
        gradients += tried * steps * (10 if attack.name == "autoattack" else 1) if attack.needs_gradient else 0
    gradients += detector.evasive * EVADING
    probe = torch.rand(8, classifier.channels, *(classifier.preprocessing.size or (32, 32)), dtype=torch.float32,
                       device="cpu").to(classifier.device)  # fmt: skip
    forward_time = _seconds(lambda: classifier.logits(probe)) / len(probe)
    stages = stage_extractors(detector.connectivity, detector.stages)
    walk_time = _seconds(lambda: features_of(stages, probe, "", ignore_progress)) / len(probe)
    return walk_time * walks * 1.6 + forward_time * (forwards + 4 * gradients)  # own and rival paths are walked too


def phases_of(detector: Detector) -> tuple[str, ...]:
    """What a quick fit of a detector does, in order, by the names under which it reports progress."""
    conditions = usable(dict.fromkeys((CLEAN, *detector.conditions)), detector.classifier.channels)
    grouped = conditions if detector.confidence is None else ()
    return ("walk", *(f"group {name}" for name in grouped), *(f"calibrate {name}" for name in conditions), "score")


def _seconds(call: Callable[[], Any]) -> float:
    call()
    started = perf_counter()
    call()
    return perf_counter() - started
