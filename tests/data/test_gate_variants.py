"""Variants by which a picture could pass unjudged, or a file stop everything: each was tried by an attacker."""

import io
import json
import struct
import time
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from brought import photo_cd, run, saved
from PIL import Image
from sklearn.datasets import load_digits

import advconn
from advconn import bundle
from advconn.data import decoding
from advconn.data.collection import Collection
from advconn.data.decoding import views
from advconn.data.preprocessing import Preprocessing
from advconn.detector.calibration import Calibration, combine_readings
from advconn.errors import AdvconnWarning, DataError, FitError

CLEAN = (load_digits().images[1000:1012] * 255 / 16).round().astype(np.uint8)
LOOK = Preprocessing(size=(8, 8), channels=1)


def others(data):
    """How many pictures beside the judged ones a file is said to hold."""
    return views(data, "x", LOOK, "both", "first")[1]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def strip_tiff(pixels, rows_per_strip):
    """An uncompressed TIFF of one strip, which says that a strip has so many rows."""
    h, w = pixels.shape
    entries = [
        (256, 3, 1, w), (257, 3, 1, h), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8 + 2 + 12 * 9 + 4),
        (277, 3, 1, 1), (278, 3, 1, rows_per_strip), (279, 4, 1, w * h),
    ]  # fmt: skip
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    out += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return out + struct.pack("<I", 0) + pixels.tobytes()


def test_a_strip_that_a_path_shows_otherwise_than_bytes_is_refused(tmp_path):
    """Pillow maps the file at a path, and takes all rows where bytes have one."""
    path = tmp_path / "a.tif"
    for rows, refused in ((1, True), (8, False)):
        path.write_bytes(strip_tiff(CLEAN[0], rows))
        (found,), _ = views(path.read_bytes(), "a.tif", LOOK, "plain")
        assert isinstance(found, DataError) == refused
        if not refused:
            assert np.array_equal(found[0].pixels[0], np.asarray(Image.open(path)))


def test_a_tag_that_adds_a_reading_does_not_weaken_the_plain_one():
    """The upright one speaks with twice its p."""
    calibration = Calibration(np.arange(99.0), fpr=0.05)
    assert combine_readings([0.04, 0.9], [True, False], ["plain", "upright"], calibration) == (0, 0.04, True)
    assert combine_readings([0.9, 0.04], [False, True], ["plain", "upright"], calibration) == (1, 0.08, False)
    assert combine_readings([0.9, 0.02], [False, True], ["plain", "upright"], calibration) == (1, 0.04, True)
    assert combine_readings([0.9, 0.04], [False, True], ["plain", "plain as WEBP"], calibration) == (1, 0.04, True)


def animated_png(controls):
    """A PNG with frames behind its picture, and so many chunks that say how many there are."""
    whole = saved(CLEAN[0])
    end, data = whole.index(b"IDAT") - 4, whole[whole.index(b"IDAT") - 4 :]
    length = int.from_bytes(data[:4], "big")
    control = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 0, 0)
    second = struct.pack(">IIIIIHHBB", 1, 8, 8, 0, 0, 1, 1, 0, 0)
    frames = chunk(b"fcTL", control) + data[: 12 + length] + chunk(b"fcTL", second)
    frames += chunk(b"fdAT", struct.pack(">I", 2) + data[8 : 8 + length])
    return whole[:end] + controls + frames + data[12 + length :]


