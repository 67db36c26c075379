"""The gate's table: the pixels that are judged are those that are classified, and nothing passes unjudged."""

import io
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from brought import one_line, photo_cd, run, saved
from PIL import Image, TiffImagePlugin
from sklearn.datasets import load_digits

from advconn import bundle
from advconn.data import decoding, sandbox
from advconn.data.collection import Collection
from advconn.data.decoding import content, frames_of, views
from advconn.data.preprocessing import Preprocessing
from advconn.errors import AdvconnWarning, DataError
from advconn.scoring.resume_journal import SUFFIX

CLEAN = (load_digits().images[1000:1200] * 255 / 16).round().astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
LOOK = Preprocessing(size=(8, 8), channels=1)
DIGITS = ["score", "--detector", "digits", "--format", "json"]


def judged(*args):
    """(exit status, records, stderr) of advconn score."""
    out = run(*DIGITS, *args)
    assert "inside advconn" not in out.stderr
    return out.exit_code, [json.loads(line) for line in out.stdout.splitlines()], out.stderr


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def tiff(pages, path):
    """Pages as (array, whether it says that it is a reduced copy)."""
    out = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(out, True) as writer:
        for array, reduced in pages:
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            if reduced:
                tags[254] = 1
            Image.fromarray(array).save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
    path.write_bytes(out.getvalue())


def large(array, k):
    return np.kron(array, np.ones((k, k), np.uint8))


def test_a_file_that_two_formats_open_is_judged_as_each_reads_it(tmp_path):
    """A WebP with a PhotoCD behind it: whichever a loader takes, its pixels were judged."""
    cover = saved(Image.fromarray(CLEAN[3]).convert("RGB"), "WEBP", lossless=True)
    (tmp_path / "a.webp").write_bytes(photo_cd(cover, NOISE[0]))
    _, (record,), _ = judged(tmp_path / "a.webp")
    assert record["readings"] == ["plain", "plain as WEBP"]
    Image.open(tmp_path / "a.webp", formats=["PCD"]).save(tmp_path / "hidden.png")
    Image.open(tmp_path / "a.webp", formats=["WEBP"]).save(tmp_path / "cover.png")
    each = [judged(tmp_path / name)[1][0]["p_value"] for name in ("hidden.png", "cover.png")]
    assert record["p_value"] == pytest.approx(min(each))


def test_what_a_format_that_is_left_out_would_open_is_refused(tmp_path):
    """PostScript by its mark; IPTC, which has none, before a TGA."""
    tga = bytearray(saved(Image.fromarray(CLEAN[3]), "TGA"))
    iptc = b"\x1c\x03\x3c\x00\x02\x01\x00\x1c\x03\x14\x00\x02\x00\x08\x1c\x03\x1e\x00\x02\x00\x08\x1c\x08\x0a\x00\x01x"
    for name, data in (("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), ("b.tga", iptc + bytes(tga))):
        (tmp_path / name).write_bytes(data)
        status, (record,), _ = judged(tmp_path / name)
        assert status == 2, name
        assert "error" in record


def test_spliced_pictures_show_no_other_pixels_than_a_plain_loader_reads():
    """All pairs of formats, one behind the other and one's head over the other."""
    x = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8))
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI")
    seeds = {kind: saved(x, kind) for kind in kinds}
    seen = 0
    for first, second in itertools.permutations(seeds, 2):
        for data in (seeds[first] + seeds[second], seeds[first][:18] + seeds[second][18:]):
            try:
                (ways,), _ = views(data, "x", Preprocessing(), "plain", "first")
                found = None if isinstance(ways, DataError) else [way.pixels.transpose(1, 2, 0) for way in ways]
            except DataError:
                found = None
            try:
                theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            except Exception:
                theirs = None
            if found is not None and theirs is not None:
                seen += 1
                assert any(np.array_equal(theirs, mine) for mine in found), (first, second)
    assert seen > 50


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("suffix", ["npy", "npz", "pt"])
def test_every_row_of_grey_images_is_judged(count, suffix, tmp_path):
    """Three images of (h, w) are no picture of three colours where the classifier takes grey ones."""
    save = {"npy": np.save, "npz": np.savez, "pt": lambda path, rows: torch.save(list(torch.from_numpy(rows)), path)}
    save[suffix](tmp_path / f"a.{suffix}", np.stack([CLEAN[3], NOISE[0], NOISE[1], CLEAN[3]])[:count])
    status, records, _ = judged(tmp_path / f"a.{suffix}")
    assert (status, [r["adversarial"] for r in records]) == (1, [False, True, True, False][:count])


