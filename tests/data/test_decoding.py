"""The picture's table: what the classifier's loader sees is judged, and nothing is left out without a word."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from brought import NET, fitted, folder, images, one_line, run, trained
from PIL import Image, features
from torchvision.datasets.folder import default_loader

import advconn
from advconn.attacks.attack import Attack, round_to_bytes
from advconn.data.collection import Collection, Item
from advconn.data.decoding import content, views
from advconn.data.preprocessing import Preprocessing
from advconn.errors import DataError

LOOK = Preprocessing(size=(32, 32))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Options that name a fitted detector and its model, a file with weights beside it."""
    place = tmp_path_factory.mktemp("known")
    torch.save(trained().state_dict(), place / "w.pt")
    (place / "mine.py").write_text(NET + "\ndef build():\n    return Net().eval()\n")
    advconn.save(fitted(), place / "detector")
    return ["--detector", place / "detector", "--model", f"{place}/mine.py:build", "--weights", place / "w.pt"]


def picture(path, channels=3, reading="upright"):
    """The still picture (h, w, c) or (h, w) in a file."""
    (ways,), _ = views(content(path), str(path), Preprocessing(channels=channels), reading)
    if isinstance(ways, DataError):
        raise ways
    (way,) = ways
    return way.pixels.transpose(1, 2, 0).squeeze()


def records(out):
    return [json.loads(line) for line in out.stdout.splitlines()]


def attacked():
    """Attacked copies (n, 16, 16, 3) uint8 that are flagged as they are."""
    x, y = images(n=40, seed=9)
    c = fitted().classifier
    made = round_to_bytes(Attack.parse("pgd:eps=24/255,steps=10").run(c, c.check(x), y))
    made = made[torch.from_numpy(fitted().p_value(made) <= 0.05)][:6]
    assert len(made) == 6
    return (made * 255).round().byte().permute(0, 2, 3, 1).numpy()


def hidden(array, way, path):
    """The same pixels for a plain loader, others for a person."""
    picture = Image.fromarray(array)
    extra = {}
    if way == "turn":
        exif = Image.Exif()
        exif[0x0112] = 3
        extra = {"exif": exif}
    elif way == "alpha":
        picture.putalpha(40)
    elif way == "palette":
        picture = picture.quantize(256)
        extra = {"transparency": bytes([30] * 256)}
    picture.save(path, **extra)


@pytest.mark.parametrize("way", ["turn", "alpha", "palette"])
def test_what_a_plain_loader_sees_is_judged(way, known, tmp_path):
    """An EXIF turn or transparency hides an attacked picture from people, not from us; which reading spoke is said."""
    for i, array in enumerate(attacked()):
        hidden(array, way, tmp_path / f"{i}.png")
        seen = np.asarray(default_loader(str(tmp_path / f"{i}.png")))
        if way != "palette":
            assert np.array_equal(seen, array)
    plain = run("score", tmp_path, *known, "--format", "json", "--reading", "plain")
    both = run("score", tmp_path, *known, "--format", "json")
    assert all(r["adversarial"] for r in records(plain)) or way == "palette"
    for one, two in zip(records(plain), records(both), strict=True):
        assert two["readings"] == ["plain", "upright"]
        assert two["adversarial"] == (two["p_value"] <= 0.1)
        if two["reading"] == "plain":
            assert two["p_value"] == one["p_value"]
        assert two["p_value"] <= one["p_value"]
        assert two["adversarial"] >= one["adversarial"]
    assert "read in two ways" in both.stderr


def test_a_picture_that_reads_the_same_both_ways_is_judged_once(known, tmp_path):
    """Opaque alpha, and an upright tag."""
    picture = Image.fromarray(attacked()[0])
    picture.putalpha(255)
    picture.save(tmp_path / "a.png")
    (record,) = records(run("score", tmp_path, *known, "--format", "json"))
    assert record["readings"] == ["plain"]
    alone = fitted().judge(fitted().read(tmp_path / "a.png"))
    assert record["cost"]["forwards"] == alone.total_cost.forwards


