"""A detector's score as a differentiable function of images: what an attack that knows the detector follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.detector import Detector, default_head
from advconn.errors import AttackError
from advconn.features import table
from advconn.stages import Cascade, cut, scored

Score = Callable[[Tensor], Tensor]


def differentiable(
    detector: Detector, columns: Callable[[], np.ndarray] | None = None, threshold: float | None = None
) -> Score:
    """The detector's score as a differentiable function of images (n, c, h, w) in [0, 1].

    Of several stages it is under `threshold` (the detector's own unless told) exactly where a stage of copies clears
    the image, and nothing else of it is the detector's score: the attacker goes for the stage that is nearest to
    letting the image go. The last stage, whose bypass has no gradient, is not followed, but judges in the end.

    A pipeline of StandardScaler and LogisticRegression is followed exactly. For any other head a logistic regression is
    fitted to its verdicts on what `columns` gives (n, d), of clean and attacked images, and followed instead: its even
    odds stand where the detector's threshold does, and nothing else of it is the detector's score.

    Raises:
        AttackError: another head, and no columns to imitate it on, or none of them flagged, or all.
    """
    if len(detector.cascade_.walks) > 1:
        return _of_stages(detector.cascade_, detector.calibration_.threshold if threshold is None else threshold)
    walk = detector.connectivity
    odds = linear_odds(detector.head_, walk.classifier.device)
    if odds is None:
        if columns is None:
            raise AttackError("this head has no gradient: give columns on which a linear one can imitate it")
        at = detector.calibration_.threshold
        known = columns()
        flagged = scored(detector.head_, known) > at
        if flagged.all() or not flagged.any():
            raise AttackError("this head has no gradient, and its verdicts on the columns are all alike")
        imitated = linear_odds(default_head().fit(known, flagged.astype(int)), walk.classifier.device)
        if imitated is None:
            raise AttackError("the default head is not linear")
        return lambda images: imitated(table(walk.trace(images))[0]) + at
    follow = odds
    return lambda images: follow(table(walk.trace(images))[0])


def _of_stages(cascade: Cascade, threshold: float) -> Score:
    """How far the nearest stage is from letting an image go, plus the threshold."""
    followed = []
    for k, (walk, head) in enumerate(zip(cascade.walks, cascade.heads, strict=True)):
        odds, at = linear_odds(head, walk.classifier.device), cut(cascade.exits, threshold, k)
        if odds is not None and at is not None and "complexity" not in walk.walked:
            followed.append((walk, odds, at))
    if not followed:
        raise AttackError("no stage of this detector has a head whose gradient can be followed")

    def score(images: Tensor) -> Tensor:
        trace, over = None, []
        for walk, odds, at in followed:
            trace = walk.trace(images, trace)
            over.append(odds(table(trace)[0]) - at)
        return threshold + torch.stack(over).amin(0)

    return score


def linear_odds(head: Any, device: torch.device) -> Score | None:
    """The log-odds of any attack as a function of columns (n, d), of a StandardScaler and a LogisticRegression.

    None of any other head.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if not isinstance(head, Pipeline) or len(head) != 2:
        return None
    scaler, model = head[0], head[1]
    if not isinstance(scaler, StandardScaler) or not isinstance(model, LogisticRegression):
        return None
    values = (scaler.mean_, scaler.scale_, model.coef_, model.intercept_)
    middle, spread, weight, bias = (torch.from_numpy(v).float().to(device) for v in values)

    def odds(columns: Tensor) -> Tensor:
        found = (columns - middle) / spread @ weight.T + bias
        return found[:, 0] if found.shape[1] == 1 else found[:, 1:].logsumexp(1) - found[:, 0]

    return odds
