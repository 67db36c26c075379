"""Decoders: from points of a latent space back to images, so that a latent path can be looked at.

After Gu & Borovykh (2023): transposed convolutions, trained by Adam at 1e-3 on the mean square error; for a layer of
feature maps in batches of 32 for 10 epochs, for a layer of vectors in batches of 128 for 5.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advconn.errors import DataError, PathError
from advconn.files import atomic_file
from advconn.paths.space import Space
from advconn.runtime.forward_passes import gradients_enabled
from advconn.runtime.progress import Progress, ignore_progress

WIDTH = 64
SMALLEST = 4  # side that a vector is laid out on


def network(shape: tuple[int, ...], image: tuple[int, int, int], width: int = WIDTH) -> nn.Sequential:
    """A decoder from points of a space to images in [0, 1].

    A vector is first laid out on a small square by a linear layer. Then two convolutions, and a transposed convolution
    for every doubling up to the image's size; a last interpolation makes up for sizes that are no power of two.

    Args:
        shape: of a point, (channels, h, w) or (features,).
        image: (c, h, w).
        width: channels of its convolutions.
    """
    c, h, w = image
    maps = len(shape) == 3 and shape[1] * shape[2] > 1
    channels = shape[0] if maps else 2 * width
    side = shape[1:] if maps else (min(SMALLEST, h), min(SMALLEST, w))
    layers: list[nn.Module] = []
    if not maps:
        layers += [nn.Flatten(), nn.Linear(math.prod(shape), channels * math.prod(side)), nn.ReLU()]
        layers += [nn.Unflatten(1, (channels, *side))]
    layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
    for _ in range(max(0, math.floor(math.log2(min(h / side[0], w / side[1]))))):
        layers += [nn.ConvTranspose2d(width, width, 4, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, c, 3, padding=1)]
    layers += [nn.Upsample((h, w), mode="bilinear"), nn.Sigmoid()]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Decoder:
    """A trained decoder of one space.

    Attributes:
        space: what its points are of.
        network: from points (n, *shape) to images (n, c, h, w).
        loss: mean square error of images it was not trained on, or None.
    """

    space: Space
    network: nn.Module
    loss: float | None = None

    def images(self, points: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] of points (n, *shape)."""
        with torch.inference_mode():
            return torch.cat([self.network(chunk) for chunk in points.split(self.space.classifier.batch_size)])

    def save(self, file: Path) -> None:
        """Write one .safetensors file, with what it belongs to in its metadata."""
        from safetensors.torch import save_file

        about = _belongs(self.space) | {"loss": json.dumps(self.loss)}
        state = {k: v.cpu().contiguous() for k, v in self.network.state_dict().items()}
        with atomic_file(file) as partial:
            save_file(state, partial, metadata=about)


def load(file: Path, space: Space) -> Decoder:
    """Read a decoder of this space.

    Raises:
        DataError: not such a file, damaged, or made for another classifier or layer.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as data:
            about = data.metadata() or {}
            state = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: not a readable decoder: {str(error).splitlines()[0][:120]}") from error
    for key, wanted in _belongs(space).items():
        if about.get(key) != wanted:
            raise DataError(
                f"{file}: a decoder for {key} {about.get(key, 'unknown')}, expected {wanted}: train another"
            )
    net = network(space.shape, _image(space)).to(space.classifier.device)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(f"{file}: its tensors do not fit this layer: train another") from error
    return Decoder(space, net.requires_grad_(False).eval(), json.loads(about.get("loss", "null")))


def train(
    space: Space,
    images: Tensor,
    *,
    epochs: int | None = None,
    batch: int | None = None,
    rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
    progress: Progress = ignore_progress,
) -> Decoder:
    """Train a decoder of a latent space.

    Args:
        space: the outputs of a layer.
        images: (n, c, h, w), 10 or more.
        epochs: unless told 10 for a layer of feature maps and 5 for one of vectors.
        batch: images a step; unless told 32 for a layer of feature maps and 128 for one of vectors.
        rate: of Adam.
        held_out: share of the images that is kept for `loss`, in (0, 1).
        seed: of the split, the order and the weights.
        progress: told (stage, done, total).

    Raises:
        PathError: of pixels: there is nothing to decode.
        DataError: fewer than 10 images.
    """
    if space.layer == "pixel":
        raise PathError("pixels need no decoder: name a layer")
    if len(images) < 10:
        raise DataError(f"{len(images)} images to train a decoder on: expected 10 or more, better thousands")
    maps = len(space.shape) == 3 and math.prod(space.shape[1:]) > 1
    epochs, batch = epochs or (10 if maps else 5), batch or (32 if maps else 128)
    pixels = space.classifier.check(images)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    order = torch.randperm(len(pixels), generator=generator, dtype=torch.int64, device="cpu")
    kept, training = order.tensor_split([max(1, round(held_out * len(order)))])
    with gradients_enabled(), torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network(space.shape, _image(space)).to(pixels.device)
        optimizer = torch.optim.Adam(net.parameters(), rate)
        steps = [
            rows
            for _ in range(epochs)
            for rows in training[
                torch.randperm(len(training), generator=generator, dtype=torch.int64, device="cpu")
            ].split(batch)
        ]
        for step, rows in enumerate(steps):
            target = pixels[rows]
            loss = F.mse_loss(net(space.points(target)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress("decoder", step + 1, len(steps))
    decoder = Decoder(space, net.requires_grad_(False).eval())
    return Decoder(space, net, float(F.mse_loss(decoder.images(space.points(pixels[kept])), pixels[kept])))


def _image(space: Space) -> tuple[int, int, int]:
    classifier = space.classifier
    h, w = classifier.preprocessing.size or (32, 32)
    return classifier.channels, h, w


def _belongs(space: Space) -> dict[str, str]:
    return {"layer": space.layer, "fingerprint": space.classifier.fingerprint[:16]}
