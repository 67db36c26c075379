"""From a classifier and clean images to a fitted detector: references, then the detector, no image in two uses."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advconn import pretrained
from advconn.agreement import checked, trained_on
from advconn.attacks import Attack, made_for, parse_all, succeeded, suited
from advconn.calibration import enough, needed
from advconn.classifier import Classifier
from advconn.conditions import BENIGN, CONDITIONS, PROMISED, usable
from advconn.connectivity import Connectivity, as_tensor
from advconn.detector import Detector, as_bytes, as_labels, marks
from advconn.errors import AdvconnWarning, FitError, ModelError
from advconn.kinds import BLACK_BOX, MIXTURE
from advconn.making import features_of
from advconn.modes import References, choose, synthesise
from advconn.progress import Progress, silent
from advconn.stages import STAGES, Stage, walks_of

FEW = 20  # attacked images that a head cannot learn much from
HARMLESS = 0.8  # share of predictions that a benign condition must leave as they are
OF_ATTACKS = {"attacks", "per_attack", "head", "surrogate"}  # options that a quick fit has no use for
FINE = 16  # pixels of a side: in fewer a copy shifted by one is far away, and a few copies clear too much
QUICK_SHARE = 0.5  # of the images that a quick fit calibrates on
FOR_REFERENCES = 0.2  # share of the images among which references are chosen


def warn(text: str) -> None:
    """Say it as a warning."""
    warnings.warn(text, AdvconnWarning, stacklevel=3)


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
    quick: bool | None = None,
    refine: int = 0,
    surrogate: Classifier | nn.Module | None = None,
    accept_accuracy: bool = False,
    accuracy: float | None = None,
    progress: Progress = silent,
    note: Callable[[str], None] = warn,
    store: Any = None,
    jobs: int = 1,
    walk: dict[str, Any] | None = None,
    **options: Any,
) -> Detector:
    """A detector for `classifier`, fitted and calibrated on clean images (n, c, h, w), uint8 or in [0, 1].

    References are chosen among a fifth of the images, which are in no other use, or synthesised. Where the images leave
    a class without a reference, own and rival paths are left out, and `note` is told.

    Args:
        classifier: what is to be guarded.
        images, labels: clean images, as tensor or array; true classes (n,) where known (integers or one-hot).
        fpr: false-alarm rate asked for.
        confidence: with which it is promised, or 'none': it holds on average. Unless told .95 where the images to
            calibrate on are enough for it, and else none, which `note` tells.
        seed: of every split and attack.
        synthesised: make the references instead of choosing them; needs gradients.
        apart: other clean images, to calibrate on; else two fifths of `images` are kept for it.
        quick: take heads that were taught on other networks, standardised by the clean images, and make no attack:
            no gradient is needed then, and half of the images are calibrated on. Unless told, quick where no option
            says how attacks are made, images walked or heads fitted (OF_ATTACKS, walk, stages, benign).
        refine: of a quick fit, so many images are attacked after all, by the mixture or `attacks` in turn, and move the
            heads towards this classifier.
        surrogate: another network of the same classes, for a classifier without gradients: attacks that need them are
            made on it.
        accept_accuracy: go on with a classifier that is no better than chance.
        accuracy: of the classifier on images that it was not trained on, in [0, 1], where known: `note` is told where
            it gets significantly more of these right, and without one where it gets all of them right.
        progress, note: told how far it is; told what a user should know (else these are warnings).
        store, jobs: see Detector.fit.
        walk: options of Connectivity.
        options: of Detector; `attacks` are chosen to suit the classifier where they are not given, and of the benign
            `conditions` those that leave it its predictions.

    Raises:
        FitError: too few images for the false-alarm rate, no attack succeeded, or options that a quick fit has no use
            for.
        DataError: images or labels that do not fit, or a classifier that is no better than chance on them.
    """
    told = {name for name, value in (options | {"surrogate": surrogate, "walk": walk}).items() if value is not None}
    given = told & OF_ATTACKS - ({"attacks", "surrogate"} if refine else set())
    if refine and quick is False:
        raise FitError("refine moves the heads of a quick fit: give no quick=False with it")
    if (quick or refine) and given:
        raise FitError(f"{', '.join(sorted(given))}: a quick fit makes no attack and fits no head; give quick=False")
    quick = bool(refine) or not told & {*OF_ATTACKS, "walk", "stages", "benign"} if quick is None else quick
    images = as_tensor(images)
    truth = None if labels is None else as_labels(labels, len(images))
    if truth is not None and len(truth) and int(truth.max()) >= classifier.num_classes:
        raise FitError(
            f"a label is {int(truth.max())}, and the classifier has {classifier.num_classes} classes: labels go from 0"
        )
    images, truth, predicted = sound(classifier, images, truth, note)
    checked(predicted, truth, classifier.num_classes, accept=accept_accuracy)
    memorised = None if truth is None else trained_on(int((predicted == truth).sum()), len(truth), accuracy)
    if memorised:
        note(memorised)
    _twice(images, note)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    chosen = 0 if synthesised else round(FOR_REFERENCES * len(images))
    order = _every_class(order, chosen, predicted, truth)
    references: References | None
    if synthesised:
        if not classifier.differentiable:
            raise FitError("synthesised references need gradients, and this classifier gives none: choose them")
        references = synthesise(classifier, seed=seed)
    else:
        references = _chosen(classifier, images[order[:chosen]], None if truth is None else truth[order[:chosen]])
    if references is None or references.missing:
        lost = list(range(classifier.num_classes)) if references is None else references.missing
        names = ", ".join(classifier.label_names(lost[:3])) + ", ..." * (len(lost) > 3)
        note(
            f"{len(lost)} of {classifier.num_classes} classes have no reference among the images ({names}), and a "
            "query of any class may need one: only paths to copies of the query itself are walked (give images of "
            "every class, or synthesise references)"
        )
        references, chosen = None, 0
    rest = order[chosen:]
    other = _surrogate(surrogate, classifier) if refine or not quick else None
    if quick:
        small = min(images.shape[2:]) < FINE
        options = {"calibrate": QUICK_SHARE, "stages": all_at_once(classifier) if small else STAGES} | options
        options |= {"pretrained": pretrained.load(), "benign": BENIGN}  # under which the heads were taught
        options["refine"] = refine
    if (refine or not quick) and options.get("attacks") is None:
        stand = predicted if truth is None else truth
        options["attacks"] = mixture_for(classifier, images[rest], stand[rest], other, note, seed)
    some = images[order[:chosen]] if chosen else images[rest]
    for option, wanted in (("conditions", PROMISED), ("benign", BENIGN)):
        if options.get(option) is None:
            options[option] = harmless(classifier, some, wanted, note, seed)
    detector = Detector(Connectivity(classifier, references, **(walk or {})), fpr=fpr, seed=seed, **options)
    if detector.pretrained is not None:
        _served(detector, note)
    kept = None
    used, known = images[rest], None if truth is None else truth[rest]
    if apart is not None:
        used, known, kept = _with_apart(classifier, used, known, as_tensor(apart), note)
    else:
        _enough(len(images), chosen, detector)
    making = {"surrogate": other, "store": store, "jobs": jobs, "progress": progress}
    if confidence == "none":
        detector.confidence = None
    elif confidence is not None:
        held = round(detector.calibrate * len(used)) if kept is None else int(kept.sum())
        enough(held, fpr, float(confidence))
        detector.confidence = float(confidence)
    detector.fit(used, labels=known, kept=kept, **making)
    tell_promise(detector, note)
    _tell_exits(detector, note)
    tried, hits = (sum(v[i] for v in detector.fitted_.attacks.values()) for i in (0, 1))
    if not quick and hits < max(0.3 * tried, FEW):
        note(f"there are {hits} attacked images to learn from ({tried} were tried): few, or the attacks are weak")
    detector.fitted_ = replace(detector.fitted_, seen=np.union1d(marks(images), detector.fitted_.seen))
    return detector


def tell_promise(detector: Detector, note: Callable[[str], None]) -> None:
    """Say where the promise is weaker than it would be with more images."""
    calibration, wanted = detector.calibration_, detector.confidence
    if wanted is not None and calibration.confidence is None:
        note(
            f"{len(calibration.scores)} images to calibrate on: the false-alarm rate {calibration.fpr:g} holds on "
            f"average only ({needed(calibration.fpr, wanted)} are needed for {wanted:.0%} confidence)"
        )


def all_at_once(classifier: Classifier) -> tuple[Stage, ...]:
    """STAGES with all copies in the first."""
    whole = walks_of(Connectivity(classifier), STAGES[:-1])[-1]
    return Stage(tuple(whole.copies), tuple(whole.halves), share=STAGES[-2].share), STAGES[-1]


def _served(detector: Detector, note: Callable[[str], None]) -> None:
    """Leave out the last stages as long as no pretrained head serves them.

    Raises:
        FitError: none is left.
    """
    heads, stages = detector.pretrained, tuple(detector.stages or ())
    walks = walks_of(detector.connectivity, detector.stages)
    served = 0 if heads is None or not stages else len(heads.serving(walks))
    if not served:
        raise FitError(pretrained.UNTAUGHT)
    while len(walks_of(detector.connectivity, stages)) > served:
        stages = stages[:-1]
    if len(stages) < len(detector.stages or ()) and detector.connectivity.references is not None:
        note("paths to references are left out: no head was taught for what this classifier shows of them")
    detector.stages = stages


def _tell_exits(detector: Detector, note: Callable[[str], None]) -> None:
    """Say where the verdict is dearer than it would be with more images."""
    missed = detector.fitted_.missed
    if missed is not None and not np.isfinite(detector.cascade_.exits).all():
        note(
            f"{missed.of} attacked images do not show that images may leave early without being missed: some or all "
            "go through more stages than they would after a fit on more"
        )


def _every_class(order: Tensor, chosen: int, predicted: Tensor, truth: Tensor | None) -> Tensor:
    """The same order, in which the first `chosen` have an image of each class that there is, if they are enough.

    A class that chance left out takes the place of one more of a class that has several.
    """
    right = torch.ones_like(predicted, dtype=torch.bool) if truth is None else predicted == truth
    rows = order.tolist()
    kind = torch.where(right, predicted, -1)[order].tolist()
    counts = Counter(kind[:chosen])
    for i in range(chosen, len(rows)):
        if kind[i] >= 0 and not counts[kind[i]]:
            spare = next((j for j in range(chosen) if kind[j] < 0 or counts[kind[j]] > 1), None)
            if spare is None:
                break
            counts[kind[spare]] -= 1
            counts[kind[i]] += 1
            rows[spare], rows[i], kind[spare], kind[i] = rows[i], rows[spare], kind[i], kind[spare]
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


def _enough(count: int, chosen: int, detector: Detector) -> None:
    """Raise FitError where so many images, of which some are references, leave too few to calibrate on."""
    left = round(detector.calibrate * (count - chosen))
    needed = math.ceil(1 / detector.fpr - 1e-9) - 1 if 0 < detector.fpr < 1 else 0
    if left < needed:
        share = detector.calibrate * (1 - chosen / max(count, 1))
        raise FitError(
            f"{count} images leave {left} to calibrate on, and a false-alarm rate of {detector.fpr:g} needs at least "
            f"{needed}: give {math.ceil(needed / share) + 1} images or more, or a higher rate"
        )


def sound(
    classifier: Classifier, images: Tensor, truth: Tensor | None, note: Callable[[str], None]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The images for which the classifier gives finite logits, labels, predictions; `note` is told of others.

    Raises:
        FitError: it gives NaN for most of them.
    """
    parts = [classifier.logits(classifier.check(x)).cpu() for x in images.split(256)]
    none = torch.zeros(0, classifier.num_classes, dtype=torch.float32, device="cpu")
    logits = torch.cat(parts) if parts else none
    fine = torch.isfinite(logits).all(1)
    lost = int((~fine).sum())
    if not lost:
        return images, truth, logits.argmax(1)
    if lost > len(images) // 2:
        raise FitError(f"the classifier gives NaN for {lost} of {len(images)} images")
    note(f"the classifier gives NaN for {lost} of {len(images)} images: they are left out")
    return images[fine], None if truth is None else truth[fine], logits[fine].argmax(1)


