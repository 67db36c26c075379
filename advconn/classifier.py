"""Classifier: any torch module with its preprocessing; images in [0, 1] in, logits and the log-odds margin out."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advconn.errors import DataError, ModelError


@dataclass
class Cost:
    """Forward passes and input gradients spent, counted in images."""

    forwards: int = 0
    gradients: int = 0


_cost: ContextVar[Cost | None] = ContextVar("advconn_cost", default=None)


@contextmanager
def counting() -> Iterator[Cost]:
    """Count what every classifier spends inside the block, in this thread. Blocks nest: the outer one counts all."""
    outer, cost = _cost.get(), Cost()
    token = _cost.set(cost)
    try:
        yield cost
    finally:
        _cost.reset(token)
        if outer is not None:
            outer.forwards += cost.forwards
            outer.gradients += cost.gradients


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds margin against a class: logsumexp of the other logits minus the class's own; negative where it wins.

    logits (..., k), labels of a shape that broadcasts to (...). softplus(margin) is the cross-entropy exactly.
    """
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    own = logits.gather(-1, index).squeeze(-1)
    return logits.scatter(-1, index, -torch.inf).logsumexp(-1) - own


def level(delta: Tensor | float) -> Tensor:
    """Margin at which the cross-entropy is `delta`: ln(e^delta - 1), the inverse of softplus."""
    value = torch.as_tensor(delta)
    return value + torch.log(-torch.expm1(-value))


@dataclass(frozen=True)
class Preprocessing:
    """How a classifier's images are made: size (h, w), resize of the shorter side before the crop, mean and std."""

    size: tuple[int, int] | None = None
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


Forward = Callable[[Tensor], Tensor]


class MarginLandscape:
    """The margin against one class for each row, as paths walk it: points (n, s, *shape) to energies (n, s).

    `logits` maps points (m, *shape) to logits (m, k).
    """

    def __init__(self, logits: Forward, labels: Tensor) -> None:
        self._logits, self._labels = logits, labels

    def __call__(self, points: Tensor) -> Tensor:
        """Margins (n, s) at points (n, s, *shape)."""
        n, s = points.shape[:2]
        logits = self._logits(points.flatten(0, 1))
        return margin(logits.view(n, s, logits.shape[1]), self._labels[:, None])

    def rows(self, index: Tensor) -> MarginLandscape:
        """The landscape of these rows."""
        return MarginLandscape(self._logits, self._labels[index])


def spend(forward: Forward, points: Tensor, batch_size: int) -> Tensor:
    """What `forward` gives for points (m, ...), counted, at most `batch_size` at once.

    Differentiable, and then in one batch, where the points ask for a gradient.
    """
    wanted = points.requires_grad and torch.is_grad_enabled()
    cost = _cost.get()
    if cost is not None:
        if wanted:
            cost.gradients += len(points)
        else:
            cost.forwards += len(points)
    if wanted:
        found = forward(points)
        if not found.requires_grad:
            raise ModelError("the model gives no gradient: its forward is detached, or runs under torch.no_grad()")
        return found
    with torch.inference_mode():
        out = [forward(chunk) for chunk in points.split(batch_size)]
        joined = out[0] if len(out) == 1 else torch.cat(out)
    return joined if torch.is_inference_mode_enabled() else joined.clone()


