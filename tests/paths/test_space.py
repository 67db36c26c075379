"""Latent spaces: the network cut in two is the network; what cannot be cut says so."""

import pytest
import torch
from torch import nn

from advconn import Classifier
from advconn.errors import ModelError, PathError
from advconn.models.architectures import compact
from advconn.paths.elastic_band import relax_band
from advconn.paths.path import profile, straight
from advconn.paths.space import Space, layers, split_network
from advconn.runtime.forward_passes import count_passes


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    net = compact(widths=(8, 16, 24)).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return Classifier(net, size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


def images(n=5):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", ["stem_act", "stage1", "stage2.refine", "pool", "flat", "head"])
def test_the_rest_after_the_front_is_the_network(classifier, layer):
    """At every layer that nothing leads round."""
    if layer == "stage2.refine":
        with pytest.raises(PathError, match=r"reads .* from before it"):
            Space(classifier, layer)
        return
    space = Space(classifier, layer)
    torch.testing.assert_close(space.logits(space.points(images())), classifier.logits(images()))


def test_pixel_space_is_the_classifier(classifier):
    """Points are images."""
    space = Space(classifier)
    assert space.points(images()) is not None
    torch.testing.assert_close(space.logits(images()), classifier.logits(images()))
    assert space.shape == (3, 32, 32)


def test_every_layer_listed_can_be_cut(classifier):
    """And those inside a residual branch are not listed."""
    found = layers(classifier)
    assert {"stem", "stage1", "stage2", "head"} <= set(found)
    assert "stage1.refine" not in found


def test_a_latent_path_runs_only_the_rest(classifier):
    """Gradients arrive at the points; forwards and gradients are counted; the front is not run."""
    space = Space(classifier, "stage1")
    points = space.points(images(4))
    assert points.shape[1:] == space.shape == (16, 16, 16)
    labels = torch.zeros(2, dtype=torch.long)
    with count_passes() as cost:
        found = relax_band(space.landscape(labels), straight(points[:2], points[2:]), pivots=3, steps=4, samples=2)
    assert found.path.knots.shape == (2, 5, 16, 16, 16)
    assert cost.gradients == 2 * 3 * 4
    assert cost.forwards == 2 * 9 * 2


def test_the_last_layer_is_linear_so_nothing_stands_between(classifier):
    """Cross-entropy of the logits themselves is convex: on a line it exceeds no larger end (Gu & Borovykh, Table 1)."""
    space = Space(classifier, "flat")
    points = space.points(images(40))
    labels = torch.randint(10, (20,), generator=torch.Generator().manual_seed(2))
    seen = profile(straight(points[:20], points[20:]), space.landscape(labels), 33)
    assert float(seen.gap.max()) < 1e-4


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.head = nn.ReLU(), nn.Linear(3 * 64, 4)

    def forward(self, x):
        return self.head(self.act(self.act(x).flatten(1)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.head = nn.ReLU(), nn.Linear(3 * 64, 4)

    def forward(self, x):
        return self.head(self.act(x).flatten(1)) if x.sum() > 0 else self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("module", "layer", "says"),
    [(Twice(), "act", "called 2 times"), (Branching(), "act", "cannot be traced"), (Twice(), "layer4", "no layer")],
)
def test_what_cannot_be_cut_says_so(module, layer, says):
    """In one line."""
    with pytest.raises(PathError, match=says):
        split_network(module.eval(), layer)


def test_torchvisions_resnet_is_cut_between_blocks():
    """ResNet-18 at its first block."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    classifier = Classifier(models.resnet18(num_classes=10).eval(), size=(32, 32))
    space = Space(classifier, "layer1")
    torch.testing.assert_close(space.logits(space.points(images())), classifier.logits(images()))


def test_what_gives_no_tensor_or_no_gradient_says_so():
    """A recurrent layer gives a tuple; a forward without a gradient has no slope."""

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = torch.nn.LSTM(8, 4, batch_first=True), torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.rnn(x.squeeze(1))[0][:, -1])

    class Detached(Recurrent):
        def forward(self, x):
            return super().forward(x).detach()

    images = torch.rand(2, 1, 8, 8)
    with pytest.raises(PathError, match="gives a tuple"):
        Space(Classifier(Recurrent().eval(), size=(8, 8), channels=1), "rnn").points(images)
    with pytest.raises(ModelError, match="no gradient"):
        Classifier(Detached().eval(), size=(8, 8), channels=1).logits(images.requires_grad_())
