"""Verdicts as other tools read findings: SARIF 2.1.0 (code hosts), OCSF (SIEMs), JUnit (build servers)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from advconn.scoring.records import Failure, Result

FLAGGED, FAILED = "adversarial", "not-judged"
OCSF_VERSION = "1.4.0"
OCSF_CLASS, OCSF_CREATE = 2004, 1  # a Detection Finding, which begins
OCSF_LOW, OCSF_HIGH = 2, 4  # severities
TECHNIQUE = {"uid": "AML.T0043", "name": "Craft Adversarial Data"}  # of MITRE ATLAS


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
        "message": {"text": _plain(said)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": address}}}],
    }


def as_ocsf(result: Result) -> dict[str, Any]:
    """A flagged image, or one that could not be judged, as an OCSF Detection Finding (class 2004).

    Args:
        result: of the image.
    """
    if isinstance(result, Failure):
        return ocsf_finding(result.image, result.error, failed=True)
    data = {
        "prediction": _plain(result.class_name), "score": result.score, "p_value": result.p_value,
        "stage": result.stage, "consensus": _plain(result.consensus_name), "doubtful": result.doubtful,
    }  # fmt: skip
    return ocsf_finding(result.image, f"p {result.p_value:.4f}: {result.why}", failed=False, data=data)


def ocsf_finding(
    image: str, message: str, *, failed: bool, uid: str | None = None, data: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An OCSF Detection Finding (class 2004) of an image.

    Args:
        image: its path or name.
        message: what was found.
        failed: whether it could not be judged; else it was flagged.
        uid: of the finding; made of its kind and the image's name unless given, so that a second run gives the same.
        data: what is known of its verdict.
    """
    title = "An image could not be judged" if failed else "An image was adversarially perturbed"
    name = _plain(image)
    finding: dict[str, Any] = {
        "class_uid": OCSF_CLASS,
        "category_uid": OCSF_CLASS // 1000,
        "activity_id": OCSF_CREATE,
        "type_uid": OCSF_CLASS * 100 + OCSF_CREATE,
        "time": int(time.time() * 1000),
        "severity_id": OCSF_LOW if failed else OCSF_HIGH,
        "is_alert": True,
        "message": _plain(message),
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "advconn", "vendor_name": "advconn", "version": version("advconn")},
        },
        "finding_info": {"uid": uid or f"{FAILED if failed else FLAGGED}:{name}", "title": title, "analytic": {
            "name": "advconn", "type_id": 4, "type": "Learning (ML/DL)"}},
        "evidences": [{"file": {"name": PurePath(name).name or name, "path": name, "type_id": 1}}],
    }  # fmt: skip
    if data is not None:
        finding["evidences"][0]["data"] = data
    if not failed:
        finding["finding_info"]["attacks"] = [{"technique": TECHNIQUE}]
    return finding


def as_junit(results: Sequence[Result], others: int) -> str:
    """A JUnit report: flagged images are failures, images that could not be judged errors; others are one test.

    It is ASCII, whatever the encoding of the output.

    Args:
        results: flagged ones, and those that could not be judged.
        others: how many images are neither.
    """
    failed = sum(isinstance(r, Failure) for r in results)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites><testsuite name="advconn" tests="{len(results) + 1}" failures="{len(results) - failed}" '
        f'errors="{failed}">',
    ]
    for result in results:
        kind = "error" if isinstance(result, Failure) else "failure"
        said = result.error if isinstance(result, Failure) else f"p {result.p_value:.4f}: {result.why}"
        lines.append(
            f'<testcase classname="advconn" name={quoteattr(_xml(result.image))}>'
            f"<{kind} message={quoteattr(_xml(said))}>{escape(_xml(said))}</{kind}></testcase>"
        )
    lines.append(f'<testcase classname="advconn" name="{others} images that are not flagged"/>')
    text = "\n".join([*lines, "</testsuite></testsuites>"])
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _plain(text: str) -> str:
    """Text that UTF-8 can hold: bytes of a file's name that are none are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _xml(text: str) -> str:
    """The same without the control characters that XML cannot hold."""
    return "".join(c if c in "\t\n" or (ord(c) >= 0x20 and c not in "\ufffe\uffff") else "?" for c in _plain(text))
