"""Pictures that some reader shows and the judged file hides: slices, tails, textures, side texts, columns, forms."""

import base64
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from brought import saved
from PIL import Image
from sklearn.datasets import load_digits

from advconn.data import decoding
from advconn.data.collection import Collection
from advconn.data.decoding import views
from advconn.data.preprocessing import Preprocessing
from advconn.errors import DataError
from advconn.serving.request_body import files_in

CLEAN = (load_digits().images[1000:1012] * 255 / 16).round().astype(np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
LOOK = Preprocessing(size=(8, 8), channels=1)


def others(data):
    """How many pictures beside the judged ones a file is said to hold."""
    return views(data, "x", LOOK, "plain", "first")[1]


def tiff(description, pixels, more=()):
    """An uncompressed TIFF of one page, 8 x 8, whose pixels end the file."""
    text = description.encode() + b"\0"
    entries = [
        (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (270, 2, len(text), "text"),
        (273, 4, 1, "pixels"), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64), *more,
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    places = {"text": start, "pixels": start + len(text)}
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries, key=lambda entry: entry[0]):
        out += struct.pack("<HHII", tag, kind, count, places.get(value, value))
    return out + struct.pack("<I", 0) + text + pixels


def dds(more=0, depth=0, dx10=b"", pixels=b""):
    kind = (
        struct.pack("<2I", 32, 4) + b"DX10" + bytes(20) if dx10 else struct.pack("<8I", 32, 0x20000, 0, 8, 255, 0, 0, 0)
    )
    head = b"DDS " + struct.pack("<7I", 124, 0x1007, 8, 8, 8, depth, 0) + bytes(44)
    return head + kind + struct.pack("<5I", 0x1000, more, 0, 0, 0) + dx10 + pixels


def fits(*sizes):
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", f"NAXIS   = {len(sizes):20}"]
    cards += [f"NAXIS{i}  = {size:20}" for i, size in enumerate(sizes, 1)]
    head = "".join(card.ljust(80) for card in [*cards, "END"]).encode()
    planes = CLEAN[: max(1, int(np.prod(sizes[2:])))].tobytes()
    return head.ljust(2880) + planes.ljust(2880, b"\0")


def larger_bmp():
    """A BMP that says to be as large as itself and another behind it."""
    first, second = bytearray(saved(CLEAN[0], "BMP")), saved(NOISE[0], "BMP")
    first[2:6] = struct.pack("<I", len(first) + len(second))
    return bytes(first) + second


def plain_text(pixels):
    return b"P2 8 8 255\n# Page P5 \n" + " ".join(map(str, pixels.ravel())).encode() + b"\n"


TEXTURE = np.dstack([CLEAN[0]] * 3 + [np.full((8, 8), 255, np.uint8)]).tobytes()
HIDING = {
    "slices of ImageJ": tiff("ImageJ=1.53\nimages=2\nslices=2\n", CLEAN[0].tobytes() + NOISE[0].tobytes()),
    "slices of tifffile": tiff('{"shape": [2, 8, 8]}', CLEAN[0].tobytes() + NOISE[0].tobytes()),
    "slices of a volume": tiff("x", CLEAN[0].tobytes() + NOISE[0].tobytes(), [(32997, 4, 1, 2)]),
    "rows behind a page": tiff("x", CLEAN[0].tobytes() + NOISE[0].tobytes()),
    "a PNG behind a TIFF": saved(CLEAN[0], "TIFF") + saved(NOISE[0]),
    "a PNG behind zeros": saved(CLEAN[0]) + bytes(70_000) + saved(NOISE[0]),
    "a PNG behind a letter": saved(CLEAN[0]) + b"x" + saved(NOISE[0]),
    "a JPEG behind some text": saved(CLEAN[0], "JPEG") + b"some text" * 9 + saved(NOISE[0], "JPEG"),
    "a BMP inside a BMP": larger_bmp(),
    "a text behind a text": plain_text(CLEAN[0]) + plain_text(NOISE[0]),
    "slices of a texture": dds(0x200000, 2, pixels=CLEAN[0].tobytes() + NOISE[0].tobytes()),
    "faces of a texture": dds(dx10=struct.pack("<5I", 28, 3, 4, 1, 0), pixels=TEXTURE * 6),
    "a fourth axis": fits(8, 8, 1, 2),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_picture_that_another_reader_shows_is_counted(name):
    """The judged one is the clean one all the same."""
    assert others(HIDING[name]) >= 1


@pytest.mark.parametrize(
    "data",
    [
        saved(CLEAN[0], "TIFF"),
        saved(CLEAN[0], "TIFF", compression="tiff_lzw"),
        saved(np.dstack([CLEAN[0]] * 3), "TIFF", tiffinfo={270: "a cat", 315: "somebody" * 40}),
        tiff('{"shape": [8, 8]}', CLEAN[0].tobytes()),
        tiff('{"shape": [8, 8, 1]}', CLEAN[0].tobytes()),
        tiff("ImageJ=1.53\nimages=1\n", CLEAN[0].tobytes()),
        saved(CLEAN[0], "BMP"),
        saved(CLEAN[0], "JPEG", progressive=True),
        saved(CLEAN[0], "JPEG") + bytes(4096),
        saved(CLEAN[0], "JPEG") + b"\0\0\0\x18ftypmp42" + np.random.default_rng(1).bytes(10**6),  # a moving photograph
        plain_text(CLEAN[0]),
        dds(pixels=CLEAN[0].tobytes()),
        fits(8, 8),
    ],
)  # fmt: skip
def test_an_ordinary_file_hides_nothing(data):
    """Also one with texts, zeros or a film behind it."""
    assert others(data) == 0


def test_exif_data_of_a_tiff_belongs_to_it():
    """Wherever it stands in the file."""
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0x9003: "2026:11:29 10:00:00", 0x927C: bytes(range(256)) * 4})
    assert others(saved(CLEAN[0], "TIFF", exif=exif)) == 0


