"""What raises the cost of an attack that knows the detector: SR@5 at eps 1, 2, 4, 8 / 255, against ordinary figures.

    python -m benchmarks.research.hardening --data DIR --cache DIR --robust robust.safetensors [--images 16] \\
        [--record DIR]

Variants of the shipped detector: one family of paths alone; paths in latent space beside all others; evasive images in
the training mixture; copies drawn at random, whose draw the attacker does not know (he knows how they are drawn, and
attacks the mean of detectors fitted on one or three draws of his own); the same recipe on a classifier trained against
attacks (train_robust.py). SR: share of test images that are classified right and that the attack gets misclassified
and not flagged at 5 % (50 %) false alarms. The variants that need new walks are fitted on fewer images than the shipped
one (`fit` tells how many). Variants that DIR holds already, measured with the same settings, stay there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.attacks.adaptive import AdaptiveResult, Score, evade
from advconn.attacks.catalog import MIXTURE
from advconn.benchmark.baselines.advconn import differentiable_score_of
from advconn.cascade.cascade import head_log_odds
from advconn.detector.detector import Detector
from advconn.features import connectivity, transforms
from advconn.features.connectivity import Connectivity
from advconn.features.path_features import Trace
from advconn.features.references import synthesise
from advconn.metrics import auroc
from advconn.models.classifier import Classifier
from benchmarks.common.cifar10 import Part, attacked, classifier, parts, stacked, taught, walked
from benchmarks.common.detection import only
from benchmarks.common.provenance import file_of, write_record

ATTACKS = ("pgd:eps=8/255,steps=10", "pgd:eps=2/255,steps=50", "cw:c=1,kappa=0,steps=100", "fgsm:eps=8/255")
EPS = (1, 2, 4, 8)
FEW = 800  # clean images of each use, where new walks are needed
LAYER = "stage1"  # whose outputs latent paths run between
HITS = 120  # images attacked by each, there


@dataclass(frozen=True)
class Variant:
    """A detector, what the attacker follows, and its scores of clean (n,) and ordinarily attacked images by attack."""

    name: str
    detector: Detector
    follow: Score
    clean: np.ndarray
    attacked: dict[str, np.ndarray]
    fit: int


def drawn(seed: int, count: int = 24) -> dict[str, transforms.Copy]:
    """Label-preserving copies, all about them drawn at random: shift, zoom, turn, mirror, contrast, blur, noise."""
    rng = np.random.default_rng(seed)
    out = {}
    for i in range(count):
        made = transforms.shift(*map(int, rng.integers(-2, 3, 2)))
        made = transforms.both(made, transforms.zoom(float(rng.uniform(0.85, 1.12))))
        made = transforms.both(made, transforms.rotate(float(rng.uniform(-8, 8))))
        if rng.random() < 0.4:
            made = transforms.both(made, transforms.flip)
        if rng.random() < 0.4:
            made = transforms.both(made, transforms.contrast(float(rng.uniform(1, 1.6))))
        if rng.random() < 0.4:
            made = transforms.both(made, transforms.blur(float(rng.uniform(0.3, 0.8))))
        if rng.random() < 0.4:
            made = transforms.both(made, transforms.noise(float(rng.uniform(0.01, 0.1)), int(rng.integers(1 << 30))))
        out[f"drawn{seed}-{i}"] = made
    return out


class Lab:
    """Parts of the images and the cache: what every variant is fitted and measured on."""

    def __init__(self, data: Path, cache: Path) -> None:
        self.groups, self.cache = parts(data), cache

    def part(self, name: str, few: bool) -> Part:
        return self.groups[name].rows(slice(0, FEW)) if few else self.groups[name]

    def traces(self, extractor: Connectivity, few: bool) -> tuple[dict[str, Trace], dict[str, Trace], dict[str, Trace]]:
        """Of clean images by use, of the mixture on the fitting part, of ordinary attacks on test images."""
        model = extractor.classifier

        def trace(name: str, images: Tensor) -> Trace:
            return walked(self.cache, extractor, name, images)

        def hits(part: str, spec: str, limit: int) -> Trace:
            return trace(spec, attacked(self.cache, model, part, self.part(part, few), spec, limit).images)

        clean = {name: trace(name, self.part(name, few).images) for name in ("fit", "calibrate", "clean")}
        mixture = {spec: hits("fit", spec, HITS if few else taught(spec)) for spec in MIXTURE}
        return clean, mixture, {spec: hits("attack", spec, HITS if few else 600) for spec in ATTACKS}


def variant(
    name: str, extractor: Connectivity, traces: tuple[dict[str, Trace], ...], prefixes: tuple[str, ...] = ("",),
    extra: list[np.ndarray] | None = None, surrogates: Sequence[Detector] = (),
) -> Variant:  # fmt: skip
    clean, mixture, ordinary = traces
    rows = [only(prefixes, t) for t in (clean["fit"], *mixture.values())] + (extra or [])
    detector = Detector(extractor, stages=None).fit_features(*stacked(rows), only(prefixes, clean["calibrate"]))
    ordinarily = {spec: head_log_odds(detector.head_, only(prefixes, t)) for spec, t in ordinary.items()}
    scores = [differentiable_score_of(surrogate) for surrogate in surrogates or [detector]]

    def follow(images: Tensor) -> Tensor:
        return torch.stack([score(images) for score in scores]).mean(0)

    return Variant(
        name, detector, follow, head_log_odds(detector.head_, only(prefixes, clean["clean"])), ordinarily, len(rows[0])
    )


def attack(tested: Variant, images: Tensor, labels: Tensor, ways: list[str], steps: int) -> list[dict]:
    """SR at each eps: the best of all ways on every image, judged by the variant itself."""
    model, threshold = tested.detector.classifier, tested.detector.calibration_.threshold
    loose = float(np.quantile(tested.detector.calibration_.scores, 0.5))
    rows = []
    for eps in EPS:
        lowest = np.full(len(images), np.inf)
        for way in ways:
            evaded: AdaptiveResult = evade(
                model,
                tested.follow,
                images,
                labels,
                min(threshold, loose),
                eps=eps / 255,
                way=way,
                steps=steps,
                restarts=1,
            )
            fooled = (model.logits(evaded.images).argmax(1) != labels).cpu().numpy()
            lowest = np.minimum(lowest, np.where(fooled, tested.detector.score_samples(evaded.images), np.inf))
        rows.append(
            {
                "eps": f"{eps}/255",
                "n": len(images),
                "misclassified": float(np.isfinite(lowest).mean()),
                "sr5": float((lowest <= threshold).mean()),
                "sr50": float((lowest <= loose).mean()),
            }
        )
        print(tested.name, rows[-1], flush=True)
    return rows


def evasive(base: Variant, part: Part, count: int, steps: int) -> np.ndarray:
    """Columns of images of the fitting part that evade the shipped detector, for the mixture."""
    model = base.detector.classifier
    images = model.check(part.images[:count])
    right = model.logits(images).argmax(1) == part.labels[:count]
    made = []
    for eps in (2, 4):
        evaded = evade(
            model, base.follow, images[right], part.labels[:count][right], base.detector.calibration_.threshold,
            eps=eps / 255, way="lagrangian", steps=steps, restarts=1, seed=1,
        )  # fmt: skip
        made.append(evaded.images[np.isfinite(evaded.score)])
    return base.detector.connectivity.transform(torch.cat(made))


def variants(lab: Lab, robust: Path, chosen: list[str], steps: int):
    """One after the other, so that what was measured is kept."""
    shipped = bundle.load(bundle.default())
    shipped_extractor = shipped.connectivity
    whole = lab.traces(shipped_extractor, False)
    base = variant("default", shipped_extractor, whole)

    def part_of(families: tuple[str, ...]) -> Connectivity:
        return Connectivity(**shipped_extractor.get_params(deep=False) | {"families": families})

    def latent() -> Variant:
        extractor = Connectivity(**shipped_extractor.get_params(deep=False) | {"layer": LAYER})
        alone = Connectivity(**extractor.get_params(deep=False) | {"families": ("latent",)})
        traces = tuple(
            {name: replace(trace, latent=more[name].latent) for name, trace in plain.items()}
            for plain, more in zip(whole, lab.traces(alone, False), strict=True)
        )
        return variant("latent paths too", extractor, traces)

    def draw(seed: int) -> tuple[Connectivity, tuple[dict[str, Trace], ...]]:
        copied = drawn(seed)
        connectivity.COPIES = {**connectivity.COPIES, **copied}
        extractor = Connectivity(**shipped_extractor.get_params(deep=False) | {"copies": tuple(copied), "halves": ()})
        return extractor, lab.traces(extractor, True)

    def secret(name: str, seeds: tuple[int, ...]) -> Variant:
        return variant(name, *draw(2), surrogates=[variant("", *draw(seed)).detector for seed in seeds])

    def hardened() -> Variant:
        other: Classifier = classifier(robust)
        extractor = Connectivity(other, synthesise(other))
        return variant("robust classifier", extractor, lab.traces(extractor, True))

    makers = {
        "default": lambda: base,
        "self alone": lambda: variant("self alone", part_of(("query", "self")), whole, ("query.", "self.")),
        "own and rival alone": lambda: variant(
            "own and rival alone", part_of(("own", "rival")), whole, ("own.", "rival.")
        ),
        "latent paths too": latent,
        "evasive images in the mixture": lambda: variant(
            "evasive images in the mixture",
            shipped_extractor,
            whole,
            extra=[evasive(base, lab.groups["fit"], 48, steps)],
        ),
        "secret copies": lambda: secret("secret copies", (1,)),
        "secret copies, attacked through three draws": lambda: secret(
            "secret copies, attacked through three draws", (1, 3, 4)
        ),
        "robust classifier": hardened,
    }
    for name, make in makers.items():
        if not chosen or name in chosen:
            yield make()


def kept_results(folder: Path | None, about: dict) -> list[dict]:
    """Rows of a record made with the same settings."""
    file = file_of(folder, "hardening") if folder else None
    if file is None or not file.exists():
        return []
    record = json.loads(file.read_text())
    return record["results"] if {k: record.get(k) for k in about} == about else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "robust"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ways", nargs="+", default=["lagrangian"])
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--record", type=Path, help="folder of records, such as benchmarks/records")
    args = parser.parse_args()

    lab = Lab(args.data, args.cache)
    about = {"seed": 0, "images": args.images, "steps": args.steps, "ways": args.ways, "restarts": 1}
    results = kept_results(args.record, about)
    for tested in variants(lab, args.robust, args.only, args.steps):
        model, part = tested.detector.classifier, lab.groups["attack"].rows(slice(600, 700))
        images = model.check(part.images)
        right = (model.logits(images).argmax(1) == part.labels).nonzero()[: args.images, 0]
        threshold = tested.detector.calibration_.threshold
        row = {
            "variant": tested.name,
            "fit": tested.fit,
            "accuracy_of_100": float((model.logits(images).argmax(1) == part.labels).float().mean()),
            "false_alarms": float((tested.clean > threshold).mean()),
            "auroc": {spec: auroc(tested.clean, s) for spec, s in tested.attacked.items()},
            "caught": {spec: float((s > threshold).mean()) for spec, s in tested.attacked.items()},
            "n_attacked": {spec: len(s) for spec, s in tested.attacked.items()},
        }
        print(row, flush=True)
        row["adaptive"] = attack(tested, images[right], part.labels[right], args.ways, args.steps)
        results = [r for r in results if r["variant"] != tested.name] + [row]
        whole = about | {"results": results}
        write_record(args.record, "hardening", whole, __file__)


if __name__ == "__main__":
    main()
