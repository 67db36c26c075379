"""A detector's card: what must be in it, of which type and in which range."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from advconn.data.conditions import CONDITIONS
from advconn.data.preprocessing import CROPS, INTERPOLATIONS
from advconn.errors import BundleError

Check = Callable[[Any], bool]
LARGEST_SIDE = 1024  # pixels


def whole_number(low: int, high: int) -> Check:
    """A whole number from low to high."""
    return lambda v: type(v) is int and low <= v <= high


def number(low: float, high: float) -> Check:
    """A finite number from low to high."""
    return lambda v: type(v) in (int, float) and low <= v <= high  # false for NaN, exact for huge integers


def text(most: int = 500) -> Check:
    """A text of at most so many characters."""
    return lambda v: isinstance(v, str) and len(v) <= most


def optional(check: Check) -> Check:
    """That, or null."""
    return lambda v: v is None or check(v)


def list_of(check: Check, low: int, high: int) -> Check:
    """A list whose entries all pass a check.

    Args:
        check: of every entry.
        low: fewest entries.
        high: most entries.
    """
    return lambda v: isinstance(v, list) and low <= len(v) <= high and all(map(check, v))


def table(keys: Check, values: Check, most: int = 1000) -> Check:
    """An object whose keys and values all pass a check.

    Args:
        keys: check of every key.
        values: check of every value.
        most: entries at most.
    """
    return lambda v: isinstance(v, dict) and len(v) <= most and all(keys(k) and values(x) for k, x in v.items())


def one_of(*values: str) -> Check:
    """One of these texts; of an interpolation also with what stands after a hyphen."""
    return lambda v: isinstance(v, str) and v.partition("-")[0] in values


def is_boolean(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def head_files(count: int) -> tuple[str, ...]:
    """Names of the files of so many stages' heads."""
    return (*(f"head-{i + 1}.skops" for i in range(count - 1)), "head.skops")


def _stage(value: Any) -> bool:
    """What a stage is described by."""
    names = optional(list_of(text(), 0, 200))
    keys = {"copies": names, "halves": names, "paths": is_boolean, "share": number(1e-9, 1), "pixels": is_boolean}
    told = isinstance(value, dict) and set(value) | {"pixels"} == set(keys)  # which older cards do not say
    return told and all(keys[k](v) for k, v in value.items())