def test_no_page_is_passed_over(tmp_path):
    """Whatever a page says of itself, and wherever a smaller one stands; a thumbnail behind is named."""
    tiff([(CLEAN[3], False), (NOISE[0], False)], tmp_path / "two.tif")
    tiff([(CLEAN[3], False), (NOISE[0], True)], tmp_path / "bit.tif")
    tiff(
        [(large(CLEAN[3], 4), False), (large(CLEAN[3], 2), False), (large(NOISE[0], 4), False)], tmp_path / "three.tif"
    )
    for name, count in (("two.tif", 2), ("bit.tif", 2), ("three.tif", 3)):
        assert judged(tmp_path / name)[0] == 2
        status, records, _ = judged("--frames", "all", tmp_path / name)
        assert (status, len(records)) == (1, count)
    tiff([(large(CLEAN[3], 2), False), (CLEAN[3], True)], tmp_path / "preview.tif")
    status, (record,), said = judged(tmp_path / "preview.tif")
    assert (status, record["other_pictures"]) == (0, 1)
    assert "1 other picture inside these files" in said
    assert judged("--strict", tmp_path / "preview.tif")[0] == 2
    assert judged("--strict", "--frames", "first", tmp_path / "two.tif")[0] == 2


def test_pictures_that_containers_hold_beside_the_first_are_counted(tmp_path):
    """An icon's sizes, a camera's second picture, layers; all pages of the second under --frames all."""
    big = Image.fromarray(large(CLEAN[3], 4))
    big.save(tmp_path / "a.ico", sizes=[(16, 16), (32, 32)])
    big.convert("RGB").save(
        tmp_path / "b.mpo", "MPO", save_all=True, append_images=[Image.fromarray(large(NOISE[0], 4)).convert("RGB")]
    )
    for name in ("a.ico", "b.mpo"):
        assert judged(tmp_path / name)[1][0]["other_pictures"] == 1, name
    assert judged("--frames", "all", tmp_path / "b.mpo")[0] == 1


def test_a_tiff_of_many_pages_is_told_at_once(tmp_path):
    """Its pages are not counted one after the other."""
    shorts = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 278: 8}
    tags = sorted([(k, 3, 1, v) for k, v in shorts.items()] + [(273, 4, 1, 8), (279, 4, 1, 64)])
    out = bytearray(b"II*\0" + struct.pack("<I", 72) + bytes(64))
    for i in range(30_000):
        after = 0 if i == 29_999 else len(out) + 2 + 12 * len(tags) + 4
        out += (
            struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", after)
        )
    (tmp_path / "a.tif").write_bytes(out)
    started = time.perf_counter()
    assert "32 or more frames" in one_line(run(*DIGITS, tmp_path / "a.tif"))
    assert "are too many" in one_line(run(*DIGITS, "--frames", "all", tmp_path / "a.tif"))
    assert time.perf_counter() - started < 10


