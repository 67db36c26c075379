"""What a network is asked before it is taken: several images, one alone, and the same ones twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from advconn.errors import ModelError

COARSE = 0.04  # by which the sum of probabilities of few digits may miss 1


def probe_images(n: int, channels: int, height: int, width: int) -> Tensor:
    """The same images (n, c, h, w) in [0, 1] every time, unlike one another in light and contrast.

    Args:
        n: number of images.
        channels: of each.
        height: in pixels.
        width: in pixels.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.rand(n, channels, height, width, generator=generator, dtype=torch.float32, device="cpu")
    ramp = torch.linspace(0, 1, width, dtype=torch.float32, device="cpu")
    low = torch.tensor([0.0, 0.55, 0.05, 0.3], dtype=torch.float32, device="cpu")[
        torch.arange(n, device="cpu", dtype=torch.int64) % 4
    ]
    high = torch.tensor([1.0, 1.0, 0.35, 0.7], dtype=torch.float32, device="cpu")[
        torch.arange(n, device="cpu", dtype=torch.int64) % 4
    ]
    low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
    return low + (high - low) * (0.7 * noise + 0.3 * ramp)


def classes_of(forward: Callable[[Tensor], Tensor], probe: Tensor, network: nn.Module, dtype: torch.dtype) -> int:
    """The number of classes of a network that answers several images, one, and the same ones twice as it should.

    Args:
        forward: from images to logits (n, k).
        probe: images (n, c, h, w) to ask it.
        network: the module behind it.
        dtype: that it works in.

    Raises:
        ModelError: it does not, or answers with NaN or infinity.
    """
    logits, again, alone = forward(probe), forward(probe), forward(probe[:1])
    if bool(torch.isnan(logits).any()) or bool((logits == torch.inf).any()):
        raise ModelError("the model gives NaN or infinity for ordinary images: are there NaN in its weights?")
    scale = float(logits.abs().max().clamp_min(1e-6))
    slack = scale * max(1e-3, 16 * torch.finfo(dtype).eps)
    if float((logits - again).abs().max()) > slack:
        raise ModelError(
            "the model answers the same images differently when asked twice: turn off what is random in it, such as "
            "F.dropout without training=self.training"
        )
    loose = max(slack, 0.1 * scale if is_quantised(network) else 0)  # dynamic scales are those of the batch
    if alone.shape[1] != logits.shape[1] or float((logits[:1] - alone).abs().max()) > loose:
        raise ModelError(
            "the model's output for an image depends on the other images in the batch: does it contain a batch norm "
            "without running statistics, or another normalisation over the batch?"
        )
    return logits.shape[1]


def is_quantised(network: nn.Module) -> bool:
    """Whether some layers work in integers."""
    kinds = (type(part).__module__ for part in network.modules())
    scripted = isinstance(network, torch.jit.ScriptModule) and "quantized::" in str(network.inlined_graph)
    return scripted or any("quantized" in kind or "torchao" in kind for kind in kinds)


def scale_of(logits: Tensor, far: Callable[[], Tensor], single: bool) -> str:
    """What a network's answers (n, k) to ordinary images are: 'logits', 'softmax', 'percent' or 'sigmoid'.

    Log-probabilities are logits.

    Args:
        logits: answers to many images that are unlike one another.
        far: gives the answers (m, k) to values far outside [0, 1], which no sigmoid lets pass.
        single: whether the network gives one number an image.

    Raises:
        ModelError: several labels an image, each by a sigmoid.
    """
    positive = bool((logits >= 0).all())
    inside = positive and bool((logits <= 1).all())
    if inside and not single and bool(((logits.sum(1) - 1).abs() < COARSE).all()):
        return "softmax"
    if positive and not single and bool(((logits.sum(1) / 100 - 1).abs() < COARSE).all()):
        return "percent"
    if not inside:
        return "logits"
    beyond = far()
    if not bool(((beyond >= 0) & (beyond <= 1)).all()):  # small logits, as of an untrained network; NaN is none either
        return "logits"
    if single:
        return "sigmoid"
    raise ModelError(
        "all outputs lie in [0, 1] and do not sum to 1, as of a sigmoid a label: advconn judges classifiers of one "
        "class an image. Where one class is meant, take the sigmoid off or give output=torch.logit; a network of "
        "several labels is judged label by label: a module that returns one column is a classifier of two classes"
    )
