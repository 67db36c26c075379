"""Records of a run as lines of JSON in a file, written as they come: from it a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from advconn.errors import DataError
from advconn.files import wrap_os_errors
from advconn.scoring.records import Result, parse_result

KIND = "advconn score"
SUFFIX = ".unfinished"
FOLLOWING = {"threshold", "level", "conditions", "by_class", "calibrated_on", "precision", "fingerprint"}  # from others
Entry = tuple[Sequence[int], Sequence[int], Result]  # of an image: its place, its mark, and what is said of it


class Journal:
    """What a run has found so far, in the file beside what it is to become.

    The first line says what the run is; every other is [place, mark, result, digest] of an image, and after each step
    {"done": steps}. The mark (size and time of its file) tells an image that was replaced. What a step wrote without
    coming to its end does not count, and is written again. The file is locked: two runs do not write it at once.

    Args:
        out: what the run is to become: its journal is called like it, with SUFFIX.
        about: what must be the same where a run goes on.
        resume: go on, where there is something to go on from.

    Raises:
        DataError: a journal that is there and is not asked for, that another run writes or began, or that is damaged; a
            file that cannot be written.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], *, resume: bool) -> None:
        out = out.absolute() if out.name else out.resolve()
        self.path, self.done, self.resumed = out.with_name(out.name + SUFFIX), 0, False
        line = (json.dumps({"run": KIND, "about": dict(about)}) + "\n").encode()
        with wrap_os_errors(out):
            if self.path.exists():
                if not resume:
                    raise DataError(f"{self.path}: keeps a run that was stopped: go on with --resume, or remove it")
                self._go_on(about)
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("x+b")
            self._lock()
            self.file.write(line)
            self.file.flush()

    def _lock(self) -> None:
        """Keep others from writing the file, where the system can."""
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise DataError(f"{self.path}: another run writes it now; wait for it, or give another --out") from None
        except OSError:  # some disks know no locks
            return

    def _go_on(self, about: Mapping[str, Any]) -> None:
        """Find the end of the last step that was finished, and cut off what follows."""
        foreign = DataError(f"{self.path}: no record of a run that was stopped; remove it, or give another --out")
        if not self.path.is_file() or self.path.is_symlink():
            raise foreign
        self.file = self.path.open("r+b")
        self._lock()
        header = _parsed(self.file.readline())
        if not isinstance(header, dict) or header.get("run") != KIND or not isinstance(header.get("about"), dict):
            self.file.close()
            raise foreign
        wanted, before = json.loads(json.dumps(dict(about))), header["about"]
        other = [name for name in wanted if before.get(name) != wanted[name]]
        if other:
            self.file.close()
            told = [name for name in other if name not in FOLLOWING] or other
            changes = ", ".join(f"{name} was {_short(before.get(name))}, now {_short(wanted[name])}" for name in told)
            raise DataError(
                f"{self.path}: keeps a run that was started otherwise ({changes}): give the same, or remove the file "
                "to begin anew"
            )
        end, self.resumed = self.file.tell(), True
        for line in iter(self.file.readline, b""):
            if _parsed(line) == {"done": self.done + 1}:
                end, self.done = self.file.tell(), self.done + 1
        self.file.seek(end)
        self.file.truncate()

    def add(self, entries: Iterable[Entry], done: int) -> None:
        """What a step gave, an entry an image; `done` steps are finished with it."""
        rows = [(place, mark, result.to_dict()) for place, mark, result in entries]
        lines = [json.dumps([*row, _digest(row)]) for row in rows]
        with wrap_os_errors(self.path):
            self.file.write(("\n".join([*lines, json.dumps({"done": done})]) + "\n").encode())
            self.file.flush()
        self.done = done

    def entries(self) -> Iterator[Entry]:
        """Of every image so far, in order.

        Raises:
            DataError: a line that is none of a journal's.
        """
        with wrap_os_errors(self.path), self.path.open("rb") as file:
            file.readline()
            for line in file:
                entry = _parsed(line)
                if isinstance(entry, dict) and set(entry) == {"done"}:
                    continue
                sound = isinstance(entry, list) and len(entry) == 4 and entry[3] == _digest(entry[:3])
                result = parse_result(entry[2]) if sound else None
                if result is None:
                    raise self.damaged()
                yield entry[0], entry[1], result

    def require(self, planned: Iterable[Iterable[tuple[Sequence[int], Sequence[int], str]]]) -> None:
        """Refuse a journal whose finished steps are not those of these images.

        Args:
            planned: (place, mark, name) of every image of every step.

        Raises:
            DataError: as told.
        """
        kept = self.entries()
        for place, mark, name in itertools.chain.from_iterable(itertools.islice(planned, self.done)):
            entry = next(kept, None)
            if entry is None or (entry[0], entry[1], entry[2].image) != ([*place], [*mark], name):
                raise self.damaged()
        if next(kept, None) is not None:
            raise self.damaged()

    def damaged(self) -> DataError:
        """That the file is not what a run of these images wrote."""
        return DataError(
            f"{self.path}: does not hold what was judged of these images (one was added, removed or replaced, or the "
            "file is damaged): remove it to begin anew"
        )

    def close(self) -> None:
        """Keep it: the run goes on another time."""
        self.file.close()

    def remove(self) -> None:
        """The run is over."""
        self.file.close()
        self.path.unlink(missing_ok=True)


def _digest(entry: Sequence[Any]) -> str:
    """By which a line that was damaged is told."""
    return hashlib.blake2b(json.dumps(list(entry)).encode(), digest_size=8).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parsed(line: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(line) if line.endswith(b"\n") else None
    return None
