"""Files that are found, and folders and files that appear only whole: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from advconn.errors import DataError, first_line

PREFIX, SUFFIX = ".advconn-", ".partial"
SHIPPED = ("cifar10", "cifar10-hardened", "digits", "imagenet")  # detectors of models/


def shipped_path(name: str) -> Path:
    """A folder of models/, where advconn is installed or checked out."""
    installed = Path(__file__).parent / "_models"
    return (installed if installed.is_dir() else Path(__file__).parents[1] / "models") / name


def require_empty(folder: Path) -> None:
    """Refuse a folder that holds something or cannot be written to, before the work that is to fill it.

    Raises:
        DataError: as told.
    """
    with wrap_os_errors(folder):
        shutil.rmtree(_partial(folder))


def _partial(folder: Path) -> Path:
    """A temporary folder on the disk that `folder` is on: inside it where it is there and empty, else beside it."""
    if folder.exists():
        if not folder.is_dir() or any(not p.name.startswith(PREFIX) for p in folder.iterdir()):
            raise DataError(f"{folder}: exists and is not empty; give a new name or remove it")
        return _fresh(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _fresh(folder.parent)
    (partial / "x").touch()  # a disk that is full, or does not take this name, says so now
    folder.mkdir()
    folder.rmdir()
    return partial


def _fresh(folder: Path) -> Path:
    """A new folder in this one, with the modes that the user's umask leaves."""
    partial = folder / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
    partial.mkdir()
    return partial


@contextmanager
def wrap_os_errors(place: Path) -> Iterator[None]:
    """What a disk may raise, as one line.

    Raises:
        DataError: `place` cannot be written.
    """
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {error.strerror or first_line(error)}") from error
    except Exception as error:  # safetensors has a type of its own for a full disk
        if type(error).__name__ != "SafetensorError":
            raise
        raise DataError(f"{place}: cannot be written: {first_line(error)}") from error


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are `folder`'s at the end, or vanish if the block fails.

    A folder that is there and empty may be the current one, a link or a mount point: it is filled, not replaced.

    Raises:
        DataError: `folder` exists and is not empty, or cannot be written.
    """
    with wrap_os_errors(folder):
        partial = _partial(folder)
        (partial / "x").unlink(missing_ok=True)
        try:
            yield partial
            if folder.exists():
                _fill(partial, folder)
            else:
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _fill(partial: Path, folder: Path) -> None:
    """Move files into a folder that is there; none stay if one cannot be moved."""
    moved = []
    try:
        for file in sorted(partial.iterdir()):
            file.rename(folder / file.name)
            moved.append(folder / file.name)
    except OSError:
        for file in moved:
            file.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary file beside `file` that takes its name at the end, or vanishes if the block fails.

    Raises:
        DataError: `file` cannot be made.
    """
    with wrap_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.parent / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}{file.suffix}"
        partial.touch(exist_ok=False)
        try:
            yield partial
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def stat_mode(path: Path) -> int:
    """Its mode, as os.stat has it.

    Raises:
        DataError: nothing there, or not to be read.
    """
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or first_line(error)}") from error


def files_under(root: Path, failed: Callable[[DataError], None]) -> Iterator[Path]:
    """Every file under a folder, in order; links are followed, each folder once. What cannot be read is told."""

    def refuse(error: OSError) -> None:
        failed(DataError(f"{error.filename}: cannot be read: {error.strerror}", str(error.filename)))

    folders_met = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in folders_met:
            folders.clear()
            continue
        folders_met.add((status.st_dev, status.st_ino))
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError as error:
                failed(DataError(f"{path}: cannot be read: {error.strerror}", str(path)))
                continue
            if regular:
                yield path
            else:
                failed(DataError(f"{path}: no regular file; expected an image", str(path)))


LARGEST_PICKLE = 2**28  # bytes


def require_zip_alone(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse a zip archive behind something else, such as a picture or another archive, which other readers take.

    Args:
        archive: opened; `.npz` is one too.
        path: of its file.

    Raises:
        DataError: more stands before it.
    """
    if min((info.header_offset for info in archive.infolist()), default=0) > 0:
        raise DataError(f"{path}: more stands before the zip archive, which other readers take: save it anew")


def refuse_bytearrays(path: Path) -> None:
    """Refuse a torch file that asks for bytearrays: torch makes them as large as the file says.

    Raises:
        ValueError: it does.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
            if any(info.file_size > LARGEST_PICKLE for info in names):
                raise ValueError("what stands beside the tensors is too large")
            held = b"".join(archive.read(info) for info in names)
    else:
        with path.open("rb") as stream:
            held = stream.read(LARGEST_PICKLE)
    if b"bytearray" in held:
        raise ValueError("it holds a bytearray; expected tensors")
