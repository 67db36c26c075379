"""A detector's score as a differentiable function of images: what an attack that knows the detector follows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from advconn.attacks.adaptive import Score
from advconn.cascade.cascade import scored
from advconn.cascade.differentiable import linear_odds, of_stages
from advconn.cascade.heads import default_head
from advconn.detector.detector import Detector
from advconn.errors import AttackError
from advconn.features.families import table


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
    if len(detector.cascade_.connectivities) > 1:
        return of_stages(detector.cascade_, detector.calibration_.threshold if threshold is None else threshold)
    connectivity = detector.connectivity
    odds = linear_odds(detector.head_, connectivity.classifier.device)
    if odds is None:
        if columns is None:
            raise AttackError("this head has no gradient: give columns on which a linear one can imitate it")
        own_threshold = detector.calibration_.threshold
        features = columns()
        flagged = scored(detector.head_, features) > own_threshold
        if flagged.all() or not flagged.any():
            raise AttackError("this head has no gradient, and its verdicts on the columns are all alike")
        imitated = linear_odds(default_head().fit(features, flagged.astype(int)), connectivity.classifier.device)
        if imitated is None:
            raise AttackError("the default head is not linear")
        return lambda images: imitated(table(connectivity.trace(images))[0]) + own_threshold
    follow = odds
    return lambda images: follow(table(connectivity.trace(images))[0])
