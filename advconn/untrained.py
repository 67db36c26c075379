"""A classifier's architecture before any training."""

from __future__ import annotations

import copy

import torch

from advconn.classifier import Classifier


def untrained(classifier: Classifier, seed: int = 0) -> Classifier:
    """The same architecture with parameters drawn anew, as its layers draw them (batch norm folded away).

    Parameters that belong to no layer that can (a transformer's positions) keep their mean and deviation only.
    """
    network = copy.deepcopy(classifier.network)
    before = {name: value.clone() for name, value in network.named_parameters()}
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(seed)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(reset):
                reset()
        for name, value in network.named_parameters():
            if value.numel() > 1 and torch.equal(value, before[name]) and float(value.std()) > 0:
                torch.nn.init.normal_(value, float(value.mean()), float(value.std()))
    preprocessing = classifier.preprocessing
    return Classifier(
        network.eval(), size=preprocessing.size, mean=preprocessing.mean, std=preprocessing.std,
        channels=classifier.channels, device=classifier.device, output=classifier.adapter.output,
    )  # fmt: skip
