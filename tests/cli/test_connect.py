"""`advconn connect`: the path between two digits as figures, a picture and a page."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from advconn.bundle.shipped import default
from advconn.cli import main
from advconn.paths.connection import connect
from advconn.paths.plots import bypass_point, peaks, relative_displacement
from advconn.paths.space import Space


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory):
    """Two images of a 3, and an archive of digits."""
    folder = tmp_path_factory.mktemp("digits")
    rows = (digits[1] == 3).nonzero()[:2, 0]
    for name, row in zip("ab", rows, strict=True):
        Image.fromarray(digits[0][row, 0].numpy()).save(folder / f"{name}.png")
    np.savez(folder / "some.npz", images=digits[0][:60].permute(0, 2, 3, 1).numpy())
    return folder


def run(files, *options):
    command = ["connect", str(files / "a.png"), str(files / "b.png"), "--detector", str(default("digits")), *options]
    return CliRunner().invoke(main, command)


@pytest.mark.parametrize("method", ["line", "bypass", "band"])
def test_figures_as_json(files, tmp_path, method):
    """Losses at as many positions on both paths; the found one stands no higher."""
    out = tmp_path / "path.json"
    result = run(files, "--method", method, "--delta", "0.01", "--out", str(out))
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert len(found["positions"]) == len(found["line"]) == len(found["path"]) == 129
    assert max(found["path"]) <= max(found["line"]) + 1e-6
    assert found["class"] == "3"
    assert found["outcome"] in (("line", "none") if method == "line" else ("line", "curve"))
    assert found["barrier"] == {"line": max(found["line"]), "path": max(found["path"])}
    assert found["gradients"] == 0 or method != "line"


def test_images_of_another_class_are_refused(files):
    """There is no path within a class between images that are not in it."""
    result = run(files, "--class", "4")
    assert result.exit_code == 2
    assert "puts in 4" in result.output.splitlines()[-1]


def test_a_picture_and_a_page(files, tmp_path):
    """A PNG that opens; a page that asks for nothing from elsewhere."""
    assert run(files, "--out", str(tmp_path / "path.png")).exit_code == 0
    assert Image.open(tmp_path / "path.png").size[0] > 1000
    assert run(files, "--out", str(tmp_path / "path.html")).exit_code == 0
    page = (tmp_path / "path.html").read_text()
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["path.html", "path.png"]


def test_a_latent_path_with_a_decoder(files, tmp_path):
    """Trained and saved where it is not there yet, and loaded the next time."""
    options = ["--space", "stage1", "--decoder", str(tmp_path / "d.safetensors"), "--out", str(tmp_path / "path.png")]
    assert run(files, *options).exit_code == 2
    first = run(files, *options, "--data", str(files / "some.npz"))
    assert first.exit_code == 0, first.output
    assert "mean square error" in first.output
    there = run(files, *options)
    assert there.exit_code == 2
    assert "is there already" in there.output
    (tmp_path / "path.png").unlink()
    again = run(files, *options)
    assert again.exit_code == 0
    assert "mean square error" not in again.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--space", "nowhere"], "no layer 'nowhere'"),
        (["--class", "17"], "expected an index from 0 to 9"),
        (["--out", "path.txt"], "ends in .html"),
        (["--delta", "0"], "above 0"),
    ],
)
def test_what_cannot_be_done_is_one_line(files, options, says):
    """And exit status 2."""
    result = run(files, *options)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output


def test_the_pattern_is_orthogonal_to_the_line(classifier, digits):
    """B' - B stands upright on the straight path, whatever place on the found path its knots have."""
    images, labels = classifier.check(digits[0][900:1000]), digits[1][900:1000]
    right = (classifier.logits(images).argmax(1) == labels) & (labels == labels[0])
    rows = right.nonzero()[:, 0]
    a, b = images[rows[:1]].expand(len(rows) - 1, -1, -1, -1), images[rows[1:]]
    found = connect(Space(classifier), a, b, labels[rows[1:]], method="bypass", delta=1e-4)
    row = int(found.gradients.argmax())
    assert found.gradients[row] > 0
    _, change = bypass_point(found, row)
    chord = b[row] - a[row]
    assert abs(float((change * chord).sum() / chord.norm())) < 1e-4
    assert 0 < relative_displacement(found, row) < 1


def test_peaks_are_inner_maxima_above_the_level():
    """Not the ends, not what lies under it."""
    assert peaks(np.array([5.0, 1, 3, 1, 0.4, 0.5, 0.4, 2, 2, 1, 9]), 0.6) == [2, 7]
    assert torch.tensor(peaks(np.zeros(5), 1.0)).numel() == 0
