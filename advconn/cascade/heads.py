"""The head of a stage: the classifier that is used by default, what it can give at most, and a copy to fit anew."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np

from advconn.cascade.scaling import LARGEST as LARGEST_OUTPUT
from advconn.cascade.scaling import BoundedScaler


def default_head(seed: int = 0, floor: np.ndarray | None = None) -> Any:
    """The scikit-learn classifier that a detector uses by default: a logistic regression of bounded features.

    Args:
        seed: random state of the regression.
        floor: (d,) the smallest scale of each feature, see BoundedScaler.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=0.1, max_iter=2000, random_state=seed)
    return make_pipeline(BoundedScaler(floor), StandardScaler(), regression)


def largest_share(head: Any) -> np.ndarray:
    """By how much each feature (d,) alone can change the log-odds of a linear head of bounded features.

    Args:
        head: a fitted pipeline of a BoundedScaler, possibly a StandardScaler, and a LogisticRegression.
    """
    return np.asarray(2 * _largest_terms(_against_clean(head)).max(axis=0))


def highest_log_odds(head: Any) -> float:
    """More than this a head gives to no image: of a linear head of bounded features a bound, else infinity.

    Args:
        head: a fitted pipeline that ends in a LogisticRegression, or any other head.
    """
    if not hasattr(head, "steps") or not hasattr(head[-1], "coef_"):
        return math.inf
    bias = np.asarray(head[-1].intercept_, np.float64)
    start = bias[1:] - bias[:1] if len(bias) > 1 else bias
    if len(np.unique(head[-1].coef_, axis=0)) == 1 and (len(bias) > 1 or not np.any(head[-1].coef_)):
        return float(np.logaddexp.reduce(start))  # the same for every image
    if not isinstance(head[0], BoundedScaler):
        return math.inf
    against = _against_clean(head)
    start = start - sum((against @ step.mean_ for step in head[1:-1]), np.zeros(len(against)))
    return float(np.logaddexp.reduce(start + _largest_terms(against).sum(axis=1)))


def _against_clean(head: Any) -> np.ndarray:
    """Weights (attacks, columns) of a linear head's bounded columns, less those of the class clean."""
    weights = np.asarray(head[-1].coef_, np.float64)
    for step in head[1:-1]:
        weights = weights / step.scale_
    return weights[1:] - weights[:1] if len(weights) > 1 else weights


def _largest_terms(against: np.ndarray) -> np.ndarray:
    """The largest absolute value (attacks, features) that both columns of a feature can add."""
    outputs = zip(np.split(np.abs(against), len(LARGEST_OUTPUT), axis=1), LARGEST_OUTPUT.values(), strict=True)
    return np.asarray(np.sum([share * largest for share, largest in outputs], axis=0))


def clone_unfitted(head: Any) -> Any:
    """A head with the same parameters, which has learned nothing.

    As scikit-learn's clone, of a head that another version of it wrote as well: parameters that it does not have are
    left at this version's defaults.
    """
    from sklearn.pipeline import Pipeline, make_pipeline

    if type(head) is Pipeline:
        return make_pipeline(*(clone_unfitted(step) for _, step in head.steps))
    parameters = inspect.signature(type(head)).parameters
    return type(head)(**{name: value for name, value in vars(head).items() if name in parameters})
