"""What `advconn score` says while it judges: records, the table, files, and lines on stderr."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from advconn import bundle
from advconn.cli.output import flagged_where, note, print_error, print_table
from advconn.detector.drift import Watch
from advconn.errors import DataError
from advconn.files import atomic_file, atomic_folder
from advconn.scoring.batch import BatchScorer, ScoredImage
from advconn.scoring.records import Failure, Record, Result, as_json, as_table
from advconn.scoring.report_page import FIGURES, LISTED, PICTURES, Counts, PageEntry, page, write
from advconn.scoring.resume_journal import Journal
from advconn.scoring.sarif_ocsf_junit import as_junit, as_ocsf, as_sarif
from advconn.scoring.writers import writer_for

if TYPE_CHECKING:
    from torch import Tensor

    from advconn.data.collection import Collection
    from advconn.detector.detector import Detector


WHOLE, LONGEST = 50, 1000  # images that a table shows all of; flagged ones that are shown of more
MOST_FAILURES = 100  # lines on what could not be judged


class ScoreRun:
    """What a run has said so far.

    style: 'text', 'json', 'sarif', 'ocsf' or 'junit'. features: keep them in the records. journal: where records are
    kept, if they are.
    """

    def __init__(self, detector: Detector, style: str, features: bool, journal: Journal | None) -> None:
        self.detector, self.style, self.features, self.journal = detector, style, features, journal
        self.watch = Watch(detector.calibration_)
        self.table: list[Record] = []
        self.found: list[Result] = []  # what SARIF and JUnit tell of
        self.failures: list[str] = []
        self.resized = self.twice = False
        self.judged = self.flagged = self.failed = self.others = 0

    def resume(self, steps: BatchScorer) -> None:
        """Count what was judged before, where it was these images.

        Raises:
            DataError: the journal holds others.
        """
        if self.journal is None or not self.journal.resumed:
            return
        self.journal.require(steps.planned())
        for _, _, result in self.journal.entries():
            self._count(result)
        self.table.clear()
        note(f"{self.journal.path}: {self.judged + self.failed} images were judged before: going on with the next")

    def take(self, said: Sequence[ScoredImage], steps: int) -> None:
        """What a step said; it is the last of so many."""
        kept = [each if self.features else replace(each, result=each.result.without_features()) for each in said]
        for each in kept:
            if each.resized and not self.resized:
                self.resized = True
                note(_resize_note(self.detector))
            if isinstance(each.result, Record) and len(each.result.readings) > 1 and not self.twice:
                self.twice = True
                note(
                    "some files are read in two ways (EXIF turn, transparency, 16 bits): both were judged, the upright "
                    "one with twice its p, and `reading` tells which gave the smaller. Of 16 bits a plain loader "
                    "makes a picture that is mostly white, which is flagged as such: --reading upright judges what "
                    "people see"
                )
        if self.journal is not None:
            self.journal.add(((each.place, each.mark, each.result) for each in kept), steps)
        for each in kept:
            self._count(each.result)
            if self.style == "json":
                click.echo(as_json(each.result))
            elif self.style == "ocsf" and _is_finding(each.result):
                click.echo(json.dumps(as_ocsf(each.result)))

    def all(self, steps: BatchScorer) -> None:
        """Take what every step says that was not taken before."""
        self.resume(steps)
        done = 0 if self.journal is None else self.journal.done
        count, tell = sum(map(len, steps.collections)), steps.runner.progress
        for said in steps.run(done):
            done += 1
            self.take(said, done)
            tell("score", self.judged + self.failed, count)

    def stopped(self) -> None:
        """The run ends before its time."""
        if self.journal is not None:
            self.journal.close()
            if self.judged + self.failed:
                note(f"{self.judged + self.failed} images are kept in {self.journal.path}: --resume goes on")

    def _count(self, result: Result) -> None:
        if self.style in ("sarif", "junit") and _is_finding(result):
            self.found.append(result.without_features())
        if isinstance(result, Failure):
            self.failed += 1
            if len(self.failures) < MOST_FAILURES:
                self.failures.append(result.error)
            return
        self.judged += 1
        self.flagged += result.adversarial
        self.others += result.other_pictures
        if self.watch.see(np.array([result.score])):
            note(self.watch.sentence())
        if self.style != "text":
            return
        if self.judged == WHOLE + 1:  # of many images the table shows those that are flagged
            self.table = [row for row in self.table if row.adversarial]
        if (self.judged <= WHOLE or result.adversarial) and len(self.table) < LONGEST:
            self.table.append(result.without_features())

    def show(self, shipped: bool) -> None:
        """The table, if there is one: of all images, or of many those that are flagged."""
        if not self.table:
            return
        size = self.detector.classifier.preprocessing.size
        view = f"{size[1]}x{size[0]}" if size is not None and shipped else ""
        print_table(as_table(self.table, flagged_where(self.detector), view), 140)

    def tell_findings(self, more: Failure | None = None) -> None:
        """The findings of a style that other tools read; `more` is a failure of the run itself."""
        if more is not None and self.style == "ocsf":
            click.echo(json.dumps(as_ocsf(more)))
        found = self.found if more is None else [*self.found, more]
        if self.style == "sarif":
            click.echo(json.dumps(as_sarif(found)))
        if self.style == "junit":
            click.echo(as_junit(found, self.judged + self.failed - len(self.found)))

    def write(
        self, journal: Journal, out: Path, collections: Sequence[Collection], *, explain: bool, single: bool
    ) -> None:
        """What the journal becomes: a folder, a file of one kind, or with `single` the page by itself.

        Args:
            journal: the records of the run.
            out: the folder or the file that is written.
            collections: the images, whose pictures are read again for the page.
            explain: whether the page also explains images that are not flagged.
            single: whether `out` gets the page alone.
        """

        def kept() -> Iterator[Result]:
            return (result for _, _, result in journal.entries())

        writer = None if single else writer_for(out)
        if writer is not None:
            with atomic_file(out) as partial:
                writer(kept(), partial)
            note(f"{out}: {self.judged + self.failed} images")
            return
        cases = self._cases(journal, collections, explain)
        html = page(cases, flagged_where(self.detector), Counts(self.judged + self.failed, self.flagged, self.failed))
        if single:
            with atomic_file(out) as partial:
                partial.write_text(html, encoding="utf-8")
            note(f"{out}: what the image showed")
            return
        with atomic_folder(out) as partial:
            write(kept, html, partial)
        note(f"{out}: results.jsonl, results.csv and report.html of {self.judged + self.failed} images")

    def _cases(self, journal: Journal, collections: Sequence[Collection], explain: bool) -> list[PageEntry]:
        """What the page tells of: flagged images first; their pictures are read again, those of the first alone."""
        chosen = heapq.nsmallest(LISTED, journal.entries(), key=lambda kept: _rank(kept[2]))
        pictures = {
            id(result): self._picture(collections, place, result)
            for place, _, result in sorted(
                chosen[:PICTURES], key=lambda kept: tuple(kept[0])
            )  # in the order of the files
        }
        cases, drawn = [], 0
        for _, _, result in chosen:
            image, told = pictures.get(id(result)), None
            adversarial = isinstance(result, Record) and result.adversarial
            if image is not None and (explain or adversarial) and drawn < FIGURES:
                drawn += 1
                told = self.detector.explain(image[None])
            cases.append(PageEntry(result, image, told))
        return cases

    def _picture(self, collections: Sequence[Collection], place: Sequence[int], result: Result) -> Tensor | None:
        """The image (c, h, w) that a record is of, as it was judged; None where it is gone."""
        if isinstance(result, Failure) or place[0] < 0:
            return None
        collection, classifier = collections[place[0]], self.detector.classifier
        try:
            batch = collection.read([collection.items[place[1]]], classifier.preprocessing)
        except DataError:
            return None
        for item, reading, image in zip(batch.items, batch.readings, batch.images, strict=True):
            if (item.name, reading) == (result.image, result.reading):
                return classifier.check(image[None])[0].cpu()
        return None

    def close(self) -> None:
        """Lines on stderr for what was not judged; of several images, a last one that counts."""
        for error in self.failures:
            print_error(error)
        if self.failed > len(self.failures):
            print_error(
                f"{self.failed - len(self.failures)} more could not be judged: --format json and --out list them"
            )
        if self.others:
            note(
                f"{self.others} other picture{'s' * (self.others > 1)} inside these files (pages, previews, layers) "
                f"{'were' if self.others > 1 else 'was'} not judged: --frames all judges pages and previews"
            )
        total = self.judged + self.failed
        if total > 1:
            many = self.style == "text" and self.judged > WHOLE
            note(
                f"{self.flagged} of {total} images flagged, {self.failed} could not be judged"
                + "; the table shows the flagged ones" * many
                + f", the first {LONGEST} of them" * (many and self.flagged > LONGEST)
            )


def _is_finding(result: Result) -> bool:
    """Whether an image is flagged or could not be judged."""
    return isinstance(result, Failure) or result.adversarial


def _rank(result: Result) -> tuple[int, float]:
    """Flagged images first, those that could not be judged next, and each by p-value."""
    return (1, 1.0) if isinstance(result, Failure) else (0 if result.adversarial else 2, result.p_value)


def describe_detector(detector: Detector, folder: Path) -> dict[str, Any]:
    """A detector in a folder, and how it flags."""
    from importlib.metadata import version

    shipped = folder == bundle.default(folder.name)

    classifier, calibration = detector.classifier, detector.calibration_
    efficacy = detector.fitted_.efficacy
    return {
        "advconn": version("advconn"),
        "detector": f"{folder.name} (shipped)" if shipped else str(folder),
        "threshold": calibration.threshold,
        "level": calibration.level,
        "fpr": calibration.fpr,
        "confidence": calibration.confidence,
        "conditions": list(calibration.conditions),
        "by_class": {str(k): v.threshold for k, v in calibration.by_class.items()} or None,
        "calibrated_on": len(calibration.scores),
        "precision": detector.fitted_.precision,
        "weak": None if efficacy is None or not efficacy.weak else efficacy.warning,
        "classifier": classifier.name,
        "fingerprint": classifier.fingerprint,
    }


def _resize_note(detector: Detector) -> str:
    h, w = detector.classifier.preprocessing.size or (0, 0)
    return (
        f"images were brought to the classifier's {w}x{h}: what it sees is judged, and a perturbation made at another "
        "size may not survive the resize"
    )
