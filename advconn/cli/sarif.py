"""Verdicts as SARIF 2.1.0, which code hosts show beside a change."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from advconn.scoring.records import Failure, Result

FLAGGED, FAILED = "adversarial", "not-judged"


def as_sarif(results: Iterable[Result]) -> dict[str, Any]:
    """Flagged images as errors, images that could not be judged as warnings.

    Args:
        results: of images.
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
                "results": [_finding(r) for r in results if isinstance(r, Failure) or r.adversarial],
            }
        ],
    }


def _finding(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        rule, level, said = FAILED, "warning", result.error
    else:
        rule, level, said = FLAGGED, "error", f"{result.class_name}, p {result.p_value:.4f}: {result.why}"
    address = quote(PurePath(result.image).as_posix().encode("utf-8", "surrogateescape"))
    return {
        "ruleId": rule,
        "level": level,
        "message": {"text": said.encode("utf-8", "backslashreplace").decode()},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": address}}}],
    }