def test_frames_are_judged_some_at_a_time(tmp_path):
    """As rows of an array are: memory does not grow with their number, and each has its name."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    (tmp_path / "a.gif").write_bytes(head + frame * 300 + b";")
    found = Collection(tmp_path / "a.gif", 1, frames="all")
    assert (len(found), frames_of(content(tmp_path / "a.gif"), "a")) == (300, 300)
    batches = list(found.batches(LOOK, batch_size=64))
    assert [len(batch.items) for batch in batches] == [64, 64, 64, 64, 44]
    assert batches[1].items[0].name.endswith("a.gif[frame 64]")


def test_a_picture_that_takes_too_long_is_refused():
    """The worker is ended, and the next call has another."""
    slow = saved(Image.effect_noise((3000, 3000), 50).convert("RGB"), "JPEG2000")
    with pytest.raises(sandbox.Limited, match="takes more than"):
        sandbox.call("advconn.data.decoding:decode", slow, "x", decoding.Wanted(LOOK, "plain"), seconds=0.05)
    found, _ = views(saved(Image.fromarray(CLEAN[3]), "TIFF"), "x", LOOK, "plain")
    assert np.array_equal(found[0][0].pixels[0], CLEAN[3])


def test_names_that_systems_leave_are_told_by_their_content(tmp_path):
    """A picture under such a name is judged; what is cut off is told."""
    Image.fromarray(CLEAN[3]).save(tmp_path / "a.png")
    Image.fromarray(NOISE[0]).save(tmp_path / "._evil.tga")
    shutil.copy(tmp_path / "._evil.tga", tmp_path / "thumbs.db")
    (tmp_path / "._cut.png").write_bytes(png(NOISE[0])[:20])
    (tmp_path / "._fine.png").write_bytes(b"\0\5\x16\7" + bytes(90))
    status, records, said = judged(tmp_path)
    assert status == 2
    assert {Path(r["image"]).name: r.get("adversarial") for r in records} == {
        "a.png": False, "._evil.tga": True, "._cut.png": None,
    }  # fmt: skip
    assert "1 file was no image" in said
    assert "thumbs.db" in said


def test_pictures_of_kinds_that_are_not_read_end_with_2(tmp_path):
    """By suffix and by mark; other files are named."""
    Image.fromarray(CLEAN[3]).save(tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    (tmp_path / "upload").write_bytes(bytes(128) + b"DICM" + bytes(200))
    status, records, _ = judged(tmp_path)
    assert status == 2
    assert sum("unsupported picture format" in r.get("error", "") for r in records) == 2


def test_no_array_of_images_is_passed_over_in_silence(tmp_path):
    """Arrays without names are all judged; under unusual names they are named, and end with 2 under --strict."""
    clean, bad = CLEAN[3][None], NOISE[0][None]
    np.savez(tmp_path / "a.npz", clean, bad)
    assert judged(tmp_path / "a.npz")[0] == 1
    np.savez(tmp_path / "b.npz", images=clean, images_2=bad)
    torch.save({"images": torch.from_numpy(clean), "more": {"adv": torch.from_numpy(bad)}}, tmp_path / "c.pt")
    for name, other in (("b.npz", "images_2"), ("c.pt", "more")):
        status, _, said = judged(tmp_path / name)
        assert status == 0
        assert f"[{other}]" in said
        assert judged("--strict", tmp_path / name)[0] == 2


def test_a_file_that_lies_about_its_rows_gets_one_line(tmp_path):
    """By a little, and by millions."""
    for rows in (4, 60_000_000):
        said = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({rows}, 8, 8), }}".ljust(117) + "\n"
        head = b"\x93NUMPY\1\0" + struct.pack("<H", len(said)) + said.encode()
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", head + CLEAN[:2].tobytes())
        data = bytearray((tmp_path / "a.npz").read_bytes())
        at = data.rindex(b"PK\1\2")
        data[at + 24 : at + 28] = struct.pack("<I", len(head) + rows * 64)
        (tmp_path / "a.npz").write_bytes(data)
        status, records, _ = judged(tmp_path / "a.npz")
        assert (status, len(records)) == (2, 1)


def test_an_array_that_shrinks_is_an_error_of_its_rows(tmp_path):
    """Not of the process."""
    np.save(tmp_path / "a.npy", CLEAN)
    found = Collection(tmp_path / "a.npy", 1)
    os.truncate(tmp_path / "a.npy", 4096)
    with pytest.raises(DataError, match="became shorter"):
        found.read(found.items[-1:], LOOK)


def test_the_same_file_twice_has_the_same_verdict_twice(tmp_path):
    """In any order, and read in two ways."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(CLEAN[3]).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(NOISE[0]).save(tmp_path / "b.png")
    alone = {name: judged(tmp_path / name)[1][0] for name in ("a.png", "b.png")}
    for order in (("a.png", "a.png", "b.png"), ("b.png", "a.png", "a.png", "b.png")):
        _, records, _ = judged(*(tmp_path / name for name in order))
        assert [Path(r["image"]).name for r in records] == list(order)
        for record in records:
            assert record["p_value"] == alone[Path(record["image"]).name]["p_value"]


