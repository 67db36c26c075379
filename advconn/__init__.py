"""advconn: tells whether an image was adversarially perturbed, from how it is connected to what its class looks like.

    from advconn import Classifier, Detector, Guard, fit, load, save

Names are imported when they are first used, so that `import advconn` is light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import accept_former_names, attach

if TYPE_CHECKING:
    from advconn.bundle.loading import load
    from advconn.bundle.saving import save
    from advconn.cascade.cascade import Stage
    from advconn.detector.detector import Detector
    from advconn.detector.drift import Watch
    from advconn.detector.explanation import Explanation
    from advconn.detector.fitting import fit
    from advconn.detector.guard import Guard, Verdict
    from advconn.detector.judgement import Judgement
    from advconn.detector.recalibration import recalibrate
    from advconn.errors import AdvconnError
    from advconn.features.connectivity import Connectivity
    from advconn.features.references import References, choose, synthesise
    from advconn.models.classifier import Classifier
    from advconn.paths.bypass import Detour
    from advconn.paths.path import Path, Profile, profile, straight

__all__ = [
    "AdvconnError",
    "Classifier",
    "Connectivity",
    "Detector",
    "Detour",
    "Explanation",
    "Guard",
    "Judgement",
    "Path",
    "Profile",
    "References",
    "Stage",
    "Verdict",
    "Watch",
    "choose",
    "fit",
    "load",
    "profile",
    "recalibrate",
    "save",
    "straight",
    "synthesise",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "AdvconnError": "errors",
        "Classifier": "models.classifier",
        "Connectivity": "features.connectivity",
        "Detector": "detector.detector",
        "Detour": "paths.bypass",
        "Explanation": "detector.explanation",
        "Guard": "detector.guard",
        "Judgement": "detector.judgement",
        "Path": "paths.path",
        "Profile": "paths.path",
        "References": "features.references",
        "Stage": "cascade.cascade",
        "Verdict": "detector.guard",
        "Watch": "detector.drift",
        "choose": "features.references",
        "fit": "detector.fitting",
        "load": "bundle.loading",
        "profile": "paths.path",
        "recalibrate": "detector.recalibration",
        "save": "bundle.saving",
        "straight": "paths.path",
        "synthesise": "features.references",
    },
)

accept_former_names()
