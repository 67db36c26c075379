"""From a classifier and clean images to a fitted detector: references, then the detector, no image in two uses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advconn import pretrained
from advconn.calibration import enough, needed
from advconn.classifier import Classifier
from advconn.conditions import BENIGN, PROMISED
from advconn.connectivity import Connectivity
from advconn.detector import HELD_OUT, Detector
from advconn.errors import AdvconnWarning, FitError, ModelError
from advconn.given import as_tensor, image_hashes
from advconn.preparing import Clean, prepared, sound, with_references
from advconn.runner import Runner
from advconn.stages import STAGES, Stage, connectivities_of
from advconn.suiting import harmless, mixture_for, shared

FEW = 20  # attacked images that a head cannot learn much from

EVASIVE = 256  # images that what evades is made from, with a companion
OF_ATTACKS = {"attacks", "per_attack", "head", "surrogate", "companion"}  # options that a quick fit has no use for
FINE = 16  # pixels of a side: in fewer a copy shifted by one is far away, and a few copies clear too much
QUICK_SHARE = 0.5  # of the images that a quick fit calibrates on


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
    companion: Classifier | nn.Module | None = None,
    accept_accuracy: bool = False,
    accuracy: float | None = None,
    runner: Runner | None = None,
    note: Callable[[str], None] = warn,
    connectivity: dict[str, Any] | None = None,
    **options: Any,
) -> Detector:
    """A detector for `classifier`, fitted and calibrated on clean images.

    References are chosen among a fifth of the images, which are in no other use, or synthesised. Where the images leave
    a class without a reference, own and rival paths are left out, and `note` is told.

    Args:
        classifier: what is to be guarded.
        images: clean ones (n, c, h, w), uint8 or in [0, 1], as tensor or array.
        labels: true classes (n,) where known, as integers or one-hot.
        fpr: false-alarm rate asked for, in (0, 1).
        confidence: with which it is promised, or 'none': it holds on average. Unless told .95 where the images to
            calibrate on are enough for it, and else none, which `note` tells.
        seed: of every split and attack.
        synthesised: make the references instead of choosing them; needs gradients.
        apart: other clean images, to calibrate on; else two fifths of `images` are kept for it.
        quick: take heads that were taught on other networks, standardised by the clean images, and make no attack: no
            gradient is needed then, and half of the images are calibrated on. Unless told, quick where no option says
            how attacks are made, images walked or heads fitted (OF_ATTACKS, connectivity, stages, benign).
        refine: of a quick fit, so many images are attacked after all, by the mixture or `attacks` in turn, and move the
            heads towards this classifier.
        surrogate: another network of the same classes, for a classifier without gradients: attacks that need them are
            made on it.
        companion: another network of the same classes, trained against attacks: what it says of the predicted class is
            read beside the paths, and images that evade all else are attacked in training. A quick fit has no use for
            it: the taught heads know of none.
        accept_accuracy: go on with a classifier that is no better than chance.
        accuracy: of the classifier on images that it was not trained on, in [0, 1], where known: `note` is told where
            it gets significantly more of these right, and without one where it gets all of them right.
        runner: see Detector.fit.
        note: told what a user should know (else these are warnings).
        connectivity: options of Connectivity.
        options: of Detector; `attacks` are chosen to suit the classifier where they are not given, and of the benign
            `conditions` those that leave it its predictions. Every image is attacked by about seven of the attacks
            (suiting.shared), unless `per_attack` says otherwise.

    Raises:
        FitError: too few images for the false-alarm rate, no attack succeeded, or options that a quick fit has no use
            for.
        DataError: images or labels that do not fit, or a classifier that is no better than chance on them.

    Example:
        >>> from advconn import bundle, datasets, fit
        >>> classifier = bundle.load(bundle.default("digits")).connectivity.classifier
        >>> images, labels = datasets.digits()
        >>> detector = fit(classifier, images[1000:1200], labels[1000:1200], conditions=("clean",))
        >>> detector.predict(images[1200:1204])
        array([0, 0, 0, 0])
    """
    quick = _quick(
        options | {"surrogate": surrogate, "companion": companion, "connectivity": connectivity}, quick, refine
    )
    clean = prepared(classifier, images, labels, accept=accept_accuracy, accuracy=accuracy, note=note)
    references, chosen, rest = with_references(classifier, clean, synthesised=synthesised, seed=seed, note=note)
    other = _other(surrogate, classifier, "surrogate") if refine or not quick else None
    if companion is not None:
        options = {"evasive": EVASIVE} | options
    own = (connectivity or {}) | (
        {} if companion is None else {"companion": _other(companion, classifier, "companion")}
    )
    if quick:
        options = _quick_options(classifier, clean, refine) | options
        options["benign"] = BENIGN  # under which the heads were taught
    if (refine or not quick) and options.get("attacks") is None:
        stand = clean.predicted if clean.truth is None else clean.truth
        options["attacks"] = mixture_for(classifier, clean.images[rest], stand[rest], other, note, seed)
    if not quick and options.get("per_attack") is None:
        train = len(rest) if apart is not None else round((1 - options.get("calibrate", HELD_OUT)) * len(rest))
        options["per_attack"] = shared(train, len(options["attacks"]))
    some = clean.images[chosen] if len(chosen) else clean.images[rest]
    for option, wanted in (("conditions", PROMISED), ("benign", BENIGN)):
        if options.get(option) is None:
            options[option] = harmless(classifier, some, wanted, note, seed)
    detector = Detector(Connectivity(classifier, references, **own), fpr=fpr, seed=seed, **options)
    if detector.pretrained is not None:
        _served(detector, note)
    kept = None
    used, truth = clean.images[rest], None if clean.truth is None else clean.truth[rest]
    if apart is not None:
        used, truth, kept = _with_apart(classifier, used, truth, as_tensor(apart), note)
    else:
        _enough(len(clean.images), len(chosen), detector)
    _promise(detector, confidence, round(detector.calibrate * len(used)) if kept is None else int(kept.sum()))
    detector.fit(used, labels=truth, kept=kept, surrogate=other, runner=runner)
    _tell(detector, note)
    detector.fitted_ = replace(
        detector.fitted_, image_hashes=np.union1d(image_hashes(clean.images), detector.fitted_.image_hashes)
    )
    return detector


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
    if quick is not None:
        return quick
    return bool(refine) or not told & {*OF_ATTACKS, "connectivity", "stages", "benign"}


def _quick_options(classifier: Classifier, clean: Clean, refine: int) -> dict[str, Any]:
    stages = all_at_once(classifier) if min(clean.images.shape[2:]) < FINE else STAGES
    return {"calibrate": QUICK_SHARE, "stages": stages, "pretrained": pretrained.load(), "refine": refine}


def _promise(detector: Detector, confidence: float | str | None, held: int) -> None:
    """Set the confidence of the promise, if one was asked for; `held`: images to calibrate on.

    Raises:
        FitError: too few for it.
    """
    if confidence == "none":
        detector.confidence = None
    elif confidence is not None:
        enough(held, detector.fpr, float(confidence))
        detector.confidence = float(confidence)


def _tell(detector: Detector, note: Callable[[str], None]) -> None:
    """Say what the user should know of a fit."""
    tell_promise(detector, note)
    _tell_exits(detector, note)
    if detector.evasive and not any(name.startswith("evasive") for name in detector.fitted_.attacks):
        note("no image could be made that evades the heads, so none was learned from")
    tried, hits = (sum(v[i] for v in detector.fitted_.attacks.values()) for i in (0, 1))
    if detector.pretrained is None and hits < max(0.3 * tried, FEW):
        note(f"there are {hits} attacked images to learn from ({tried} were tried): few, or the attacks are weak")


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
    whole = connectivities_of(Connectivity(classifier), STAGES[:-1])[-1]
    return Stage(tuple(whole.copies), tuple(whole.halves), share=STAGES[-2].share), STAGES[-1]


def _served(detector: Detector, note: Callable[[str], None]) -> None:
    """Leave out the last stages as long as no pretrained head serves them.

    Raises:
        FitError: none is left.
    """
    heads, stages = detector.pretrained, tuple(detector.stages or ())
    connectivities = connectivities_of(detector.connectivity, detector.stages)
    served = 0 if heads is None or not stages else len(heads.serving(connectivities))
    if not served:
        raise FitError(pretrained.UNTAUGHT)
    while len(connectivities_of(detector.connectivity, stages)) > served:
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


def _other(given: Classifier | nn.Module | None, classifier: Classifier, name: str) -> Classifier | None:
    if given is None or isinstance(given, Classifier):
        network = given
    else:
        network = Classifier(given, size=classifier.preprocessing.size, channels=classifier.channels)
    if network is not None and network.num_classes != classifier.num_classes:
        raise ModelError(f"the {name} has {network.num_classes} classes, the classifier {classifier.num_classes}")
    return network


def _with_apart(
    classifier: Classifier, used: Tensor, truth: Tensor | None, apart: Tensor, note: Callable[[str], None]
) -> tuple[Tensor, Tensor | None, np.ndarray]:
    """Images to train on and, after them, those to calibrate on, which are none of the former."""
    shared = np.isin(image_hashes(apart), image_hashes(used))
    if shared.any():
        note(f"{int(shared.sum())} of {len(apart)} images to calibrate on are trained on too: they are left out")
        apart = apart[torch.from_numpy(~shared)]
    apart, _, _ = sound(classifier, apart, None, note)
    if used.dtype != apart.dtype:
        used, apart = classifier.check(used).cpu(), classifier.check(apart).cpu()
    kept = np.repeat([False, True], [len(used), len(apart)])
    if truth is not None:
        truth = torch.cat([truth, torch.zeros(len(apart), dtype=torch.int64, device="cpu")])
    return torch.cat([used, apart]), truth, kept
