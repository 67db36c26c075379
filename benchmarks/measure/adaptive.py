"""What an attacker who knows the detector leaves of it: SR@5 at eps 1, 2, 4 and 8 / 255, of every way to attack it.

    python -m benchmarks.measure.adaptive --data DIR [--detector DIR ...] [--images 50] [--steps 50] [--restarts 1]
        [--eps 2 8] [--device cuda] [--cache DIR] [--record DIR]

Lagrangian, Selective and Orthogonal PGD (Bryniarski et al. 2021) and one with a rejection-aware loss (as Palumbo et al.
2024) through every copy and path, on test images in no other use that the classifier gets right. Every detector stands
at a threshold with 5 % false alarms on the clean images it was calibrated on. SR@5: share of images that are
misclassified and not flagged, by the best of all ways on every image; the detector judges what was found anew. Beside
the detectors stand their companion alone (its log-odds of the predicted class, as PID reads a second network) and the
classifier's own log-odds. `planted` and `found`: near how many images others were planted that are accepted and of
another class, and at how many of them the attack comes upon one (Zimmermann et al. 2022); one that misses is too
weak. A classifier that rejects what is flagged claims, by SR@5 at eps, a robust accuracy at eps / 2 (Tramer 2022):
`claimed_robustness` tells it. Finished work is kept in the cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advconn import bundle
from advconn.attacks.adaptive import WAYS, Score, evade
from advconn.benchmark.adaptive_evaluation import claimed_robustness
from advconn.benchmark.baselines.advconn import differentiable_score_of
from advconn.benchmark.planted_examples import plant
from advconn.detector.detector import Detector
from advconn.metrics import clopper_pearson
from advconn.models.classifier import Classifier
from advconn.models.margin import margin
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import Part, kept, parts
from benchmarks.common.provenance import SEED, write_record

FPR = 0.05
FIRST = 600  # image that is attacked: those before it are for ordinary attacks
Judge = Callable[[Tensor], np.ndarray]


@dataclass(frozen=True)
class Subject:
    """What is attacked: its name, what an attacker follows and aims under, and what it really says (n,): threshold."""

    name: str
    key: str
    follow: Score
    aim: float
    threshold: float
    judge: Judge
    stage: Callable[[Tensor], list[int]] | None = None


def of_detector(name: str, detector: Detector) -> Subject:
    detector.set_params(fpr=FPR, confidence=None, conditions=("clean",))
    thresholds = detector.calibration_.every_threshold

    def stages(images: Tensor) -> list[int]:
        return np.bincount(detector.judge(images).stage, minlength=5)[1:].tolist()

    key, aim = f"{name} {thresholds!r} {detector.cascade_.exits}", min(thresholds)
    follow = differentiable_score_of(detector, threshold=aim)
    return Subject(name, key, follow, aim, 0.0, detector.decision_function, stages)


def of_odds(name: str, model: Classifier, odds: Score, clean: Tensor) -> Subject:
    """A network's log-odds of the predicted class as a detector."""

    def judge(images: Tensor) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([odds(x) for x in model.check(images).split(256)]).cpu().double().numpy()

    threshold = float(np.quantile(judge(clean), 1 - FPR))
    return Subject(name, f"{name} {threshold!r}", odds, threshold, threshold, judge)


def subjects(folders: list[str], device: str, clean: Tensor) -> list[Subject]:
    out: list[Subject] = []
    for folder in folders:
        path = bundle.folder_of(folder)
        detector = bundle.load(path, device=device)
        model, other = detector.classifier, detector.connectivity.companion
        if device != "cpu":
            model.batch_size = 2**14
        out.append(of_detector(path.name, detector))
        if other is not None:
            other.batch_size = model.batch_size
            beside = detector.connectivity.beside

            def odds(images: Tensor, model=model, beside=beside) -> Tensor:
                return margin(beside(images)[:, 0], model.logits(images).argmax(1))

            out.append(of_odds(f"companion of {path.name} alone", model, odds, clean))

    def logits(images: Tensor) -> Tensor:
        values = model.logits(images)
        return margin(values, values.argmax(1))

    return [*out, of_odds("logits only", model, logits, clean)]


def evaded(subject: Subject, model: Classifier, part: Part, size: int, way: str, args: argparse.Namespace):
    """Real scores (n,) of what one way finds, inf where an image keeps its class; and the images."""
    images = evade(
        model, subject.follow, model.check(part.images), part.labels, subject.aim,
        eps=size / 255, way=way, steps=args.steps, restarts=args.restarts, batch_size=args.batch,
    ).images  # fmt: skip
    wrong = (model.predict(images) != part.labels).numpy()
    return np.where(wrong, subject.judge(images), np.inf), images


