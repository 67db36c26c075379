"""What timm, torchvision, transformers and advconn know of an architecture: how to build it, and its preprocessing."""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from advconn.data.decoding import resize_and_crop, to_chw
from advconn.data.preprocessing import preprocessing_of
from advconn.errors import ModelError, first_line


class _Stage(nn.Module):
    """Halve the resolution, widen to `out` channels, then one residual convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(out)
        self.refine = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.refine_norm = nn.BatchNorm2d(out)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.pool(self.widen_norm(self.widen(x))))
        return x + self.act(self.refine_norm(self.refine(x)))


def compact(num_classes: int = 10, in_chans: int = 3, widths: tuple[int, ...] = (24, 64, 128, 256)) -> nn.Sequential:
    """A plain convolutional classifier for images of about 32 pixels; 80 million multiply-adds at 32 x 32.

    A stem, then one stage for each further width (each halves the resolution), global max-pooling and a linear layer.
    Takes normalised images (n, in_chans, h, w), gives logits (n, num_classes).

    Args:
        num_classes: of its answer.
        in_chans: channels of the images.
        widths: channels of the stem and of every stage.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
    layers["stem_norm"] = nn.BatchNorm2d(widths[0])
    layers["stem_act"] = nn.ReLU()
    for i, (channels, out) in enumerate(pairwise(widths), start=1):
        layers[f"stage{i}"] = _Stage(channels, out)
    layers["pool"] = nn.AdaptiveMaxPool2d(1)
    layers["flat"] = nn.Flatten()
    layers["head"] = nn.Linear(widths[-1], num_classes)
    return nn.Sequential(layers)


MEAN_APART, MOST_APART = 2 / 255, 24 / 255  # of [0, 1]: resizing by other code differs by a step or two of 255
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
        from timm.models import get_pretrained_cfg
    except ImportError:
        raise ModelError("timm models need timm: pip install 'advconn[timm]', or '.[timm]' in a checkout") from None
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        raise ModelError(f"timm has no model {plain!r}")
    tagged = [n.partition(".")[2] for n in timm.list_models(f"{plain}.*", pretrained=True)]
    if tag and tag not in tagged:
        raise ModelError(f"timm has no tag {tag!r} of {plain}: expected one of {', '.join(tagged) or 'none'}")
    cfg = get_pretrained_cfg(name)
    if not tag and cfg is not None and cfg.tag:
        note(f"timm:{plain} without a tag: mean, std and crop are those of {plain}.{cfg.tag}")
    settings = _timm_settings(cfg.to_dict() if cfg is not None else {})
    side = settings["size"]

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


def _timm_settings(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """What timm's evaluation transform does, as settings of Classifier."""
    from timm.data.config import resolve_data_config

    config = resolve_data_config(pretrained_cfg=pretrained_cfg)
    side, share = config["input_size"][1:], config["crop_pct"] or 0.875
    scaled = [math.floor(v / share) for v in side]
    crop = config.get("crop_mode") or "center"
    return {
        "size": tuple(side),
        "mean": config["mean"],
        "std": config["std"],
        "channels": config["input_size"][0],
        "resize": min(scaled),
        "interpolation": config["interpolation"],
        "crop": "cover" if crop == "center" and side[0] != side[1] else crop,
    }


_DENSE = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\."
    r"([12]\.(?:weight|bias|running_mean|running_var|num_batches_tracked))$"
)


