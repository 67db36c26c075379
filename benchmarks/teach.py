"""Heads that serve networks they have never seen: taught here once, shipped in models/pretrained.

    python benchmarks/teach.py --data DIR --cache DIR --nets DIR [--photographs] --out models/pretrained

Lessons come from benchmarks/lessons.py: CIFAR-10 networks at 32 pixels (families.py makes their images), two networks
of digits at 8 pixels, and EfficientNet-Lite0 on photographs at 224 (photographs.py). Every table of a lesson is
standardised by that network's own clean images, and one head a stage is fitted on all of them. Claim: a head taught on
the other networks serves the one left out, at a threshold from its clean images alone; no attack is made on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cifar10 import SEED, machine
from detection import auroc
from families import NETWORKS, WIDE, arguments
from lessons import TOY, Lesson, cifar, photographs, toy
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from advconn.attacks import Attack
from advconn.calibration import Calibration
from advconn.exits import exits_at, ordered
from advconn.heads import default_head
from advconn.heads import save as save_head
from advconn.pretrained import LARGEST, standard
from advconn.stages import STAGES, scored

SHARES = tuple(stage.share for stage in STAGES[:-1])
FPR = 0.05


def family(spec: str) -> str:
    """Of a specification; what is made on another network is of the family transfer, whatever it is."""
    return "transfer" if " from " in spec else Attack.parse(spec).family


@dataclass(frozen=True)
class Rows:
    """Standardised rows of all lessons at one stage: features (n, d), the family (n,) of each, "" where clean."""

    features: np.ndarray
    families: np.ndarray


def rows(lessons: Sequence[Lesson], k: int, without: str | None = None) -> Rows:
    """Of these lessons at stage k, those that walk so far; without a family."""
    tables, kinds = [], []
    for lesson in lessons:
        if k >= len(lesson.learn.features):
            continue
        learn, table = lesson.learn, lesson.learn.features[k]
        names = np.array(["", *map(family, learn.attacks)])[learn.kinds]
        keep = names != without if without else np.ones(len(names), bool)
        tables.append(standard(table[learn.plain]).transform(table)[keep])
        kinds.append(names[keep])
    return Rows(np.concatenate(tables), np.concatenate(kinds))


def head(samples: Rows) -> LogisticRegression:
    """A linear head of standardised features: one class a family; columns weigh alike while it is fitted."""
    features = samples.features.clip(-LARGEST, LARGEST)
    scale = StandardScaler().fit(features)
    fitted = LogisticRegression(C=0.03, max_iter=300)
    names, kinds = np.unique(samples.families, return_inverse=True)  # "" comes first: clean is class 0
    assert names[0] == ""
    fitted.fit(scale.transform(features), kinds)
    fitted.coef_ = fitted.coef_ / scale.scale_
    fitted.intercept_ = fitted.intercept_ - fitted.coef_ @ scale.mean_
    return fitted


def taught(lessons: Sequence[Lesson], count: int, without: str | None = None) -> tuple[Any, ...]:
    """A head for each of `count` stages."""
    return tuple(head(rows(lessons, k, without)) for k in range(count))


def judged(lesson: Lesson, heads: tuple[Any, ...], plain: bool = False) -> dict[str, Any]:
    """AUROC and catch rate of every attack on a network, by heads that are standardised by its clean images.

    plain: of heads that take features which are not standardised.
    """
    first = lesson.first
    base = [table[lesson.learn.plain] for table in lesson.learn.features]
    made = heads if plain else tuple(make_pipeline(standard(t), h) for t, h in zip(base, heads, strict=False))
    made = made[first:]

    def scores(tables: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([scored(h, t) for h, t in zip(made, tables[first:], strict=False)], 1)

    exit_scores = exits_at(scores(base), SHARES[first : first + len(made) - 1])
    clean = scores(lesson.clean)
    half = len(clean) // 2  # one half calibrates, the other counts
    threshold = Calibration(ordered(clean[:half], exit_scores)[0], FPR, None).threshold
    rest, reached = ordered(clean[half:], exit_scores)
    out: dict[str, Any] = {"fpr": round(float((rest > threshold).mean()), 4), "n_clean": len(rest), "attacks": {}}
    out["reached"] = [round(float((reached > k).mean()), 3) for k in range(len(made))]
    for spec, tables in lesson.attacked.items():
        score = ordered(scores(tables), exit_scores)[0]
        out["attacks"][spec] = {
            "family": family(spec),
            "auroc": round(auroc(rest, score), 4),
            "caught": round(float((score > threshold).mean()), 4),
            "n": len(score),
        }
    return out


def show(name: str, figures: dict[str, Any]) -> None:
    cells = " ".join(
        f"{spec.split(':')[0]}{' from another' * (' from ' in spec)} {value['auroc']:.3f}/{value['caught']:.2f}"
        for spec, value in figures["attacks"].items()
    )
    print(f"{name}: false alarms {figures['fpr']:.3f} {cells}", flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--networks", nargs="+", default=(*NETWORKS, *TOY, "photographs"))
    parser.add_argument("--few", type=int, default=24, help="attacked images of each attack and network to learn from")
    parser.add_argument("--clean", type=int, default=250, help="clean images of each network")
    parser.add_argument(
        "--test", type=int, default=60, help="images attacked by each to test on, but on the shipped one"
    )
    parser.add_argument("--taught", nargs="+", default=NETWORKS, help="CIFAR-10 networks that are learned from")
    parser.add_argument("--tested", nargs="+", default=NETWORKS, help="CIFAR-10 networks that are tested on")
    parser.add_argument("--strict", action="store_true", help="also leave out each family beside each network")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    lessons: dict[str, Lesson] = {}
    for name in args.networks:
        if name in TOY:
            lessons[name] = toy(args.cache, name)
        elif name == "photographs":
            lessons[name] = photographs(args.cache)
        else:
            wide = WIDE if name in args.taught else ()
            tested = args.test if name in args.tested else 0
            lessons[name] = cifar(args.cache, args.data, args.nets, name, args.few, args.clean, tested, wide)
        print(name, [t.shape for t in lessons[name].learn.features], len(lessons[name].attacked), flush=True)
    record: dict[str, Any] = {"machine": machine(), "seed": SEED, "fpr": FPR, "left_out": {}, "own": {}, "strict": {}}
    teachers = {name: lesson for name, lesson in lessons.items() if lesson.learn.attacks}
    for name, lesson in lessons.items():
        if not lesson.attacked:
            continue
        others = [teacher for other, teacher in teachers.items() if other != name]
        record["left_out"][name] = judged(lesson, taught(others, len(lesson.names)))
        show(f"taught on the others, used on {name}", record["left_out"][name])
        if lesson.learn.attacks:  # the full fit, on as many attacked images as the lesson has
            fitted = tuple(default_head(SEED).fit(table, lesson.learn.kinds) for table in lesson.learn.features)
            record["own"][name] = judged(lesson, fitted, plain=True)
            show(f"  fitted on {name} itself", record["own"][name])
        if not args.strict:
            continue
        by_attack: dict[str, Any] = {}
        for left in dict.fromkeys(map(family, lesson.attacked)):
            part = judged(lesson, taught(others, len(lesson.names), left))
            by_attack |= {s: v for s, v in part["attacks"].items() if v["family"] == left}
        record["strict"][name] = {"fpr": record["left_out"][name]["fpr"], "attacks": by_attack}
        show(f"  and its family left out, used on {name}", record["strict"][name])
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        (args.record / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    if args.out:
        names = max((lesson.names for lesson in teachers.values()), key=len)
        args.out.mkdir(parents=True, exist_ok=True)
        for k, fitted in enumerate(taught(list(teachers.values()), len(names))):
            save_head(fitted, args.out / f"head-{k + 1}.skops")
        specs = sorted({spec for lesson in teachers.values() for spec in lesson.learn.attacks})
        card = {"names": names, "networks": list(teachers), "attacks": specs, "machine": machine()}
        (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