def _twice(images: Tensor, note: Callable[[str], None]) -> None:
    copies = len(images) - len(np.unique(marks(images)))
    if copies:
        note(
            f"{copies} of {len(images)} images are there more than once: calibration shares images with training, and "
            "the false-alarm rate may be higher than asked for"
        )


def _surrogate(given: Classifier | nn.Module | None, classifier: Classifier) -> Classifier | None:
    if given is None or isinstance(given, Classifier):
        found = given
    else:
        found = Classifier(given, size=classifier.preprocessing.size, channels=classifier.channels)
    if found is not None and found.num_classes != classifier.num_classes:
        raise ModelError(f"the surrogate has {found.num_classes} classes, the classifier {classifier.num_classes}")
    return found


def mixture_for(
    classifier: Classifier, images: Tensor, labels: Tensor, surrogate: Classifier | None, note: Callable[[str], None],
    seed: int = 0,
) -> tuple[str, ...]:  # fmt: skip
    """The attacks to train on: MIXTURE where this classifier falls at its strengths, else one that suits it.

    Without a gradient: those that need none, and with a surrogate MIXTURE's made on it.
    """
    if not classifier.differentiable:
        weak = falls(classifier, images, labels, Attack.parse(BLACK_BOX[0]), seed) < 0.5
        own = suited(classifier, images, labels, seed=seed) if weak else BLACK_BOX
        if surrogate is None:
            note("this classifier gives no gradient: only attacks that need none are trained on (square, noise)")
            return own
        note("this classifier gives no gradient: attacks that need one are made on the surrogate")
        found = mixture_for(surrogate, images, labels, None, note, seed)
        return (*own, *(spec for spec in found if not spec.startswith("square")))
    share = falls(classifier, images, labels, Attack.parse(MIXTURE[0]), seed)
    if share >= 0.9:
        return made_for(classifier, MIXTURE)
    found = suited(classifier, images, labels, seed=seed)
    note(
        f"{MIXTURE[0]} changes only {share:.0%} of its predictions: attacks are made at strengths that suit it, up to "
        f"{found[0]} (--attack sets others)"
    )
    return found


