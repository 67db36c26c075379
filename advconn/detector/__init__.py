"""A fitted detector: from clean images to thresholds, verdicts and reasons; the guard for pipelines; drift.

It imports everything below it, and knows neither folders nor commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.detector.calibration import Calibration
    from advconn.detector.detector import Detector
    from advconn.detector.drift import Watch
    from advconn.detector.explanation import Explanation
    from advconn.detector.fitting import fit
    from advconn.detector.guard import Guard, Verdict
    from advconn.detector.judgement import Judgement
    from advconn.detector.recalibration import recalibrate

__all__ = ["Calibration", "Detector", "Explanation", "Guard", "Judgement", "Verdict", "Watch", "fit", "recalibrate"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Calibration": "calibration",
        "Detector": "detector",
        "Explanation": "explanation",
        "Guard": "guard",
        "Judgement": "judgement",
        "Verdict": "guard",
        "Watch": "drift",
        "fit": "fitting",
        "recalibrate": "recalibration",
    },
)