def test_sixteen_bits_are_scaled_for_people_and_cut_off_for_a_plain_loader(tmp_path):
    """Pillow's own convert is the plain reading; twelve bits in a sixteen-bit file are refused in one line."""
    values = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint16)
    Image.fromarray(values * 257).save(tmp_path / "full.png")
    full = {r: picture(tmp_path / "full.png", 1, r) for r in ("plain", "upright")}
    assert np.array_equal(full["upright"], values)
    assert np.array_equal(full["plain"], np.asarray(Image.open(tmp_path / "full.png").convert("L")))
    Image.fromarray(values * 15).save(tmp_path / "twelve.png")
    with pytest.raises(DataError, match="12 bits"):
        picture(tmp_path / "twelve.png")
    assert len(next(Collection(tmp_path / "full.png", 3, reading="both").batches(LOOK)).items) == 2


def test_every_suffix_at_any_depth_is_judged_and_the_rest_is_told(known, tmp_path):
    """jfif, jpe, avif, jp2, none at all; hidden folders; a Mac's and Windows's files are known."""
    array = images(n=1)[0][0].permute(1, 2, 0).numpy()
    wanted = {
        "a.png": "PNG",
        "b.jfif": "JPEG",
        "c.jpe": "JPEG",
        "e": "PNG",
        "cam1/2024/g.png": "PNG",
        ".hidden/i.png": "PNG",
    }
    wanted |= {"d.avif": "AVIF"} if features.check("avif") else {}
    wanted |= {"f.jp2": "JPEG2000"}
    for name, kind in wanted.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / name, kind)
    (tmp_path / "__MACOSX").mkdir()
    apple, windows, finder = b"\0\5\x16\7", b"\xd0\xcf\x11\xe0", b"\0\0\0\1Bud1"
    left = {"._a.png": apple, "Thumbs.db": windows, ".DS_Store": finder, "__MACOSX/._a.png": apple}
    for junk, mark in (left | {"desktop.ini": b"[.ShellClassInfo]"}).items():
        (tmp_path / junk).write_bytes(mark)
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "drawing").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    out = run("score", tmp_path, *known, "--format", "json")
    assert {os.path.relpath(r["image"], tmp_path) for r in records(out)} == set(wanted)
    assert "2 files were no images" in out.stderr
    assert "notes.txt" in out.stderr
    assert out.exit_code in (0, 1)
    assert run("score", tmp_path, *known, "--strict").exit_code == 2


def test_links_pipes_and_loops_in_a_folder(known, tmp_path):
    """A loop ends, a dangling link and a pipe are told, and the image beside them is judged."""
    folder(tmp_path, images(n=1)[0])
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to("/nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    out = run("score", tmp_path, *known, "--format", "json")
    assert sum("adversarial" in r for r in records(out)) == 1
    assert sorted(os.path.basename(r["image"]) for r in records(out) if "error" in r) == ["gone.png", "pipe.png"]
    assert out.exit_code == 2
    for name in ("pipe.png", "gone.png"):
        assert name in one_line(run("score", tmp_path / name, *known))


def test_postscript_is_never_opened(tmp_path):
    """Whatever it is called."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "holiday.png")
    with pytest.raises(DataError, match="not supported"):
        next(Collection(tmp_path / "holiday.png", 3).batches(LOOK))


def test_a_jpeg_of_a_thousand_scans_is_refused_at_once(tmp_path):
    """It would keep a core busy for minutes."""
    import io

    buffer = io.BytesIO()
    Image.new("L", (640, 640), 128).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    at = data.rfind(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:at] + data[at:-2] * 1000 + data[-2:])
    with pytest.raises(DataError, match="scans"):
        picture(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(data)
    assert picture(tmp_path / "b.jpg").shape[:2] == (640, 640)


def test_a_damaged_exif_block_turns_nothing(known, tmp_path):
    """As with other readers; it takes nobody with it."""
    Image.fromarray(attacked()[0]).save(tmp_path / "a.jpg", exif=b"Exif\0\0XXXXXXXXXXXXXX", quality=95)
    folder(tmp_path, images(n=2)[0])
    assert len(records(run("score", tmp_path, *known, "--format", "json"))) == 3
    assert picture(tmp_path / "a.jpg").shape[:2] == (16, 16)


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_exif_turn_is_pillows(tag, tmp_path):
    """All eight orientations."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(attacked()[0][:12]).save(tmp_path / "a.png", exif=exif)
    theirs = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    assert np.array_equal(picture(tmp_path / "a.png"), np.asarray(theirs.convert("RGB")))


def test_small_files_that_would_take_much_memory(tmp_path):
    """A bytearray of two billion, an enormous float image, an animation of a thousand large frames."""

    class Large:
        def __reduce__(self):
            return bytearray, (2 * 10**9,)

    torch.save({"images": torch.zeros(2, 3, 16, 16), "a": Large()}, tmp_path / "a.pt")
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros((1, 2500, 2500, 3)))
    frames = [Image.new("P", (3000, 3000), i) for i in range(16)]
    frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], optimize=False)
    for name, text in (("a.pt", "bytearray"), ("b.npz", "MB an image"), ("c.gif", "too many")):
        with pytest.raises(DataError, match=text):
            list(Collection(tmp_path / name, 3, frames="all").batches(LOOK))


