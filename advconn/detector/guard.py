"""Guard: the classifier's answer, a score and a flag, in one call inside an inference pipeline."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from advconn.data.input_conversion import as_tensor, require_image_tensor
from advconn.detector.detector import Detector
from advconn.detector.drift import Watch
from advconn.errors import AdvconnWarning, DataError, FitError, ModelError

TRACED = (
    "a guard cannot be traced, exported or put into TorchScript: export the classifier alone, and judge before it "
    "(advconn.serving.Judge, or advconn serve)"
)
KEEP = "advconn.save(guard.detector, folder) keeps its detector, and Guard(advconn.load(folder)) makes it again"


class _Columns(NamedTuple):
    logits: Tensor
    score: Tensor
    p_value: Tensor
    flag: Tensor


class Verdict(_Columns):
    """Of n images: logits (n, k), score (n,) (higher = more adversarial), p_value (n,) in (0, 1], flag (n,) bool.

    Attributes:
        doubtful: (n,) bool, see Judgement.doubtful; None where the detector has no such cut. It is no part of
            the tuple.
    """

    doubtful: Tensor | None = None

    def __new__(
        cls, logits: Tensor, score: Tensor, p_value: Tensor, flag: Tensor, doubtful: Tensor | None = None
    ) -> Verdict:
        """Four columns, which can be unpacked, and doubt beside them."""
        made = super().__new__(cls, logits, score, p_value, flag)
        made.doubtful = doubtful
        return made

    def _replace(self, **changes: Any) -> Verdict:
        """The same with some columns exchanged, and doubt as it is unless that is one of them."""
        return Verdict(**{**self._asdict(), "doubtful": self.doubtful, **changes})


class Guard(nn.Module):
    """A module from images (n, c, h, w) in [0, 1] to a Verdict, all on the classifier's device.

    It answers the same at every batch size, in threads, and under `no_grad` and `inference_mode`; an empty batch gives
    an empty verdict. No gradient flows through it. It takes no part in training: it stays in evaluation mode. An image
    that holds NaN or infinity, or for which the classifier gives NaN, is flagged, with an infinite score: a gate fails
    closed, and the other images of the batch are judged.
    `guard.detector.read(...)` makes batches of files, PIL pictures and arrays.

    A guard of a weak detector (efficacy.Efficacy) says so, as a warning, when it is made.

    `watch` looks at the scores of all images that come by, see Watch; it says once, as a warning, that they no longer
    look like those that the threshold was calibrated on.

    Args:
        detector: fitted.
        threshold: score above which an image is flagged; default: the detector's. It does not change p-values.
        max_stage: no image goes farther, see Detector.judge: the most that an image can cost.

    Raises:
        FitError: the detector has not been fitted, has no such stage, or the threshold is no number.
    """

    def __init__(self, detector: Detector, *, threshold: float | None = None, max_stage: int | None = None) -> None:
        super().__init__()
        detector._fitted()
        self.detector = detector
        if threshold is not None and (not isinstance(threshold, int | float) or not threshold < float("inf")):
            raise FitError(f"threshold: expected a number that a score may exceed, got {threshold!r}")
        self.threshold, self.max_stage = threshold, max_stage
        self.watch = Watch(detector.calibration(max_stage))
        efficacy = detector.fitted_.efficacy
        if efficacy is not None and efficacy.weak:
            warnings.warn(efficacy.warning, AdvconnWarning, stacklevel=2)
        super().train(False)

    def train(self, mode: bool = True) -> Guard:
        """Stay in evaluation mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Guard:
        """What `.to`, `.cuda`, `.half` and the like come down to: the classifier moves, and stays in its precision."""
        classifier = self.detector.classifier
        probe = torch.zeros(1, dtype=torch.float32, device=classifier.device)
        classifier.to(fn(probe).device)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """Another guard, with a detector and a watch of its own."""
        made = Guard(copy.deepcopy(self.detector, memo), threshold=self.threshold, max_stage=self.max_stage)
        made.watch = copy.deepcopy(self.watch, memo)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse torch.save and pickle: whoever loads a pickle runs its code."""
        raise ModelError(
            f"a guard is not pickled, and so not kept by torch.save: {KEEP}; advconn.serving.Judge travels to other "
            "processes"
        )

    def __prepare_scriptable__(self) -> Any:
        """Refuse torch.jit.script."""
        raise ModelError(TRACED)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing, inside a larger module; of the guard alone it would keep nothing and is refused."""
        if args or kwargs.get("prefix"):
            return super().state_dict(*args, **kwargs)
        raise ModelError(f"a guard has no state_dict: {KEEP}")

    def extra_repr(self) -> str:
        """The classifier, the threshold, and the rate it stands for."""
        calibration = self.detector.calibration(self.max_stage)
        count = len(self.detector.cascade_.connectivities)
        stages = f"{count} stage{'s' * (count > 1)}" + f", at most {self.max_stage}" * (self.max_stage is not None)
        threshold = f"threshold={calibration.threshold:.3g}, fpr={calibration.fpr:g}"
        threshold = threshold if self.threshold is None else f"threshold={self.threshold:.3g} (given)"
        return f"{self.detector.classifier}, detector({stages}; {len(self.detector.names_)} features), {threshold}"

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, images: Tensor) -> Verdict:
        """Judge images (n, c, h, w): floats in [0, 1], or uint8."""
        _refuse_traces(images)
        images = as_tensor(images)
        if images.ndim == 4 and not len(images):
            return self._nothing(images)
        images, broken = _finite(images)
        judgement = self.detector.judge(images, max_stage=self.max_stage)
        if self.watch.see(judgement.score[~broken]):
            warnings.warn(self.watch.sentence(), AdvconnWarning, stacklevel=2)
        device = judgement.logits.device
        flagged = judgement.adversarial if self.threshold is None else judgement.score > self.threshold
        columns = np.where(broken, np.inf, judgement.score), np.where(broken, 0, judgement.p_value), flagged | broken
        score, p_value, flag = (torch.from_numpy(v).to(device) for v in columns)
        logits = judgement.logits
        if broken.any():
            said = f"{broken.sum()} of {len(images)} images hold NaN or infinity: flagged"
            warnings.warn(said, AdvconnWarning, stacklevel=2)
            logits = logits.masked_fill(torch.from_numpy(broken).to(device)[:, None], torch.nan)
        doubtful = None if judgement.doubtful is None else torch.from_numpy(judgement.doubtful | broken).to(device)
        return Verdict(logits, score, p_value, flag, doubtful)

    def _nothing(self, images: Tensor) -> Verdict:
        classifier = self.detector.classifier
        classifier.check(images)
        options: dict[str, Any] = {"device": classifier.device}
        none = torch.zeros(0, dtype=torch.float64, **options)
        logits = torch.zeros(0, classifier.num_classes, dtype=torch.float32, **options)
        flag = torch.zeros(0, dtype=torch.bool, **options)
        return Verdict(logits, none, none.clone(), flag, None if self.detector.doubt_ is None else flag.clone())


def _refuse_traces(images: Any) -> None:
    """Refuse whatever records a forward pass once: it would keep the verdicts on its example for ever."""
    exporting = getattr(torch.compiler, "is_exporting", lambda: False)
    if getattr(torch.jit, "is_tracing")() or exporting() or isinstance(images, torch.fx.Proxy):  # noqa: B009
        raise ModelError(TRACED)


def _finite(images: Tensor) -> tuple[Tensor, np.ndarray]:
    """The images, black in place of those that hold NaN or infinity, and which these are (n,)."""
    if not isinstance(images, Tensor):
        raise DataError(f"expected a tensor of images, got {type(images).__name__}")
    require_image_tensor(images)
    if images.ndim != 4 or not images.is_floating_point():  # refused where they are judged, or always finite
        return images, np.zeros(len(images) if images.ndim else 0, bool)
    sound = images.isfinite().flatten(1).all(1)
    if bool(sound.all()):
        return images, np.zeros(len(images), bool)
    return images.masked_fill(~sound[:, None, None, None], 0), (~sound).cpu().numpy()