def test_many_empty_tables_are_no_matter_for_this_process():
    """Each of them is looked at by itself, however little it says."""
    jpeg, png = saved(CLEAN[0], "JPEG"), saved(CLEAN[0])
    empty = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0x35AF061E)
    for data in (jpeg[:2] + b"\xff\xc4\0\2" * 10**6 + jpeg[2:], jpeg[:2] + b"\xff\xdd\0\4\0\0" * 10**6 + jpeg[2:],
                 png[:33] + empty * 10**5 + png[33:]):  # fmt: skip
        started = time.perf_counter()
        assert not decoding._is_near(data)
        assert time.perf_counter() - started < 2
    assert all(map(decoding._is_near, (jpeg, png)))


def test_a_picture_is_no_text_beside_a_picture(tmp_path):
    """IM files begin with a head that can be read."""
    head = b"Image type: Greyscale image\r\nImage size (x*y): 8*8\r\n" + b"Comment: long\r\n" * 20
    picture = head.ljust(511, b"\0") + b"\x1a" + NOISE[0][::-1].tobytes()
    late = b"a caption " * 60 + picture
    for content, told in ((b"a cat", False), (picture, True), (late, True), (b"7\n" * 10**6, True)):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a.png", saved(CLEAN[0]))
            archive.writestr("a.txt", content)
        assert bool(Collection(tmp_path / "a.zip", 1).skipped) is told


def test_arrays_that_could_be_pictures_are_counted(tmp_path):
    """Flat ones, files as numbers, second labels; and what a torch file holds deep inside."""
    images, flat = CLEAN[:8], NOISE[:8].reshape(8, 64)
    file = np.frombuffer(saved(NOISE[0]), np.uint8)
    plain = {"labels": np.arange(8), "ids": np.arange(8), "names": np.array(["a"] * 8)}
    for more, told in (({}, 0), (plain, 0), ({"more": flat.ravel()}, 1), ({"filed": file}, 1),
                       ({"labels": np.arange(8), "targets": flat}, 1)):  # fmt: skip
        np.savez(tmp_path / "a.npz", images=images, **more)
        assert len(Collection(tmp_path / "a.npz", 1).other_arrays) == told
    np.savez(tmp_path / "b.npz", images=images, y=np.eye(10)[:8])
    assert [item.label for item in Collection(tmp_path / "b.npz", 1).items] == list("01234567")
    soft = flat.astype(np.float32) / 300
    soft[:, 0] = 1
    np.savez(tmp_path / "b.npz", images=images, y=soft)
    with pytest.raises(DataError, match="one-hot rows of 0 and 1"):
        Collection(tmp_path / "b.npz", 1)
    tensors = torch.from_numpy(NOISE)
    for more, told in (({"n": 3, "name": "a"}, 0), ({"list": [tensors[0], tensors[1]]}, 1), ({"file": bytes(file)}, 1)):
        torch.save({"images": torch.from_numpy(images), **more}, tmp_path / "a.pt")
        assert len(Collection(tmp_path / "a.pt", 1).other_arrays) == told


def test_columns_that_could_be_pictures_are_named(tmp_path):
    """Numbers enough for one, of whatever type, and texts that stand for files; boxes and sentences are none."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    tensor = pa.FixedSizeListArray.from_arrays(pa.array(NOISE[0].ravel()), 64)
    columns = {
        "numbers": (pa.array([NOISE[0].astype(int).ravel().tolist()]), True),
        "rows": (pa.array((NOISE[:1] / 255).tolist()), True),
        "tensor": (pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint8(), (8, 8)), tensor), True),
        "text": (pa.array([base64.b64encode(saved(NOISE[0])).decode()]), True),
        "dictionary": (pa.array([base64.b64encode(saved(NOISE[0])).decode()]).dictionary_encode(), True),
        "box": (pa.array([[0.0, 0.0, 1.0, 1.0]]), False),
        "sentence": (pa.array(["a cat that is seen as a frog"]), False),
        "width": (pa.array([8]), False),
    }
    for name, (column, told) in columns.items():
        table = pa.table({"image": pa.array([saved(CLEAN[0])]), name: column})
        parquet.write_table(table, tmp_path / "a.parquet")
        assert Collection(tmp_path / "a.parquet", 1).skipped == [f"{tmp_path / 'a.parquet'}[{name}]"] * told


@pytest.mark.parametrize("kind", ['multipart/form-data; boundary="ab "', "multipart/form-data; boundary=\xe9x"])
def test_a_boundary_that_readers_take_otherwise_is_refused(kind):
    """One with a space at its end, which many cut off; one of bytes that are no ASCII."""
    with pytest.raises(DataError, match="expected multipart/form-data"):
        files_in([kind], bytearray(b"--ab \r\n\r\nx\r\n--ab --\r\n"), 4)


def test_many_pages_are_looked_at_once(tmp_path):
    """What stands behind them is asked for at the first."""
    pages = [Image.fromarray(np.roll(CLEAN[0], i % 64)) for i in range(400)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    started = time.perf_counter()
    assert len(Collection(tmp_path / "a.tif", 1, frames="all")) == 400
    (batch,) = Collection(tmp_path / "a.tif", 1, frames="all").batches(LOOK, batch_size=400)
    assert sum(batch.others) == 0
    assert time.perf_counter() - started < 8
