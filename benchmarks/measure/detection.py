"""How well the shipped detector does: AUROC and catch rate at one frozen threshold, false alarms, and leave-one-out.

    python -m benchmarks.measure.detection --data DIR --cache DIR --nets DIR [--detector models/cifar10] [--record DIR]

Claim: on test images in no other use, at the threshold that ships, the figures in README. Beside the detector stand its
last stage for every image (the whole walk, at the same share of the same clean images flagged), a logits-only head and
the paper's own features (own-class cross-entropy barrier and path complexity), fitted and calibrated on the same
images. Only successful attacks count; their number is shown. Then attacks of every family, by the detector that ships
and by one that was fitted without that family. What bypass adds is told on the images in doubt: those that reach the
last stage. NETS: see families.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from advconn import bundle
from advconn.attacks.attack import SuccessfulAttacks
from advconn.attacks.catalog import MIXTURE
from advconn.cascade.cascade import head_log_odds, log_odds
from advconn.cascade.early_exit import cascade_score
from advconn.cascade.heads import default_head
from advconn.detector.calibration import Calibration
from advconn.detector.detector import Detector
from advconn.features.path_features import Trace
from advconn.metrics import auroc
from benchmarks.common.arguments import parse, parser_of
from benchmarks.common.cifar10 import Part, attacked, parts, tables, taught, whole
from benchmarks.common.detection import ATTACKS, SQUARE, family, logits_only, only, row
from benchmarks.common.families import TEST, hits_of, tried
from benchmarks.common.provenance import SEED, write_record
from benchmarks.common.training_rows import FITTED_ON, MOST, rows

OTHERS = [spec for spec in TEST if spec not in (*ATTACKS, SQUARE)]
PAPER_LABEL = "paper: own barrier, complexity"
LOGITS = "logits only"
DOUBT = {
    "copies": ("query.", "self.", "grain."),
    "copies, own and rival paths": ("query.", "self.", "grain.", "own.", "rival."),
    "copies, own and rival paths, bypass": ("",),
    "bypass alone": ("complexity.",),
    "own and rival paths, bypass": ("own.", "rival.", "complexity."),
}
PAPER = ("own.barrier", "own.gap", "own.place", "own.loss", "own.connected", "complexity.")


class Images:
    """What is measured: traces of clean test images, of calibration images and of attacked ones, made once."""

    def __init__(self, cache: Path, nets: Path, detector: Detector, groups: dict[str, Part]) -> None:
        self.cache, self.nets, self.detector, self.groups = cache, nets, detector, groups
        self.model = detector.classifier

    def trace(self, name: str) -> Trace:
        """Of a part, or of the attacked images of a specification."""
        images = self.groups[name].images if name in self.groups else self.hits(name).images
        return whole(self.cache, self.detector.connectivity, name, images)

    def hits(self, spec: str) -> SuccessfulAttacks:
        count = tried("shipped", spec, 100)
        return hits_of(self.cache, self.nets, "shipped", "attack", self.groups["attack"], spec, count)

    def scores(self, detector: Detector, name: str) -> np.ndarray:
        """Scores (n, stages) of every stage for every image."""
        tables_of = tables(self.trace(name), detector.cascade_.connectivities)
        return np.stack([detector.cascade_.scored(k, table) for k, table in enumerate(tables_of)], 1)

    def verdicts(self, detector: Detector, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Scores (n, stages), the score (n,), the largest that is not flagged (n,) and the stage (n,) that decides."""
        scores, trace = self.scores(detector, name), self.trace(name)
        score, reached = cascade_score(scores, detector.cascade_.exits)
        group = None
        if detector.groups_ is not None:
            last = tables(trace, detector.cascade_.connectivities[-1:])[0]
            group = detector.groups_.of(last, tuple(map(str, detector.names_)))
        limits = detector.calibration_.thresholds(trace.query.argmax(1).cpu().numpy(), group)
        return scores, score, limits, reached


def staged(images: Images, detector: Detector, left: str | None, specs: Iterable[str]) -> list[dict]:
    """Rows of the cascade and, beside it, of its last stage alone, at the same share of clean images flagged."""
    clean, base, limits, _ = images.verdicts(detector, "clean")
    last_threshold = float(np.quantile(clean[:, -1], 1 - (base > limits).mean()))
    out = []
    for spec in specs:
        scores, score, own_limits, reached = images.verdicts(detector, spec)
        tried = images.hits(spec).tried
        extra = {"left_out": left, "early": round(float((reached < scores.shape[1]).mean()), 4)}
        out.append(row("advconn", spec, base, score, (limits, own_limits), tried) | extra)
        both = (last_threshold, last_threshold)
        out.append(
            row("last stage for every image", spec, clean[:, -1], scores[:, -1], both, tried) | {"left_out": left}
        )
    return out