class Classifier:
    """A torch module that maps images (n, c, h, w) to logits (n, k), with what comes before it.

    Args:
        module: in evaluation mode; it is copied (batch norm folded into convolutions where that changes nothing), so
            neither its parameters nor their `.grad` are ever touched, and later changes to it are not followed.
        size: (h, w) of the images it takes; if not given, any that the module takes (it is tried out with 32 x 32).
        mean, std: per channel, applied to images in [0, 1]; leave out if the module does it itself.
        resize, interpolation: how images of another size are brought to `size`: shorter side to `resize`, then a centre
            crop.
        class_names: one for each class.
        channels: of the images it takes.
        num_classes: checked against the module's output, if given.
        batch_size: largest batch handed to the module at once; unless told 256 on a GPU, and 32 on a CPU, whose caches
            hold no more.
        name: the specification it was made from, kept in a bundle.

    Raises:
        ModelError: training mode, no logits (n, k), probabilities, a wrong class or channel count.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize: int | None = None,
        interpolation: str = "bilinear",
        class_names: Sequence[str] | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ModelError(f"expected a torch.nn.Module, got {type(module).__name__}")
        if any(m.training for m in module.modules()):
            raise ModelError("the model is in training mode, where verdicts change at every call: call model.eval()")
        if (mean is None) != (std is None):
            raise ModelError("mean and std go together: give both, or neither if the module normalises by itself")
        for label, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise ModelError(f"{label} has {len(values)} values for {channels} channels")
        self.preprocessing = Preprocessing(
            size, resize, interpolation, tuple(mean) if mean else None, tuple(std) if std else None
        )
        self.channels, self.name = channels, name
        self.class_names = tuple(class_names) if class_names is not None else None
        self.fingerprint = fingerprint(module)
        self.state: dict[str, Tensor] | None = None  # set where the architecture can be named, so that it can be saved
        with torch.inference_mode(False):
            home = next((p.device for p in module.parameters()), torch.device("cpu"))
            self.device = torch.device(device) if device is not None else home
            self.batch_size = batch_size or (32 if self.device.type == "cpu" else 256)
            side = size or (32, 32)
            probe = torch.rand(4, channels, *side, generator=torch.Generator().manual_seed(0)).to(self.device)
            self.network = _prepare(module, self.device, self.normalise(probe))
            self.num_classes = self._probe(probe, num_classes)

    def __sklearn_clone__(self) -> Classifier:
        return self

    def __deepcopy__(self, memo: object) -> Classifier:
        return self

    def __repr__(self) -> str:
        return f"Classifier({self.name or type(self.network).__name__}, {self.num_classes} classes)"

    def _probe(self, probe: Tensor, expected: int | None) -> int:
        try:
            with torch.inference_mode():
                output = self.network(self.normalise(probe))
        except Exception as error:  # a user's forward may raise anything at a size it does not take
            shape = f"{self.channels} x {probe.shape[2]} x {probe.shape[3]}"
            raise ModelError(f"the model does not take images of {shape}: {_line(error)}") from error
        if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[0] != len(probe) or output.shape[1] < 2:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(f"expected logits (n, k) with 2 classes or more from the model, got {found}")
        if bool((output >= 0).all()) and bool(((output.sum(1) - 1).abs() < 1e-3).all()):
            raise ModelError("the model returns probabilities: advconn needs logits, take the softmax off")
        if bool((output <= 0).all()) and bool((output.logsumexp(1).abs() < 1e-3).all()):
            raise ModelError("the model returns log-probabilities: advconn needs logits, take the log-softmax off")
        classes = output.shape[1]
        if expected is not None and expected != classes:
            raise ModelError(f"the model has {classes} classes, expected {expected}")
        if self.class_names is not None and len(self.class_names) != classes:
            raise ModelError(f"the model has {classes} classes, but {len(self.class_names)} class names were given")
        return classes

    def normalise(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] as the network takes them."""
        p = self.preprocessing
        if p.mean is None or p.std is None:
            return images
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (p.mean, p.std))
        return (images - mean) / std

    def check(self, images: Tensor) -> Tensor:
        """The same images on the classifier's device in float32, clamped to [0, 1].

        Raises:
            DataError: not (n, channels, h, w), another size, NaN, or values outside [0, 1] by more than 1e-4.
        """
        if not isinstance(images, Tensor):
            raise DataError(f"expected a torch.Tensor of images, got {type(images).__name__}")
        if images.ndim != 4:
            raise DataError(f"expected images (n, c, h, w), got shape {tuple(images.shape)}")
        if images.shape[1] != self.channels:
            raise DataError(f"expected {self.channels} channels, got {images.shape[1]} (shape {tuple(images.shape)})")
        size = self.preprocessing.size
        if size is not None and tuple(images.shape[2:]) != tuple(size):
            raise DataError(f"expected images of {size[0]} x {size[1]}, got {images.shape[2]} x {images.shape[3]}")
        if images.dtype == torch.uint8:
            return images.to(self.device).contiguous().float() / 255
        if not images.is_floating_point():
            raise DataError(f"expected images as uint8 or as floats in [0, 1], got {images.dtype}")
        images = images.to(self.device, torch.float32).contiguous()
        if not len(images):
            return images
        low, high = torch.aminmax(images)
        if bool(torch.isnan(low)) or bool(torch.isnan(high)):
            raise DataError("the images hold NaN: expected values in [0, 1]")
        if bool(low < -1e-4) or bool(high > 1 + 1e-4):
            raise DataError(
                f"the images lie in [{float(low):.3g}, {float(high):.3g}]: expected [0, 1], before normalisation"
            )
        return images.clamp(0, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (m, k) of checked images (m, c, h, w); differentiable with respect to them where they ask for it."""
        return spend(self._forward, images, self.batch_size)

    def _forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            batch = self.normalise(images).contiguous(memory_format=torch.channels_last)
            output: Tensor = self.network(batch)
        return output.float()

    def landscape(self, labels: Tensor) -> MarginLandscape:
        """The margin against `labels` (n,), one a row."""
        return MarginLandscape(self.logits, labels)

    def label_names(self, labels: Sequence[int]) -> list[str]:
        """Names of these classes, or their indices as text."""
        names = self.class_names
        return [names[i] if names else str(i) for i in labels]

    @property
    def module(self) -> nn.Module:
        """The classifier as a module from images in [0, 1] to logits, in evaluation mode, for attacks."""
        return _Module(self)


class _Module(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        self._classifier = [classifier]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]; the gradient comes back contiguous, as attacks expect it."""
        if images.requires_grad:
            images = images.view_as(images)
            images.register_hook(Tensor.contiguous)
        return self._classifier[0].logits(images)


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's state, in hexadecimal."""
    digest = hashlib.sha256()
    with torch.inference_mode():
        for name, value in sorted(module.state_dict().items()):
            if not isinstance(value, Tensor) or name.endswith("num_batches_tracked"):
                continue
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            data = value.detach().cpu().contiguous().reshape(-1)
            digest.update(data.view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _prepare(module: nn.Module, device: torch.device, probe: Tensor) -> nn.Module:
    """A frozen copy on the device, channels last, with batch norm folded where the logits stay the same."""
    plain = copy.deepcopy(module).to(device).requires_grad_(False)
    plain = plain.to(memory_format=torch.channels_last)
    folded = _fold(plain, probe)
    return (folded or plain).requires_grad_(False).eval()


def _fold(module: nn.Module, probe: Tensor) -> nn.Module | None:
    """A copy in which every batch norm that only ever follows one convolution is part of it; None if it cannot be."""
    from torch.fx import symbolic_trace
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    folded = copy.deepcopy(module)
    try:
        with torch.inference_mode():
            plain = module(probe)
        nodes = [n for n in symbolic_trace(folded).graph.nodes if n.op == "call_module"]
        parts, calls = dict(folded.named_modules()), Counter(str(n.target) for n in nodes)
        for node in nodes:
            before = next((n for n in nodes if node.args and n is node.args[0]), None)
            if type(parts[str(node.target)]) is not nn.BatchNorm2d or before is None or len(before.users) > 1:
                continue
            norm, conv = str(node.target), str(before.target)
            if type(parts[conv]) is nn.Conv2d and calls[norm] == calls[conv] == 1:
                folded.set_submodule(conv, fuse_conv_bn_eval(parts[conv], parts[norm]))
                folded.set_submodule(norm, nn.Identity())
    except Exception:  # whatever a user's forward does that cannot be traced or fused, or does not take the probe
        return None
    with torch.inference_mode():
        same = torch.allclose(plain, folded(probe), atol=1e-3 * float(plain.abs().max().clamp_min(1)), rtol=0)
    return folded.to(memory_format=torch.channels_last) if same else None
