"""Whether a classifier is another form of the one that a detector was fitted for: by its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.models.classifier import Classifier
from advconn.models.sanity_checks import probe_images

# How far apart two forms of one classifier may answer, as a share of the largest logit, by precision.
_SAME = {"float32": 1e-4, "float64": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
QUANTISED, EXACT = 0.15, 1e-5


def dtype_of(classifier: Classifier) -> str:
    """The precision that a classifier's network works in, such as 'float32'."""
    return str(classifier.adapter.dtype).removeprefix("torch.")


def precision_of(classifier: Classifier) -> str:
    """The precision that verdicts are made in: its network's, or 'tf32' of a float32 one on a GPU that may use it."""
    tf32 = classifier.device.type == "cuda" and torch.backends.cudnn.allow_tf32
    dtype = dtype_of(classifier)
    return "tf32" if tf32 and dtype == "float32" else dtype


def is_plain_module(classifier: Classifier) -> bool:
    """Whether its fingerprint says everything: a module of Python code with weights of its own."""
    scripted = isinstance(classifier.network, (torch.jit.ScriptModule, torch.fx.GraphModule))
    return not scripted and len(classifier.fingerprint) == 64 and not classifier.quantised


def probe_logits(classifier: Classifier, references: Tensor | None) -> np.ndarray:
    """Logits of images that are the same every time, of the references' size, by which another form of it is known."""
    images = probe_images(4, classifier.channels, *input_size(classifier, references))
    return np.asarray(classifier.logits(images.to(classifier.device)).cpu().numpy())


def agreement(first: Classifier, second: Classifier, images: Tensor) -> np.ndarray:
    """Which images two classifiers give the same class, (n,) bool.

    Args:
        first: one.
        second: the other.
        images: (n, c, h, w).
    """
    return np.asarray((first.predict(images) == second.predict(images)).numpy())


def scaled_like(subject: Classifier, make: Callable[..., Classifier], images: Tensor) -> Classifier:
    """Another network of the same classes, shown images as it is made, or with the subject's mean and std.

    Of a network that says nothing of its scale, the way in which it agrees with the subject more often.

    Args:
        subject: the classifier beside which it stands.
        make: gives it; takes `mean` and `std`.
        images: (n, c, h, w) that both are shown.
    """
    plain, how = make(), subject.preprocessing
    if plain.preprocessing.mean is not None or how.mean is None or not len(images):
        return plain
    scaled = make(mean=how.mean, std=how.std)
    if scaled.preprocessing.mean is None or scaled.num_classes != subject.num_classes:
        return plain
    return max((scaled, plain), key=lambda other: agreement(subject, other, images).mean())


def same_outputs(
    classifier: Classifier,
    card: dict[str, Any],
    tensors: dict[str, np.ndarray],
    references: tuple[Tensor, Tensor] | None,
) -> bool:
    """Whether this is another form of the classifier that a detector was fitted for, by its logits.

    Two ordinary modules of one precision must answer alike to rounding: then one is the other inside a wrapper.

    Args:
        classifier: the one that is given.
        card: what the detector's card says of the other.
        tensors: of the detector's folder, with the other's answers.
        references: images of the detector, and the other's logits of them; or None.
    """
    kind = card["kind"] == "module" and is_plain_module(classifier)
    exact = kind and card["dtype"] == dtype_of(classifier)  # the same module, perhaps inside another
    pairs = []
    if "answers" in tensors:
        expected = tensors["answers"]
        size = input_size(classifier, None if references is None else references[0])
        pairs.append((probe_images(len(expected), classifier.channels, *size), expected))
    if references is not None:
        pairs.append((references[0][:32], references[1][:32].numpy()))
    coarse = QUANTISED if classifier.quantised else 0.0
    slack = EXACT if exact else max(_SAME[card["dtype"]], _SAME[dtype_of(classifier)], coarse)
    for images, expected in pairs:
        logits = classifier.logits(classifier.check(images)).cpu().numpy()
        if logits.shape != expected.shape:
            return False
        scale = max(float(np.abs(expected).max()), 1e-6)
        if not float(np.abs(logits - expected).max()) <= slack * scale:
            return False
    return bool(pairs)


def input_size(classifier: Classifier, references: Tensor | None) -> tuple[int, int]:
    """(height, width) of a classifier's images; that of `references` (n, c, h, w) where it takes any."""
    near = (32, 32) if references is None else tuple(references.shape[2:])
    return classifier.preprocessing.size or near  # type: ignore[return-value]