def harmless(
    classifier: Classifier, images: Tensor, names: Sequence[str], note: Callable[[str], None], seed: int = 0
) -> tuple[str, ...]:
    """Those of the benign conditions under which four of five of at most 256 images keep their predicted class."""
    few = as_bytes(images[:256])
    wanted = usable(names, classifier.channels)
    before = classifier.predict(few)
    kept = {n: float((classifier.predict(CONDITIONS[n](few, seed)) == before).float().mean()) for n in wanted}
    lost = [f"{name} ({share:.0%})" for name, share in kept.items() if share < HARMLESS]
    if lost:
        note(f"no harmless changes for this classifier, which keeps few of its predictions: {', '.join(lost)}")
    return tuple(name for name, share in kept.items() if share >= HARMLESS)


def falls(
    classifier: Classifier, images: Tensor, labels: Tensor, attack: Attack, seed: int = 0, most: int = 64
) -> float:
    """Share of at most `most` images that the classifier gets right whose prediction an attack changes."""
    few = images[: 4 * most]
    right = (classifier.predict(few) == labels[: 4 * most].cpu()).nonzero()[:most, 0]
    if not len(right):
        return 1.0
    clean, truth = classifier.check(few[right]), labels[right].to(classifier.device)
    return float(succeeded(classifier, attack.run(classifier, clean, truth, seed=seed), truth).float().mean())


