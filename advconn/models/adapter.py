"""What strangers bring, as one function: images as the network takes them in, logits (n, k) in float32 out.

Wrapped, scripted, exported, quantised and half-precision modules, every kind of output, and modules that can neither be
copied nor traced.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advconn.errors import ModelError, first_line


def fuse_batch_norm(
    module: nn.Module, ask: Callable[[nn.Module], Tensor], layout: torch.memory_format = torch.channels_last
) -> nn.Module | None:
    """A copy in which every batch norm that only ever follows one convolution is part of it; None if it cannot be.

    Args:
        module: in evaluation mode.
        ask: gives the logits of some images; they must stay the same (to a thousandth of the largest).
        layout: of its weights in memory.
    """
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    try:
        plain, pairs = ask(module), _pairs(module, ask)
        if not pairs:
            return None
        made = copy.deepcopy(module)
        parts = dict(made.named_modules())
        for conv, norm in pairs:
            made.set_submodule(conv, fuse_conv_bn_eval(parts[conv], parts[norm]))
            made.set_submodule(norm, nn.Identity())
        for parameter in made.parameters():
            parameter.requires_grad_(False)
        made = made.to(memory_format=layout).eval()
        tolerance = 1e-3 * float(plain.abs().max().clamp_min(1))
        return made if torch.allclose(plain, ask(made), atol=tolerance, rtol=0) else None
    except Exception:  # whatever a user's module does when it is copied or watched
        return None


def _pairs(module: nn.Module, ask: Callable[[nn.Module], Tensor]) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that take their outputs; each is called once in a forward."""
    names = {part: name for name, part in module.named_modules() if type(part) in (nn.Conv2d, nn.BatchNorm2d)}
    calls: list[tuple[nn.Module, Any, Any]] = []
    handles = [part.register_forward_hook(lambda p, given, out: calls.append((p, given[0], out))) for part in names]
    try:
        ask(module)
    finally:
        for handle in handles:
            handle.remove()
    called = [part for part, _, _ in calls]
    pairs = []
    for norm, given, _ in calls:
        if type(norm) is nn.BatchNorm2d and called.count(norm) == 1:
            conv = next((p for p, _, out in calls if out is given and type(p) is nn.Conv2d), None)
            if conv is not None and called.count(conv) == 1:
                pairs.append((names[conv], names[norm]))
    return pairs


Output = Callable[[Any], Any]
TINY = 1e-7  # distance from 1 within which probabilities are not told apart in float32
NOTHING = torch.finfo(torch.float32).tiny  # of a probability, which far above it still has all its digits
FLOOR = 30.0  # how far under an image's smallest finite logit a class at minus infinity is put
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ONE_AT_A_TIME = threading.RLock()


def unwrap(module: Any) -> Any:
    """The module inside torch.compile, DataParallel and DistributedDataParallel; the module of an ExportedProgram."""
    if type(module).__name__ == "ExportedProgram":
        return module.module()
    while True:
        inner = module._orig_mod if type(module).__name__ == "OptimizedModule" else None
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def is_training(module: nn.Module) -> bool:
    """Whether a part is in training mode. An exported program is what it was when it was exported."""
    if is_exported(module):
        return False
    return any(getattr(part, "training", False) for part in module.modules())


def is_exported(module: nn.Module) -> bool:
    """Whether this is the module of a torch.export program, whose eval() can only raise."""
    return isinstance(module, torch.fx.GraphModule) and "eval" in vars(module)


def logits_of(raw: Any, output: Output | None = None) -> Tensor:
    """The logits in what a network answers: `output(raw)` where given, else 'logits', else the one 2-D float tensor.

    Raises:
        ModelError: none, or several; the message names what was found.
    """
    raw = raw if output is None else _taken(raw, output)
    whole = _tensor(raw)
    if whole is not None:
        return whole
    parts = dict(_named(raw))
    for name, value in parts.items():
        if name.split(".")[-1] == "logits":
            return value
    fits = [v for v in parts.values() if v.ndim == 2 and v.is_floating_point()]
    if len(fits) == 1:
        return fits[0]
    listing = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(parts.items())[:6]) or "no tensor"
    first = next(iter(parts), "logits")
    way = f'out["{first}"]' if isinstance(raw, Mapping) else f"out[{first}]" if first.isdigit() else f"out.{first}"
    raise ModelError(
        f"expected logits (n, k) from the model, got {type(raw).__name__} with {listing}: say which they are, "
        f"such as output=lambda out: {way} (for the command line, return Classifier(net, output=...) from a factory)"
    )


def _taken(raw: Any, output: Output) -> Any:
    """What `output` makes of an answer: it is handed tensors, as torch's own functions want them."""
    tensor = _tensor(raw)
    if tensor is None or tensor is raw:
        return output(raw)
    try:
        return output(tensor)
    except TypeError:  # a function of arrays
        return output(raw)


