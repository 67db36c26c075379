"""What a server logs, for people and for machines."""

import json

import pytest

from advconn.serving.log import Asked, FlaggedImage, Log
from advconn.serving.trace import trace_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ASKED = Asked("10.0.0.7", "/score", TRACE)
IMAGES = [FlaggedImage("a.png", 0.003, ""), FlaggedImage("b.png", 0.0, "b.png: cannot be read")]


def lines(style):
    out = []
    log = Log(out.append, style, "mine")
    log("it serves")
    log.flagged(ASKED, IMAGES)
    log.flagged(ASKED, [])
    return out


def test_lines_for_people():
    assert lines("text") == [
        "it serves",
        f"10.0.0.7 /score: flagged a.png (p 0.003), b.png (cannot be read) [trace {TRACE}]",
    ]


def test_lines_of_json():
    first, second = map(json.loads, lines("json"))
    assert (first["message"], first["model"]) == ("it serves", "mine")
    assert (second["client"], second["path"], second["trace_id"]) == ("10.0.0.7", "/score", TRACE)
    assert [image["error"] for image in second["images"]] == [None, "b.png: cannot be read"]


def test_findings_for_a_siem():
    """Each with what OCSF's Detection Finding requires; the other lines are JSON."""
    first, flagged, failed = map(json.loads, lines("ocsf"))
    assert first["message"] == "it serves"
    for finding in (flagged, failed):
        required = {
            "activity_id",
            "category_uid",
            "class_uid",
            "finding_info",
            "metadata",
            "severity_id",
            "time",
            "type_uid",
        }
        assert required <= set(finding)
        assert finding["evidences"][0]["src_endpoint"] == {"ip": "10.0.0.7"}
        assert finding["metadata"]["correlation_uid"] == TRACE
    assert flagged["evidences"][0]["data"] == {"p_value": 0.003, "model": "mine"}
    assert flagged["finding_info"]["uid"] != failed["finding_info"]["uid"]
    assert flagged["severity_id"] > failed["severity_id"]
    assert "attacks" not in failed["finding_info"]


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"01-{TRACE}-00f067aa0ba902b7-01-more", TRACE),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE}-{'0' * 16}-01", ""),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        ("\u001b[31m", ""),
        (None, ""),
    ],
)
def test_traces(header, trace):
    """As W3C has the header; anything else is none."""
    assert trace_of(header) == trace