def test_animated_files_and_thumbnails(known, tmp_path):
    """Refused in a line that names --frames; the first or every frame is judged; a TIFF's thumbnail is no frame."""
    frames = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images(n=3)[0]]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "--frames" in one_line(run("score", tmp_path / "a.gif", *known))
    assert len(records(run("score", tmp_path / "a.gif", *known, "--frames", "first", "--format", "json"))) == 1
    names = [
        r["image"] for r in records(run("score", tmp_path / "a.gif", *known, "--frames", "all", "--format", "json"))
    ]
    assert len(set(names)) == 3
    frames[0].resize((64, 64)).save(tmp_path / "b.tif", save_all=True, append_images=[frames[0]])
    assert picture(tmp_path / "b.tif").shape[:2] == (64, 64)


@pytest.mark.parametrize("name", ["images", "x", "x_adv", "adv", "data", "arr_0"])
@pytest.mark.parametrize("kind", [".npz", ".pt"])
def test_arrays_under_the_usual_names(name, kind, tmp_path):
    """HWC or CHW, bytes or floats, told by the classifier's channels."""
    x = images(n=4)[0]
    for axes, dtype in (
        (x, "bytes"),
        (x.permute(0, 2, 3, 1), "bytes"),
        (x / 255, "floats"),
        (x.permute(0, 2, 3, 1) / 255, "floats"),
    ):
        path = tmp_path / f"a{kind}"
        if kind == ".npz":
            np.savez(path, **{name: axes.numpy()})
        else:
            torch.save({name: axes.clone()}, path)
        (batch,) = Collection(path, 3).batches(Preprocessing(size=(16, 16)))
        assert batch.images.dtype == (torch.uint8 if dtype == "bytes" else torch.float32)
        torch.testing.assert_close(batch.images.float() / (255 if dtype == "bytes" else 1), x / 255)
        assert batch.readings == ("array",) * 4


def test_every_array_of_images_in_a_file_is_judged(known, tmp_path):
    """Clean and attacked ones saved together; a list of tensors; a network of one channel says what it was given."""
    x = images(n=4)[0].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "two.npz", images=x[:2], adv=attacked(), labels=np.zeros(2, int))
    found = records(run("score", tmp_path / "two.npz", *known, "--format", "json"))
    assert sum("[images]" in r["image"] for r in found) == 2
    assert sum(r["adversarial"] for r in found if "[adv]" in r["image"]) == 6
    torch.save(list(images(n=3)[0]), tmp_path / "list.pt")
    assert len(records(run("score", tmp_path / "list.pt", *known, "--format", "json"))) == 3
    with pytest.raises(DataError, match=r"images of 3 channels.*takes 1"):
        list(Collection(tmp_path / "list.pt").batches(replace(LOOK, channels=1)))


