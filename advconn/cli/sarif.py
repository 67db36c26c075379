"""Verdicts as SARIF 2.1.0, which code hosts show beside a change."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

FLAGGED, FAILED = "adversarial", "not-judged"


def as_sarif(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Flagged images as errors, images that could not be judged as warnings.

    Args:
        records: of images, as report.rows gives them.
    """
    rules = {FLAGGED: "The image was adversarially perturbed.", FAILED: "The image could not be judged."}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "advconn",
                        "version": version("advconn"),
                        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()],
                    }
                },
                "results": [_result(record) for record in records if "error" in record or record["adversarial"]],
            }
        ],
    }


def _result(record: dict[str, Any]) -> dict[str, Any]:
    failed = "error" in record
    said = record["error"] if failed else f"{record['class_name']}, p {record['p_value']:.4f}: {record['why']}"
    address = quote(PurePath(record["image"]).as_posix().encode("utf-8", "surrogateescape"))
    return {
        "ruleId": FAILED if failed else FLAGGED,
        "level": "warning" if failed else "error",
        "message": {"text": said.encode("utf-8", "backslashreplace").decode()},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": address}}}],
    }