@pytest.fixture
def stopped(tmp_path):
    """A folder of pictures, and the journal of a run over it that was stopped after its first step."""
    (tmp_path / "in").mkdir()
    for i in range(60):
        Image.fromarray(CLEAN[i]).save(tmp_path / "in" / f"{i:03}.png")
    out = tmp_path / "out.jsonl"
    np.save(tmp_path / "other.npy", CLEAN[:5])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = (
        "from advconn.cli import score_output; from advconn.cli import main\n"
        "score_output.ScoreRun.write = lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt)\nmain()"
    )
    line = [sys.executable, "-c", script, "score", "--detector", "digits", "--out", str(out), str(tmp_path / "in")]
    subprocess.run(line, env=environment, capture_output=True, check=False)
    assert Path(f"{out}{SUFFIX}").exists()
    return tmp_path


def resumed(place):
    out = run("score", "--detector", "digits", "--out", place / "out.jsonl", "--resume", place / "in")
    assert "inside advconn" not in out.stderr
    file = place / "out.jsonl"
    return out.exit_code, [json.loads(line)["image"] for line in file.open()] if file.exists() else None


def test_a_run_that_goes_on_has_a_record_of_every_image(stopped):
    status, names = resumed(stopped)
    assert status in (0, 1)
    assert names == [str(stopped / "in" / f"{i:03}.png") for i in range(60)]


def _add(place):
    Image.fromarray(NOISE[0]).save(place / "in" / "!.png")
    (place / "in" / "059.png").unlink()


def _replace(place):
    Image.fromarray(NOISE[0]).save(place / "in" / "000.png")


def _line(change):
    def edit(place):
        file = Path(f"{place / 'out.jsonl'}{SUFFIX}")
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(change(lines)))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        _add,
        _replace,
        _line(lambda lines: [lines[0], *lines[2:]]),
        _line(lambda lines: [lines[0], lines[1], *lines[1:]]),
        _line(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
        _line(lambda lines: [lines[0], b"[[0, 0], [], {}]\n", *lines[2:]]),
        _line(lambda lines: [lines[0], b"\xff\n", *lines[2:]]),
        _line(lambda lines: [lines[0], lines[1].replace(b'"class_name"', b'"klass_name"'), *lines[2:]]),
        _line(lambda lines: [lines[0], lines[1].replace(b'"adversarial": false', b'"adversarial": true '), *lines[2:]]),
        _line(lambda lines: [lines[0], b'{"done": 1}\n']),
        _line(lambda lines: [b'{"run": "advconn score"}\n', *lines[1:]]),
        _line(lambda lines: [b"[" * 100_000 + b"\n"]),
    ],
)
def test_a_journal_of_other_images_or_a_damaged_one_is_no_finished_run(change, stopped):
    """Images added, removed, replaced; records lost, doubled, exchanged, emptied; headers cut."""
    change(stopped)
    status, names = resumed(stopped)
    assert (status, names) == (2, None)


def test_two_runs_do_not_write_one_journal(stopped):
    from advconn.scoring.resume_journal import Journal

    file = Path(f"{stopped / 'out.jsonl'}{SUFFIX}")
    about = json.loads(file.open().readline())["about"]
    first = Journal(stopped / "out.jsonl", about, resume=True)
    with pytest.raises(DataError, match="another run writes it"):
        Journal(stopped / "out.jsonl", about, resume=True)
    first.close()


