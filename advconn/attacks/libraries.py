"""Attacks of other libraries by their class's name, made on a Classifier; a library is imported where one is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from advconn.errors import AttackError
from advconn.models.classifier import Classifier

INSTALLED_AS = {  # what pip calls them
    "torchattacks": "torchattacks",
    "foolbox": "'advconn[attacks]'",
    "art": "adversarial-robustness-toolbox",
    "advlib": "adv-lib",
}


@contextmanager
def _installed(library: str) -> Iterator[None]:
    """Around the import of a library.

    Raises:
        AttackError: it is not there.
    """
    try:
        yield
    except ImportError as error:
        raise AttackError(f"this attack needs {library} ({error.name}): pip install {INSTALLED_AS[library]}") from None


def _class(library: str, module: Any, name: str) -> Any:
    attack_class = getattr(module, name, None)
    if attack_class is None:
        raise AttackError(f"{library} has no attack {name!r}")
    return attack_class


def of_torchattacks(
    cls: str, classifier: Classifier, images: Tensor, labels: Tensor, options: Mapping[str, Any]
) -> Tensor:
    """Images attacked by a class of torchattacks.

    Args:
        cls: name of the class.
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        options: of the class, and `target`, one of catalog.TARGETS, for a targeted attack.

    Raises:
        AttackError: the library is not installed, or has no such class.
    """
    with _installed("torchattacks"):
        import torchattacks
    own = {name: value for name, value in options.items() if name != "target"}
    attack = _class("torchattacks", torchattacks, cls)(classifier.module, **own)
    attack.set_device(classifier.device)
    if options.get("target") == "random":
        attack.set_mode_targeted_random(quiet=True)
    elif options.get("target") == "least-likely":
        attack.set_mode_targeted_least_likely(quiet=True)
    out: Tensor = attack(images, labels)
    return out


def of_foolbox(cls: str, classifier: Classifier, images: Tensor, labels: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Images attacked by a class of foolbox; an image that it finds nothing for stays as it is.

    Args:
        cls: name of the class.
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        options: of the class, and `epsilons` of its call, the largest change.

    Raises:
        AttackError: the library is not installed, or has no such class.
    """
    with _installed("foolbox"):
        import foolbox
        from foolbox.models.pytorch import PyTorchModel
    model = PyTorchModel(classifier.module, bounds=(0, 1), device=classifier.device)
    attack = _class("foolbox", foolbox.attacks, cls)(**{k: v for k, v in options.items() if k != "epsilons"})
    wrong = foolbox.criteria.Misclassification(labels)
    with torch.set_grad_enabled(classifier.differentiable):
        _, out, _ = attack(model, images, wrong, epsilons=options.get("epsilons"))
    attacked: Tensor = torch.where(out.isfinite(), out, images)
    return attacked


def of_art(cls: str, classifier: Classifier, images: Tensor, labels: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Images attacked by a class of the Adversarial Robustness Toolbox.

    Args:
        cls: name of the class.
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        options: of the class.

    Raises:
        AttackError: the library is not installed, or has no such class.
    """
    with _installed("art"):
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier
    model = PyTorchClassifier(
        classifier.module,
        torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classifier.num_classes,
        clip_values=(0, 1),
        device_type="gpu" if classifier.device.type == "cuda" else "cpu",
    )
    made = _class("art", evasion, cls)(model, **options).generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(made).to(images)


def of_advlib(cls: str, classifier: Classifier, images: Tensor, labels: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Images attacked by a function of adv-lib.

    Args:
        cls: name of the function.
        classifier: what is attacked.
        images: (n, c, h, w) in [0, 1].
        labels: their classes (n,).
        options: of the function.

    Raises:
        AttackError: the library is not installed, or has no such function.
    """
    with _installed("advlib"):
        from adv_lib import attacks
    out: Tensor = _class("advlib", attacks, cls)(classifier.module, images, labels, **options)
    return out


LIBRARIES = {"torchattacks": of_torchattacks, "foolbox": of_foolbox, "art": of_art, "advlib": of_advlib}
