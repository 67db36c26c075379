"""What `advconn score` says while it judges: records, the table, files, and lines on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from advconn.cli.common import complain, note, promised, put
from advconn.errors import AdvconnError, DataError
from advconn.files import replacing, writing
from advconn.pages import FIGURES, PICTURES, Case, page, write
from advconn.report import as_json, as_table, records
from advconn.watch import Watch

if TYPE_CHECKING:
    from torch import Tensor

    from advconn.detector import Detector
    from advconn.images import Batch, Collection


WHOLE, LONGEST = 50, 1000  # images that a table shows all of; flagged ones that it shows of more


class Run:
    """What a run has said so far."""

    def __init__(self, style: str, features: bool, full: bool, explain: bool, kept: bool) -> None:
        self.style, self.features, self.shipped = style, features, False
        self.full, self.explain, self.kept = full or explain, explain, kept
        self.cases: list[Case] = []
        self.watch: Watch | None = None
        self.records: list[dict[str, Any]] = []
        self.failed: list[AdvconnError] = []
        self.resized = self.twice = False
        self.done = self.drawn = self.judged_count = self.flagged = 0

    def refuse(self, name: str, error: AdvconnError) -> None:
        """An image that cannot be judged: a record of its own in JSON, and a line on stderr."""
        self.failed.append(error)
        if self.kept:
            self.cases.append(Case({"image": name, "error": str(error)}))
        if self.style == "json":
            click.echo(as_json({"image": name, "error": str(error)}))

    def batches(self, collections: list[Collection], detector: Detector) -> Iterator[Batch]:
        """Batches of all collections, as the classifier takes them."""
        walk = detector.connectivity
        look, channels = walk.classifier.preprocessing, walk.classifier.channels
        for collection in collections:
            refuse = lambda item, error: self.refuse(item.name, error)  # noqa: E731
            for batch in collection.batches(look, channels, walk.batch_size, refuse):
                if any(batch.resized) and not self.resized:
                    self.resized = True
                    note(_resize_note(detector))
                self.done += len(batch.items)
                yield batch

    def take(self, record: dict[str, Any], detector: Detector, batch: Batch, rows: list[int]) -> None:
        """A verdict, or why there is none, of an image in these rows of a batch."""
        if "error" in record:
            self.refuse(record["image"], DataError(f"{record['image']}: {record['error']}"))
            return
        self.judged_count += 1
        self.flagged += record["adversarial"]
        if self.watch is not None and self.watch.see(np.array([record["score"]])):
            note(self.watch.sentence())
        if self.kept:
            row = next(i for i in rows if batch.readings[i] == record["reading"])
            self.cases.append(self.case(record, detector, batch.images[row]))
        if len(record["readings"]) > 1 and not self.twice:
            self.twice = True
            note(
                "some files are read in two ways (EXIF turn, transparency, 16 bits): both were judged, and p is twice "
                "the smaller; `reading` tells which spoke"
            )
        if not self.features:
            del record["features"]
        if self.style == "json":
            click.echo(as_json(record))
        else:
            self.records.append({k: v for k, v in record.items() if k != "features"})
            if self.judged_count > WHOLE:  # of many images the table shows those that are flagged
                self.records = [known for known in self.records if known["adversarial"]][:LONGEST]

    def case(self, record: dict[str, Any], detector: Detector, image: Tensor) -> Case:
        """What a page shows of it: pictures and paths of the first ones alone, so that it stays a page."""
        checked = detector.connectivity.classifier.check(image[None])
        told = None
        if (self.explain or record["adversarial"]) and self.drawn < FIGURES:
            self.drawn += 1
            told = detector.explain(checked)
        kept = {k: v for k, v in record.items() if k != "features" or self.features}
        return Case(kept, checked[0].cpu() if len(self.cases) < PICTURES else None, told)

    def judged(self, detector: Detector, batch: Batch) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """The record of each image of a batch, and its rows."""
        return records(detector, batch, self.full)

    def write(self, detector: Detector, out: Path | None, file: Path | None) -> None:
        """The folder, or the one page, that was asked for."""
        if out is not None:
            with writing(out) as partial:
                write(self.cases, flagged_where(detector), partial)
            note(f"{out}: results.jsonl, results.csv and report.html of {len(self.cases)} images")
        elif file is not None and self.cases:
            with replacing(file) as partial:
                partial.write_text(page(self.cases, flagged_where(detector)), encoding="utf-8")
            note(f"{file}: what the image showed")

    def show(self, detector: Detector) -> None:
        """The table, if there is one: of all images, or of many those that are flagged."""
        if not self.records:
            return
        size = detector.connectivity.classifier.preprocessing.size
        view = f"{size[1]}x{size[0]}" if size is not None and self.shipped else ""
        put(as_table(self.records, flagged_where(detector), view), 140)

    def close(self) -> None:
        """Lines on stderr for what was not judged; of several images, a last one that counts."""
        for error in self.failed:
            complain(str(error))
        total = self.judged_count + len(self.failed)
        if total > 1:
            hidden = self.flagged - len(self.records) if self.style == "text" and self.judged_count > WHOLE else 0
            note(
                f"{self.flagged} of {total} images flagged, {len(self.failed)} could not be judged"
                + "; the table shows the flagged ones" * (self.style == "text" and self.judged_count > WHOLE)
                + f", the first {LONGEST} of them" * (hidden > 0)
            )


def flagged_where(detector: Detector) -> str:
    """Which images are flagged, and what is promised of it."""
    calibration = detector.calibration_
    own = "; classes with enough images have a threshold of their own" if calibration.by_class else ""
    return (
        f"flagged: p-value at most {calibration.level:.3g} ({promised(calibration)}, for images like the "
        f"{len(calibration.scores)} calibrated on: {', '.join(calibration.conditions)}{own})"
    )


def header_of(detector: Detector, folder: Path | None, *, shipped: bool) -> str:
    """A first line of JSON about the detector in a folder, which is a shipped one or not."""
    from importlib.metadata import version

    classifier, calibration = detector.connectivity.classifier, detector.calibration_
    about = {
        "advconn": version("advconn"),
        "detector": f"{folder.name} (shipped)" if shipped and folder is not None else str(folder),
        "threshold": calibration.threshold,
        "level": calibration.level,
        "fpr": calibration.fpr,
        "confidence": calibration.confidence,
        "conditions": list(calibration.conditions),
        "by_class": {str(k): v.threshold for k, v in calibration.by_class.items()} or None,
        "calibrated_on": len(calibration.scores),
        "classifier": classifier.name,
        "fingerprint": classifier.fingerprint,
    }
    return as_json({"header": about})


def _resize_note(detector: Detector) -> str:
    h, w = detector.connectivity.classifier.preprocessing.size or (0, 0)
    return (
        f"images were brought to the classifier's {w}x{h}: what it sees is judged, and a perturbation made at another "
        "size may not survive the resize"
    )