def _torchvision(
    name: str, state: dict[str, Tensor], size: Size, note: Callable[[str], None]
) -> tuple[Build, dict[str, Any]]:
    """torchvision's model and the transforms of its weights; a tag after a point says of which.

    GoogLeNet and Inception turn their input as published weights want it.
    """
    import torchvision

    name, _, tag = name.partition(".")
    tag = tag.upper()
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
    published = torchvision.models.get_model_weights(name)
    if tag and tag not in published.__members__:
        there = ", ".join(published.__members__) or "none"
        raise ModelError(f"torchvision has no weights {tag!r} of {name}: expected one of {there}")
    taken = published[tag] if tag else published.DEFAULT
    if not tag and len({str(each.transforms()) for each in published}) > 1:
        others = ", ".join(f"torchvision:{name}.{each.name}" for each in published if each.name != taken.name)
        note(f"torchvision:{name} without a tag: size, resize, mean and std are those of {taken.name}; else {others}")
    shown = taken.transforms()
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
        raise ModelError("hf: models need transformers: pip install 'advconn[hf]', or '.[hf]' in a checkout") from None
    if not (folder / "config.json").is_file():
        raise ModelError(f"hf:{folder}: no config.json in this folder; expected what the model's save_pretrained wrote")
    bare = not (folder / "preprocessor_config.json").is_file()
    if bare and not _is_of_timm(folder):
        raise ModelError(
            f"hf:{folder}: no preprocessor_config.json in this folder; expected what the image processor's "
            "save_pretrained wrote"
        )
    logging.disable_progress_bar()
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        module, about = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True, **local)
        processor = AutoImageProcessor.from_pretrained(folder, **local)
    except Exception as error:  # transformers raises many types on folders it cannot read
        way = f"; it is a timm model: timm:NAME --weights {folder / 'model.safetensors'} may load it" * bare
        raise ModelError(f"hf:{folder}: cannot be loaded: {first_line(error)}{way}") from error
    lost = [*about.get("missing_keys", ()), *about.get("mismatched_keys", ())]
    if lost:
        raise ModelError(f"hf:{folder}: its weights lack {lost[0]}: is it a network without its classification head?")
    names = {int(k): str(v) for k, v in module.config.id2label.items()}
    settings = (
        _timm_settings(getattr(module.config, "pretrained_cfg", None) or {})
        if bare
        else _processed(processor.to_dict(), f"hf:{folder}")
    )
    settings |= {"channels": int(getattr(module.config, "num_channels", 3) or 3)}
    if settings["channels"] == 3:
        _compare(processor, settings, f"hf:{folder}")
    return module, settings | {"class_names": [names[i] for i in sorted(names)]}


def _is_of_timm(folder: Path) -> bool:
    """Whether a folder is a timm model's as the Hub keeps it, whose config names its preprocessing."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and bool(said.get("pretrained_cfg")) and "architecture" in said


def _compare(processor: Any, settings: dict[str, Any], name: str) -> None:
    """Refuse a processor that gives other pixels than its settings say: some do more than they name."""
    known = {"size", "resize", "interpolation", "mean", "std", "crop"}
    wanted = preprocessing_of(**({"size": None, "resize": None, "interpolation": "bilinear", "mean": None, "std": None,
        "crop": "center"} | {k: v for k, v in settings.items() if k in known}), channels=3)  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for wide in (True, False):
        size = (500, 375) if wide else (375, 500)
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        try:
            theirs = np.asarray(processor(picture, return_tensors="pt")["pixel_values"])[0]
        except Exception as error:  # their code
            raise ModelError(f"{name}: its image processor fails on a picture: {first_line(error, 100)}") from error
        ours = to_chw(resize_and_crop(picture, wanted, name), 3) / 255
        std = np.asarray(wanted.std or (1.0,) * 3)[:, None, None]
        ours = (ours - np.asarray(wanted.mean or (0.0,) * 3)[:, None, None]) / std
        same = theirs.shape == ours.shape
        apart = np.abs(theirs - ours) * std if same else np.ones(1)
        if apart.mean() > MEAN_APART or apart.max() > MOST_APART:
            raise ModelError(
                f"{name}: its image processor ({type(processor).__name__}) does more than its settings say (its pixels "
                f"differ by up to {apart.max():.0%}): use it in a factory that returns a module of images in [0, 1]"
            )


def _processed(processor: dict[str, Any], name: str) -> dict[str, Any]:
    """An image processor's settings as those of Classifier."""
    scale = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if abs(scale - 1 / 255) > 1e-6 or processor.get("do_flip_channel_order") or processor.get("rescale_offset"):
        raise ModelError(
            f"{name}: its image processor scales or turns channels in a way of its own: use it in a factory that "
            "returns a module of images in [0, 1]"
        )
    settings: dict[str, Any] = {
        "interpolation": _RESAMPLE.get(2 if (way := processor.get("resample")) is None else int(way), "bilinear")
    }
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
