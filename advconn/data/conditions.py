"""Benign conditions: what happens to pictures without an attacker, by name.

Each is a function of images (n, c, h, w) uint8 and a seed, and gives images of the same kind. What one is used for is
said in USES: 'fitted' ones stand among the clean images that a head is fitted on, 'calibrated' ones have p-values of
their own, and 'measured' ones, a third and more of them all, are in no fit and no calibration, ever.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.errors import DataError, expected_one_of

CLEAN = "clean"


Condition = Callable[[Tensor, int], Tensor]
FITTED, CALIBRATED, MEASURED = "fitted", "calibrated", "measured"


def _as_bytes(floats: Tensor) -> Tensor:
    return (255 * floats.clamp(0, 1)).round().to(torch.uint8)


def _pictured(change: Callable[[Any], Any]) -> Condition:
    """A change of PIL pictures, one at a time."""

    def condition(images: Tensor, seed: int) -> Tensor:
        from PIL import Image

        if images.shape[1] not in (1, 3):
            raise DataError(f"images of {images.shape[1]} channels are no pictures: only noise can be added to them")
        mode = "RGB" if images.shape[1] == 3 else "L"
        out = []
        for image in images.cpu():
            array = image.permute(1, 2, 0).numpy()
            picture = change(Image.fromarray(array if mode == "RGB" else array[:, :, 0])).convert(mode)
            out.append(torch.from_numpy(np.array(picture)).view(*image.shape[1:], len(image)).permute(2, 0, 1))
        return torch.stack(out) if out else images

    return condition


def saved_as(kind: str, quality: int) -> Condition:
    """Written as a file and read again.

    Args:
        kind: Pillow's name of the format, such as JPEG.
        quality: from 1 to 100.
    """

    def change(picture: Any) -> Any:
        from PIL import Image

        buffer = io.BytesIO()
        picture.save(buffer, kind, quality=quality)
        return Image.open(buffer)

    return _pictured(change)


def _of_floats(change: Callable[[Tensor], Tensor]) -> Condition:
    """A change of images in [0, 1]."""
    return lambda images, seed: _as_bytes(change(images.to(torch.float32) / 255)) if len(images) else images


def _transform(name: str, *args: object, **options: object) -> Condition:
    """A function of torchvision's transforms, version 2."""

    def change(images: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        return getattr(functional, name)(images, *args, **options)

    return _of_floats(change)


def _grain(draw: Callable[[tuple[int, ...], torch.Generator], Tensor]) -> Condition:
    """Random values added, other ones for every image."""

    def condition(images: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        grain = draw(tuple(images.shape), generator).to(images.device)
        return _as_bytes(images.to(torch.float32) / 255 + grain)

    return condition


def _gaussian(sd: float) -> Condition:
    return _grain(lambda shape, g: sd / 255 * torch.randn(shape, generator=g, dtype=torch.float32, device="cpu"))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 8 / 255 * (2 * torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu") - 1)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 8 / 255 * _uniform(shape, generator).sign()


def noise_of_size(l2: float) -> Condition:
    """Gaussian noise, of this L2 size on every image."""

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        grain = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return grain * (l2 / grain.flatten(1).norm(dim=1)[:, None, None, None])

    return _grain(draw)


def _salt(images: Tensor, seed: int) -> Tensor:
    """One pixel in a hundred black or white."""
    n, _, h, w = images.shape
    generator = torch.Generator(device="cpu").manual_seed(seed)
    draw = torch.rand((n, 1, h, w), generator=generator, dtype=torch.float32, device="cpu").to(images.device)
    return images.masked_fill(draw < 0.005, 0).masked_fill(draw > 0.995, 255)


def _blurred(picture: Any) -> Any:
    from PIL import ImageFilter

    return picture.filter(ImageFilter.GaussianBlur(0.7))


def _resized(images: Tensor) -> Tensor:
    """To three quarters of the size and back, bicubic."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    h, w = images.shape[2:]
    small = functional.resize(images, [max(1, 3 * h // 4), max(1, 3 * w // 4)], InterpolationMode.BICUBIC)
    return functional.resize(small, [h, w], InterpolationMode.BICUBIC)


def _scaled(images: Tensor, height: int, width: int) -> Tensor:
    """Bicubic, without ringing where it becomes smaller."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    return functional.resize(images, [height, width], InterpolationMode.BICUBIC, antialias=True)


def _shot(images: Tensor) -> Tensor:
    """Shown a third larger on a screen, copied from it without loss, and brought back to the size."""
    h, w = images.shape[2:]
    shown = _scaled(images, 4 * h // 3, 4 * w // 3).clamp(0, 1)
    return _scaled((255 * shown).round() / 255, h, w)


def _sent(images: Tensor, seed: int) -> Tensor:
    """As a phone sends a picture on: a quarter larger, sharpened, saved as JPEG 80, and brought back to the size."""
    from torchvision.transforms.v2 import functional

    if not len(images):
        return images
    h, w = images.shape[2:]
    large = _scaled(images.to(torch.float32) / 255, 5 * h // 4, 5 * w // 4).clamp(0, 1)
    sharp = _as_bytes(functional.adjust_sharpness(large, 1.5))
    return _as_bytes(_scaled(saved_as("JPEG", 80)(sharp, seed).to(torch.float32) / 255, h, w))


def _colours(images: Tensor) -> Tensor:
    """Saturation up by half; grey images stay."""
    from torchvision.transforms.v2 import functional

    return functional.adjust_saturation(images, 1.5) if images.shape[1] == 3 else images


def _turned(images: Tensor) -> Tensor:
    """Turned by five degrees, after a border of repeated pixels was added, so that no corner is black."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    h, w = images.shape[2:]
    border = max(1, max(h, w) // 10)
    wide = functional.pad(images, [border], padding_mode="edge")
    return functional.center_crop(functional.rotate(wide, 5, InterpolationMode.BILINEAR), [h, w])


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        CLEAN: lambda images, seed: images,
        "jpeg90": saved_as("JPEG", 90),
        "jpeg75": saved_as("JPEG", 75),
        "jpeg50": saved_as("JPEG", 50),
        "webp80": saved_as("WEBP", 80),
        "jpeg95": saved_as("JPEG", 95),
        "jpeg85": saved_as("JPEG", 85),
        "jpeg60": saved_as("JPEG", 60),
        "webp90": saved_as("WEBP", 90),
        "webp70": saved_as("WEBP", 70),
        "noise2": _gaussian(2),
        "noise4": _gaussian(4),
        "noise8": _gaussian(8),
        "uniform8": _grain(_uniform),
        "signs8": _grain(_signs),
        "saltpepper": _salt,
        "blur": _pictured(_blurred),
        "sharpen": _transform("adjust_sharpness", 2.0),
        "resize": _of_floats(_resized),
        "brighter": _transform("adjust_brightness", 1.15),
        "darker": _transform("adjust_brightness", 0.85),
        "contrast": _transform("adjust_contrast", 1.3),
        "pale": _transform("adjust_contrast", 0.75),
        "gamma": _transform("adjust_gamma", 1.4),
        "gamma-light": _transform("adjust_gamma", 0.7),
        "saturated": _of_floats(_colours),
        "turn": _of_floats(_turned),
        "screenshot": _of_floats(_shot),
        "phone": _sent,
        "palette64": _pictured(lambda picture: picture.quantize(64)),
    }
)
TRAINED_LAUNDERINGS = ("jpeg95", "jpeg85", "jpeg60", "webp90", "webp70")  # never a quality that is tested
BENIGN = ("noise4", "noise8", "sharpen", *TRAINED_LAUNDERINGS)
PROMISED = (CLEAN, "jpeg75", "webp80", "resize", "blur", "brighter", "gamma")
USES: Mapping[str, str] = MappingProxyType(
    {name: FITTED if name in BENIGN else CALIBRATED if name in PROMISED else MEASURED for name in CONDITIONS}
)


def usable(names: Iterable[str], channels: int) -> tuple[str, ...]:
    """Those of the conditions that images of so many channels can be put under.

    Raises:
        DataError: a name that is no condition's.
    """
    wanted = tuple(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in CONDITIONS]
    if unknown:
        raise DataError(f"no condition {unknown[0]!r}: {expected_one_of(unknown[0], CONDITIONS)}")
    return wanted if channels in (1, 3) else tuple(name for name in wanted if name == CLEAN or name in PLAIN)


PLAIN = ("noise2", "noise4", "noise8", "uniform8", "signs8", "saltpepper", "resize")  # of any channels
