"""Doubt: where the classifier itself is more often wrong than right, whether or not an image was attacked.

What survives being saved often looks like an honest error: the classifier is unsure, and copies of the image disagree.
No head tells the two apart. So beside the verdict there is a second cut, on how certain the classifier is of the image
and of its first copies (test-time augmentation, Ayhan & Berens 2018). It is calibrated on clean images with labels.
"""

from __future__ import annotations

import numpy as np

from advconn.features.path_features import Trace

FEWEST = 10  # calibration images in doubt, else there is no cut
WRONG_SHARE = 0.5


def certainty(trace: Trace) -> np.ndarray:
    """The mean probability (n,), in [0, 1], that the query and its copies give to the query's class.

    Args:
        trace: of n images, of the first stage, whose copies every image has.
    """
    shares = trace.query.softmax(1)
    label = shares.argmax(1, keepdim=True)
    own = shares.gather(1, label)
    if trace.copies is not None:
        copies = trace.copies.softmax(2)
        of_copies = copies.gather(2, label[:, None].expand(-1, copies.shape[1], 1))[:, :, 0]
        own = (own + of_copies.sum(1, keepdim=True)) / (1 + copies.shape[1])
    return np.asarray(own[:, 0].double().cpu().numpy())


def doubt_threshold(certainties: np.ndarray, wrong: np.ndarray, least: int = FEWEST) -> float | None:
    """The largest certainty at which clean images are misclassified in more than WRONG_SHARE of cases.

    The share at a certainty is that of isotonic regression: it never rises with the certainty. None where fewer than
    `least` images are that unsure.

    Args:
        certainties: (n,) of clean images, see `certainty`.
        wrong: (n,) which of them the classifier gets wrong.
        least: fewest images in doubt.

    Example:
        >>> import numpy as np
        >>> from advconn.detector.doubt import doubt_threshold
        >>> doubt_threshold(np.linspace(0, 1, 101), np.arange(101) < 30)
        0.29
    """
    from sklearn.isotonic import IsotonicRegression

    known = np.isfinite(certainties)
    if not known.any():
        return None
    values, errors = certainties[known], np.asarray(wrong)[known].astype(float)
    share = IsotonicRegression(increasing=False).fit_transform(values, errors)
    doubted = values[share > WRONG_SHARE]
    return float(doubted.max()) if len(doubted) >= least else None
