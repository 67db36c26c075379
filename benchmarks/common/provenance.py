"""Where a record comes from, and how it is written."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

SEED = 0
RECORDS = Path(__file__).parent.parent / "records"


def machine() -> dict[str, object]:
    """Where and with what a record was made."""
    run = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(run, capture_output=True, text=True, check=False).stdout.strip()
    return (
        {
            "commit": commit or None,
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        }
        | {name: version(name) for name in ("torch", "torchattacks", "scikit-learn", "numpy")}
        | _gpu()
    )


def _gpu() -> dict[str, object]:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def file_of(folder: Path, subject: str) -> Path:
    """Where today's record of a subject stands in a folder of records."""
    return folder / subject / f"{date.today().isoformat()}.json"


def write_record(folder: Path | None, subject: str, record: Mapping[str, Any], script: str) -> None:
    """Write today's record of a subject, with the script that made it; nothing where no folder is given.

    Args:
        folder: of records, such as RECORDS.
        subject: of the measurement; its folder holds one record a date.
        record: what was measured, with the seed.
        script: the caller's `__file__`.
    """
    if folder is None:
        return
    file, source = file_of(folder, subject), Path(script)
    about = {
        "script": "/".join(source.parts[-2:]),
        "script_sha256": hashlib.sha256(source.read_bytes()).hexdigest()[:16],
        "machine": machine(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({**about, **record, **about}, indent=1) + "\n", encoding="utf-8")
    partial.rename(file)


def latest(subject: str, folder: Path = RECORDS) -> tuple[Path, dict[str, Any]] | None:
    """The latest record of a subject and where it stands; None where there is none."""
    files = sorted((folder / subject).glob("*.json"))
    return (files[-1], json.loads(files[-1].read_text(encoding="utf-8"))) if files else None