def test_a_shipped_name_is_the_shipped_detector(tmp_path, monkeypatch):
    """Whatever lies in the current folder; ./digits is the folder. One that can flag nothing is remarked on."""
    from safetensors.numpy import load_file, save

    from advconn.bundle import card_schema as cards
    from advconn.cascade.early_exit import cascade_score

    base = bundle.default("digits")
    shutil.copytree(base, tmp_path / "digits")
    tensors = load_file(base / "detector.safetensors")
    tensors = {k: np.full_like(v, 1e6) if k.startswith("calibration.") else v for k, v in tensors.items()}
    (tmp_path / "digits" / "detector.safetensors").write_bytes(save(tensors))
    card = json.loads((base / "card.json").read_text())
    card["files"]["detector.safetensors"] = cards.sha256(tmp_path / "digits" / "detector.safetensors")
    card["calibration"]["threshold"] = float(cascade_score(tensors["calibration.clean"], tuple(card["exits"]))[0][0])
    card["card"] = cards.digest(card)
    (tmp_path / "digits" / "card.json").write_text(json.dumps(card))
    Image.fromarray(NOISE[0]).save(tmp_path / "bad.png")
    monkeypatch.chdir(tmp_path)
    assert run("score", "--detector", "digits", "bad.png").exit_code == 1
    out = run("score", "--detector", "./digits", "bad.png")
    assert "can flag nothing" in out.stderr
    with pytest.warns(AdvconnWarning, match="can flag nothing"):
        bundle.load(tmp_path / "digits")


def test_results_keep_what_the_umask_asks_for(tmp_path):
    Image.fromarray(NOISE[0]).save(tmp_path / "bad.png")
    before = os.umask(0o077)
    try:
        run("score", "--detector", "digits", "--out", tmp_path / "p.csv", tmp_path / "bad.png")
        run("score", "--detector", "digits", "--out", tmp_path / "folder", tmp_path / "bad.png")
    finally:
        os.umask(before)
    for made in (tmp_path / "p.csv", tmp_path / "folder", tmp_path / "folder" / "results.csv"):
        assert made.stat().st_mode & 0o077 == 0


def test_names_that_a_writer_cannot_hold_cost_no_results(tmp_path):
    """Bytes of an old disk, in every kind of file; the current folder as --out."""
    pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    for name in (b"a.png", b"caf\xe9.png"):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(png(CLEAN[3]))
    for out in ("v.parquet", "v.csv", "v.jsonl", "v"):
        assert run("score", "--detector", "digits", "--out", tmp_path / out, tmp_path / "in").exit_code == 0
        assert (tmp_path / out).exists()
    assert (tmp_path / "v.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_class_names_that_look_like_formulas_are_drawn(tmp_path):
    from advconn.paths.plots import to_ascii

    assert to_ascii("$5 \\off$") == r"\$5 \off\$"
    detector = bundle.load(bundle.default("digits"))
    detector.classifier.class_names = tuple(f"${i} \\off$" for i in range(10))
    detector.explain(torch.from_numpy(NOISE[:1])[:, None]).figure().savefig(tmp_path / "a.png")


def test_sigterm_shows_what_was_judged(tmp_path):
    """As Ctrl-C does."""
    np.save(tmp_path / "many.npy", np.concatenate([CLEAN] * 60))
    line = [sys.executable, "-m", "advconn", *DIGITS, str(tmp_path / "many.npy")]
    process = subprocess.Popen(
        line,
        stdout=(tmp_path / "out").open("w"),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    for _ in range(600):
        if (tmp_path / "out").stat().st_size:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated" in said


def test_lists_and_packed_pictures(tmp_path, monkeypatch):
    """From a file, a table, standard input; zip, tar with labels, Parquet: every picture in them is judged."""
    from advconn.cli.path_lists import read_lists

    for name, array in (("a", CLEAN[3]), ("b", NOISE[0])):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    (tmp_path / "list.txt").write_text("a.png\n\nb.png\n")
    (tmp_path / "list.csv").write_text("label,path\n3,a.png\n4,b.png\n")
    for given in ([tmp_path / "list.txt"], [tmp_path / "list.csv"], ["--from", tmp_path / "list.txt"]):
        status, records, _ = judged(*given)
        assert (status, len(records)) == (1, 2)
    monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(b"a.png\n")}))
    monkeypatch.chdir(tmp_path)
    assert read_lists(Path("-")) == [Path("a.png")]
    (tmp_path / "none.csv").write_text("label\n3\n")
    assert "no column of paths" in one_line(run(*DIGITS, tmp_path / "none.csv"))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as pack:
        pack.write("a.png", "cat/a.png")
        pack.write("b.png", "dog/b.png")
        pack.writestr("scan.dcm", b"x")
        pack.writestr("notes.md", b"x")
    with tarfile.open(tmp_path / "p.tar", "w") as pack:
        for name in ("a", "b"):
            pack.add(f"{name}.png")
            entry = tarfile.TarInfo(f"{name}.cls")
            entry.size = 1
            pack.addfile(entry, io.BytesIO(b"7"))
    status, records, said = judged(tmp_path / "p.zip")
    assert (status, len(records), sum("error" in r for r in records)) == (2, 3, 1)
    assert "notes.md" in said
    assert [item.label for item in Collection(tmp_path / "p.zip").items] == ["cat", "dog"]
    status, records, _ = judged("--strict", tmp_path / "p.tar")
    assert (status, len(records)) == (1, 2)
    assert [item.label for item in Collection(tmp_path / "p.tar").items] == ["7", "7"]
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"image": {"bytes": Path(f"{n}.png").read_bytes(), "path": n}, "label": 7} for n in ("a", "b")]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=1)
    status, records, _ = judged(tmp_path / "p.parquet")
    assert (status, [r["adversarial"] for r in records]) == (1, [False, True])


