"""One benchmark from its settings to a report: what `advconn benchmark` does."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks import parse_all
from advconn.benchmark.adaptive import evasions
from advconn.benchmark.baselines import Baseline
from advconn.benchmark.controls import controls
from advconn.benchmark.ours import Advconn, Shipped
from advconn.benchmark.protocol import Bench, Columns, Frozen, Hits, freeze, row, settled
from advconn.benchmark.record import Report
from advconn.benchmark.roster import BASELINES
from advconn.benchmark.runner import Runner
from advconn.calibration import enough
from advconn.classifier import Classifier, margin
from advconn.conditions import CONDITIONS, noise_of_size, usable
from advconn.datasets import Data
from advconn.detector import Detector, marks
from advconn.errors import AdvconnError
from advconn.kinds import MIXTURE
from advconn.metrics import share, share_interval


@dataclass(frozen=True)
class Settings:
    """What a benchmark is to do; the words are the command line's.

    attacks: specifications tested on. mixture: those trained on. limit: images attacked by each (and a quarter
    more clean ones in every part). per_attack: training images attacked by each of the mixture. adaptive: also the
    attack that knows the detector, on `adaptive_limit` images at each of `adaptive_eps` (Linf).
    """

    attacks: tuple[str, ...]
    baselines: tuple[str, ...] = tuple(BASELINES)
    mixture: tuple[str, ...] = MIXTURE
    limit: int | None = None
    fpr: float = 0.05
    seed: int = 0
    leave_one_out: bool = False
    adaptive: bool = False
    adaptive_limit: int = 32
    adaptive_eps: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
    adaptive_steps: int = 50
    adaptive_restarts: int = 2

    @property
    def per_attack(self) -> int:
        """So that attacked training images are about as many as clean ones."""
        return 400 if self.limit is None else max(10, 5 * self.limit // (4 * len(self.mixture)))


def run(
    data: Data,
    detector: Detector,
    settings: Settings,
    runner: Runner,
    *,
    second: Classifier | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Report:
    """Attack, measure, fit, freeze, compare.

    Raises:
        FitError: too few images.
    """
    classifier = detector.connectivity.classifier
    data = unseen(data, detector, note)
    bench = Bench(
        classifier, data.images, data.labels, runner=runner, limit=settings.limit, fpr=settings.fpr, seed=settings.seed
    )
    if settings.adaptive:
        enough(len(bench.parts.calibrate), 0.05)  # SR@5 has a threshold of its own: better told now than at the end
    taught = bench.attack("train", settings.mixture, settings.per_attack)
    taught = {spec: hits for spec, hits in taught.items() if len(hits.rows)}
    aimed = tuple(dict.fromkeys((*settings.attacks, *(settings.mixture if settings.leave_one_out else ()))))
    tested = bench.attack("test", aimed, settings.limit)
    for spec in settings.attacks:
        if tested[spec].success < 0.9:
            note(f"{spec} succeeded on {len(tested[spec].rows)} of {tested[spec].tried}: only those count")
    first = next((tested[s] for s in settings.attacks if len(tested[s].rows)), None)
    spoilt = _spoilt(bench.part("test")[: (settings.limit or 1000) // 4], first.l2 if first else 1.0, settings.seed)
    sets = {"train": bench.part("train"), "calibrate": bench.part("calibrate"), "test": bench.part("test")}
    sets |= spoilt
    sets |= {f"train {spec}": hits.images for spec, hits in taught.items()}
    sets |= {f"test {spec}": hits.images for spec, hits in tested.items()}
    detectors = _detectors(detector, bench, settings, second, sets, note)
    found = bench.measure(detectors, sets)

    kept = _compared(bench).numpy()

    def frozen(baseline: Baseline, without: str | None = None) -> Frozen:
        def columns(name: str, rows: np.ndarray) -> np.ndarray:
            values = found[baseline.name, name].values
            return values[~np.isin(rows, kept)] if baseline.apart else values

        rest = [columns(f"train {spec}", hits.rows) for spec, hits in taught.items() if name_of(spec) != without]
        clean = columns("train", bench.parts.train.numpy())
        own = copy.copy(baseline)  # fitting one leaves the others as they are
        return freeze(own, clean, rest, found[baseline.name, "calibrate"].values, settings.fpr)

    fixed = {baseline.name: frozen(baseline) for baseline in detectors}
    rows = [
        row(one, spec, tested[spec], found[name, "test"], found.get((name, f"test {spec}")), settings.seed)
        for name, one in fixed.items()
        for spec in settings.attacks
    ]
    left = _left(detectors, frozen, found, tested, settings) if settings.leave_one_out else []
    alarms = [a for name, one in fixed.items() for a in _alarms(one, found, name, bench.right("test"), list(spoilt))]
    scores = {name: _scores(one, found, name, settings.attacks) for name, one in fixed.items()}
    mixture = [(a.name, a.settings) for a in parse_all(settings.mixture)]
    asked = zip(settings.attacks, parse_all(settings.attacks), strict=True)
    taught_on = {spec: (a.name, a.settings) in mixture for spec, a in asked}
    if settings.adaptive:
        rows += evasions(
            bench,
            fixed,
            detector,
            np.concatenate([c.values for (name, part), c in found.items() if name == Advconn.name and "train" in part]),
            limit=settings.adaptive_limit,
            eps=settings.adaptive_eps,
            steps=settings.adaptive_steps,
            restarts=settings.adaptive_restarts,
        )
    return Report(
        _settings(data, detector, bench, settings) | {"sources": {b.name: b.source for b in detectors}},
        rows,
        alarms,
        [_sizes(spec, tested[spec]) | {"in_mixture": taught_on[spec]} for spec in settings.attacks],
        left,
        _controls(bench, first),
        scores,
        _shown(bench, fixed, found, tested, settings),
    )


def _spoilt(images: Tensor, l2: float, seed: int) -> dict[str, Tensor]:
    """Clean images changed without an attacker: noise of an attack's L2 size, JPEG, blur, light."""
    kinds = {f"noise of L2 {l2:.2f}": noise_of_size(l2)}
    kinds |= {name: CONDITIONS[name] for name in usable(("jpeg75", "blur", "brighter"), images.shape[1])}
    return {name: change(images, seed) for name, change in kinds.items()}


