"""Whether a classifier and images go together: what class folders mean, and whether its answers are above chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from advconn.data.collection import Item
from advconn.errors import DataError

LOOKED_AT = 1000  # images by which it is seen what the labels mean and what the classifier makes of them
ENOUGH = 20  # images before anything is said of an accuracy
LEVEL = 0.05
FLAWLESS = 100  # images without a mistake that an honest classifier seldom shows


def sample_rows(count: int) -> Tensor:
    """Rows (m,) of at most LOOKED_AT images, evenly over all."""
    return torch.arange(count, dtype=torch.int64, device="cpu")[:: -(-count // LOOKED_AT) or 1]


def label_candidates(items: Sequence[Item], class_names: Sequence[str] | None, num_classes: int) -> dict[str, Tensor]:
    """Labels (n,) by each way that fits: 'name', 'index' and 'sorted' (folders in the order of their text).

    Args:
        items: the n images, each with the label that it came with; a label in an array is an index.
        class_names: one for each class, or None.
        num_classes: of the classifier.
    """
    by_way: dict[str, Tensor | None] = {"index": labels(items, None, num_classes)}
    given = [item.label for item in items]
    if any(label is None for label in given):
        return {}
    if class_names is not None:
        indices = {name: i for i, name in enumerate(class_names)}
        if all(label in indices for label in given):
            by_way["name"] = torch.tensor([indices[str(label)] for label in given], dtype=torch.int64, device="cpu")
        elif by_way["index"] is None:
            by_way["index"] = labels(items, class_names, num_classes)  # some by name, some by index
    folders = sorted({str(label) for label in given})
    if all(item.row is None for item in items) and len(folders) <= num_classes:
        order = {name: i for i, name in enumerate(folders)}
        by_way["sorted"] = torch.tensor([order[str(label)] for label in given], dtype=torch.int64, device="cpu")
    return {how: values for how, values in by_way.items() if values is not None}


def resolve_labels(
    items: Sequence[Item],
    class_names: Sequence[str] | None,
    num_classes: int,
    predicted: Tensor,
    how: str = "auto",
    note: Callable[[str], None] = lambda text: None,
    rows: Tensor | slice = slice(None),
) -> Tensor | None:
    """True labels (n,) of images, read as asked, or in the way that the predictions agree with best.

    None where none are known.

    Args:
        items: the n images, each with the label that it came with.
        class_names: of the classifier, or None.
        num_classes: that it tells apart.
        predicted: classes (m,) that it gives the images in `rows`.
        how: 'name', 'index', 'sorted', 'auto' (the one of these that fits best) or 'none'.
        note: told which way was taken, and why none was.
        rows: which items `predicted` is of, (m,) or a slice.

    Raises:
        DataError: the labels do not fit the way asked for.
    """
    if how == "none":
        return None
    by_way = label_candidates(items, class_names, num_classes)
    if how != "auto":
        if how not in by_way:
            raise DataError(
                f"--labels {how}: the images have no such labels; what fits is {', '.join(by_way) or 'none'}"
            )
        return by_way[how]
    if not by_way:
        some = sorted({item.label for item in items if item.label is not None})[:3]
        known = f"no class of its {num_classes}: --classes FILE names them"
        why = f" (the labels {', '.join(some)}, ... are {known})" if some else ""
        note(f"no true labels are known{why}: the classifier's own predictions stand in for them")
        return None
    agree = {way: float((values[rows] == predicted.cpu()).float().mean()) for way, values in by_way.items()}
    best = max(("name", "index", "sorted"), key=lambda way: agree.get(way, -1.0))
    folders = len({item.label for item in items})
    if best == "sorted" and folders < num_classes and agree[best] < 0.5:  # some classes of many, by accident
        note(
            f"the {folders} class folders are none of the {num_classes} classes by name or index: the "
            "classifier's own predictions stand in for labels (--classes FILE gives the names)"
        )
        return None
    others = [f"{way} {agree[way]:.0%}" for way in by_way if way != best and not torch.equal(by_way[way], by_way[best])]
    if others:
        note(
            f"labels are read by {best}: {agree[best]:.0%} agree with the classifier ({', '.join(others)}); see "
            "--labels"
        )
    return by_way[best]


def above_chance(right: int, count: int, classes: int) -> bool:
    """Whether so many right answers are more than chance, or the images too few to tell.

    The test is binomial and one-sided, at 95 %. Fewer than 20 images are too few.

    Args:
        right: images that the classifier gets right.
        count: images in all.
        classes: of the classifier.
    """
    from scipy.stats import binom

    return count < ENOUGH or float(binom.sf(right - 1, count, 1 / classes)) < LEVEL


def memorisation_warning(right: int, count: int, accuracy: float | None = None) -> str | None:
    """One line where so many right answers of a classifier look as if it had been trained on the images, else None.

    Args:
        right: images that the classifier gets right.
        count: images in all.
        accuracy: of the classifier on images that it was not trained on, in [0, 1], where known: significantly more
            right answers (binomial, one-sided, 95 %) tell. Where it is not known, no mistake in 100 images or more
            does.
    """
    from scipy.stats import binom

    if accuracy is None:
        told = count >= FLAWLESS and right == count
        against = "without a mistake"
    else:
        told = count >= ENOUGH and float(binom.sf(right - 1, count, accuracy)) < LEVEL
        against = f"where {accuracy:.1%} were to be expected"
    if not told:
        return None
    return (
        f"the classifier gets {right} of {count} images right, {against}: it may have been trained on them, and the "
        "promised false-alarm rate then holds for such images alone; give images that it was not trained on"
    )


def check_accuracy(predicted: Tensor, truth: Tensor | None, classes: int, *, accept: bool = False) -> str:
    """One line on what the classifier makes of clean images.

    Args:
        predicted: classes (n,) that it gives them.
        truth: true classes (n,), or None.
        classes: of the classifier.
        accept: whether to go on with a classifier that is no better than chance.

    Raises:
        DataError: with `accept` false, on 20 images or more: no more right than by chance, or one class for all though
            their labels differ or are unknown.
    """
    count, kinds = len(predicted), len(np.unique(predicted.cpu().numpy()))
    labelled = truth is not None
    right = int((predicted.cpu() == truth.cpu()).sum()) if truth is not None else 0
    line = f"the classifier gets {right} of {count} images right ({right / max(count, 1):.1%})" if labelled else (
        f"the classifier gives {count} images {kinds} of its {classes} classes; no true labels are known"
    )  # fmt: skip
    if accept or count < ENOUGH:
        return line
    way = (
        "is the scale right (it is given values in [0, 1], after --mean and --std; one that wants 0 to 255 takes "
        "--mean 0 and --std 0.0039216 a channel), the order of the channels (RGB), the order of the labels (--labels)? "
        "--accept-accuracy goes on"
    )
    alike = truth is not None and len(np.unique(truth.cpu().numpy())) == 1
    if kinds == 1 and not (alike and right == count):
        raise DataError(f"the classifier gives all {count} images the class {int(predicted[0])}: {way}")
    if labelled and not above_chance(right, count, classes):
        raise DataError(f"{line}, which is no more than chance ({1 / classes:.1%}): {way}")
    return line


def labels(items: Sequence[Item], class_names: Sequence[str] | None, num_classes: int) -> Tensor | None:
    """True labels (n,) where every item's is a class index or a class name, else None.

    Args:
        items: with a label each, or none.
        class_names: of the classifier, or None.
        num_classes: that it tells apart.
    """
    names = {name: i for i, name in enumerate(class_names or ())}
    indices = []
    for item in items:
        if item.label is None:
            return None
        index = names.get(item.label, int(item.label) if item.label.isdecimal() else -1)
        if not 0 <= index < num_classes:
            return None
        indices.append(index)
    return torch.tensor(indices, dtype=torch.int64, device="cpu")