def test_sarif_names_flagged_images_and_failures(tmp_path):
    Image.fromarray(NOISE[0]).save(tmp_path / "bad one.png")
    (tmp_path / "cut.png").write_bytes(png(NOISE[0])[:20])
    out = run("score", "--detector", "digits", "--format", "sarif", tmp_path)
    assert out.exit_code == 2
    (found,) = json.loads(out.stdout)["runs"]
    assert sorted(r["ruleId"] for r in found["results"]) == ["adversarial", "not-judged"]
    assert any("bad%20one.png" in json.dumps(r) for r in found["results"])


def test_findings_for_siems_and_build_servers(tmp_path):
    """OCSF: what the schema requires of class 2004, a line a finding. JUnit: all counted, whatever their names hold."""
    Image.fromarray(NOISE[0]).save(tmp_path / "bad <one> & \x07.png")
    Image.fromarray(CLEAN[3]).save(tmp_path / "fine.png")
    (tmp_path / "cut.png").write_bytes(png(NOISE[0])[:20])
    out = run("score", "--detector", "digits", "--format", "ocsf", tmp_path)
    assert out.exit_code == 2
    lines = [json.loads(line) for line in out.stdout.splitlines()]
    assert len(lines) == 2
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
    for line in lines:
        assert required <= set(line)
        assert (line["class_uid"], line["category_uid"], line["type_uid"]) == (2004, 2, 200401)
        assert {"uid", "title"} <= set(line["finding_info"])
        assert {"product", "version"} <= set(line["metadata"])
        assert line["is_alert"] is True
    (flagged,) = [line for line in lines if "attacks" in line["finding_info"]]
    assert flagged["finding_info"]["attacks"][0]["technique"]["uid"] == "AML.T0043"
    assert 0 < flagged["evidences"][0]["data"]["p_value"] <= 0.05
    out = run("score", "--detector", "digits", "--format", "junit", tmp_path)
    assert out.exit_code == 2
    (suite,) = ElementTree.fromstring(out.stdout)
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert sorted(child.tag for case in suite for child in case) == ["error", "failure"]
    assert suite[-1].get("name") == "1 images that are not flagged"
    assert out.stdout.isascii()