def test_floats_stay_floats(known, tmp_path):
    """An attack that rounding to bytes undoes is written with --float and flagged; the same figures as in memory."""
    np.save(tmp_path / "x.npy", images(n=12, seed=9)[0].permute(0, 2, 3, 1).numpy())
    out = run(
        "attack",
        "--attack",
        "cw:steps=40,lr=0.02",
        "--float",
        "--data",
        tmp_path / "x.npy",
        "--out",
        tmp_path / "a",
        *known,
    )
    assert out.exit_code == 0, out.output
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["images.npz"]
    held = np.load(tmp_path / "a" / "images.npz")["images"]
    assert held.dtype == np.float32
    assert np.abs(held * 255 - np.round(held * 255)).max() > 0.01
    scores = [r["score"] for r in records(run("score", tmp_path / "a" / "images.npz", *known, "--format", "json"))]
    want = fitted().score_samples(torch.from_numpy(held).permute(0, 3, 1, 2))
    np.testing.assert_allclose(scores, want, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: np.savez(p / "a.npz", images=np.full((3, 16, 16, 3), 200.0)), "divide by 255"),
        (lambda p: np.savez(p / "a.npz", images=np.full((3, 16, 16, 3), np.nan)), "NaN"),
        (lambda p: np.savez(p / "a.npz", images=np.zeros((0, 16, 16, 3), np.uint8)), "no images"),
        (lambda p: np.savez(p / "a.npz", images=np.zeros((10**6, 0, 16, 3), np.uint8)), "no images"),
        (lambda p: np.savez(p / "a.npz", images=np.zeros((3, 16, 16, 5), np.uint8)), "with C 3"),
        (lambda p: np.savez(p / "a.npz", images=np.zeros((4, 3, 16, 3), np.uint8)), "as nhwc and as nchw"),
        (lambda p: np.savez(p / "a.npz", images=np.zeros((3, 16, 16, 3), np.int32)), "int32"),
        (lambda p: np.savez(p / "a.npz", images=np.zeros((3, 20, 20, 3), np.float32)), "floats of 20 x 20"),
        (
            lambda p: np.savez(p / "a.npz", images=np.zeros((3, 16, 16, 3), np.uint8), labels=np.zeros((2, 2))),
            "expected 3 integers",
        ),
        (lambda p: np.savez(p / "a.npz", pictures=np.zeros((3, 16, 16, 3), np.uint8)), "found: pictures"),
        (lambda p: (p / "a.npz").write_bytes(b"PK\3\4"), "not a readable"),
        (lambda p: torch.save(trained(), p / "a.pt"), "not a readable"),
        (lambda p: np.save(p / "a.npy", np.array([{}], dtype=object)), "not a readable"),
        (lambda p: os.mkfifo(p / "a.npz"), "no regular file"),
    ],
)
def test_arrays_that_cannot_be_used_get_one_line(make, text, known, tmp_path):
    """And the image beside them is judged."""
    make(tmp_path)
    folder(tmp_path / "fine", images(n=1)[0])
    (file,) = [p for p in tmp_path.iterdir() if p.name != "fine"]
    out = run("score", file, tmp_path / "fine", *known, "--format", "json")
    assert text in one_line(out)
    assert out.exit_code == 2
    judged = [r["image"] for r in map(json.loads, out.stdout.splitlines()) if "error" not in r]
    assert judged == [str(tmp_path / "fine" / "0000.png")]


def test_scoring_needs_no_labels_and_one_picture_is_enough(known, tmp_path):
    """(n, 1), floats, one-hot; (h, w, c) and (c, h, w)."""
    x = images(n=4)[0].permute(0, 2, 3, 1).numpy()
    for labels in (np.zeros((4, 1), np.uint8), np.zeros(4), np.eye(4)):
        np.savez(tmp_path / "a.npz", images=x, labels=labels)
        assert len(records(run("score", tmp_path / "a.npz", *known, "--format", "json"))) == 4
    for one in (x[0], x[0].transpose(2, 0, 1)):
        np.save(tmp_path / "b.npy", one)
        assert len(records(run("score", tmp_path / "b.npy", *known, "--format", "json"))) == 1