def unseen(data: Data, detector: Detector, note: Callable[[str], None]) -> Data:
    """The images that the detector was not fitted on, every one once."""
    found = marks(data.images)
    first = np.zeros(len(found), dtype=bool)
    first[np.unique(found, return_index=True)[1]] = True
    known = np.isin(found, detector.fitted_.seen)
    kept = torch.from_numpy(first & ~known)
    if known.any():
        note(f"{int(known.sum())} of {len(found)} images are left out: the detector was fitted on them")
    if not (first | known).all():
        note(f"{int((~first & ~known).sum())} of {len(found)} images are left out: they are there twice")
    if kept.all():
        return data
    return replace(data, images=data.images[kept], labels=None if data.labels is None else data.labels[kept])


def name_of(spec: str) -> str:
    """An attack's name without its parameters."""
    return spec.partition(":")[0]


def _compared(bench: Bench) -> Tensor:
    """Rows of the training part that a baseline which is fitted apart compares with; it is fitted on the others."""
    return bench.parts.train[: len(bench.parts.train) // 2]


def _detectors(
    detector: Detector,
    bench: Bench,
    settings: Settings,
    second: Classifier | None,
    sets: dict[str, Tensor],
    note: Callable[[str], None],
) -> list[Baseline]:
    """Every detector that can be had, ready to measure what is not kept from an earlier run."""
    made: list[Baseline] = [Shipped(detector), Advconn(detector)]
    for name in settings.baselines:
        if name == "second-model" and second is None:
            note("second-model is left out: give another classifier with --second")
            continue
        try:
            known = _compared(bench) if BASELINES[name].apart else bench.parts.train
            other = second if name == "second-model" else None  # else its weights would be part of every key
            baseline = BASELINES[name](bench.classifier, bench.images[known], other)
            if not bench.measured(baseline, sets):
                baseline.prepare()
        except ImportError as error:
            note(f"{name} is left out: {error.name} is not installed (pip install 'advconn[ood]')")
            continue
        except AdvconnError as error:
            note(f"{name} is left out: {error}")
            continue
        made.append(baseline)
    return made


def _left(
    detectors: Sequence[Baseline],
    frozen: Callable[..., Frozen],
    found: dict[tuple[str, str], Columns],
    tested: dict[str, Hits],
    settings: Settings,
) -> list[dict[str, Any]]:
    """Trained without each attack of the mixture, by name, tested on all of them."""
    out = []
    for baseline in detectors:
        if not isinstance(baseline, Advconn) or isinstance(baseline, Shipped):
            continue
        names = list(dict.fromkeys(map(name_of, settings.mixture)))
        for name in names if len(names) > 1 else ():
            one = frozen(baseline, name)
            for spec, hits in tested.items():
                columns = found.get((baseline.name, f"test {spec}"))
                out.append(
                    {"without": name} | row(one, spec, hits, found[baseline.name, "test"], columns, settings.seed)
                )
    return out


def _alarms(
    one: Frozen, found: dict[tuple[str, str], Columns], name: str, right: np.ndarray, spoilt: list[str]
) -> list[dict[str, Any]]:
    """Share of clean test images flagged: all, by whether they are classified right, and spoilt ones."""
    flags = one.flags(found[name, "test"].values)
    kinds = {"all": flags}
    if not right.all():
        kinds |= {"classified right": flags[right], "misclassified": flags[~right]}
    kinds |= {kind: one.flags(found[name, kind].values) for kind in spoilt}
    out = []
    for kind, hits in kinds.items():
        low, high = share_interval(hits)
        out.append({"detector": name, "images": kind, "n": len(hits), "fpr": share(hits), "low": low, "high": high})
    return out


def _scores(
    one: Frozen, found: dict[tuple[str, str], Columns], name: str, attacks: Sequence[str]
) -> dict[str, np.ndarray]:
    at = one.calibration.threshold
    out = {"clean": one.score(found[name, "test"].values) - at}
    for spec in attacks:
        if (name, f"test {spec}") in found:
            out[spec] = one.score(found[name, f"test {spec}"].values) - at
    return out


def _controls(bench: Bench, hits: Hits | None, count: int = 100) -> list[dict[str, Any]]:
    if hits is None:
        return []
    truth = bench.labels[torch.from_numpy(hits.rows[:count])]
    arrays = (bench.part("test")[:count].numpy(), hits.images[:count].numpy(), truth.numpy())
    call = (*arrays, bench.seed, settled(bench.classifier), bench.classifier)
    return list(bench.runner.map("controls", controls, [call], "classifier")[0])


def _sizes(spec: str, hits: Hits) -> dict[str, Any]:
    return {
        "attack": spec,
        "tried": hits.tried,
        "succeeded": len(hits.rows),
        "success": hits.success,
        "l2": hits.l2,
        "linf": hits.linf,
        "confidence": hits.confidence,
    }


def _settings(data: Data, detector: Detector, bench: Bench, settings: Settings) -> dict[str, Any]:
    import hashlib

    parts = bench.parts
    return {
        "data": data.name,
        "data_sha256": hashlib.sha256(data.images.numpy().tobytes()).hexdigest(),
        "fingerprint": detector.connectivity.classifier.fingerprint,
        "accuracy": bench.accuracy,
        "parts": {"train": len(parts.train), "calibrate": len(parts.calibrate), "test": len(parts.test)},
        "versions": {"python": platform.python_version()}
        | {n: version(n) for n in ("advconn", "torch", "torchattacks", "scikit-learn", "numpy")},
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        **{k: v for k, v in vars(settings).items()},
    }


def _shown(
    bench: Bench, fixed: dict[str, Frozen], found: dict[tuple[str, str], Columns], tested: dict[str, Hits],
    settings: Settings, count: int = 4,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Images that the detector given gets wrong: missed attacks, false alarms."""
    one, name = fixed[Shipped.name], Shipped.name
    at = one.calibration.threshold
    before = one.score(found[name, "test"].values) - at
    order = np.argsort(-before)[:count]
    alarms = [
        {"image": bench.part("test")[int(i)].numpy(), "score": float(before[i]), "what": "clean"}
        for i in order
        if before[i] > 0
    ]
    missed: list[dict[str, Any]] = []
    for spec in settings.attacks:
        if (name, f"test {spec}") not in found:
            continue
        after = one.score(found[name, f"test {spec}"].values) - at
        for i in np.argsort(after)[:count]:
            if after[i] <= 0:
                image = (tested[spec].images[int(i)] * 255).round().byte().numpy()
                missed.append({"image": image, "score": float(after[i]), "what": spec})
    shown = {"missed": sorted(missed, key=lambda m: m["score"])[: 2 * count], "alarms": alarms}
    for item in (item for items in shown.values() for item in items):
        item["paths"] = _profile(bench, one.baseline, item["image"])
    return shown


def _profile(bench: Bench, baseline: Baseline, image: np.ndarray) -> dict[str, list[list[float]]]:
    """Margins along an image's paths, by family: (position, margin) at each sample; of copies, the ends."""
    if not isinstance(baseline, Advconn):
        return {}
    trace = baseline.detector.connectivity.trace(torch.from_numpy(image)[None])
    label = trace.predicted
    out: dict[str, list[list[float]]] = {}
    if trace.copies is not None:
        out["self"] = [sorted(margin(trace.copies, label[:, None])[0].tolist())]
    for family, walked in (("own", trace.own), ("rival", trace.rival), ("latent", trace.latent)):
        if walked is not None:
            out[family] = margin(walked, label[:, None, None])[0].tolist()
    return out
