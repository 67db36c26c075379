"""A judgement as lines of JSON, or as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from advconn.data.collection import Batch
from advconn.detector.calibration import Calibration
from advconn.detector.detector import Detector
from advconn.detector.result import Judgement
from advconn.errors import Unanswered, first_line, printable

VERDICTS = ("clean", "ADVERSARIAL")
FAR = 1.5  # a picture so many times larger than what is judged is another one than people see


def to_records(detector: Detector, names: Iterable[str], judgement: Judgement, seconds: float) -> list[dict[str, Any]]:
    """One record an image; its keys are those that README lists.

    Args:
        detector: what judged them.
        names: of the n images.
        judgement: of these.
        seconds: that it took for all.
    """
    names = list(names)
    predictions = judgement.predicted.tolist()
    called = detector.classifier.label_names
    whys, families = detector.reasons(judgement), detector.family_effects(judgement)
    columns = {f: [str(n).startswith(f"{f}.") for n in detector.names_] for f in families}
    met = {f: np.isfinite(judgement.features[:, mask]).any(1) for f, mask in columns.items()}
    out: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        if judgement.errors[i] is not None:
            out.append({"image": name, "error": judgement.errors[i]})
            continue
        consensus = int(judgement.consensus[i])
        features = zip(map(str, detector.names_), judgement.features[i].tolist(), strict=True)
        stand = judgement.secondary_barriers[i]
        out.append(
            {
                "image": name,
                "prediction": predictions[i],
                "class_name": called([predictions[i]])[0],
                "score": float(judgement.score[i]),
                "p_value": float(judgement.p_value[i]),
                "adversarial": bool(judgement.adversarial[i]),
                "why": whys[i],
                "stage": int(judgement.stage[i]),
                "consensus": consensus,
                "consensus_name": called([consensus])[0],
                "copies": len(judgement.votes[i]),
                "agreeing": int((judgement.votes[i] == consensus).sum()),
                "barrier": _number(judgement.barrier[i]),
                "secondary_barriers": None if np.isnan(stand).any() or not len(stand) else int(stand.sum()),
                "bends": _number(judgement.bends[i]),
                "families": {family: float(v[i]) if met[family][i] else None for family, v in families.items()},
                "features": {k: v for k, v in features if np.isfinite(v)},
                "cost": {
                    "forwards": round(float(judgement.forwards[i]), 1),
                    "gradients": round(float(judgement.gradients[i]), 1),
                    "seconds": round(seconds / len(names), 4),
                },
            }
        )
    return out


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def combine_readings(
    p_values: Sequence[float], flags: Sequence[bool], readings: Sequence[str], calibration: Calibration
) -> tuple[int, float, bool]:
    """Which reading of a picture speaks, with which p-value, and whether the picture is flagged.

    A plain reading is what a loader hands to the classifier: it speaks as if it were alone, so that whoever sends a
    file cannot weaken it by a tag that adds a reading. The upright one speaks with its p times the number of readings.
    So of pictures with both at most 1.5 times the promised share is flagged. Few calibration images may allow no
    doubled p under their level: then an upright reading that is beyond them all is flagged.

    Args:
        p_values: of each reading.
        flags: whether each is flagged alone.
        readings: 'plain', 'upright', or 'plain as FORMAT' of a file that several formats open.
        calibration: of the detector.
    """
    count, ways = len(p_values), [reading.partition(" ")[0] for reading in readings]
    held = [p if count == 1 or way == "plain" else min(1.0, count * p) for p, way in zip(p_values, ways, strict=True)]
    first = min(range(count), key=lambda i: (held[i], p_values[i]))
    flagged = False
    for alone, p, flag, way in zip(p_values, held, flags, ways, strict=True):
        beyond = alone <= 1 / (len(calibration.scores) + 1) and p <= calibration.fpr
        flagged |= flag if count == 1 or way == "plain" else beyond or p <= calibration.level + 1e-12
    return first, held[first], bool(flagged)


def merge_records(records: list[dict[str, Any]], calibration: Calibration) -> dict[str, Any]:
    """One record of an image from those of its readings, see `combine_readings`."""
    broken = next((r for r in records if "error" in r), None)
    if broken is not None:
        return broken
    readings = [r["reading"] for r in records]
    p_values, flags = [r["p_value"] for r in records], [r["adversarial"] for r in records]
    first, p_value, flagged = combine_readings(p_values, flags, readings, calibration)
    out = records[first] | {"readings": readings, "p_value": p_value, "adversarial": flagged}
    if len(records) > 1:
        out["cost"] = {key: sum(r["cost"][key] for r in records) for key in out["cost"]}
    return out


def score_batch(detector: Detector, batch: Batch, full: bool) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """The record of each image of a batch, and its rows in it.

    Args:
        detector: what judges them.
        batch: of images.
        full: walk every stage for every image.
    """
    yield from zip(_judged(detector, batch, full), _grouped(batch), strict=True)


def _judged(detector: Detector, batch: Batch, full: bool) -> list[dict[str, Any]]:
    """Records of a batch; one that fails as a whole is judged again one image at a time."""
    try:
        return _records(detector, batch, range(len(batch.items)), full)
    except Unanswered as error:
        return [{"image": batch.items[group[0]].name, "error": str(error)} for group in _grouped(batch)]
    except Exception:  # the classifier's own code may raise anything at one of the images
        out = []
        for group in _grouped(batch):
            try:
                out += _records(detector, batch, group, full)
            except Exception as error:  # the same
                name = batch.items[group[0]].name
                out.append({"image": name, "error": f"the classifier fails on it: {first_line(error)}"})
        return out


def _records(detector: Detector, batch: Batch, chosen: Iterable[int], full: bool) -> list[dict[str, Any]]:
    started, index = perf_counter(), list(chosen)
    judgement = detector.judge(batch.images[index], full=full)
    image_records = to_records(detector, [batch.items[i].name for i in index], judgement, perf_counter() - started)
    height, width = batch.images.shape[2:]
    for record, i in zip(image_records, index, strict=True):
        record |= {"reading": batch.readings[i], "given": list(batch.given[i]), "judged": [width, height]}
        record["other_pictures"] = batch.others[i]
    groups = _grouped(batch, index)
    positions = {i: n for n, i in enumerate(index)}
    return [merge_records([image_records[positions[i]] for i in group], detector.calibration_) for group in groups]


def _grouped(batch: Batch, index: list[int] | None = None) -> list[list[int]]:
    """Rows of each image: one, or two where it is read in two ways."""
    groups: list[list[int]] = []
    for i in range(len(batch.items)) if index is None else index:
        before = groups[-1][-1] if groups else None
        again = before is not None and (
            (batch.readings[before], batch.readings[i]) == ("plain", "upright") or " as " in batch.readings[i]
        )
        if again and batch.items[groups[-1][-1]] == batch.items[i]:  # a file that is named twice is two images
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def as_json(row: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(row)


def as_table(records: Iterable[dict[str, Any]], about: str, view: str = "") -> Table:
    """A table for the terminal: prediction, verdict, p-value, and why.

    Args:
        records: of the images.
        about: what is flagged, said under the table.
        view: what is judged of a much larger picture, said in the verdict.
    """
    table = Table(caption=about, caption_justify="left")
    for name, justify in (("image", "left"), ("prediction", "left"), ("verdict", "left"), ("p-value", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("why")
    for r in records:
        style = "bold red" if r["adversarial"] else ""
        view_note = f" (its {view} view)" if view and max(r["given"]) > FAR * max(r["judged"]) else ""
        spoke = f" ({r['reading']})" if len(r.get("readings", ())) > 1 else ""
        table.add_row(
            escape(printable(r["image"])),
            escape(printable(r["class_name"])),
            VERDICTS[r["adversarial"]] + spoke + view_note,
            f"{r['p_value']:.4f}",
            escape(printable(r["why"])),
            style=style,
        )
    return table
