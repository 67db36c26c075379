"""The contract of attacks and detectors that others write, tried on the digits that ship."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.benchmark.attack_sources import AttackProtocol, to_attack
from advconn.benchmark.candidate import Candidate
from advconn.data.datasets import digits
from advconn.data.input_conversion import as_bytes
from advconn.errors import AttackError, wrap_user_errors
from advconn.models.classifier import Classifier

IMAGES, REFERENCES = 24, 60  # of the digits: attacked or measured, and compared with


def check_attack(attack: str | AttackProtocol, classifier: Classifier | None = None) -> float:
    """Check that an attack keeps the contract of `advconn benchmark --attack`.

    It must have a name and a `run`; give finite floats in [0, 1] of the same shape; leave the images that it is given
    and the classifier alone; and give the same images for the same seed.

    Args:
        attack: an object with a name and a `run`, or a specification such as 'pgd:eps=8/255' or 'my_attack.py:make'.
        classifier: that is attacked; the shipped one of digits unless given.

    Returns:
        Share of the attacked images that change the prediction, in [0, 1]; 0 is no breach.

    Raises:
        AttackError: the first breach, in one line.
    """
    model, images, labels, _ = _digits(classifier)
    made = to_attack(attack)
    before, logits = images.clone(), model.logits(images)
    first = made.run(model, images, labels, seed=1)
    if not torch.equal(images, before):
        raise AttackError(f"{made.name}: run changes the images that it is given; work on a clone")
    if not torch.equal(made.run(model, images, labels, seed=1), first):
        raise AttackError(f"{made.name}: run gives other images for the same seed; draw from a generator of that seed")
    few = made.run(model, images[:1], labels[:1], seed=1)
    if few.shape != images[:1].shape:
        raise AttackError(f"{made.name}: run fails on a batch of one image")
    if not torch.equal(model.logits(before), logits):
        raise AttackError(f"{made.name}: run changes the classifier")
    return float((model.predict(first) != labels).float().mean())


def check_detector(detector: type[Candidate], classifier: Classifier | None = None) -> None:
    """Check that a detector keeps the contract of `advconn benchmark --baseline`.

    It must have a name; `measure` must give finite columns (n, d) that do not depend on the rest of the batch and are
    the same each time; and `score` one finite number an image, also after `fit`.

    Args:
        detector: a subclass of benchmark.Candidate.
        classifier: whose images are measured; the shipped one of digits unless given.

    Raises:
        AttackError: the first breach, in one line.
    """
    name = getattr(detector, "name", "")
    if not (isinstance(detector, type) and issubclass(detector, Candidate)):
        raise AttackError(f"{detector!r}: expected a subclass of advconn.benchmark.Candidate")
    if not name or not isinstance(name, str):
        raise AttackError(f"{detector.__name__}: expected a class attribute `name`, a text")
    model, images, _, clean = _digits(classifier)
    with wrap_user_errors(name, AttackError):
        made = detector(model, as_bytes(clean))
        made.prepare()
        columns = made.measure(images)
        again, halves = made.measure(images), [made.measure(part) for part in images.split(len(images) // 2)]
    table = _columns(name, columns, len(images))
    if not np.array_equal(table, _columns(name, again, len(images))):
        raise AttackError(f"{name}: measure gives other columns the second time; draw from a generator with a seed")
    apart = np.concatenate([_columns(name, part, len(images) // 2) for part in halves])
    if not np.allclose(table, apart, rtol=1e-3, atol=1e-4):
        raise AttackError(f"{name}: the columns of an image depend on the rest of its batch")
    with wrap_user_errors(name, AttackError):
        scores = made.fit(table, np.arange(len(table)) % 2).score(table)
    if np.shape(scores) != (len(table),) or not np.isfinite(scores).all():
        raise AttackError(f"{name}: score gives {np.shape(scores)}; expected {len(table)} finite numbers")


def _columns(name: str, columns: Any, count: int) -> np.ndarray:
    table = np.asarray(columns)
    if table.ndim != 2 or len(table) != count or not table.shape[1] or not np.isfinite(table).all():
        raise AttackError(f"{name}: measure gives {table.shape}; expected finite columns ({count}, d)")
    return table


def _digits(classifier: Classifier | None) -> tuple[Classifier, Tensor, Tensor, Tensor]:
    """A classifier, images of its size and channels, what it takes them for, and others to compare with."""
    model = bundle.load(bundle.default("digits")).classifier if classifier is None else classifier
    raw = digits()[0][-(IMAGES + REFERENCES) :].to(torch.float32) / 255
    sized = torch.nn.functional.interpolate(raw, model.preprocessing.size or (8, 8), mode="bilinear")
    every = sized.expand(-1, model.channels, -1, -1).contiguous().to(model.device)
    images = every[:IMAGES]
    return model, images, model.predict(images), every[IMAGES:]