def _tensor(value: Any) -> Tensor | None:
    """A tensor, or what numpy takes for an array (of JAX, TensorFlow, CuPy on the CPU), as one."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray) and (not hasattr(value, "__array__") or isinstance(value, (nn.Module, type))):
        return None
    array = np.asarray(value)
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))))


def _named(raw: Any, depth: int = 2) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a dict, dataclass, named tuple, tuple, list or object, by name."""
    if isinstance(raw, Mapping):
        items = [(str(k), v) for k, v in raw.items()]
    elif dataclasses.is_dataclass(raw) or hasattr(raw, "_fields"):
        names = getattr(raw, "_fields", None) or [f.name for f in dataclasses.fields(raw)]
        items = [(name, getattr(raw, name, None)) for name in names]
    elif isinstance(raw, (tuple, list)):
        items = [(str(i), v) for i, v in enumerate(raw)]
    else:
        items = list(getattr(raw, "__dict__", {}).items())
    for name, value in items:
        tensor = _tensor(value)
        if tensor is not None:
            yield name, tensor
        elif depth > 1 and value is not None and not isinstance(value, (str, bytes, int, float)):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _named(value, depth - 1))


def rows_of(logits: Tensor, n: int) -> Tensor:
    """Logits of n images as (n, k): a `.squeeze()` at the end and trailing ones are undone.

    Raises:
        ModelError: another shape.
    """
    shape = tuple(logits.shape)
    if logits.ndim > 2 and all(side == 1 for side in shape[2:]):
        logits = logits.flatten(1)
    if n == 1 and logits.ndim <= 1:
        logits = logits.reshape(1, -1)
    if logits.ndim == 1 and len(logits) == n:
        logits = logits[:, None]
    if logits.ndim != 2 or len(logits) != n or not logits.shape[1]:
        raise ModelError(f"expected logits (n, k) from the model, got {shape} for {n} image{'s' * (n > 1)}")
    if not logits.is_floating_point():
        raise ModelError(f"expected logits as floats from the model, got {logits.dtype}")
    return logits


class Adapter:
    """A network, ready to be asked: in its own precision, all images at once or as many as it takes.

    Args:
        module: in evaluation mode. A copy is made, its batch norms folded. Where it cannot be copied it is used as it
            is: untouched, one thread at a time, and refused as soon as its weights or mode have changed.
        device: where it is to run.
        output: takes the logits out of what the module answers.
        probe: images as the module takes them (n, c, h, w) float32, to try it with.
        layout: of the module's weights and of what it is given, in memory.
        key: of the keyword, or of the dict, that the module takes images by.

    Attributes:
        scale: what the module answers: 'logits', or 'softmax', 'percent' or 'sigmoid', whose logarithms are taken.

    Raises:
        ModelError: it does not take the images.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        output: Output | None,
        probe: Tensor,
        layout: torch.memory_format = torch.channels_last,
        key: str | None = None,
    ) -> None:
        self.output, self.together, self.key = output, 0, key  # 0: any number of images at once
        self.scale, self.layout, self.by_keyword = "logits", layout, True
        self.dtype, self.held, self.state = torch.float32, False, ()
        try:
            self.module = copy.deepcopy(module)
            for parameter in self.module.parameters():
                parameter.requires_grad_(False)
            self.module = self.module.to(device).to(memory_format=layout)
            self._settle(probe)
        except Exception as error:  # what a module may raise when it is copied, or its copy when it is asked
            self.module = module
            if isinstance(error, ModelError) and "does not take" not in str(error):
                raise
            self._hold(device, probe, error)
            return
        plain = self.module
        if self.dtype in (torch.float32, torch.float64):
            self.module = fuse_batch_norm(plain, lambda network: self._ask(network, probe), layout) or plain

    def _hold(self, device: torch.device, probe: Tensor, error: Exception) -> None:
        self.held = True
        self._settle(probe)
        home = next((p.device for p in self.module.parameters()), device)
        if home != device:
            raise ModelError(
                f"the model cannot be copied ({first_line(error)}), so it stays on {home}: move it to {device} first"
            )
        self.state = self._state()

    def _settle(self, probe: Tensor) -> None:
        """Find the precision and the number of images at once that the module takes."""
        own = [v.dtype for v in chain(self.module.parameters(), self.module.buffers()) if v.is_floating_point()]
        first: Exception | None = None
        fixed = _fixed_batch(self.module)
        for together in [fixed] if fixed else [0, 1]:
            for self.dtype in dict.fromkeys(own or _FLOATS):
                self.together = together
                try:
                    self._ask(self.module, probe)
                    return
                except ModelError:
                    raise
                except Exception as error:  # a forward may raise anything at a size or precision it does not take
                    first = first or error
        shape = " x ".join(map(str, probe.shape[1:]))
        way = "say what it takes: size=(h, w) and channels=, or --size and --channels"
        if self.key is None and isinstance(first, (TypeError, KeyError, IndexError, AttributeError)):
            way = (
                "its forward is given a tensor of images alone: wrap it in a module that calls it so, or say "
                "input='pixel_values', the keyword or key that it takes them by"
            )
        raise ModelError(
            f"the model does not take images of {shape}: {first_line(first or RuntimeError('no answer'))} ({way})"
        ) from first

    def _call(self, module: nn.Module, batch: Tensor) -> Any:
        """What the module answers; images are handed to it as it takes them."""
        if self.key is None:
            return module(batch.to(self.dtype))
        try:
            given = {self.key: batch.to(self.dtype)}
            return module(**given) if self.by_keyword else module(given)
        except TypeError:
            if not self.by_keyword:
                raise
            self.by_keyword = False
            return module({self.key: batch.to(self.dtype)})

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits (n, k) in float32 of a batch (n, c, h, w), as it is to be handed to the network."""
        if not self.held:
            return self._ask(self.module, batch)
        with _ONE_AT_A_TIME:
            if self.state != self._state():
                raise ModelError(
                    "the model was changed since the classifier was made, and it cannot be copied: make a new "
                    "Classifier of it, in evaluation mode"
                )
            try:
                return self._ask(self.module, batch)
            finally:
                self.state = self._state()

    def _ask(self, module: nn.Module, batch: Tensor) -> Tensor:
        if not self.together:
            return self.read(self._call(module, batch), len(batch))
        parts = []
        for chunk in batch.split(self.together):
            n = len(chunk)
            if n < self.together and _fixed_batch(module):  # filled up with copies
                chunk = torch.cat([chunk, chunk[:1].expand(self.together - n, *chunk.shape[1:])])
            parts.append(self.read(self._call(module, chunk), len(chunk))[:n])
        return torch.cat(parts)

    def read(self, raw: Any, n: int) -> Tensor:
        """What the network answers for n images, as logits (n, k >= 2) in float32; of one logit z they are (0, z).

        A class at minus infinity is put `FLOOR` under the smallest finite logit of its row: its probability is nothing
        either way, and every margin stays finite.
        """
        logits = rows_of(logits_of(raw, self.output), n).float()
        if self.scale in ("softmax", "percent"):
            shares = logits / 100 if self.scale == "percent" else logits
            logits = shares.clamp_min(NOTHING).log().masked_fill(shares <= NOTHING, -torch.inf)
        elif self.scale == "sigmoid":
            logits = logits.logit(TINY)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        dead = logits == -torch.inf
        low = logits.masked_fill(dead, torch.inf).amin(1, keepdim=True) - FLOOR
        return torch.where(dead, low, logits)

    def _state(self) -> tuple[Any, ...]:
        """What must stay the same of a module that is used as it is."""
        values = chain(self.module.parameters(), self.module.buffers())
        return (is_training(self.module), *((id(v), 0 if v.is_inference() else v._version) for v in values))


