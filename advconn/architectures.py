"""What timm, torchvision, transformers and advconn know of an architecture: how to build it, and its preprocessing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from advconn.errors import ModelError, line_of

Build = Callable[[int], nn.Module]
Size = tuple[int, int] | None
Builder = Callable[[str, dict[str, Tensor], Size, Callable[[str], None]], tuple[Build, dict[str, Any]]]


def heads_of(build: Build) -> list[str]:
    """Names of the weights whose first side is the number of classes: those that change with it."""
    two, three = build(2).state_dict(), build(3).state_dict()
    return [name for name, value in two.items() if value.ndim and (value.shape[0], three[name].shape[0]) == (2, 3)]


def _compact(
    name: str, state: dict[str, Tensor], size: Size, note: Callable[[str], None]
) -> tuple[Build, dict[str, Any]]:
    from advconn.nets import compact

    if name != "compact":
        raise ModelError(f"{name!r} is no advconn architecture: expected compact")
    weights = {k.removeprefix("module."): v for k, v in state.items()}
    names = ["stem.weight", *(f"stage{i}.widen.weight" for i in range(1, len(weights)))]
    sides = [weights[k].shape for k in names if k in weights]
    if not sides or any(len(side) != 4 or 0 in side for side in sides):
        raise ModelError("the weights do not fit advconn:compact: stem.weight is missing")
    widths, channels = tuple(int(side[0]) for side in sides), int(sides[0][1])
    return lambda classes: compact(classes, channels, widths), {"channels": channels}


def _timm(name: str, state: dict[str, Tensor], size: Size, note: Callable[[str], None]) -> tuple[Build, dict[str, Any]]:
    """timm's model and its own evaluation transform; a tag after a point picks that tag's constants."""
    try:
        import timm
        from timm.data.config import resolve_data_config
        from timm.models import get_pretrained_cfg
    except ImportError:
        raise ModelError("timm models need timm: pip install 'advconn[timm]'") from None
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        raise ModelError(f"timm has no model {plain!r}")
    tagged = [n.partition(".")[2] for n in timm.list_models(f"{plain}.*", pretrained=True)]
    if tag and tag not in tagged:
        raise ModelError(f"timm has no tag {tag!r} of {plain}: expected one of {', '.join(tagged) or 'none'}")
    cfg = get_pretrained_cfg(name)
    if not tag and cfg is not None and cfg.tag:
        note(f"timm:{plain} without a tag: mean, std and crop are those of {plain}.{cfg.tag}")
    config = resolve_data_config(pretrained_cfg=cfg.to_dict() if cfg is not None else {})
    side, share = config["input_size"][1:], config["crop_pct"] or 0.875
    scaled = [math.floor(v / share) for v in side]
    crop = config.get("crop_mode") or "center"
    settings = {
        "size": tuple(side),
        "mean": config["mean"],
        "std": config["std"],
        "channels": config["input_size"][0],
        "resize": min(scaled),
        "interpolation": config["interpolation"],
        "crop": "cover" if crop == "center" and side[0] != side[1] else crop,
    }

    def build(classes: int) -> nn.Module:
        if size is None or tuple(size) == tuple(side):
            module: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
            return module
        try:
            module = timm.create_model(name, pretrained=False, num_classes=classes, img_size=size)
        except TypeError:  # it takes any size
            module = timm.create_model(name, pretrained=False, num_classes=classes)
        return module

    return build, settings


_DENSE = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\."
    r"([12]\.(?:weight|bias|running_mean|running_var|num_batches_tracked))$"
)


def _torchvision(
    name: str, state: dict[str, Tensor], size: Size, note: Callable[[str], None]
) -> tuple[Build, dict[str, Any]]:
    """torchvision's model and its transforms; GoogLeNet and Inception turn their input as published weights want it."""
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ModelError(f"torchvision has no classification model {name!r}")
    if name.startswith("densenet"):  # the published files have older names
        for key in [k for k in state if _DENSE.match(k)]:
            state[_DENSE.sub(r"\1\2", key)] = state.pop(key)
    extra: dict[str, Any] = {}
    if name in {"googlenet", "inception_v3"}:
        aux = any(k.split(".")[-4:-1] and ("aux1." in k or "AuxLogits." in k) for k in state)
        extra = {"init_weights": False, "transform_input": True, "aux_logits": aux}
        note(f"torchvision:{name}: its input is turned as for the published weights (transform_input=True)")
    shown = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    side = shown.crop_size[0]
    settings = {
        "size": (side, side),
        "mean": shown.mean,
        "std": shown.std,
        "resize": shown.resize_size[0],
        "interpolation": shown.interpolation.value,
    }

    def build(classes: int) -> nn.Module:
        module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **extra)
        return module

    return build, settings


BUILDERS: Mapping[str, Builder] = MappingProxyType({"advconn": _compact, "timm": _timm, "torchvision": _torchvision})
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def hugging_face(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A local image-classification folder of Hugging Face's: the model, its image processor's settings, its names."""
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise ModelError("hf: models need transformers: pip install 'advconn[hf]'") from None
    for file, maker in (("config.json", "the model's"), ("preprocessor_config.json", "the image processor's")):
        if not (folder / file).is_file():
            raise ModelError(f"hf:{folder}: no {file} in this folder; expected what {maker} save_pretrained wrote")
    logging.disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        module, about = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, **local)
        processor = AutoImageProcessor.from_pretrained(folder, **local).to_dict()
    except Exception as error:  # transformers raises many types on folders it cannot read
        raise ModelError(f"hf:{folder}: cannot be loaded: {line_of(error)}") from error
    lost = [*about.get("missing_keys", ()), *about.get("mismatched_keys", ())]
    if lost:
        raise ModelError(f"hf:{folder}: its weights lack {lost[0]}: is it a network without its classification head?")
    names = {int(k): str(v) for k, v in module.config.id2label.items()}
    settings = _processed(processor, f"hf:{folder}") | {"channels": int(getattr(module.config, "num_channels", 3) or 3)}
    return module, settings | {"class_names": [names[i] for i in sorted(names)]}


def _processed(processor: dict[str, Any], name: str) -> dict[str, Any]:
    """An image processor's settings as those of Classifier."""
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if abs(scale - 1 / 255) > 1e-6 or processor.get("do_flip_channel_order") or processor.get("rescale_offset"):
        raise ModelError(
            f"{name}: its image processor scales or turns channels in a way of its own: use it in a factory that "
            "returns a module of images in [0, 1]"
        )
    settings: dict[str, Any] = {"interpolation": _RESAMPLE.get(int(processor.get("resample") or 2), "bilinear")}
    if processor.get("do_normalize", True) and processor.get("image_mean") is not None:
        settings |= {"mean": processor["image_mean"], "std": processor["image_std"]}
    size, crop = dict(processor.get("size") or {}), dict(processor.get("crop_size") or {})
    short = size.get("shortest_edge")
    cropped = processor.get("do_center_crop") and crop
    if short and processor.get("crop_pct"):  # ConvNeXt: a crop below 384 pixels, else stretched
        side = int(short)
        crop = {"height": side, "width": side}
        settings |= {"resize": int(side / processor["crop_pct"])} if side < 384 else {"resize": side, "crop": "squash"}
    elif short:
        settings["resize"] = int(short)
        crop = crop if cropped else {"height": short, "width": short}
    elif size.get("height"):
        settings |= {"resize": min(int(size["height"]), int(size["width"])), "crop": "squash"}
        crop = crop if cropped else size
    if not crop.get("height"):
        raise ModelError(f"{name}: its image processor names no input size")
    return settings | {"size": (int(crop["height"]), int(crop["width"]))}