@pytest.mark.parametrize(
    "controls",
    [chunk(b"acTL", struct.pack(">II", n, 0)) * times for n, times in ((2, 2), (0, 1), (1, 1))],
    ids=["two", "none", "one"],
)
def test_frames_of_a_png_that_pillow_does_not_show_are_counted(controls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert others(animated_png(controls)) == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_picture_behind_a_picture_is_counted(kind):
    """Also a zip archive, and with zeros between; a photograph's own zeros are none."""
    one, two = saved(CLEAN[0], kind), saved(CLEAN[1], kind)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("b.png", saved(CLEAN[1]))
    assert [others(data) for data in (one, one + bytes(64))] == [0, 0]
    assert [others(data) for data in (one + two, one + bytes(8) + two, one + archive.getvalue())] == [1, 1, 1]


def test_sizes_of_icons_and_faces_of_cubes_are_counted():
    icns = bytearray(saved(np.kron(CLEAN[0], np.ones((4, 4), np.uint8)), "ICNS"))
    first = int.from_bytes(icns[12:16], "big")
    entry = icns[8 : 8 + first]
    twice = icns[:8] + entry + icns[8:]
    twice[4:8] = struct.pack(">I", len(twice))
    before = others(bytes(icns))
    assert others(bytes(twice)) == before + (entry[:4] not in (b"TOC ", b"icnV"))
    dds = bytearray(saved(CLEAN[0], "DDS"))
    assert others(bytes(dds)) == 0
    dds[112:116] = struct.pack("<I", 0xFE00)
    assert others(bytes(dds)) == 5


def test_what_unpacks_to_much_is_no_matter_for_this_process():
    """Profiles of a PNG, blocks of EXIF data of a JPEG: however few the pixels."""
    png, jpeg = saved(CLEAN[0]), saved(CLEAN[0], "JPEG")
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20)))
    many = png[:33] + profile * 300 + png[33:]
    empty = png[:33] + chunk(b"teSt", b"") * 30_000 + png[33:]
    segment = b"\xff\xe1" + struct.pack(">H", 60_002) + b"Exif\0\0" + bytes(59_994)
    for data, near in (
        (png, True),
        (jpeg, True),
        (many, False),
        (empty, False),
        (jpeg[:2] + segment * 5 + jpeg[2:], False),
    ):
        assert decoding._is_near(data) == near


def test_members_are_told_by_their_content(tmp_path):
    """A TGA that is called a text, a mark of a system on a picture, and what stands before an archive."""
    tga = saved(CLEAN[1], "TGA")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", saved(CLEAN[0]))
        archive.writestr("a.txt", tga)
        archive.writestr("a.json", "{}")
    found = Collection(tmp_path / "a.zip", 1)
    assert (len(found), [name.partition("[")[2] for name in found.skipped]) == (1, ["a.txt]"])
    whole = (tmp_path / "a.zip").read_bytes()
    np.savez(tmp_path / "a.npz", images=CLEAN)
    arrays = (tmp_path / "a.npz").read_bytes()
    for name, data in (("b.zip", whole + whole), ("c.zip", saved(CLEAN[0]) + whole), ("d.npz", tga + arrays)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="stands before"):
            Collection(tmp_path / name, 1)


