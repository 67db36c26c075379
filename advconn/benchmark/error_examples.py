"""Images that a detector gets wrong, for people to look at: missed attacks, and false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks
from advconn.benchmark.attack_sources import NamedAttack
from advconn.benchmark.fitted_detector import FittedDetector
from advconn.benchmark.result_types import ErrorExample
from advconn.benchmark.splits import BenchmarkData

COUNT = 4  # false alarms shown, and missed images of each attack


def missed_examples(
    bench: BenchmarkData,
    detector: FittedDetector,
    attacks: Sequence[NamedAttack],
    tested: Mapping[str, SuccessfulAttacks],
) -> list[ErrorExample]:
    """Attacked images under the threshold, the lowest scores first, at most twice COUNT of them.

    Args:
        bench: whose images were attacked.
        detector: whose scores are looked at.
        attacks: those tested.
        tested: what each made of the test part, by its name.
    """
    lowest: list[tuple[float, str, int]] = []
    for attack in attacks:
        scores = detector.margins(detector.measured.attacked("test", attack.name))
        lowest += [(float(scores[i]), attack.name, int(i)) for i in np.argsort(scores)[:COUNT] if scores[i] <= 0]
    out = []
    for score, name, i in sorted(lowest)[: 2 * COUNT]:
        row = int(tested[name].rows[i])
        image = (tested[name].images[i] * 255).round().byte()
        out.append(_shown(bench, detector, name, score, image, bench.images[row], int(bench.labels[row])))
    return out


def false_alarm_examples(bench: BenchmarkData, detector: FittedDetector) -> list[ErrorExample]:
    """Clean images over the threshold, the highest scores first."""
    scores = detector.margins(detector.measured.clean("test"))
    out = []
    for i in np.argsort(-scores)[:COUNT]:
        if scores[i] > 0:
            row = int(bench.parts.test[int(i)])
            truth = int(bench.labels[row]) if bench.labelled else None
            out.append(_shown(bench, detector, "clean", float(scores[i]), bench.images[row], None, truth))
    return out


def _shown(
    bench: BenchmarkData,
    detector: FittedDetector,
    what: str,
    score: float,
    image: Tensor,
    original: Tensor | None,
    truth: int | None,
) -> ErrorExample:
    predicted = int(bench.classifier.predict(image[None])[0])
    classes = [predicted] if truth is None or truth == predicted else [predicted, truth]
    checked = bench.classifier.check(image[None])[0]
    paths = detector.candidate.profile(checked) if torch.isfinite(checked).all() else {}
    before = None if original is None else original.numpy()
    return ErrorExample(what, score, image.numpy(), before, tuple(bench.classifier.label_names(classes)), paths)
