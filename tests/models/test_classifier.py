"""The classifier's contract: what it refuses, what it never touches, and its margin."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advconn.errors import DataError, ModelError
from advconn.models.architectures import compact
from advconn.models.classifier import Classifier
from advconn.models.fingerprint import fingerprint
from advconn.models.margin import margin, margin_of_loss
from advconn.paths.path import energy_and_gradient
from advconn.runtime.forward_passes import count_passes


def small(**options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return compact(4, widths=(4, 8), **options).eval()


def images(n: int = 5) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_softplus_of_the_margin_is_the_cross_entropy():
    """Exactly, for every class."""
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(F.softplus(margin(logits, labels)), expected)


@pytest.mark.parametrize(("delta", "expected"), [(1e-3, -6.90726), (5e-4, -7.60065), (1e-2, -4.60017)])
def test_level_is_the_inverse_of_softplus(delta, expected):
    """Values worked out by hand."""
    assert float(margin_of_loss(torch.tensor(delta, dtype=torch.float64))) == pytest.approx(expected, abs=1e-5)


def test_logits_are_the_modules_own():
    """Normalisation, folding and chunks change nothing beyond rounding."""
    module = small()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    seen = Classifier(module, size=(16, 16), mean=mean, std=std, batch_size=2).logits(images())
    normalised = (images() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(seen, module(normalised).detach(), atol=1e-4, rtol=1e-4)


def test_a_gradient_flows_to_the_images_and_nowhere_else():
    """The user's module keeps its parameters, their grad and their requires_grad."""
    module = small()
    before = copy.deepcopy(module.state_dict())
    classifier = Classifier(module, size=(16, 16))
    leaf = images().requires_grad_()
    (steep,) = torch.autograd.grad(margin(classifier.logits(leaf), torch.zeros(5, dtype=torch.long)).sum(), leaf)
    assert float(steep.abs().max()) > 0
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_costs_are_counted_by_image_and_block_and_thread():
    """Inner blocks count for outer ones; another thread's work does not."""
    classifier = Classifier(small(), size=(16, 16))
    with count_passes() as outer:
        classifier.logits(images(3))
        with count_passes() as inner:
            classifier.logits(images(2).requires_grad_())
        other = threading.Thread(target=classifier.logits, args=(images(5),))
        other.start()
        other.join()
    assert (outer.forwards, outer.gradients) == (3, 2)
    assert (inner.forwards, inner.gradients) == (0, 2)


def test_it_works_under_inference_mode():
    """Built and called there, it still gives gradients."""
    with torch.inference_mode():
        classifier = Classifier(small(), size=(16, 16))
        plain = classifier.logits(classifier.check(images()))
        energy, steep = energy_and_gradient(
            classifier.landscape(torch.zeros(5, dtype=torch.long)), images(), torch.arange(5)
        )
    torch.testing.assert_close(margin(plain, torch.zeros(5, dtype=torch.long)), energy)
    assert float(steep.abs().max()) > 0


def test_logits_made_under_inference_mode_can_be_used_outside():
    """No inference tensor leaks out of a plain call."""
    seen = Classifier(small(), size=(16, 16)).logits(images())
    assert not seen.is_inference()


def test_what_is_no_usable_model_is_refused_in_one_line():
    """Training mode, several labels, a wrong class count or channel count, no module, no logits."""
    cases = [
        (lambda: Classifier(small().train()), "training mode"),
        (lambda: Classifier(nn.Sequential(small(), nn.Sigmoid()).eval()), "several labels"),
        (lambda: Classifier(small(), num_classes=10), "4 classes, expected 10"),
        (lambda: Classifier(small(), class_names=["a", "b"]), "4 classes, but 2 class names"),
        (lambda: Classifier(small(), channels=1), "does not take images of 1 x 32 x 32"),
        (lambda: Classifier(lambda x: x), "expected a torch.nn.Module"),
        (lambda: Classifier(nn.Sequential(nn.Conv2d(3, 3, 1)).eval()), "expected logits"),
        (lambda: Classifier(small(), mean=(0.5, 0.5, 0.5)), "mean and std"),
    ]
    for make, text in cases:
        with pytest.raises(ModelError, match=text) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_what_is_no_usable_image_is_refused():
    """Shape, channels, size, NaN, range and type; rounding errors of the range are forgiven."""
    classifier = Classifier(small(), size=(16, 16))
    nan = images()
    nan[2, 1, 3, 3] = torch.nan
    cases = [
        (images()[0], r"\(n, c, h, w\)"),
        (images()[:, :1], "3 channels, got 1"),
        (images()[..., :8], "16 x 16"),
        (nan, "NaN"),
        (images() * 255, r"\[0, 1\]"),
        ((images() * 255).int(), "uint8"),
    ]
    for bad, text in cases:
        with pytest.raises(DataError, match=text):
            classifier.check(bad)
    assert float(classifier.check(images() * 0 + 1 + 3e-8).max()) == 1.0
    torch.testing.assert_close(classifier.check((images() * 255).round().byte()), (images() * 255).round() / 255)


def test_the_fingerprint_tells_weights_apart():
    """The same weights agree, one changed value does not."""
    module, other = small(), small()
    assert fingerprint(module) == fingerprint(other)
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    assert fingerprint(module) != fingerprint(other)


def test_later_training_of_the_module_does_not_move_the_classifier():
    """It works on a copy."""
    module = small()
    classifier = Classifier(module, size=(16, 16))
    before = classifier.logits(images())
    with torch.no_grad():
        module.head.bias += 1
    module.train()
    torch.testing.assert_close(classifier.logits(images()), before)


def test_batch_norm_is_folded_where_that_changes_nothing():
    """Every one of the compact network, which then gives the same logits; a shared one is left alone."""
    module = small()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    inside = Classifier(module).network
    assert not any(isinstance(m, nn.BatchNorm2d) for m in inside.modules())
    with torch.no_grad():
        torch.testing.assert_close(inside(images()), module(images()), rtol=1e-4, atol=1e-4)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.norm(self.conv(self.norm(self.conv(x)))).mean((2, 3)))

    assert any(isinstance(m, nn.BatchNorm2d) for m in Classifier(Shared().eval()).network.modules())


def test_a_classifier_travels_to_another_process():
    """By pickle, as joblib sends it; it gives the same logits there."""
    made = Classifier(small(), mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.testing.assert_close(pickle.loads(pickle.dumps(made)).logits(images()), made.logits(images()))


def test_batches_of_many_sizes_become_few():
    """Padded to a power of two with the last point, cut off again; never over the largest batch."""
    from advconn.runtime.forward_passes import padded_forward

    seen = []

    def forward(points):
        seen.append(len(points))
        return points.sum(1, keepdim=True)

    points = torch.arange(22.0).view(11, 2)
    for m, size in ((1, 1), (3, 4), (4, 4), (5, 8), (9, 12), (11, 12), (0, 0)):
        torch.testing.assert_close(padded_forward(forward, points[:m], 12), points[:m].sum(1, keepdim=True))
        assert seen.pop() == size