def doubt(images: Images, detector: Detector) -> list[dict[str, object]]:
    """What own and rival paths and bypass add to the copies, on the images that reach the last stage alone."""
    fit = rows(images.cache, images.nets, detector, images.groups["fit"])
    names = detector.cascade_.names[-1]
    out = []
    for what, prefixes in DOUBT.items():
        keep = [i for i, name in enumerate(names) if name.startswith(prefixes)]
        head = default_head(detector.seed).fit(fit.features[-1][:, keep], fit.kinds)

        def reached(name: str, head=head, keep=keep) -> tuple[np.ndarray, np.ndarray]:
            table = tables(images.trace(name), detector.cascade_.connectivities)[-1]
            _, stage = cascade_score(images.scores(detector, name), detector.cascade_.exits)
            return head_log_odds(head, table[:, keep]), stage == len(detector.cascade_.connectivities)

        base, last = reached("clean")
        for spec in ATTACKS:
            score, there = reached(spec)
            out.append(
                {"what": what, "attack": spec, "columns": len(keep), "auroc": round(auroc(base[last], score[there]), 4)}
                | {"n_clean": int(last.sum()), "n_attacked": int(there.sum())}
            )
    return out


def main() -> None:
    parser = parser_of(__doc__, "data", "cache", "nets")
    parser.add_argument("--detector", type=Path, default=bundle.default())
    parser.add_argument(
        "--brief", action="store_true", help="no family is left out, nothing is told of images in doubt"
    )
    parser.add_argument("--attacks", nargs="+", default=[*ATTACKS, SQUARE, *OTHERS])
    parser.add_argument("--mixture", nargs="+", default=MIXTURE, help="attacks that the simple heads are fitted on")
    parser.add_argument("--subject", default="detection", help="of the record: a variant has a name of its own")
    args = parse(parser, "data", "cache", "nets", attacks=ATTACKS[:1], mixture=ATTACKS[:1], brief=True)

    detector = bundle.load(args.detector)
    groups, level = parts(args.data), detector.calibration_
    images = Images(args.cache, args.nets, detector, groups)
    results = staged(images, detector, None, args.attacks)
    for name in (LOGITS, PAPER_LABEL):
        features = logits_only if name == LOGITS else lambda t: only(PAPER, t)
        made = [
            attacked(args.cache, images.model, "fit", groups["fit"], spec, taught(spec)).images[:MOST]
            for spec in args.mixture
        ]
        traces = [
            images.trace("fit"),
            *(whole(args.cache, detector.connectivity, s, x) for s, x in zip(args.mixture, made, strict=True)),
        ]
        matrices = [features(trace) for trace in traces]
        head = default_head().fit(
            np.concatenate(matrices), np.repeat(np.arange(len(matrices)), list(map(len, matrices)))
        )
        base = log_odds(head, features(images.trace("clean")))
        held = log_odds(head, features(images.trace("calibrate")))
        threshold = Calibration(held, level.fpr, level.confidence).threshold
        for spec in args.attacks:
            score = log_odds(head, features(images.trace(spec)))
            both = (threshold, threshold)
            results.append(row(name, spec, base, score, both, images.hits(spec).tried) | {"left_out": None})
    for left in () if args.brief else dict.fromkeys(map(family, FITTED_ON)):
        out = [spec for spec in FITTED_ON if family(spec) == left]
        other = Detector(detector.connectivity).fit_cascade(rows(args.cache, args.nets, detector, groups["fit"], out))
        other.set_calibration({"clean": images.scores(other, "calibrate")})
        specs = [spec for spec in TEST if family(spec) == left]
        results += staged(images, other, left, specs)
    for result in results:
        print(result, flush=True)
    clean, base, limits, stage = images.verdicts(detector, "clean")
    predicted = images.trace("clean").query.argmax(1)
    right = (predicted == groups["clean"].labels).numpy()
    flagged = base > limits
    record = {
        "claim": __doc__.strip().split("\n")[0],
        "detector": args.detector.name,
        "seed": SEED,
        "fpr": level.fpr,
        "confidence": level.confidence,
        "conditions": level.conditions,
        "level": level.level,
        "fingerprint": images.model.fingerprint,
        "clean_accuracy": float(right.mean()),
        "false_alarms": {
            "all": float(flagged.mean()),
            "right": float(flagged[right].mean()),
            "misclassified": float(flagged[~right].mean()) if (~right).any() else None,
        },
        "stages_reached": [float((stage >= k + 1).mean()) for k in range(clean.shape[1])],
        "in_doubt": [] if args.brief else doubt(images, detector),
        "results": results,
    }
    write_record(args.record, args.subject, record, __file__)


if __name__ == "__main__":
    main()