def _with_apart(
    classifier: Classifier, used: Tensor, known: Tensor | None, apart: Tensor, note: Callable[[str], None]
) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """Images to train on and, after them, those to calibrate on, which are none of the former."""
    shared = np.isin(marks(apart), marks(used))
    if shared.any():
        note(f"{int(shared.sum())} of {len(apart)} images to calibrate on are trained on too: they are left out")
        apart = apart[torch.from_numpy(~shared)]
    apart, _, _ = sound(classifier, apart, None, note)
    if used.dtype != apart.dtype:
        used, apart = classifier.check(used).cpu(), classifier.check(apart).cpu()
    kept = np.repeat([False, True], [len(used), len(apart)])
    if known is not None:
        known = torch.cat([known, torch.zeros(len(apart), dtype=torch.int64, device="cpu")])
    return torch.cat([used, apart]), known, kept


def estimate(detector: Detector, count: int) -> float:
    """About how many seconds a fit on so many images takes on this machine."""
    classifier = detector.connectivity.classifier
    train = round((1 - detector.calibrate) * count * (1 - FOR_REFERENCES))
    tried = min(detector.per_attack, train)
    held = detector.calibrate * count * (1 - FOR_REFERENCES) * len(detector.conditions)
    quick = detector.pretrained is not None
    walks, forwards, gradients = (2 - quick) * train + held / 4, 0.0, 0.0  # benign ones too; calibration leaves early
    attacks = parse_all(detector.attacks) if detector.refine or not quick else ()
    tried = min(tried, -(-detector.refine // len(attacks))) if quick and attacks else tried
    for attack in attacks:
        steps = attack.settings.get("steps", attack.settings.get("n_queries", attack.settings.get("tries", 1)))
        walks += tried
        forwards += 0 if attack.needs_gradient else tried * steps / 2
        gradients += tried * steps * (10 if attack.name == "autoattack" else 1) if attack.needs_gradient else 0
    probe = torch.rand(8, classifier.channels, *(classifier.preprocessing.size or (32, 32)), dtype=torch.float32,
                       device="cpu").to(classifier.device)  # fmt: skip
    one = _seconds(lambda: classifier.logits(probe)) / len(probe)
    stages = walks_of(detector.connectivity, detector.stages)
    walk = _seconds(lambda: features_of(stages, probe, "", silent)) / len(probe)
    return walk * walks * 1.6 + one * (forwards + 4 * gradients)  # own and rival paths are walked too


def _seconds(call: Callable[[], Any]) -> float:
    call()
    started = perf_counter()
    call()
    return perf_counter() - started


def _chosen(classifier: Classifier, images: Tensor, labels: Tensor | None) -> References | None:
    if not len(images):
        return None
    return choose(classifier, classifier.check(images), labels)
