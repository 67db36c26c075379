"""Folders and files that appear only whole: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advconn.errors import DataError


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name at the end, or vanishes if the block fails.

    Raises:
        DataError: `folder` exists and is not empty, or cannot be made.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; give a new name or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror}") from error
    try:
        yield partial
        partial.chmod(0o755)
        for file in partial.iterdir():
            file.chmod(0o644)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary file beside `file` that takes its name at the end, or vanishes if the block fails.

    Raises:
        DataError: `file` cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.stem}-", suffix=f".partial{file.suffix}", dir=file.parent)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from error
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(file)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
