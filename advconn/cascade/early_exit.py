"""Where images leave a cascade: the one score that its stages make together, and which scores let an image go.

The score is ordered by the stage reached and then by that stage's own score, so a cascade is one function of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advconn.metrics import clopper_pearson_upper

MISSED = 0.02  # of attacked images that the whole walk catches: at most so many may leave early


def cascade_score(scores: np.ndarray, exits: Sequence[float], most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One score (n,) from those of the stages, and the stage (n,) that each image left at, from 1.

    Of one stage it is that stage's own. Of several its whole part is the number of stages passed, and the rest s / (1 +
    |s|) of the log-odds s of the stage left at, brought to (0, 1). What was not walked (NaN) does not matter.

    Args:
        scores: log-odds (n, stages).
        exits: of all stages but the last, the largest score that leaves.
        most: no image goes farther than this stage.
    """
    if scores.shape[1] == 1:
        return scores[:, 0], np.ones(len(scores), int)
    count = scores.shape[1] if most is None else min(most, scores.shape[1])
    stage = np.full(len(scores), count)
    for k in reversed(range(count - 1)):
        stage[(scores[:, k] <= exits[k]) | np.isposinf(scores[:, k])] = k + 1
    last = scores[np.arange(len(scores)), stage - 1]
    with np.errstate(invalid="ignore"):
        part = np.where(np.isposinf(last), np.inf, (1 + last / (1 + np.abs(last))) / 2)
    return stage - 1 + part, stage


def stage_threshold(exits: Sequence[float], threshold: float, k: int) -> float | None:
    """The largest log-odds at a stage with which the ordered score stays at `threshold` or under.

    None where no image that comes so far stays under it.

    Args:
        exits: of all stages but the last, the largest score that leaves.
        threshold: an ordered score.
        k: the stage, from 0.
    """
    if not exits:
        return threshold
    place = threshold - k
    if place >= 1:
        return exits[k] if k < len(exits) else float("inf")
    if place <= 0:
        return None
    part = 2 * place - 1
    within = part / (1 - abs(part))
    return min(within, exits[k]) if k < len(exits) else within


@dataclass(frozen=True)
class EarlyExitMisses:
    """Attacked images that left early though the whole walk catches them.

    Attributes:
        count: how many.
        of: among how many attacked ones.
        by_attack: both numbers for every attack.
    """

    count: int
    of: int
    by_attack: dict[str, tuple[int, int]]

    @property
    def at_most(self) -> float:
        """Their share is at most this, with 95 % confidence (Clopper & Pearson 1934)."""
        return clopper_pearson_upper(self.count, self.of)


def choose_exits(
    clean: np.ndarray, attacked: np.ndarray, kinds: Sequence[str], shares: Sequence[float], fpr: float
) -> tuple[tuple[float, ...], EarlyExitMisses]:
    """Where images leave, from scores that heads gave to images they were not fitted on, and what is missed there.

    The shares of clean images that go on are those wanted, raised together until attacked images that leave early,
    though the last stage alone would catch them at `fpr`, are at most MISSED of all with 95 % confidence; to 1 if need
    be.

    Args:
        clean: scores (n, stages) of clean images.
        attacked: scores (m, stages) of attacked ones.
        kinds: (m,) the attack of each attacked image.
        shares: of clean images that go on, in (0, 1], for all stages but the last.
        fpr: false-alarm rate, in (0, 1).
    """
    caught = attacked[:, -1] > np.quantile(clean[:, -1], 1 - fpr)
    factor = 1.0
    while True:
        limits = exits_at(clean, [min(1.0, factor * share) for share in shares])
        _, stage = cascade_score(attacked, limits)
        missed = caught & (stage < clean.shape[1])
        names = np.asarray(kinds)
        each = {str(k): (int(missed[names == k].sum()), int((names == k).sum())) for k in dict.fromkeys(kinds)}
        counts = EarlyExitMisses(int(missed.sum()), len(attacked), each)
        if counts.at_most <= MISSED or all(np.isneginf(limits)):
            return limits, counts
        factor *= 1.25


def exits_at(clean: np.ndarray, shares: Sequence[float]) -> tuple[float, ...]:
    """Where images leave, so that these shares of clean ones, of scores (n, stages), go on from each stage."""
    live, out = np.ones(len(clean), bool), []
    for k, share in enumerate(shares):
        scores, count = np.sort(clean[live, k]), round(share * len(clean))
        limit = -np.inf if share >= 1 or count >= len(scores) else float(scores[len(scores) - count - 1])
        out.append(limit)
        live = live & (clean[:, k] > limit)
    return tuple(out)