def test_what_numpy_would_load_from_an_archive_is_judged_or_named(tmp_path):
    """Members without a suffix, two of one name, other shapes and types; a second array in one .npy."""

    def npy(array):
        out = io.BytesIO()
        np.save(out, array)
        return out.getvalue()

    for names in (("images.npy", "images"), ("images.npy", "images.npy")):
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            warnings.simplefilter("ignore")
            for name, array in zip(names, (CLEAN[:2], NOISE[:1]), strict=True):
                archive.writestr(name, npy(array))
        assert "two arrays are called images" in one_line(run(*DIGITS, tmp_path / "a.npz"))
    for other in (NOISE[0], NOISE[:1][None, None], NOISE[:1].astype(np.int16)):
        np.savez(tmp_path / "b.npz", images=CLEAN[:2], evil=other, labels=np.zeros(2, int))
        assert judged("--strict", tmp_path / "b.npz")[0] == 2
    (tmp_path / "c.npy").write_bytes(npy(CLEAN[:2]) + npy(NOISE[:1]))
    assert judged(tmp_path / "c.npy")[0] == 2


def test_members_of_archives_are_told_by_their_bytes(tmp_path):
    """Pictures without a suffix, beside others, in folders with data; links and damage are refused."""
    clean, evil = png(CLEAN[3]), png(NOISE[0])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        for name, data in (("a.png", clean), ("a.json", evil), ("upload", evil), ("e.png/", evil)):
            pack.writestr(name, data)
        pack.writestr("__MACOSX/._a.png", b"\0\5\x16\7" + bytes(50))
        pack.writestr("scan", bytes(128) + b"DICM" + bytes(100))
    status, records, _ = judged(tmp_path / "a.zip")
    assert status == 2
    assert [r.get("adversarial") for r in records] == [False, True, True, True, None]

    def tar(name, *members):
        with tarfile.open(tmp_path / name, "w") as pack:
            for member, kind, data in members:
                entry = tarfile.TarInfo(member)
                entry.type, entry.size = kind, len(data)
                entry.linkname = "a.png" if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE) else ""
                pack.addfile(entry, io.BytesIO(data))

    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, b"Z"):
        tar("b.tar", ("a.png", tarfile.REGTYPE, clean), ("evil.png", kind, b"" if kind != b"Z" else evil))
        status, records, _ = judged(tmp_path / "b.tar")
        assert (status, len(records)) == (2, 2)
    tar("c.tar", *((f"{i}.png", tarfile.REGTYPE, clean) for i in range(3)))
    whole = (tmp_path / "c.tar").read_bytes()
    at = whole.index(b"1.png")
    for data in (whole[:at] + b"x" + whole[at + 1 :], whole[:1024], whole + whole):
        (tmp_path / "c.tar").write_bytes(data)
        assert judged(tmp_path / "c.tar")[0] == 2
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(clean)
    shutil.copy(tmp_path / "a.zip", tmp_path / "in" / "a.zip")
    status, records, _ = judged(tmp_path / "in")
    assert (status, len(records)) == (2, 2)
    (tmp_path / "in" / "a.zip").unlink()
    with zipfile.ZipFile(tmp_path / "in" / "b.zip", "w") as pack:
        pack.writestr("b.png", clean)
    assert judged(tmp_path / "in", tmp_path / "in" / "b.zip")[0] == 0


