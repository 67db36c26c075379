"""Records of a run as lines of JSON in a file, written as they come: from it a run that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from advconn.errors import DataError
from advconn.files import telling

KIND = "advconn score"
SUFFIX = ".unfinished"
FOLLOWING = {"threshold", "level", "conditions", "by_class", "calibrated_on", "precision", "fingerprint"}  # from others


class Journal:
    """What a run has found so far, in the file beside what it is to become.

    The first line says what the run is; every other is [place, record], and after each step {"done": steps}. What a
    step wrote without coming to its end does not count, and is written again.

    Args:
        out: what the run is to become: its journal is called like it, with SUFFIX.
        about: what must be the same where a run goes on.
        resume: go on, where there is something to go on from.

    Raises:
        DataError: a journal that is there and is not asked for, one of another run, or a file that cannot be written.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self.done, self.resumed = out.with_name(out.name + SUFFIX), 0, False
        line = (json.dumps({"run": KIND, "about": dict(about)}) + "\n").encode()
        with telling(out):
            if self.path.exists():
                if not resume:
                    raise DataError(f"{self.path}: keeps a run that was stopped: go on with --resume, or remove it")
                self._go_on(about)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("x+b")
            self.file.write(line)
            self.file.flush()

    def _go_on(self, about: Mapping[str, Any]) -> None:
        """Find the end of the last step that was finished, and cut off what follows."""
        foreign = DataError(f"{self.path}: no record of a run that was stopped; remove it, or give another --out")
        if not self.path.is_file():
            raise foreign
        self.file = self.path.open("r+b")
        header = _parsed(self.file.readline())
        if not isinstance(header, dict) or header.get("run") != KIND:
            raise foreign
        wanted, before = json.loads(json.dumps(dict(about))), header["about"]
        other = [name for name in wanted if before.get(name) != wanted[name]]
        if other:
            told = [name for name in other if name not in FOLLOWING] or other
            changes = ", ".join(f"{name} was {_short(before.get(name))}, now {_short(wanted[name])}" for name in told)
            raise DataError(
                f"{self.path}: keeps a run that was started otherwise ({changes}): give the same, or remove the file "
                "to begin anew"
            )
        end, self.resumed = self.file.tell(), True
        for line in iter(self.file.readline, b""):
            step = _parsed(line)
            if isinstance(step, dict) and "done" in step:
                end, self.done = self.file.tell(), step["done"]
        self.file.seek(end)
        self.file.truncate()

    def add(self, records: Iterable[tuple[Any, Mapping[str, Any]]], done: int) -> None:
        """What a step gave: (place, record) each; `done` steps are finished with it."""
        lines = [json.dumps([place, record]) for place, record in records]
        with telling(self.path):
            self.file.write(("\n".join([*lines, json.dumps({"done": done})]) + "\n").encode())
            self.file.flush()
        self.done = done

    def records(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """All (place, record) so far, in order."""
        with self.path.open("rb") as file:
            for line in file:
                entry = _parsed(line)
                if isinstance(entry, list):
                    yield entry[0], entry[1]

    def close(self) -> None:
        """Keep it: the run goes on another time."""
        self.file.close()

    def remove(self) -> None:
        """The run is over."""
        self.file.close()
        self.path.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parsed(line: bytes) -> Any:
    with suppress(ValueError):
        return json.loads(line) if line.endswith(b"\n") else None
    return None