def test_arrays_under_the_names_of_labels_are_counted(tmp_path):
    kept = {"images": CLEAN[:3], "labels": np.arange(3)}
    cases = [kept | {"y": CLEAN[3:6]}, kept | {"y": np.zeros(70)[:, None]}, kept | {"targets": np.eye(3)}]
    field = np.zeros(2, dtype=[("picture", np.uint8, (8, 8))])
    for i, arrays in enumerate([*cases, kept | {"other": field}]):
        np.savez(tmp_path / f"{i}.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "0.npz", "a") as archive:
        archive.writestr("b.png", saved(CLEAN[1]))
    told = [[n.partition("[")[2] for n in Collection(tmp_path / f"{i}.npz", 1).other_arrays] for i in range(4)]
    assert told == [["y]", "b.png]"], ["y]"], [], ["other]"]]
    torch.save({k: torch.from_numpy(v) for k, v in cases[0].items()}, tmp_path / "a.pt")
    assert [n.partition("[")[2] for n in Collection(tmp_path / "a.pt", 1).other_arrays] == ["y]"]


def test_torch_files_that_name_much_in_few_bytes(tmp_path):
    """A list in lists, each twice; one tensor many times; images far inside."""
    nested = [torch.zeros(1)]
    for _ in range(30):
        nested = [nested, nested]
    deep = torch.from_numpy(CLEAN)
    for _ in range(8):
        deep = {"in": deep}
    started = time.perf_counter()
    torch.save({"images": torch.from_numpy(CLEAN), "nested": nested, "deep": deep}, tmp_path / "a.pt")
    found = Collection(tmp_path / "a.pt", 1)
    assert [name.partition("[")[2] for name in found.other_arrays] == ["deep]"]
    torch.save([torch.zeros(1024, 1024)] * 300, tmp_path / "b.pt")
    with pytest.raises(DataError, match="split it"):
        Collection(tmp_path / "b.pt", 1)
    assert time.perf_counter() - started < 10


def test_tables_that_name_much_in_few_bytes(tmp_path):
    """A long label of every row, long pictures in few bytes; bytes in other columns are counted."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    png = saved(CLEAN[0])
    pq.write_table(pa.table({"image": [png] * 100, "label": ["x" * 10**6] * 100}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="characters"):
        Collection(tmp_path / "a.parquet", 1)
    pq.write_table(pa.table({"image": [png + bytes(10**8)] * 2}), tmp_path / "b.parquet", compression="zstd")
    with pytest.raises(DataError, match="grows more than"):
        Collection(tmp_path / "b.parquet", 1)
    held = pa.array([{"bytes": png, "thumb": png}] * 2, pa.struct([("bytes", pa.binary()), ("thumb", pa.binary())]))
    more = pa.array([list(png)] * 2, pa.list_(pa.uint8()))
    pq.write_table(pa.table({"image": held, "second": more, "label": ["3", "5"]}), tmp_path / "c.parquet")
    found = Collection(tmp_path / "c.parquet", 1)
    assert {name.partition("[")[2] for name in found.skipped} == {"second]", "image.thumb]"}
    assert [item.label for item in found.items] == ["3", "5"]


def test_files_sent_as_binary_are_read_in_one_pass():
    from advconn.serving.open_inference_protocol import parse_request

    about = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 * 10**6}}
    head = json.dumps({"inputs": [about]}).encode()
    started = time.perf_counter()
    with pytest.raises(DataError, match="more than 1 files"):
        parse_request(head + bytes(4 * 10**6), len(head), 256)
    assert time.perf_counter() - started < 1


def test_pictures_that_are_inferred_are_read_as_those_that_are_scored():
    """Turned by a tag: both readings are judged, and logits are of the plain one."""
    import base64

    pytest.importorskip("starlette")
    from starlette.testclient import TestClient

    from advconn.serving import Judge
    from advconn.serving.app import Server

    exif = Image.Exif()
    exif[0x0112] = 6
    server = Server(Judge("digits"), "digits", "", note=lambda text: None)
    with TestClient(server.app()) as client:
        for array in CLEAN:
            file = saved(array, exif=exif)
            data = [base64.b64encode(file).decode()]
            body = {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": data}]}
            said = {o["name"]: o["data"] for o in client.post("/v2/models/digits/infer", json=body).json()["outputs"]}
            (record,) = client.post("/score", content=file).json()
            assert record["readings"] == ["plain", "upright"]
            assert said["advconn_p_value"] == [pytest.approx(record["p_value"])]
            assert said["advconn_flag"] == [record["adversarial"]]
            plain = server.judge(array[None])["logits"][0]
            assert np.allclose(said["logits"], plain, atol=1e-4)


def test_a_threshold_that_no_image_reaches_is_told(tmp_path, monkeypatch):
    """Of a bundle whose scores were forged; a guard refuses one."""
    from advconn.bundle import loading

    detector = bundle.load(bundle.default("digits"))
    forged = {name: scores.copy() for name, scores in detector.clean_.items()}
    top = np.argsort(forged["clean"][:, -1])[-60:]
    forged["clean"][top] = 1e9 + np.arange(60)[:, None] * 1e6
    detector.set_calibration(forged, detector.predicted_, detector.group_)
    with pytest.warns(AdvconnWarning, match="can flag nothing"):
        loading._warn_of_no_flags(tmp_path, detector)
    with pytest.raises(FitError, match="may exceed"):
        advconn.Guard(bundle.load(bundle.default("digits")), threshold=float("inf"))


def test_odd_tensors_are_refused_in_one_line():
    guard = advconn.Guard(bundle.load(bundle.default("digits")))
    images = torch.rand(2, 1, 8, 8)
    for odd in (images.to_sparse(), images.to(torch.complex64), images.to(torch.float8_e4m3fn)):
        with pytest.raises(DataError, match="expected"):
            guard(odd)


def test_a_file_of_two_formats_is_refused_where_rows_are_images(tmp_path):
    """A library call gets one row a file."""
    (tmp_path / "a.webp").write_bytes(photo_cd(saved(CLEAN[0], "WEBP", lossless=True), CLEAN[1]))
    with pytest.raises(DataError, match="several formats"):
        bundle.load(bundle.default("digits")).read([tmp_path / "a.webp"])
    assert run("score", "--detector", "digits", tmp_path / "a.webp").exit_code in (0, 1)
