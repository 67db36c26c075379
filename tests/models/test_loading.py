"""Classifiers by name."""

import pytest
import torch
from safetensors.torch import save_file

from advconn import models
from advconn.errors import ModelError
from advconn.models.architectures import compact

FACTORY = """
import torch
from advconn.models.architectures import compact

def build():
    return compact(5, widths=(4, 8)).eval()

def training():
    return compact(5, widths=(4, 8))

def raising():
    raise RuntimeError("no weights\\nanywhere")

def other():
    return 3

def grey():
    return compact(5, 1, widths=(4, 8)).eval()

def bare():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 2))
"""


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    return str(tmp_path / "mine.py")


def test_a_factory_in_a_file(factory):
    """Its channels are read off the module; a module without batch norm or dropout needs no eval()."""
    assert models.load(f"{factory}:build", size=(32, 32)).num_classes == 5
    assert models.load(f"{factory}:grey", size=(32, 32)).channels == 1
    assert models.load(f"{factory}:bare", size=(32, 32)).num_classes == 2


def test_a_factory_in_a_module():
    """By its dotted name."""
    assert models.load("factories:five", size=(32, 32)).num_classes == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training", "training mode"),
        ("raising", "RuntimeError: no weights"),
        ("other", "returned int"),
        ("absent", "no callable"),
    ],
)
def test_a_factory_that_fails_says_so_in_one_line(factory, name, text):
    with pytest.raises(ModelError, match=text) as caught:
        models.load(f"{factory}:{name}", size=(32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("resnet18", "names no model"),
        ("nowhere.py:build", "no such file"),
        ("no.such.module:build", "ModuleNotFoundError"),
        ("timm:resnet18", "--weights"),
        ("advconn:compact", "--weights"),
    ],
)
def test_what_names_no_model_is_refused(spec, text):
    with pytest.raises(ModelError, match=text):
        models.load(spec)


def test_an_architecture_of_ours_is_rebuilt_from_its_weights(tmp_path):
    """Widths, classes and channels are read off the tensors."""
    net = compact(7, 1, (4, 8, 12)).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    found = models.load("advconn:compact", tmp_path / "w.safetensors", size=(16, 16))
    x = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(found.logits(x), net(x).detach(), atol=1e-4, rtol=1e-4)


def test_torchvisions_own_preprocessing_is_used(tmp_path):
    """Size, resize, mean and std are the library's."""
    import torchvision

    net = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=6)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    look = models.load("torchvision:shufflenet_v2_x0_5", tmp_path / "w.pt").preprocessing
    assert (look.size, look.resize, look.mean) == ((224, 224), 256, (0.485, 0.456, 0.406))


def test_timms_own_preprocessing_is_used(tmp_path):
    """Also its way of naming models; a name that would download is none."""
    timm = pytest.importorskip("timm")
    net = timm.create_model("efficientnet_lite0", num_classes=4)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    found = models.load("timm:efficientnet_lite0", tmp_path / "w.pt")
    assert found.preprocessing.size == (224, 224)
    assert found.preprocessing.interpolation == "bicubic"
    assert found.num_classes == 4
    for name in ("timm:hf-hub/someone/model", "timm:no_such_model"):
        with pytest.raises(ModelError):
            models.load(name, tmp_path / "w.pt")


def test_weights_that_cannot_be_used_are_refused(tmp_path, factory):
    """Absent, garbage, truncated, a pickle with code in it, tensors of another model."""
    (tmp_path / "garbage.safetensors").write_bytes(b"\x00" * 100)
    (tmp_path / "garbage.pt").write_bytes(b"no weights")
    torch.save({"net": compact}, tmp_path / "code.pt")
    save_file({"x": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    for name, text in {
        "absent.pt": "no such weights",
        "garbage.safetensors": "not readable",
        "garbage.pt": "not readable",
        "code.pt": "not readable",
        "other.safetensors": "do not fit",
    }.items():
        with pytest.raises(ModelError, match=text):
            models.load(f"{factory}:build", tmp_path / name, size=(32, 32))
