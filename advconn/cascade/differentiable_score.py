"""A cascade as a score that gives a gradient, for attackers who know it; and images that evade it, to learn from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.adaptive import Score, evade
from advconn.attacks.attack import SuccessfulAttacks
from advconn.cascade.cascade import Cascade
from advconn.cascade.early_exit import stage_threshold
from advconn.cascade.scaling import COARSE, FINE, BoundedScaler
from advconn.errors import AttackError
from advconn.features.path_features import feature_table
from advconn.models.margin import margin
from advconn.runtime.progress import Progress, ignore_progress

QUICK, STEPS = 2, 20  # stages that are followed, and steps, where many evasive images are made to learn from


def differentiable_score(cascade: Cascade, threshold: float, most: int | None = None) -> Score:
    """How far the nearest of the stages is from letting an image go, plus the threshold.

    Args:
        cascade: fitted stages.
        threshold: score above which an image is flagged.
        most: only so many of the first stages are looked at; None for all.

    Raises:
        AttackError: none of them has a head whose gradient can be followed.
    """
    followed = []
    for k, (connectivity, head) in enumerate(zip(cascade.connectivities[:most], cascade.heads[:most], strict=True)):
        odds, limit = linear_odds(head, connectivity.classifier.device), stage_threshold(cascade.exits, threshold, k)
        if odds is not None and limit not in (None, -np.inf) and "complexity" not in connectivity.active_families:
            followed.append((connectivity, odds, limit))
    if not followed:
        raise AttackError("no stage of this detector has a head whose gradient can be followed")

    def score(images: Tensor) -> Tensor:
        trace, over = None, []
        for connectivity, odds, limit in followed:
            trace = connectivity.trace(images, trace)
            log_odds = odds(feature_table(trace)[0])
            if cascade.gate is not None and trace.companion is not None:
                log_odds = torch.maximum(
                    log_odds, margin(trace.companion, trace.predicted[:, None]).mean(1) - cascade.gate
                )
            over.append(log_odds - limit)
        return threshold + torch.stack(over).amin(0)

    return score


def adaptive_training_images(
    cascade: Cascade, images: Tensor, labels: Tensor, eps: float, *, seed: int = 0, progress: Progress = ignore_progress
) -> SuccessfulAttacks:
    """Misclassified images within `eps` of clean ones that leave the first stages as clean, or nearly.

    Where no image leaves so early, what is aimed at is that the first stages' heads hold it for clean.

    Made by the Lagrangian through the first stages alone, which is enough to leave: a fifth of the work.

    Args:
        cascade: fitted stages.
        images: clean ones (n, c, h, w).
        labels: true classes (n,); only images that get theirs are tried.
        eps: largest change of every value, in [0, 1].
        seed: of the random starts.
        progress: told (stage, done, total).

    Raises:
        AttackError: no head whose gradient can be followed.
        ModelError: a classifier that gives none.
    """
    classifier = cascade.connectivities[0].classifier
    checked = classifier.check(images)
    right = classifier.predict(checked) == labels
    x, y = checked[right.to(checked.device)], labels[right]
    if np.isneginf(cascade.exits[:QUICK]).all():  # none leaves there: aim at even odds
        cascade = replace(cascade, exits=(0.0,) * len(cascade.exits))
    if not len(x):
        return SuccessfulAttacks(x[:0], torch.zeros(0, dtype=torch.int64, device="cpu"), 0)
    threshold = float(len(cascade.exits))  # over every exit: nothing but the exits of the first stages matters
    score = differentiable_score(cascade, threshold, QUICK)
    made = evade(
        classifier, score, x, y, threshold, eps=eps, way="lagrangian", steps=STEPS, restarts=1, seed=seed,
        batch_size=16 if x.device.type == "cpu" else 256,
        progress=progress,
    ).images  # fmt: skip
    wrong = classifier.predict(made) != y
    rows = torch.arange(len(images), dtype=torch.int64, device="cpu")[right][wrong]
    return SuccessfulAttacks(made[wrong], rows, int(right.sum()))


def linear_odds(head: Any, device: torch.device) -> Score | None:
    """The log-odds of any attack as a function of columns (n, d), of a pipeline of scalers and a LogisticRegression.

    The gradient goes straight through the bound of a BoundedScaler's coarse columns, so that it points back from beyond
    it (Athalye et al. 2018). None for any other head.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if not isinstance(head, Pipeline):
        return None
    *scalers, model = (step for _, step in head.steps)
    followed = all(isinstance(scaler, (BoundedScaler, StandardScaler)) for scaler in scalers)
    if not followed or not isinstance(model, LogisticRegression):
        return None

    def on_device(*values: Any) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(v)).float().to(device) for v in values]

    scales: list[tuple[Tensor, Tensor, bool]] = []
    for scaler in scalers:
        bounded = isinstance(scaler, BoundedScaler)
        middle, spread = on_device(scaler.center_ if bounded else scaler.mean_, scaler.scale_)
        scales.append((middle, spread, bounded))
    weight, bias = on_device(model.coef_, model.intercept_)

    def odds(columns: Tensor) -> Tensor:
        for middle, spread, bounded in scales:
            columns = (columns - middle) / spread
            if bounded:
                beyond = (columns.clamp(-COARSE, COARSE) - columns).detach()
                columns = torch.cat([torch.tanh(columns / FINE), columns + beyond], 1)
        logits = columns @ weight.T + bias
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1:].logsumexp(1) - logits[:, 0]

    return odds
