"""Finished work kept in a folder, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar


def cache_folder(given: Path | None = None) -> Path | None:
    """Where finished work is kept: `given`, else ADVCONN_CACHE, else advconn in XDG_CACHE_HOME or ~/.cache.

    None where there is no home.
    """
    if given is not None:
        return given
    for name, below in (("ADVCONN_CACHE", ""), ("XDG_CACHE_HOME", "advconn")):
        if os.environ.get(name):
            return Path(os.environ[name]) / below
    try:
        return Path.home() / ".cache" / "advconn"
    except RuntimeError:
        return None


T = TypeVar("T")
_DIGEST = hashlib.sha256().digest_size


class DiskCache:
    """What functions gave, by what they were asked, in a folder (None: nothing is kept).

    An entry's key also holds a digest of advconn's own source, so that a change of the code is a change of the key.
    A folder that cannot be written is told once through `note` and not used.
    """

    def __init__(self, folder: Path | str | None, note: Callable[[str], None] = lambda text: None) -> None:
        self.folder: Path | None = None
        if folder is None:
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(dir=folder)
            os.close(handle)
            os.unlink(name)
            self.folder = Path(folder)
        except OSError as error:
            note(f"{folder}: cannot write the cache folder ({error.strerror}); continuing without a cache")

    def path(self, kind: str, key: Any) -> Path | None:
        """Where the entry of a key lies."""
        from joblib import hash as digest

        return None if self.folder is None else self.folder / kind / f"{digest((key, source_digest()))}.kept"

    def has(self, kind: str, key: Any) -> bool:
        """Whether an undamaged entry is there."""
        return self._content(self.path(kind, key)) is not None

    def get(self, kind: str, key: Any, make: Callable[[], T]) -> T:
        """The entry of a key, made now where it is not there.

        Args:
            kind: subfolder that it lies in.
            key: what it depends on; anything that joblib can hash.
            make: gives its value.
        """
        import joblib

        path = self.path(kind, key)
        content = self._content(path)
        if content is not None:
            with suppress(Exception):  # written by other versions of what is in it: made again
                kept: T = joblib.load(io.BytesIO(content))
                return kept
        value = make()
        if path is not None:
            buffer = io.BytesIO()
            joblib.dump(value, buffer)
            self._write(path, buffer.getvalue())
        return value

    def _content(self, path: Path | None) -> bytes | None:
        if path is None:
            return None
        try:
            data = path.read_bytes()
        except OSError:
            return None
        return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else None

    def _write(self, path: Path, content: bytes) -> None:
        with suppress(OSError):  # a full disk costs time, not the result
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(hashlib.sha256(content).digest() + content)
                os.replace(name, path)
            finally:
                Path(name).unlink(missing_ok=True)


@lru_cache(maxsize=1)
def source_digest() -> str:
    """A digest of advconn's own code."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
