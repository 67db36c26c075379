"""The clean images of a fit: those that the classifier can be shown, and the references among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.data.conditions import CONDITIONS, usable
from advconn.data.input_conversion import as_bytes, as_labels, as_tensor, image_hashes
from advconn.data.labels import check_accuracy, memorisation_warning
from advconn.errors import FitError
from advconn.features.references import References, choose, synthesise
from advconn.models.classifier import Classifier
from advconn.models.margin import temperature_of

HARMLESS = 0.8  # share of predictions that a benign condition must leave as they are
FOR_REFERENCES = 0.2  # share of the images among which references are chosen


def label_preserving(
    classifier: Classifier, images: Tensor, names: Sequence[str], note: Callable[[str], None], seed: int = 0
) -> tuple[str, ...]:
    """Those of the benign conditions under which four of five of at most 256 images keep their predicted class.

    Args:
        classifier: what is shown them.
        images: clean ones (n, c, h, w).
        names: of the conditions.
        note: told which are left out.
        seed: of what the conditions draw.
    """
    few = as_bytes(images[:256])
    wanted = usable(names, classifier.channels)
    before = classifier.predict(few)
    kept = {n: float((classifier.predict(CONDITIONS[n](few, seed)) == before).float().mean()) for n in wanted}
    lost = [f"{name} ({share:.0%})" for name, share in kept.items() if share < HARMLESS]
    if lost:
        left_out = ", ".join(lost)
        note(f"left out of the guarantee, because they change too many of this classifier's predictions: {left_out}")
    return tuple(name for name, share in kept.items() if share >= HARMLESS)


Note = Callable[[str], None]


@dataclass(frozen=True)
class CleanSet:
    """Clean images of a fit.

    Attributes:
        images: (n, c, h, w).
        truth: true classes (n,), or None where they are not known.
        predicted: classes (n,) that the classifier gives them.
        temperature: at which the classifier is as confident on them as any other, see models.margin.temperature_of.
    """

    images: Tensor
    truth: Tensor | None
    predicted: Tensor
    temperature: float


def prepare_images(
    classifier: Classifier, images: Any, labels: Any, *, accept: bool, accuracy: float | None, note: Note
) -> CleanSet:
    """What users give, without the images for which the classifier gives NaN.

    Args:
        classifier: what is to be guarded.
        images: (n, c, h, w), uint8 or in [0, 1], as tensor or array.
        labels: true classes (n,), or None.
        accept: whether to go on with a classifier that is no better than chance.
        accuracy: see data.labels.memorisation_warning.
        note: told what is odd about the images.

    Raises:
        FitError: a label that is no class, or NaN for most images.
        DataError: see fitting.fit.
    """
    images = as_tensor(images)
    truth = None if labels is None else as_labels(labels, len(images))
    if truth is not None and len(truth) and int(truth.max()) >= classifier.num_classes:
        raise FitError(
            f"a label is {int(truth.max())}, and the classifier has {classifier.num_classes} classes: labels go from 0"
        )
    images, truth, logits = drop_non_finite(classifier, images, truth, note)
    predicted = logits.argmax(1)
    check_accuracy(predicted, truth, classifier.num_classes, accept=accept)
    memorised = None if truth is None else memorisation_warning(int((predicted == truth).sum()), len(truth), accuracy)
    if memorised:
        note(memorised)
    _twice(images, note)
    return CleanSet(images, truth, predicted, temperature_of(logits))


def add_references(
    classifier: Classifier, clean: CleanSet, *, synthesised: bool, seed: int, note: Note
) -> tuple[References | None, Tensor, Tensor]:
    """References, the rows that they were chosen among, and the rows that are left for other uses.

    None where a class would have no reference: `note` is told, and all rows are left.

    Args:
        classifier: whose classes they stand for.
        clean: the images.
        synthesised: make the references instead of choosing them.
        seed: of the rows, and of what is synthesised.
        note: told which classes have none.

    Raises:
        FitError: synthesised ones of a classifier without gradients.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(clean.images)))
    count = 0 if synthesised else round(FOR_REFERENCES * len(clean.images))
    order = _every_class(order, count, clean.predicted, clean.truth)
    if synthesised and not classifier.differentiable:
        raise FitError("synthesised references need gradients, and this classifier gives none: choose them")
    mine = order[:count]
    if synthesised:
        references: References | None = synthesise(classifier, seed=seed)
    else:
        references = _chosen(classifier, clean.images[mine], None if clean.truth is None else clean.truth[mine])
    if references is not None and not references.missing:
        return references, mine, order[count:]
    lost = list(range(classifier.num_classes)) if references is None else references.missing
    names = ", ".join(classifier.label_names(lost[:3])) + ", ..." * (len(lost) > 3)
    note(
        f"{len(lost)} of {classifier.num_classes} classes have no reference among the images ({names}), and a query of "
        "any class may need one: only paths to copies of the query itself are walked (give images of every class, or "
        "synthesise references)"
    )
    return None, order[:0], order


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


def drop_non_finite(
    classifier: Classifier, images: Tensor, truth: Tensor | None, note: Callable[[str], None]
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The images for which the classifier gives finite logits, labels, logits (n, k).

    Args:
        classifier: what is to be guarded.
        images: (n, c, h, w).
        truth: true classes (n,), or None.
        note: told how many images are left out.

    Raises:
        FitError: it gives NaN for most of them.
    """
    parts = [classifier.logits(classifier.check(x)).cpu() for x in images.split(256)]
    none = torch.zeros(0, classifier.num_classes, dtype=torch.float32, device="cpu")
    logits = torch.cat(parts) if parts else none
    fine = torch.isfinite(logits).all(1)
    lost = int((~fine).sum())
    if not lost:
        return images, truth, logits
    if lost > len(images) // 2:
        raise FitError(f"the classifier gives NaN for {lost} of {len(images)} images")
    note(f"the classifier gives NaN for {lost} of {len(images)} images: they are left out")
    return images[fine], None if truth is None else truth[fine], logits[fine]


def _twice(images: Tensor, note: Callable[[str], None]) -> None:
    copies = len(images) - len(np.unique(image_hashes(images)))
    if copies:
        note(
            f"{copies} of {len(images)} images are there more than once: calibration shares images with training, and "
            "the false-alarm rate may be higher than asked for"
        )


def _chosen(classifier: Classifier, images: Tensor, labels: Tensor | None) -> References | None:
    if not len(images):
        return None
    return choose(classifier, classifier.check(images), labels)