FORMAT = 3
CARD = "card.json"
LARGEST_CARD = 2**20  # bytes
WEIGHTS, TENSORS, COMPANION = "classifier.safetensors", "detector.safetensors", "companion.safetensors"
HEAD = head_files(1)[0]  # the last stage's
MOST_STAGES = 8
Schema = Mapping[str, "Check | Schema"]
_NAME, _HASH = text(), lambda v: isinstance(v, str) and len(v) == 64 and all(c in "0123456789abcdef" for c in v)
_COUNTS = table(lambda k: k in ("tried", "succeeded"), whole_number(0, 10**9), 2)
_NETWORK: Schema = {
    "name": optional(_NAME),
    "fingerprint": text(200),
    "num_classes": whole_number(2, 10**6),
    "class_names": optional(list_of(_NAME, 2, 10**6)),
    "channels": whole_number(1, 16),
    "dtype": one_of("float32", "float64", "float16", "bfloat16"),
    "kind": one_of("module", "other"),
    "preprocessing": {
        "size": optional(list_of(whole_number(1, LARGEST_SIDE), 2, 2)),
        "resize": optional(whole_number(1, 4 * LARGEST_SIDE)),
        "interpolation": one_of(*INTERPOLATIONS),
        "mean": optional(list_of(number(-1e6, 1e6), 1, 16)),
        "std": optional(list_of(number(1e-9, 1e6), 1, 16)),
        "crop": one_of(*CROPS),
    },
}
SCHEMA: Schema = {
    "format": whole_number(1, 3),
    "versions": table(text(50), text(100), 50),
    "classifier": _NETWORK,
    "companion": _NETWORK,  # or null
    "connectivity": {
        "families": optional(list_of(_NAME, 1, 20)),
        "copies": list_of(_NAME, 0, 200),
        "halves": list_of(_NAME, 0, 200),
        "per_class": whole_number(1, 100),
        "rivals": whole_number(1, 100),
        "samples": whole_number(2, 200),
        "layer": optional(_NAME),
        "levels": whole_number(0, 10),
        "steps": whole_number(1, 1000),
        "nearest": is_boolean,
        "temperature": number(1e-9, 1e9),
    },
    "references": optional(_NAME),
    "fitted": {
        "train": whole_number(0, 10**9),
        "calibrate": whole_number(0, 10**9),
        "seed": whole_number(0, 2**63),
        "attacks": table(_NAME, _COUNTS),
        "pretrained": is_boolean,
        "mixture": list_of(_NAME, 0, 200),
        "per_attack": whole_number(1, 10**9),
        "held_out": number(1e-9, 1 - 1e-9),
        "refine": whole_number(0, 10**9),
        "evasive": whole_number(0, 10**9),
        "reading": one_of("plain", "upright"),
        "plan": {
            "pretrained": is_boolean,
            "refine": whole_number(0, 10**9),
            "images": table(one_of("references", "trial", "train", "calibrate"), whole_number(0, 10**9), 4),
            "held_out": number(1e-9, 1 - 1e-9),
            "attacks": list_of(_NAME, 0, 200),
            "per_attack": whole_number(1, 10**9),
            "evasive": whole_number(0, 10**9),
            "benign": list_of(one_of(*CONDITIONS), 0, 100),
            "conditions": list_of(one_of(*CONDITIONS), 0, 100),
            "fpr": number(1e-9, 1 - 1e-9),
            "confidence": optional(number(1e-9, 1 - 1e-9)),
        },  # or null
    },
    "stages": optional(list_of(_stage, 1, MOST_STAGES)),
    "exits": list_of(optional(number(-1e300, 1e300)), 0, MOST_STAGES - 1),
    "gate": optional(number(-1e300, 1e300)),
    "missed": optional(table(_NAME, table(lambda k: k in ("missed", "of"), whole_number(0, 10**9), 2))),
    "conditions": {
        "fitted": list_of(one_of(*CONDITIONS), 0, 100),
        "calibrated": list_of(one_of(*CONDITIONS), 1, 100),
        "measured": list_of(_NAME, 0, 100),
    },
    "calibration": {
        "fpr": number(1e-9, 1 - 1e-9),
        "confidence": optional(number(1e-9, 1 - 1e-9)),
        "by_class": is_boolean,
        "precision": one_of("float32", "float64", "float16", "bfloat16", "tf32"),
        "threshold": number(-1e300, 1e300),
        "doubt": optional(number(0, 1)),
    },
    "features": list_of(_NAME, 1, 10**4),
    "picture": list_of(_NAME, 0, 1000),  # features that groups of pictures are told by
    "efficacy": {
        "attack": _NAME,
        "count": whole_number(1, 10**9),
        "auroc": number(0, 1),
        "caught": number(0, 1),
        "weak": is_boolean,
        "prices": table(one_of(*CONDITIONS), number(-1, 1), 100),
    },  # or null
    "figures": table(text(200), lambda v: True),
    "files": table(
        lambda k: k in (WEIGHTS, TENSORS, COMPANION, *head_files(MOST_STAGES)),
        _HASH,
        4 + MOST_STAGES,
    ),
    "card": _HASH,
}
LATER: dict[tuple[str, ...], Any] = {  # what older cards did not say
    ("classifier", "dtype"): "float32",
    ("classifier", "kind"): "module",
    ("classifier", "preprocessing", "crop"): "center",
    ("companion",): None,
    ("connectivity", "nearest"): False,
    ("connectivity", "temperature"): 1.0,
    ("fitted", "pretrained"): False,
    ("fitted", "mixture"): [],
    ("fitted", "per_attack"): 1000,
    ("fitted", "held_out"): 0.4,
    ("fitted", "refine"): 0,
    ("fitted", "evasive"): 0,
    ("fitted", "reading"): None,
    ("fitted", "plan"): None,
    ("stages",): None,
    ("exits",): [],
    ("missed",): None,
    ("gate",): None,
    ("conditions",): {"fitted": [], "calibrated": ["clean"], "measured": []},
    ("calibration", "confidence"): None,
    ("calibration", "by_class"): False,
    ("calibration", "precision"): "float32",
    ("calibration", "doubt"): None,
    ("efficacy",): None,
    ("picture",): [],
}


def validate(card: Any, where: str) -> dict[str, Any]:
    """The card, with what format 1 did not say filled in.

    Raises:
        BundleError: a key is missing, unknown, or holds what it may not.
    """
    _compare(card, SCHEMA, (), where)
    for path, value in LATER.items():
        inner = card
        for key in path[:-1]:
            inner = inner[key]
        inner.setdefault(path[-1], copy.deepcopy(value))
    return dict(card)


def _compare(content: Any, schema: Schema, path: tuple[str, ...], where: str) -> None:
    said = ".".join(path) or "the card"
    if not isinstance(content, dict):
        raise BundleError(f"{where}: the card does not describe this detector ({said} is {type(content).__name__})")
    unknown = sorted(set(map(str, content)) - set(schema))
    missing = [key for key in schema if key not in content and (*path, key) not in LATER]
    if unknown or missing:
        what = f"{unknown[0]!r} is unknown" if unknown else f"{missing[0]!r} is missing"
        raise BundleError(f"{where}: the card does not describe this detector ({what} in {said})")
    for key, value in content.items():
        check = schema[key]
        if value is None and LATER.get((*path, key), 0) is None:
            continue
        if isinstance(check, Mapping):
            _compare(value, check, (*path, key), where)
        elif not check(value):
            name = ".".join((*path, key))
            raise BundleError(f"{where}: the card does not describe this detector ({name} is {str(value)[:60]!r})")


def digest(card: dict[str, Any]) -> str:
    """Of all of a card but its own digest."""
    rest = {k: v for k, v in card.items() if k != "card"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
