"""Requests that two servers would read differently are refused: a gate judges what the one behind it sees."""

import base64
import json
import struct
import zlib

import numpy as np
import pytest
import torch

from advconn import bundle
from advconn.cascade.heads import default_head, highest_log_odds
from advconn.errors import DataError
from advconn.scoring.records import Record, parse_result
from advconn.serving import Judge
from advconn.serving.open_inference_protocol import parse_body

PIXELS = [0.0] * 64


def body(text, blob=b"", **more):
    return parse_body(text.encode() if isinstance(text, str) else json.dumps(text | more).encode(), blob, 8)


def image(**more):
    return {"inputs": [{"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": PIXELS} | more]}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"inputs": [], "inputs": []}', "a name twice"),
        (json.dumps(image()).replace('"data"', '"data": [], "data"'), "a name twice"),
        (image(parameters={"shared_memory_region": "a"}), "shared_memory_region is not read"),
        (image(contents={"fp32_contents": PIXELS}), "contents is not read"),
        (image() | {"raw_input_contents": ["AAAA"]}, "raw_input_contents is not read"),
    ],
)
def test_images_that_stand_twice_are_refused(said, why):
    """One parser takes the first value, another the last; one server reads what another ignores."""
    with pytest.raises(DataError, match=why):
        body(said)


@pytest.mark.parametrize("size", [5, "x", -1, True])
def test_a_size_of_files_must_be_theirs(size):
    """As it must be of arrays."""
    said = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}]}
    with pytest.raises(DataError, match="bytes of files"):
        body(said, struct.pack("<I", 3) + b"abc")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_base64_that_readers_take_differently_is_refused():
    """Some drop what is not of the standard's alphabet, and see another file."""
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", bytes(range(256)) * 3)
    text = base64.b64encode(png).decode()

    def read(value):
        return body({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [value]}]})[1][0].tobytes()

    assert read(text) == png
    assert read("data:image/png;base64," + text) == png
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    assert read(wrapped) == png
    for odd in (text[:40] + "-" * 300 + text[40:], text.replace("+", "-").replace("/", "_")):
        with pytest.raises(DataError, match="take differently"):
            read(odd)


def test_a_bound_of_a_head_is_never_passed():
    """However far out an image is; a head that says the same of all images gives that."""
    rng = np.random.default_rng(0)
    table, kinds = rng.normal(size=(300, 6)), np.repeat([0, 1, 2], 100)
    table[kinds > 0] += 2
    head = default_head(0).fit(table, kinds)
    far = np.concatenate([10.0**power * rng.normal(size=(200, 6)) for power in range(6)])
    decision = head.decision_function(far)
    odds = np.logaddexp(decision[:, 1] - decision[:, 0], decision[:, 2] - decision[:, 0])
    assert odds.max() - 1e-9 <= highest_log_odds(head) < odds.max() + 5  # and it is near what is reached
    head[-1].coef_, head[-1].intercept_ = head[-1].coef_ * 0, np.array([9.0, 0.0, 0.0])
    assert highest_log_odds(head) == pytest.approx(np.log(2) - 9)


def test_a_bundle_whose_heads_cannot_reach_its_threshold_is_named(tmp_path):
    """Its scores look like any others."""
    forged = bundle.load(bundle.default("digits"))
    for head in forged.cascade_.heads:
        head[-1].coef_, head[-1].intercept_ = head[-1].coef_ * 0, head[-1].intercept_ * 0 - 9
    bundle.save(forged, tmp_path / "forged")
    with pytest.warns(UserWarning, match="which no image reaches"):
        bundle.load(tmp_path / "forged")


def record(**more):
    fields = {
        "image": "a.png", "prediction": 1, "class_name": "1", "score": 0.5, "p_value": 0.5, "adversarial": False,
        "why": "", "stage": 1, "consensus": 1, "consensus_name": "1", "copies": 3, "agreeing": 3, "barrier": None,
        "secondary_barriers": None, "bends": None, "families": {"self": 1.0}, "cost": {"forwards": 4.0},
        "reading": "plain", "given": [8, 8], "judged": [8, 8], "other_pictures": 0, "readings": ["plain"],
    }  # fmt: skip
    return fields | more


def test_a_record_of_odd_kinds_is_none():
    """A journal that was edited is refused, and not counted or written."""
    assert isinstance(parse_result(record()), Record)
    odd = {
        "p_value": -7, "score": float("inf"), "other_pictures": -3, "why": 5, "class_name": None, "prediction": "x",
        "families": None, "readings": [{}], "features": 5, "copies": [], "stage": True, "adversarial": 1,
        "judged": [8], "cost": {"forwards": "4"}, "unknown": 1,
    }  # fmt: skip
    assert [name for name, value in odd.items() if parse_result(record(**{name: value})) is not None] == []
    assert parse_result({"image": "a", "error": 5}) is None


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 8, 8).to_sparse(), torch.zeros(2, 1, 8, 8, device="meta"), np.zeros((2, 8, 8), np.longdouble),
     torch.zeros(2, 1, 8, 8, dtype=torch.uint16)],
)  # fmt: skip
def test_odd_tensors_get_one_line(images):
    """From Judge as from anything else."""
    with pytest.raises(DataError, match="expected"):
        Judge("digits")(images)
    assert Judge("digits")(torch.zeros(2, 1, 8, 8, dtype=torch.bfloat16))["advconn_error"].tolist() == ["", ""]
