"""Heads that are trained on several networks, and judged on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from advconn.attacks.attack import Attack
from advconn.cascade.cascade import STAGES, head_log_odds
from advconn.cascade.early_exit import cascade_score, exits_at
from advconn.cascade.pretrained import floors_of
from advconn.cascade.scaling import BoundedScaler, spread_of
from advconn.detector.calibration import Calibration
from advconn.metrics import auroc
from benchmarks.common.lessons import SAVED_MARK, Lesson

TEACHERS = (
    "shipped", "robust", "plain", "half18", "resnet20", "resnet44", "smooth", "mixed", "sure", "grey28", "digits",
    "digits-mlp", "digits28-cnn", "digits28-mlp", "mnist-cnn-b", "mnist-cnn-c", "mnist-mlp-b", "photographs", "lite1",
)  # fmt: skip
GROUPS: Mapping[str, str] = {"resnet20": "resnet", "resnet44": "resnet", "digits": "digits8", "digits-mlp": "digits8"}
SHARES = tuple(stage.share for stage in STAGES[:-1])
FPR, INVERSE_PENALTY = 0.05, 0.3
TINY = 1e-6  # spread of a bounded column that never varies


def group(name: str) -> str:
    """What a network is left out with: its relatives and its data set, where these are small."""
    return GROUPS.get(name, name.split("-")[0])


def family(spec: str) -> str:
    """Of a specification; what is made on another network is of the family transfer, whatever it is."""
    return "transfer" if " from " in spec else Attack.parse(spec.partition(SAVED_MARK)[0]).family


@dataclass(frozen=True)
class Heads:
    """Taught heads with the floors of their scales, one for each kind of stage, by the columns that it takes."""

    heads: dict[tuple[str, ...], Any]
    floors: dict[tuple[str, ...], np.ndarray]


def tables_of(teachers: Sequence[Lesson], names: tuple[str, ...]) -> list[tuple[Lesson, int]]:
    """The teachers that have a stage with these columns, and which stage it is."""
    return [(lesson, lesson.names.index(names)) for lesson in teachers if names in lesson.names]


def taught(
    teachers: Sequence[Lesson],
    stages: Sequence[tuple[str, ...]],
    without: str | None = None,
    head: Callable[[np.ndarray, np.ndarray], Any] | None = None,
) -> Heads:
    """A head for each kind of stage that two teachers have.

    Args:
        teachers: what is learned from.
        stages: names of the columns of each kind of stage.
        without: a family of attacks that is left out.
        head: a fitted head from bounded features (n, d) and families (n,); linear unless given.
    """
    fit_head = linear_head if head is None else head
    heads: dict[tuple[str, ...], Any] = {}
    floors: dict[tuple[str, ...], np.ndarray] = {}
    for names in stages:
        tables = tables_of(teachers, names)
        if len(tables) < 2:
            continue
        spreads = np.stack([spread_of(lesson.learn.features[k][lesson.learn.plain]) for lesson, k in tables])
        floors[names] = floors_of(spreads)
        features, kinds = [], []
        for lesson, k in tables:
            table, learn = lesson.learn.features[k], lesson.learn
            families = np.array(["", *map(family, learn.attacks)])[learn.kinds]
            keep = families != without if without else np.ones(len(families), bool)
            features.append(BoundedScaler(floors[names]).fit(table[learn.plain]).transform(table)[keep])
            kinds.append(families[keep])
        heads[names] = fit_head(np.concatenate(features), np.concatenate(kinds))
    return Heads(heads, floors)


def linear_head(features: np.ndarray, families: np.ndarray) -> LogisticRegression:
    """A linear head of bounded features: one class a family; columns weigh alike while it is fitted."""
    scale = StandardScaler().fit(features)
    scale.scale_ = np.maximum(scale.scale_, TINY)
    fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=200)
    names, kinds = np.unique(families, return_inverse=True)  # "" comes first: clean is class 0
    assert names[0] == ""
    fitted.fit(scale.transform(features), kinds)
    fitted.coef_ = fitted.coef_ / scale.scale_
    fitted.intercept_ = fitted.intercept_ - fitted.coef_ @ scale.mean_
    return fitted


def judged(lesson: Lesson, heads: Heads | Sequence[Any]) -> dict[str, Any]:
    """AUROC and catch rate of every attack on a network; Heads are scaled by its clean images, others are its own."""
    base = [table[lesson.learn.plain] for table in lesson.learn.features]
    made = []
    for k, table in enumerate(base):
        if not isinstance(heads, Heads):
            made.append(heads[k])
        elif lesson.names[k] in heads.heads:
            floor, fitted = heads.floors[lesson.names[k]], heads.heads[lesson.names[k]]
            made.append(make_pipeline(BoundedScaler(floor).fit(table), fitted))
        else:
            break
    first = lesson.first
    made = made[first:]

    def scores(tables: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([head_log_odds(h, t) for h, t in zip(made, tables[first:], strict=False)], 1)

    exit_scores = exits_at(scores(base), SHARES[first : first + len(made) - 1])
    clean = scores(lesson.clean)
    half = len(clean) // 2  # one half calibrates, the other counts
    threshold = Calibration(cascade_score(clean[:half], exit_scores)[0], FPR, None).threshold
    rest, reached = cascade_score(clean[half:], exit_scores)
    out: dict[str, Any] = {"fpr": round(float((rest > threshold).mean()), 4), "n_clean": len(rest), "attacks": {}}
    out["reached"] = [round(float((reached > k).mean()), 3) for k in range(len(made))]
    for spec, tables in lesson.attacked.items():
        score = cascade_score(scores(tables), exit_scores)[0]
        out["attacks"][spec] = {
            "family": family(spec),
            "auroc": round(auroc(rest, score), 4),
            "caught": round(float((score > threshold).mean()), 4),
            "n": len(score),
        }
    return out


def stages_of(some: Sequence[Lesson]) -> list[tuple[str, ...]]:
    """All kinds of stage, by their columns, in the order of their length."""
    return sorted({names for lesson in some for names in lesson.names}, key=len)
