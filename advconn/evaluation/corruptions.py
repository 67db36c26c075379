"""Clean images spoilt without an attacker: what a detector should not flag."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from advconn import copies


def corrupted(images: Tensor, l2: float, seed: int) -> dict[str, Tensor]:
    """Clean images (n, c, h, w) uint8 spoilt without an attacker: noise of an attack's L2 size, JPEG, blur, light."""
    floats = images.float() / 255
    noise = torch.randn(
        images.shape, generator=torch.Generator(device="cpu").manual_seed(seed), dtype=torch.float32, device="cpu"
    )
    noise *= l2 / noise.flatten(1).norm(dim=1)[:, None, None, None]
    kinds = {
        f"noise of L2 {l2:.2f}": floats + noise,
        "JPEG, quality 75": torch.stack([_jpeg(image) for image in images]).float() / 255,
        "blur, 0.7 pixels": copies.blur(0.7)(floats),
        "brighter by 15 %": floats * 1.15,
    }
    return {name: (255 * x.clamp(0, 1)).round().byte() for name, x in kinds.items()}


def _jpeg(image: Tensor, quality: int = 75) -> Tensor:
    """An image (c, h, w) uint8 written as JPEG and read again."""
    from PIL import Image

    array, buffer = image.permute(1, 2, 0).numpy(), io.BytesIO()
    Image.fromarray(array if len(image) == 3 else array[:, :, 0]).save(buffer, "JPEG", quality=quality)
    found = np.asarray(Image.open(buffer))
    return torch.from_numpy(found.copy()).view(*array.shape[:2], len(image)).permute(2, 0, 1)
