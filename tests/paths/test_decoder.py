"""Decoders bring latent points back to images, and know what they belong to."""

import math

import pytest
import torch

from advconn import Classifier
from advconn.errors import DataError, PathError
from advconn.models.architectures import compact
from advconn.paths.decoder import load, network, train
from advconn.paths.space import Space


@pytest.mark.parametrize("shape", [(16, 8, 8), (24, 1, 1), (24,), (5, 7, 7)])
@pytest.mark.parametrize("image", [(3, 32, 32), (1, 8, 8), (3, 28, 28)])
def test_every_shape_gives_images_in_range(shape, image):
    """Feature maps or vectors, sizes that are no power of two: images (n, c, h, w) in [0, 1]."""
    made = network(shape, image, width=8)(torch.randn(2, *shape)).detach()
    assert made.shape == (2, *image)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


def test_training_beats_the_mean_image(classifier, digits):
    """From the first stage's feature maps, unseen digits come back with a third of the mean image's error or less."""
    space = Space(classifier, "stage1")
    images = digits[0][:600]
    decoder = train(space, images, epochs=6, seed=0)
    pixels = classifier.check(digits[0][900:1100])
    mean = classifier.check(images).mean(0, keepdim=True)
    error = (decoder.images(space.points(pixels)) - pixels).square().mean()
    assert float(error) < float((mean - pixels).square().mean()) / 3
    assert decoder.loss == pytest.approx(float(error), rel=0.5)


def test_vectors_are_decoded_too(classifier, digits):
    """From the last hidden layer, better than the mean image."""
    space = Space(classifier, "flat")
    decoder = train(space, digits[0][:600], epochs=12, batch=32)
    pixels = classifier.check(digits[0][900:1100])
    mean = classifier.check(digits[0][:600]).mean(0, keepdim=True)
    error = (decoder.images(space.points(pixels)) - pixels).square().mean()
    assert float(error) < float((mean - pixels).square().mean())


@pytest.fixture(scope="module")
def saved(classifier, digits, tmp_path_factory):
    file = tmp_path_factory.mktemp("decoder") / "decoder.safetensors"
    decoder = train(Space(classifier, "stage1"), digits[0][:100], epochs=1)
    decoder.save(file)
    return file, decoder


def test_it_is_saved_and_loaded(saved, classifier, digits):
    """The same images, the same loss, and nothing but the file is left."""
    file, decoder = saved
    again = load(file, decoder.space)
    points = decoder.space.points(classifier.check(digits[0][:3]))
    torch.testing.assert_close(again.images(points), decoder.images(points))
    assert math.isclose(again.loss, decoder.loss)
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_decoder_of_something_else_is_refused(saved, classifier, tmp_path):
    """Another layer, other weights, a truncated file, a text file."""
    file, _ = saved
    with pytest.raises(DataError, match="layer stage1, expected stage2"):
        load(file, Space(classifier, "stage2"))
    other = Classifier(compact(10, 1, (8, 16, 32)).eval(), size=(8, 8), channels=1)
    with pytest.raises(DataError, match="fingerprint"):
        load(file, Space(other, "stage1"))
    for name, content in (("cut", file.read_bytes()[:500]), ("text", b"no decoder")):
        bad = tmp_path / f"{name}.safetensors"
        bad.write_bytes(content)
        with pytest.raises(DataError, match="not a readable decoder"):
            load(bad, Space(classifier, "stage1"))


def test_pixels_and_too_few_images_are_refused(classifier, digits):
    """In one line."""
    with pytest.raises(PathError):
        train(Space(classifier), digits[0][:100])
    with pytest.raises(DataError, match="expected 10"):
        train(Space(classifier, "stage1"), digits[0][:9])