def finds(subject: Subject, model: Classifier, part: Part, size: int, args: argparse.Namespace) -> dict[str, list[int]]:
    """Near how many of some images others are planted, and how many of these each way finds."""
    planted = plant(model, lambda x: subject.judge(x) <= subject.threshold, model.check(part.images[:16]), size / 255)
    if planted is None:
        return {way: [0, 0] for way in args.ways}
    out = {}
    for way in args.ways:
        made = evade(
            model, subject.follow, planted.images, planted.labels, subject.aim, eps=size / 255, way=way,
            steps=args.steps, restarts=args.restarts, batch_size=args.batch, logits=planted.logits,
        ).images.to(planted.images)  # fmt: skip
        out[way] = [len(made), int((planted.reached(made) & (subject.judge(made) <= subject.threshold)).sum())]
    return out


def main() -> None:
    parser = parser_of(__doc__, "data", "cache")
    parser.add_argument("--detector", nargs="+", default=["cifar10", "cifar10-hardened"], help="names or folders")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--eps", type=int, nargs="+", default=[1, 2, 4, 8], help="largest changes, in steps of 1/255")
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--subject", default="adaptive", help="of the record: a variant has a name of its own")
    args = parse(parser, "data", "cache", detector=["cifar10"], images=2, steps=1, eps=[8], ways=list(WAYS[:1]))

    groups, started = parts(args.data), time.time()
    tested = subjects(args.detector, args.device, groups["calibrate"].images)
    model = bundle.load(bundle.default(), device=args.device).classifier
    first = min(FIRST, len(groups["attack"].labels) // 2)
    pool = groups["attack"].rows(slice(first, first + 2 * args.images))
    right = (model.predict(pool.images) == pool.labels).nonzero()[: args.images, 0]
    part, accuracy = pool.rows(right), len(right) / max(int(right.max()) + 1, 1)
    results: list[dict] = []

    def over() -> bool:
        return time.time() - started > args.seconds

    settings = f"{len(part.labels)} {args.steps} {args.restarts}"
    for size in args.eps:
        for subject in tested:
            scores = {}
            for way in args.ways:
                if over():
                    break
                key = f"adaptive {subject.key} {size} {way} {settings}"
                lowest, images = kept(args.cache, key, lambda: evaded(subject, model, part, size, way, args))  # noqa: B023
                got = lowest <= subject.threshold
                scores[way] = lowest
                left = subject.stage(images[torch.from_numpy(got)]) if subject.stage and got.any() else None
                results.append(row(subject, size, way, lowest, left, accuracy))
                print(f"{time.time() - started:4.0f} s", results[-1], flush=True)
            if len(scores) > 1:
                best = np.min(list(scores.values()), axis=0)
                results.append(row(subject, size, f"best of {len(scores)}", best, None, accuracy))
                print(results[-1], flush=True)
            write(args, results)
    for size in args.eps:
        for subject in tested:
            if not over():
                key = f"planted {subject.key} {size} {args.ways} {settings}"
                there = kept(args.cache, key, lambda: finds(subject, model, part, size, args))  # noqa: B023
                print(f"{time.time() - started:4.0f} s", size, subject.name, "of planted ones found", there, flush=True)
                for result in results:
                    if (result["detector"], result["eps"]) == (subject.name, f"{size}/255") and result["way"] in there:
                        result |= dict(zip(("planted", "found"), there[result["way"]], strict=True))
                write(args, results)


def row(subject: Subject, size: int, way: str, scores: np.ndarray, left: list[int] | None, accuracy: float) -> dict:
    got = scores <= subject.threshold
    low, high = clopper_pearson(got)
    return {
        "detector": subject.name,
        "eps": f"{size}/255",
        "way": way,
        "n": len(got),
        "misclassified": float(np.isfinite(scores).mean()),
        "sr5": float(got.mean()),
        "low": low,
        "high": high,
        "left_at": left,
        "claimed": claimed_robustness(float(got.mean()), accuracy),
    }


def write(args: argparse.Namespace, results: list[dict]) -> None:
    about = {name: getattr(args, name) for name in ("images", "steps", "restarts", "ways", "device")}
    record = {"claim": __doc__.strip().split("\n")[0], "seed": SEED, "fpr": FPR, **about}
    write_record(args.record, args.subject, record | {"results": results}, __file__)


if __name__ == "__main__":
    main()
