"""What is said of each image: its record, or why there is none; as JSON, or as a table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from advconn.data.collection import Batch
from advconn.detector.calibration import Calibration, combine_readings
from advconn.detector.detector import Detector
from advconn.detector.judgement import Judgement
from advconn.errors import Unanswered, first_line, printable

VERDICTS = ("clean", "ADVERSARIAL")
DOUBTFUL = "do not trust"  # in the table, of a clean image whose class is in doubt
FAR = 1.5  # a picture so many times larger than what is judged is another one than people see


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is said of one image. README's table of the fields says what each of them is."""

    image: str
    prediction: int
    class_name: str
    score: float
    p_value: float
    adversarial: bool
    doubtful: bool | None = None
    why: str
    stage: int
    consensus: int
    consensus_name: str
    copies: int
    agreeing: int
    barrier: float | None
    secondary_barriers: int | None
    bends: float | None
    families: dict[str, float | None]
    features: dict[str, float] | None = None
    cost: dict[str, float]
    reading: str = ""
    given: tuple[int, int] | None = None
    judged: tuple[int, int] | None = None
    other_pictures: int = 0
    readings: tuple[str, ...] = ()

    def without_features(self) -> Record:
        """The same, without the values of all features, which are most of it."""
        return self if self.features is None else replace(self, features=None)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; without `features` where they are not kept."""
        return {k: v for k, v in vars(self).items() if k != "features" or v is not None}


@dataclass(frozen=True)
class Failure:
    """Why an image could not be judged: `error` is one line, which begins with the image's name."""

    image: str
    error: str

    def without_features(self) -> Failure:
        """The same: it has none."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        return dict(vars(self))


Result = Record | Failure


def parse_result(value: Any) -> Result | None:
    """What `to_dict` gave, read from JSON; None of anything else."""
    if not isinstance(value, dict) or not isinstance(value.get("image"), str):
        return None
    if "error" in value:
        return Failure(**value) if set(value) == {"image", "error"} and isinstance(value["error"], str) else None
    if not isinstance(value.get("readings", []), list):
        return None
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    try:
        record = Record(**fields)
    except TypeError:
        return None
    return record if _is_sound(record) else None


def _is_sound(record: Record) -> bool:
    """Whether every field holds what a judgement gives: the kind that it is, in its range."""
    texts = (record.image, record.class_name, record.why, record.consensus_name, record.reading, *record.readings)
    counts = (record.prediction, record.stage, record.consensus, record.copies, record.agreeing, record.other_pictures)
    numbers = (record.score, record.p_value, *(n for n in (record.barrier, record.bends) if n is not None))
    named = (record.families, record.features or {}, record.cost)
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and (record.secondary_barriers is None or type(record.secondary_barriers) is int)
        and all(type(number) in (int, float) and abs(number) < 1e300 for number in numbers)
        and 0 <= record.p_value <= 1
        and isinstance(record.adversarial, bool)
        and record.doubtful in (None, True, False)
        and all(
            isinstance(table, dict) and all(v is None or type(v) in (int, float) for v in table.values())
            for table in named
        )
        and all(
            size is None or (isinstance(size, tuple) and len(size) == 2 and all(type(side) is int for side in size))
            for size in (record.given, record.judged)
        )
    )


def to_records(detector: Detector, names: Iterable[str], judgement: Judgement, seconds: float) -> list[Result]:
    """What a judgement says of each image.

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
    out: list[Result] = []
    for i, name in enumerate(names):
        if judgement.errors[i] is not None:
            out.append(Failure(name, f"{name}: {judgement.errors[i]}"))
            continue
        consensus = int(judgement.consensus[i])
        features = zip(map(str, detector.names_), judgement.features[i].tolist(), strict=True)
        stand = judgement.secondary_barriers[i]
        out.append(
            Record(
                image=name,
                prediction=predictions[i],
                class_name=called([predictions[i]])[0],
                score=float(judgement.score[i]),
                p_value=float(judgement.p_value[i]),
                adversarial=bool(judgement.adversarial[i]),
                why=whys[i],
                stage=int(judgement.stage[i]),
                consensus=consensus,
                consensus_name=called([consensus])[0],
                copies=len(judgement.votes[i]),
                agreeing=int((judgement.votes[i] == consensus).sum()),
                barrier=_number(judgement.barrier[i]),
                secondary_barriers=None if np.isnan(stand).any() or not len(stand) else int(stand.sum()),
                bends=_number(judgement.bends[i]),
                families={family: float(v[i]) if met[family][i] else None for family, v in families.items()},
                features={k: v for k, v in features if np.isfinite(v)},
                doubtful=None if judgement.doubtful is None else bool(judgement.doubtful[i]),
                cost={
                    "forwards": round(float(judgement.forwards[i]), 1),
                    "gradients": round(float(judgement.gradients[i]), 1),
                    "seconds": round(seconds / len(names), 4),
                },
            )
        )
    return out


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def merge_records(results: Sequence[Result], calibration: Calibration) -> Result:
    """One result of an image from those of its readings, see `combine_readings`."""
    records = [r for r in results if isinstance(r, Record)]
    if len(records) < len(results):
        return next(r for r in results if isinstance(r, Failure))
    readings = [r.reading for r in records]
    p_values, flags = [r.p_value for r in records], [r.adversarial for r in records]
    first, p_value, flagged = combine_readings(p_values, flags, readings, calibration)
    spoke = records[first]
    cost = {key: sum(r.cost[key] for r in records) for key in spoke.cost} if len(records) > 1 else spoke.cost
    doubtful = None if spoke.doubtful is None else any(r.doubtful for r in records)
    return replace(spoke, readings=tuple(readings), p_value=p_value, adversarial=flagged, doubtful=doubtful, cost=cost)