def test_tables_name_their_other_columns_and_are_read_a_few_rows_at_a_time(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = {"image": [png(CLEAN[3])] * 3, "images": [[png(NOISE[0])]] * 3, "label": [1, 2, 3]}
    parquet.write_table(pa.table(rows), tmp_path / "a.parquet")
    status, records, said = judged("--strict", tmp_path / "a.parquet")
    assert (status, len(records)) == (2, 3)
    assert "[images]" in said
    wide = pa.table({"image": pa.array([b"x" * 2**20] * 300, pa.binary())})
    parquet.write_table(wide, tmp_path / "b.parquet", use_dictionary=True, compression="zstd")
    assert all("not an image" in record["error"] for record in judged(tmp_path / "b.parquet")[1])
    held = Collection(tmp_path / "b.parquet", 1)
    assert len(held._packed.content(299)) == 2**20


def test_names_in_lists_are_taken_as_they_are(tmp_path):
    """Spaces and other line ends belong to them; a table has one column of paths."""
    from advconn.cli.path_lists import read_lists

    for name in ("d.png", "d.png ", "c.png\u2028c.png"):
        (tmp_path / name).write_bytes(png(NOISE[0] if name != "d.png" else CLEAN[3]))
    (tmp_path / "l.txt").write_text("d.png \nc.png\u2028c.png\n")
    assert [path.name for path in read_lists(tmp_path / "l.txt")] == ["d.png ", "c.png\u2028c.png"]
    (tmp_path / "l.txt").write_bytes(b"d.png\0d.png \0")
    assert [path.name for path in read_lists(tmp_path / "l.txt")] == ["d.png", "d.png "]
    (tmp_path / "l.txt").write_bytes("d.png\r\n".encode("utf-16"))
    assert [path.name for path in read_lists(tmp_path / "l.txt")] == ["d.png"]
    for text in ("path,path\na,b\n", "image,path\na,b\n", 'path\na\n""\n', 'path\n"a\n'):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(DataError):
            read_lists(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("label;path\r\n1;d.png\r\n")
    assert [path.name for path in read_lists(tmp_path / "l.csv")] == ["d.png"]


def test_a_mark_of_a_system_on_a_picture_leaves_it_a_picture(tmp_path):
    """A GIMP brush whose header is as long as AppleDouble's mark says."""
    (tmp_path / "a.png").write_bytes(png(CLEAN[3]))
    head = struct.pack(">IIIII", 0x00051607, 1, 8, 8, 1)
    (tmp_path / "._evil.png").write_bytes(head + b"x" * (0x51607 - 20) + NOISE[0].tobytes())
    status, records, _ = judged(tmp_path)
    assert (status, [r["adversarial"] for r in records]) == (1, [True, False])


def test_pictures_behind_a_picture_are_counted(tmp_path):
    """Netpbm's sequences."""
    one, two = (b"P5 8 8 255\n" + x.tobytes() for x in (CLEAN[3], NOISE[0]))
    for data, count in ((one, 0), (one + b"\n", 0), (one + two, 1)):
        (tmp_path / "a.pgm").write_bytes(data)
        status, (record,), _ = judged(tmp_path / "a.pgm")
        assert (status, record["other_pictures"]) == (0, count)


def test_files_that_change_between_listing_and_use_are_refused(tmp_path):
    """Frames that come to a picture, members that come to an archive; a replaced file whose time was put back."""
    frames = [Image.fromarray(x) for x in (CLEAN[3], NOISE[0], NOISE[1])]
    frames[0].save(tmp_path / "a.gif")
    found = Collection(tmp_path / "a.gif", 1, frames="all")
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="was changed"):
        found.read(found.items, LOOK)
    for names in (["a"], ["a", "b"]):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
            for name in names:
                pack.writestr(f"{name}.png", png(NOISE[0]))
        if names == ["a"]:
            packed = Collection(tmp_path / "a.zip", 1)
    with pytest.raises(DataError, match="was changed"):
        packed.read(packed.items, LOOK)
    from advconn.data.collection import Item
    from advconn.scoring.batch import mark_of

    (tmp_path / "1.bmp").write_bytes(bytes(80))
    before, times = mark_of(Item("x", tmp_path / "1.bmp")), (tmp_path / "1.bmp").stat()
    time.sleep(0.02)
    (tmp_path / "1.bmp").write_bytes(bytes(79) + b"x")
    os.utime(tmp_path / "1.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert mark_of(Item("x", tmp_path / "1.bmp")) != before


def test_later_frames_are_measured_before_they_are_decoded(tmp_path):
    """A small first one says nothing of them."""
    small = b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0) + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", 13000, 13000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    (tmp_path / "a.gif").write_bytes(head + small * 3 + b";")
    status, records, _ = judged("--frames", "all", tmp_path / "a.gif")
    assert status == 2
    assert all("megapixels" in r["error"] or "too many" in r["error"] for r in records)
