"""Attacks that detection is measured on, and the figures that are made of scores."""

from __future__ import annotations

import numpy as np
import torch

from advconn.attacks.attack import Attack
from advconn.features.path_features import Trace, feature_table
from advconn.metrics import auroc, auroc_bootstrap_interval

ATTACKS = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "cw:c=1,kappa=0,steps=100",
    "deepfool",
    "fgsm:eps=8/255",
)
SQUARE = "square:eps=8/255,n_queries=500"


def only(prefixes: tuple[str, ...], trace: Trace) -> np.ndarray:
    columns, names = feature_table(trace)
    return columns[:, [i for i, name in enumerate(names) if name.startswith(prefixes)]].double().numpy()


def logits_only(trace: Trace) -> np.ndarray:
    """What can be read off the query's own logits: margin, energy, entropy, gap, the sorted logits."""
    top = trace.query.sort(dim=1, descending=True).values
    return torch.cat([feature_table(Trace(trace.query))[0], top], 1).double().numpy()


def row(
    name: str,
    attack: str,
    clean: np.ndarray,
    hits: np.ndarray,
    thresholds: tuple[np.ndarray | float, np.ndarray | float],
    tried: int,
) -> dict[str, object]:
    """The figures of an attack, from scores of clean images and of successful copies.

    Args:
        name: of the detector.
        attack: its specification.
        clean: scores (n,).
        hits: scores (m,).
        thresholds: the largest scores that are not flagged, one or (n,) of the clean images, and one or (m,) of the
            copies.
        tried: how many images were attacked.
    """
    low, high = auroc_bootstrap_interval(clean, hits)
    return {
        "detector": name,
        "attack": attack,
        "auroc": round(auroc(clean, hits), 4),
        "auroc_low": round(low, 4),
        "auroc_high": round(high, 4),
        "tpr": round(float((hits > thresholds[1]).mean()), 4),
        "fpr": round(float((clean > thresholds[0]).mean()), 4),
        "success": round(len(hits) / tried, 4),
        "n_clean": len(clean),
        "n_attacked": len(hits),
        "family": family(attack),
    }


def family(spec: str) -> str:
    """Its family; what is made on another network is of the family transfer, and every single step of that one."""
    if " from " in spec:
        return "transfer"
    return "single" if spec.endswith("steps=1") else Attack.parse(spec).family
