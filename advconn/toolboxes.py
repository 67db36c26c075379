"""Attacks of torchattacks and foolbox, each made on a Classifier. The libraries are imported where one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advconn.classifier import Classifier
from advconn.errors import AttackError


def of_torchattacks(
    cls: str, classifier: Classifier, images: Tensor, labels: Tensor, options: Mapping[str, Any]
) -> Tensor:
    """Images attacked by a class of torchattacks."""
    try:
        import torchattacks
    except ImportError:
        raise AttackError("attacks need torchattacks: pip install torchattacks") from None
    attack = getattr(torchattacks, cls)(classifier.module, **options)
    attack.set_device(classifier.device)
    out: Tensor = attack(images, labels)
    return out


def of_foolbox(cls: str, classifier: Classifier, images: Tensor, labels: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Images attacked by a class of foolbox; an image that it finds nothing for stays as it is."""
    try:
        import foolbox
        from foolbox.models.pytorch import PyTorchModel
    except ImportError:
        raise AttackError("this attack needs foolbox: pip install 'advconn[attacks]'") from None
    model = PyTorchModel(classifier.module, bounds=(0, 1), device=classifier.device)
    attack = getattr(foolbox.attacks, cls)(**options)
    with torch.set_grad_enabled(classifier.differentiable):
        out, _, _ = attack(model, images, foolbox.criteria.Misclassification(labels), epsilons=None)
    found: Tensor = torch.where(out.isfinite(), out, images)
    return found


LIBRARIES = {"torchattacks": of_torchattacks, "foolbox": of_foolbox}
