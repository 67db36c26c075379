"""From a classifier and clean images to a fitted detector: references, then the detector, no image in two uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.classifier import Classifier
from advconn.connectivity import Connectivity
from advconn.detector import Detector, marks
from advconn.modes import References, choose, synthesise
from advconn.progress import Progress, silent

FOR_REFERENCES = 0.2  # share of the images among which references are chosen


def fit(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    fpr: float = 0.05,
    seed: int = 0,
    synthesised: bool = False,
    progress: Progress = silent,
    note: Callable[[str], None] = lambda text: None,
    walk: dict[str, Any] | None = None,
    **options: Any,
) -> Detector:
    """A detector for `classifier`, fitted and calibrated on clean images (n, c, h, w), uint8 or in [0, 1].

    References are chosen among a fifth of the images, which are in no other use, or synthesised. Where the images leave
    a class without a reference, own and rival paths are left out, and `note` is told. `walk` goes to Connectivity,
    `options` to Detector.

    Raises:
        FitError: too few images for the false-alarm rate, or no attack succeeded.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    apart = 0 if synthesised else round(FOR_REFERENCES * len(images))
    references: References | None
    if synthesised:
        references = synthesise(classifier, seed=seed)
    else:
        references = _chosen(classifier, images[order[:apart]], None if labels is None else labels[order[:apart]])
    if references is None or references.missing:
        lost = classifier.num_classes if references is None else len(references.missing)
        note(
            f"{lost} of {classifier.num_classes} classes have no reference among the images: only paths to copies of "
            "the query itself are walked"
        )
        references, apart = None, 0
    rest = order[apart:]
    detector = Detector(Connectivity(classifier, references, **(walk or {})), fpr=fpr, seed=seed, **options)
    detector.fit(images[rest], labels=None if labels is None else labels[rest], progress=progress)
    detector.fitted_ = replace(detector.fitted_, seen=marks(images))
    return detector


def _chosen(classifier: Classifier, images: Tensor, labels: Tensor | None) -> References | None:
    if not len(images):
        return None
    return choose(classifier, classifier.check(images), labels)