def score_batch(detector: Detector, batch: Batch, full: bool) -> Iterator[tuple[Result, list[int]]]:
    """What is said of each image of a batch, and its rows in it.

    Args:
        detector: what judges them.
        batch: of images.
        full: walk every stage for every image.
    """
    yield from zip(_judged(detector, batch, full), _grouped(batch), strict=True)


def _judged(detector: Detector, batch: Batch, full: bool) -> list[Result]:
    """What is said of a batch; one that fails as a whole is judged again one image at a time."""
    try:
        return _records(detector, batch, range(len(batch.items)), full)
    except Unanswered as error:
        names = [batch.items[group[0]].name for group in _grouped(batch)]
        return [Failure(name, f"{name}: {error}") for name in names]
    except Exception:  # the classifier's own code may raise anything at one of the images
        out: list[Result] = []
        for group in _grouped(batch):
            try:
                out += _records(detector, batch, group, full)
            except Exception as error:  # the same
                name = batch.items[group[0]].name
                out.append(Failure(name, f"{name}: the classifier fails on it: {first_line(error)}"))
        return out


def _records(detector: Detector, batch: Batch, chosen: Iterable[int], full: bool) -> list[Result]:
    started, index = perf_counter(), list(chosen)
    judgement = detector.judge(batch.images[index], full=full)
    found = to_records(detector, [batch.items[i].name for i in index], judgement, perf_counter() - started)
    height, width = batch.images.shape[2:]
    rows = {
        i: replace(
            result,
            reading=batch.readings[i],
            given=batch.given[i],
            judged=(width, height),
            other_pictures=batch.others[i],
        )
        if isinstance(result, Record)
        else result
        for result, i in zip(found, index, strict=True)
    }
    return [merge_records([rows[i] for i in group], detector.calibration_) for group in _grouped(batch, index)]


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


def as_json(result: Result) -> str:
    """One line."""
    return json.dumps(result.to_dict())


def as_table(records: Iterable[Record], about: str, view: str = "") -> Table:
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
        large = r.given is not None and r.judged is not None and max(r.given) > FAR * max(r.judged)
        verdict = VERDICTS[r.adversarial] + f", {DOUBTFUL}" * bool(r.doubtful and not r.adversarial)
        verdict += f" ({r.reading})" * (len(r.readings) > 1) + f" (its {view} view)" * bool(view and large)
        table.add_row(
            escape(printable(r.image)),
            escape(printable(r.class_name)),
            verdict,
            f"{r.p_value:.4f}",
            escape(printable(r.why)),
            style="bold red" if r.adversarial else "",
        )
    return table