def _raised(logits: Tensor) -> Tensor:
    """Logits (n, k) whose rows are not all at most 0, as log-probabilities are: torchattacks' CW takes 0 for the other
    classes' largest logit, and would have no gradient."""
    plain = logits.detach()
    low, high = plain.aminmax(dim=1, keepdim=True)
    return torch.where(high <= 0, logits - low, logits)


def _fixed_batch(module: nn.Module) -> int:
    """The batch size that a program was exported with, or that a module names itself; 0 where it takes any."""
    named = getattr(module, "fixed_batch", 0)
    if named or not is_exported(module):
        return int(named) if isinstance(named, int) else 0
    nodes: Any = module.graph.nodes  # type: ignore[union-attr]
    value = next((n.meta.get("val") for n in nodes if n.op == "placeholder"), None)
    size = value.shape[0] if isinstance(value, Tensor) else None
    return size if isinstance(size, int) else 0


class AsModule(nn.Module):
    """The classifier for attacks; a deep copy of it has a network of its own, which may be trained."""

    def __init__(self, classifier: Any, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = classifier.network if network is None else network
        self._own = network is not None
        self._classifier = [classifier]  # in a list, so that it is no part of the module
        if not any(True for _ in self.network.parameters()):  # attacks ask the first one for the device
            nothing = torch.zeros(0, dtype=torch.float32, device=classifier.device)
            self.register_parameter("device_of", nn.Parameter(nothing, requires_grad=False))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]; the gradient comes back contiguous, as attacks expect it."""
        if images.requires_grad:
            images = images.view_as(images)
            images.register_hook(Tensor.contiguous)
        classifier = self._classifier[0]
        if not self._own:
            return _raised(classifier.logits(images))
        adapter = classifier.adapter
        return _raised(adapter.read(adapter._call(self.network, classifier.prepare(images)), len(images)))

    def __deepcopy__(self, memo: dict[int, Any]) -> AsModule:
        made = AsModule(self._classifier[0], copy.deepcopy(self.network, memo))
        for parameter in made.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return made