def test_class_folders_are_read_as_the_classifier_agrees_best(tmp_path):
    """Twelve folders 0 to 11 in the order of their text (ImageFolder), by index, by name; --labels settles it."""
    from advconn import Classifier
    from advconn.data.labels import resolve_labels

    x, y = images(n=48, k=12)
    folder(tmp_path / "numbers", x, y)
    items = Collection(tmp_path / "numbers").items
    order = {name: i for i, name in enumerate(sorted({str(int(v)) for v in y}))}
    as_text = torch.tensor([order[item.label] for item in items])
    by_index = torch.tensor([int(item.label) for item in items])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 12)).eval()
    c = Classifier(net, size=16)
    told = []
    assert torch.equal(resolve_labels(items, c.class_names, c.num_classes, as_text, note=told.append), as_text)
    assert "labels are read by sorted" in told[0]
    assert torch.equal(resolve_labels(items, c.class_names, c.num_classes, by_index, note=told.append), by_index)
    assert torch.equal(resolve_labels(items, c.class_names, c.num_classes, by_index, "sorted"), as_text)
    assert resolve_labels(items, c.class_names, c.num_classes, by_index, "none") is None
    with pytest.raises(DataError, match=r"--labels name.*index, sorted"):
        resolve_labels(items, c.class_names, c.num_classes, by_index, "name")
    named = Classifier(net, size=16, class_names=[str(11 - i) for i in range(12)])
    assert torch.equal(
        resolve_labels(items, named.class_names, named.num_classes, 11 - by_index, note=told.append), 11 - by_index
    )
    told.clear()
    wide = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 400)).eval(), size=16)
    guessed = torch.where(torch.arange(len(items)) % 10 == 0, as_text, as_text + 100)
    words = [Item(f"{i}", item.path, None, f"n{item.label}") for i, item in enumerate(items)]
    assert resolve_labels(words, wide.class_names, wide.num_classes, guessed, note=told.append) is None
    assert "by name or index" in told.pop()


def test_unreadable_files_are_left_out_up_to_a_share(known, tmp_path):
    """`attack` names them and goes on; above --max-bad it stops and names it. A Mac's companions do not count."""
    folder(tmp_path / "d", images(n=30)[0], images(n=30)[1])
    (tmp_path / "d" / "0" / "._0000.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (tmp_path / "d" / "1" / "cut.png").write_bytes((tmp_path / "d" / "1" / "0001.png").read_bytes()[:60])
    go = ["attack", "--attack", "fgsm", "--data", tmp_path / "d", *known]
    assert "1 of 31 cannot be read: --max-bad 0.033" in one_line(run(*go, "--out", tmp_path / "a"))
    out = run(*go, "--out", tmp_path / "b", "--max-bad", "0.033")
    assert out.exit_code == 0, out.output
    assert "left out:" in out.stderr
    assert len(list((tmp_path / "b").glob("*.png"))) == 30


def test_read_takes_paths_pictures_and_arrays(tmp_path):
    """One public door with the classifier's own preprocessing."""
    x = images(n=3)[0]
    folder(tmp_path, x)
    d = fitted()
    want = d.score_samples(x)
    paths = sorted(tmp_path.iterdir())
    arrays = x.permute(0, 2, 3, 1).numpy()
    for given in (
        tmp_path,
        paths,
        [str(p) for p in paths],
        [Image.open(p) for p in paths],
        arrays,
        list(arrays),
        x,
        x / 255,
    ):
        np.testing.assert_allclose(d.score_samples(d.read(given)), want, atol=1e-4)
    assert d.read(Image.new("RGB", (300, 200))).shape == (1, 3, 16, 16)
    assert len(d.read([])) == 0
