"""Figures of one detector against one attack: AUROC and catch rate with bootstrap intervals, false alarms."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import bootstrap, rankdata


def auroc(clean: np.ndarray, attacked: np.ndarray) -> float:
    """Chance that an attacked image (m,) scores above a clean one (n,), ties counted half; nan without either."""
    n, m = len(clean), len(attacked)
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.concatenate([clean, attacked]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def auroc_bootstrap_interval(
    clean: np.ndarray, attacked: np.ndarray, *, draws: int = 500, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the AUROC, clean and attacked images drawn apart; nan under two of each.

    Args:
        clean: scores (n,).
        attacked: scores (m,).
        draws: number of bootstrap samples.
        seed: of the draws.
    """
    if min(len(clean), len(attacked)) < 2:
        return float("nan"), float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a statistic that does not vary: the interval is then a point
        bounds = bootstrap(
            (clean, attacked), auroc, n_resamples=draws, vectorized=False, method="percentile", rng=seed
        ).confidence_interval
    return float(bounds.low), float(bounds.high)


def mean_share(hits: np.ndarray) -> float:
    """Share of true values; nan of none."""
    return float(np.mean(hits)) if len(hits) else float("nan")


def clopper_pearson(hits: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a share; nan of none."""
    from scipy.stats import binomtest

    if not len(hits):
        return float("nan"), float("nan")
    bounds = binomtest(int(np.sum(hits)), len(hits)).proportion_ci(level)
    return float(bounds.low), float(bounds.high)


def clopper_pearson_upper(count: int, of: int, confidence: float = 0.95) -> float:
    """Upper confidence bound of a share (Clopper & Pearson 1934).

    Args:
        count: how many were seen.
        of: among how many.
        confidence: that the true share is not above the bound, in (0, 1).
    """
    from scipy.special import betaincinv

    return 1.0 if count >= of else float(betaincinv(count + 1, of - count, confidence))


def mcnemar_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value of two detectors that flag the same images alike (McNemar 1947).

    Args:
        first: (n,) which images the first flags.
        second: (n,) which of the same images the second flags.

    Example:
        >>> import numpy as np
        >>> from advconn.metrics import mcnemar_p_value
        >>> mcnemar_p_value(np.array([True] * 6 + [False]), np.array([False] * 7))
        0.03125
    """
    from scipy.stats import binomtest

    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return 1.0 if one + other == 0 else float(binomtest(one, one + other).pvalue)
