"""The networks of the two papers run here at their size, with random weights: whoever has the weights has the table."""

import pytest
import torch
import torchvision

from advconn import models
from advconn.paths.connection import losses
from advconn.paths.path import straight


@pytest.mark.parametrize("name", ["googlenet", "resnet18", "resnet50", "vit_b_16"])
def test_a_path_through_a_network_of_the_papers(name, tmp_path):
    """By its name and a file of weights, at 224 pixels: losses along a straight path, as `study barriers` asks."""
    torch.manual_seed(0)
    more = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    state = getattr(torchvision.models, name)(weights=None, **more).state_dict()
    if name == "vit_b_16":  # whose last layer begins as zeros
        state["heads.head.weight"].normal_(0, 0.02)
    torch.save(state, tmp_path / "weights.pth")
    classifier = models.load(f"torchvision:{name}", tmp_path / "weights.pth")
    assert (classifier.preprocessing.size, classifier.num_classes) == ((224, 224), 1000)
    images = classifier.check(torch.rand(2, 3, 224, 224))
    labels = classifier.predict(images[:1])
    line = losses(straight(images[:1], images[1:]), classifier.landscape(labels), 3)
    assert line.barrier.isfinite().all()
    assert (line.barrier >= 0).all()
