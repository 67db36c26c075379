"""What strangers bring: a small network trained in a second, images of four classes, and a way to run the command."""

import copy
import inspect
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import advconn
from advconn.cli import main

NOISY = ("noise4", "noise8", "sharpen")
FAST = ("pgd:eps=24/255,steps=4", "fgsm:eps=24/255")
SHORT = {"copies": ("flip", "mean3", "left1", "noise3", "blur5", "bits5"), "halves": ("mean3",)}


class Net(nn.Module):
    """A convolution, a batch norm and a linear layer."""

    def __init__(self, k=4, channels=3):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(4), nn.Linear(128, k)

    def forward(self, x):
        return self.fc(self.pool(torch.relu(self.bn(self.conv(x)))).flatten(1))


NET = "import torch\nfrom torch import nn\n\n" + inspect.getsource(Net)


def images(n=120, k=4, size=16, channels=3, seed=0):
    """Images (n, c, s, s) uint8 of k classes, a brighter patch in one of four places, and their labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    x = rng.integers(0, 120, (n, channels, size, size)).astype(np.int64)
    half = size // 2
    for i, c in enumerate(y):
        row, column = divmod(int(c) % 4, 2)
        x[i, :, row * half + 2 : row * half + half - 1, column * half + 2 : column * half + half - 1] += 45
    return torch.from_numpy(x.clip(0, 255).astype(np.uint8)), torch.from_numpy(y)


def train(net, x, y, steps=80, scale=1 / 255):
    """The network after some steps, in evaluation mode."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        net.train()
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(steps):
            rows = torch.randperm(len(x))[:64]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows].float() * scale), y[rows]).backward()
            optimizer.step()
    return net.eval()


@lru_cache(maxsize=4)
def _trained(channels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return train(Net(channels=channels), *images(n=200, channels=channels))


def trained(channels=3):
    """A network of four classes that gets nearly all of them right; a copy, which a test may change."""
    return copy.deepcopy(_trained(channels))


@lru_cache(maxsize=2)
def fitted():
    """A detector for it."""
    return fit(advconn.Classifier(trained(), size=16))


def fit(classifier, **options):
    """A detector fitted on 120 images with two attacks, in seconds; JPEG and blur are too much for images of noise."""
    x, y = images(channels=classifier.channels)
    known = {"attacks": FAST, "fpr": 0.1, "connectivity": SHORT, "conditions": ("clean", "brighter"), "benign": NOISY}
    return advconn.fit(classifier, x, y, **(known | options))


def without_paths(images):
    """What the detector for it says by copies alone, as for a twin that gives no gradient to go round barriers."""
    return fitted().judge(images, max_stage=len(fitted().cascade_.connectivities) - 1)


def mixed(channels=3):
    """Sixty clean images and attacked copies of them, none fitted on, as floats."""
    from advconn.attacks.attack import Attack

    x, y = images(n=60, channels=channels, seed=9)
    c = advconn.Classifier(trained(channels), size=16, channels=channels)
    return torch.cat([c.check(x), Attack.parse("pgd:eps=24/255,steps=10").run(c, c.check(x), y)])


def folder(path, x, y=None, names=None):
    """Images as PNG files, in class folders where labels are given."""
    for i, image in enumerate(x):
        place = Path(path) if y is None else Path(path) / (names[int(y[i])] if names else str(int(y[i])))
        place.mkdir(parents=True, exist_ok=True)
        array = image.permute(1, 2, 0).numpy()
        Image.fromarray(array.squeeze(-1) if array.shape[2] == 1 else array).save(place / f"{i:04d}.png")
    return Path(path)


def run(*args):
    """The command, in this process."""
    return CliRunner().invoke(main, [str(a) for a in args])


def one_line(out):
    """The only line that complains."""
    lines = [line for line in out.stderr.splitlines() if line.startswith(("advconn:", "Error:"))]
    assert len(lines) == 1, out.stderr
    assert "Traceback" not in out.output
    return lines[0]


def photo_cd(cover, hidden):
    """Bytes that begin as `cover`, and that Pillow opens as a PhotoCD of `hidden` (8, 8) too."""
    data = bytearray(cover) + bytes(2048 - len(cover)) + b"PCD_" + bytes(1539 - 4)
    data += bytes(96 * 2048 - len(data))
    canvas = np.zeros((512, 768), np.uint8)
    canvas[:, 128:640] = np.kron(hidden, np.ones((64, 64), np.uint8))
    canvas = (canvas / 1.3584).round().astype(np.uint8)  # PhotoCD's own scale
    for y in range(0, 512, 2):
        data += canvas[y].tobytes() + canvas[y + 1].tobytes() + bytes([156]) * 384 + bytes([137]) * 384
    return bytes(data)


def saved(picture, kind="PNG", **options):
    """The bytes of a picture's file, from a PIL picture or an array."""
    out = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, kind, **options)
    return out.getvalue()
