"""A watch on the promise: do the images still look like those that the threshold was calibrated on?

An exchangeability martingale (Vovk et al. 2003; Vovk 2021, 'Testing randomness online'). For every image a p-value is
taken among the calibration's scores and those of the stream so far; while they are exchangeable these are independent
and uniform, and a gambler who bets on small ones does not get rich: the chance that one unit of money ever grows to a
hundred is at most one in a hundred (Ville's inequality), however long the stream.
"""

from __future__ import annotations

import math
from threading import Lock
from typing import Any

import numpy as np

from advconn.detector.calibration import Calibration

RICH = 100.0
_BETS = np.array([0.2, 0.4, 0.6, 0.8])  # of the betting functions b * p^(b - 1), whose mean is 1 under uniform p


class Watch:
    """Fortunes of gamblers who bet that a stream's scores rise, one for each benign condition of a calibration.

    It speaks once, where all of them are rich: under each condition the stream is then unlike the calibration's images.
    Half of a condition's scores make a grid, the others stand for the past, so that the p-values are exact.

    Args:
        calibration: of the detector whose scores are watched.
        seed: of the draws that break ties.
    """

    def __init__(self, calibration: Calibration, seed: int = 0) -> None:
        self.count = 0
        self.spoke_at: int | None = None
        self._random = np.random.default_rng(seed)
        self._lock = Lock()
        self._gamblers = [_Gambler(scores, self._random) for scores in calibration.tables.values()]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    @property
    def fortune(self) -> float:
        """That of the poorest gambler, who started with 1."""
        return min(gambler.fortune for gambler in self._gamblers)

    def see(self, scores: np.ndarray) -> bool:
        """Look at the next scores (n,) of the stream; whether it speaks now, which it does once."""
        with self._lock:
            if self.spoke_at is not None:
                return False
            for score in np.asarray(scores, np.float64):
                draw, self.count = self._random.random(), self.count + 1
                for gambler in self._gamblers:
                    gambler.bet(float(score), draw)
                if self.fortune >= RICH:
                    self.spoke_at = self.count
                    return True
        return False

    def sentence(self) -> str:
        """What it says."""
        return (
            f"after {self.spoke_at} images: they no longer look like those that the threshold was calibrated on (said "
            "falsely in at most one stream of a hundred): expect other false-alarm rates, or an attack; calibrate on "
            "images like these if they are clean"
        )


class _Gambler:
    """Money is laid aside and joins the game bit by bit, so that a change after long quiet finds some left."""

    def __init__(self, scores: np.ndarray, random: np.random.Generator) -> None:
        order = random.permutation(len(scores))
        half = len(scores) // 2
        self._grid = np.sort(scores[order[:half]])
        self._past = np.bincount(self._places(scores[order[half:]]), minlength=len(self._grid) * 2 + 1).astype(float)
        self._aside, self._playing, self._time = 1.0, np.zeros(len(_BETS)), 0

    def _places(self, scores: np.ndarray) -> np.ndarray:
        """Which cell of the grid: below, at, or above each of its values."""
        return np.searchsorted(self._grid, scores, "left") + np.searchsorted(self._grid, scores, "right")

    @property
    def fortune(self) -> float:
        return self._aside + float(self._playing.sum())

    def bet(self, score: float, draw: float) -> None:
        place = int(self._places(np.array([score]))[0])
        above, same = self._past[place + 1 :].sum(), self._past[place] + 1
        p = max((above + draw * same) / (self._past.sum() + 1), 1e-12)
        self._past[place] += 1
        self._time += 1
        share = 1 / ((self._time + 1) * math.log(self._time + 2) ** 2 * 4)  # these sum to less than 1
        share = min(share, self._aside)
        self._aside -= share
        self._playing = np.minimum((self._playing + share / len(_BETS)) * _BETS * p ** (_BETS - 1), 1e200)
