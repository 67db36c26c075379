"""Classifier: any torch module with its preprocessing; images in [0, 1] in, logits and the log-odds margin out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advconn.data.preprocessing import parse_class_names, positive_int, preprocessing_of, to_height_width
from advconn.errors import DataError, ModelError, first_line
from advconn.models.adapter import Adapter, AsModule, Output, is_training, unwrap
from advconn.models.fingerprint import fingerprint
from advconn.models.margin import MarginLandscape
from advconn.models.sanity_checks import classes_of, is_quantised, probe_images, scale_of
from advconn.runtime.forward_passes import batched_forward, gradients_enabled

LARGEST = 3 * 2**17  # values in a batch on a CPU
LARGEST_ON_A_GPU = 2**25
FAR = 1000.0  # times an image's values, to tell a sigmoid from small logits


class Classifier:
    """A network that maps images (n, c, h, w) to logits (n, k), with what comes before it.

    A torch module of any precision, also scripted, traced, exported (torch.export), quantised, compiled, or wrapped in
    DataParallel. It may answer with logits, a dict, a dataclass, a tuple or a list, or with one logit an image (then
    there are two classes, with logits 0 and z). Of probabilities (a softmax, or one sigmoid an image) the logarithms
    are taken. What is no module comes in by `from_callable`, `from_onnx` or `from_endpoint`.

    Args:
        module: in evaluation mode; it is copied (batch norm folded into convolutions where that changes nothing), so
            neither its parameters nor their `.grad` are ever touched, and later changes to it are not followed. A
            module that cannot be copied is used as it is, and refused once it has been changed.
        size: (h, w) or one side of the images it takes; if not given, any that the module takes (it is tried out with
            32 x 32).
        mean: per channel, subtracted from images in [0, 1]; leave out if the module does it itself.
        std: per channel, divided by afterwards.
        resize: pixels of the shorter side before the crop, for images of another size, see Preprocessing.
        interpolation: how they are resized.
        crop: how they are cropped to `size`.
        class_names: one for each class, or a dict from index to name.
        channels: of the images it takes.
        num_classes: checked against the module's output, if given.
        device: where it runs; the module's own unless told.
        batch_size: largest batch handed to the module at once. Default: at most 2048 images and 2^25 values on a
            GPU, and 32 images and 3 x 2^17 values on a CPU, where more do not fit the caches.
        name: the specification it was made from, kept in a bundle.
        output: takes the logits out of what the module answers, such as `lambda out: out["scores"]`.
        input: the keyword of the module's forward, or the key of the dict, that images go in by, such as
            'pixel_values'; unless told, forward is given them alone.

    Raises:
        ModelError: training mode, no logits (n, k), several labels an image, a wrong class or channel count, an answer
            that changes from call to call or with the other images of the batch.

    Example:
        >>> import torch
        >>> from advconn import Classifier
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
        >>> classifier = Classifier(network, size=8, channels=1)
        >>> classifier.predict(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        size: int | Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize: int | None = None,
        interpolation: Any = "bilinear",
        crop: str = "center",
        class_names: Sequence[str] | Mapping[Any, str] | None = None,
        channels: int = 3,
        num_classes: int | None = None,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        name: str | None = None,
        output: Output | None = None,
        input: str | None = None,
    ) -> None:
        module = unwrap(module)
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"expected a torch.nn.Module, got {type(module).__name__}: Classifier.from_callable takes a function, "
                "from_onnx a file, from_endpoint a served model"
            )
        if is_training(module):
            raise ModelError("the model is in training mode, where verdicts change at every call: call model.eval()")
        if output is not None and hasattr(module, "name_outputs"):
            module.name_outputs()  # type: ignore[operator]
        self.name = name
        self.preprocessing = preprocessing_of(
            size, resize, interpolation, mean, std, crop, positive_int("channels", channels)
        )
        self.fingerprint = fingerprint(module)
        self.state: dict[str, Tensor] | None = None  # set where the architecture can be named, so that it can be saved
        self._differentiable: bool | None = None
        self._module: nn.Module | None = None
        self._answers: Tensor | None = None
        self.layout = torch.channels_last
        with torch.inference_mode(False), torch.no_grad():
            home = next((p.device for p in module.parameters()), torch.device("cpu"))
            self.device = _device(device) if device is not None else home
            self.batch_size = batch_size or self._usual_batch()
            self._probe = probe_images(3, self.channels, *(self.preprocessing.size or (32, 32))).to(self.device)
            self.adapter = self._adapted(module, output, input)
            self.num_classes = 0  # not known yet
            self.num_classes = classes_of(self._forward, self._probe, self.network, self.adapter.dtype)
            self.adapter.scale = self._scale(output)
        if num_classes is not None and num_classes != self.num_classes:
            raise ModelError(f"the model has {self.num_classes} classes, expected {num_classes}")
        self.class_names = parse_class_names(class_names, self.num_classes)

    @property
    def channels(self) -> int:
        """Of the images it takes."""
        return self.preprocessing.channels

    def _adapted(self, module: nn.Module, output: Output | None, key: str | None) -> Adapter:
        """The module, given images as it takes them: channels last is fastest, and not every view goes with it."""
        try:
            return Adapter(module, self.device, output, self.prepare(self._probe), self.layout, key)
        except ModelError as error:
            if "does not take" not in str(error):
                raise
            self.layout = torch.contiguous_format
            try:
                return Adapter(module, self.device, output, self.prepare(self._probe), self.layout, key)
            except ModelError:
                raise error from error.__cause__

    def _scale(self, output: Output | None) -> str:
        """What the network answers, by images of many kinds; what `output` takes out is taken for logits."""
        if output is not None or bool((self._forward(self._probe) < 0).any()):
            return "logits"
        h, w = self._probe.shape[2:]
        few = probe_images(8, self.channels, h, w).to(self.device)
        many = torch.cat([few, torch.zeros_like(few[:1]), torch.ones_like(few[:1]), 1 - few[:2]])
        answers = torch.cat([self._forward(part) for part in many.split(self.batch_size)])
        single = self.num_classes == 2 and bool((answers[:, 0] == 0).all())

        def far() -> Tensor:
            try:
                beyond = torch.cat(
                    [self._forward(FAR * sign * part) for part in few.split(self.batch_size) for sign in (1, -1)]
                )
            except Exception:  # it may take no such values
                return answers[:, 1:]
            return beyond[:, 1:] if single else beyond

        return scale_of(answers[:, 1:] if single else answers, far, single)

    def _usual_batch(self) -> int:
        h, w = self.preprocessing.size or (32, 32)
        most, largest = (32, LARGEST) if self.device.type == "cpu" else (2048, LARGEST_ON_A_GPU)
        return max(1, min(most, largest // (self.channels * h * w)))

    @classmethod
    def from_callable(cls, f: Callable[[Any], Any], *, num_classes: int, **options: Any) -> Classifier:
        """A classifier from any function of images; it gives no gradient.

        Args:
            f: from images (n, c, h, w) in [0, 1], float32, to logits (n, k). An array is tried first, then a tensor.
            num_classes: k.
            options: as for Classifier; `size` and `channels` above all.
        """
        from advconn.models.onnx_and_http import CallableModule

        return cls(CallableModule(f), num_classes=num_classes, **options)

    @classmethod
    def from_onnx(cls, file: Path | str, **options: Any) -> Classifier:
        """A classifier from an ONNX file, run by onnxruntime on the CPU; size and channels are read off its input.

        Raises:
            ModelError: onnxruntime is not installed, or the file is no image classifier.
        """
        from advconn.models.onnx_and_http import Onnx

        network = Onnx(file)
        return cls(network, **(network.options() | {"name": f"onnx:{file}"} | options))

    @classmethod
    def from_endpoint(
        cls,
        url: str,
        model: str,
        *,
        version: str = "",
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Classifier:
        """A classifier served over HTTP by the Open Inference Protocol, version 2: KServe, Triton, MLServer, OpenVINO.

        Args:
            url: of the server, such as http://localhost:8080.
            model: as the server names it.
            version: as the server names it; empty for the server's own choice.
            timeout: seconds for one answer, all of it.
            headers: sent along with every request, such as {"Authorization": "Bearer ..."}.
            options: as for Classifier; size and channels are read off the server's description of the model.

        Raises:
            ModelError: no answer, no such model, no image classifier.
        """
        from advconn.models.onnx_and_http import Endpoint

        shape = None
        if options.get("size") is not None:
            height, width = to_height_width(options["size"])
            shape = [-1, positive_int("channels", options.get("channels") or 3), height, width]
        network = Endpoint(url, model, version, timeout, shape, headers)
        return cls(network, **(network.options() | {"name": network.address} | options))

    @property
    def network(self) -> nn.Module:
        """The module that is asked: a copy of the one given, or that one where it cannot be copied."""
        return self.adapter.module

    @property
    def differentiable(self) -> bool:
        """Whether it gives a gradient with respect to images. It is tried once, when first asked for."""
        if self._differentiable is None:
            try:
                with gradients_enabled():
                    leaf = self._probe.detach().clone().requires_grad_()
                    logits = self._forward(leaf)
                    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
                    (slope,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
                self._differentiable = slope is not None and bool((slope.abs() > 0).any())
            except (RuntimeError, NotImplementedError):
                self._differentiable = False
        return self._differentiable

    @property
    def told(self) -> str | None:
        """What a user should know of how its answers are read, if anything."""
        if self.adapter.scale == "logits":
            return None
        what = {"percent": "percentages"}.get(self.adapter.scale, f"outputs of a {self.adapter.scale}")
        return f"the model gives {what}: their logarithms are taken for logits"

    @property
    def quantised(self) -> bool:
        """Whether some of its layers work in integers, so that its answers are coarse."""
        return is_quantised(self.network)

    def __sklearn_clone__(self) -> Classifier:
        return self

    def __deepcopy__(self, memo: object) -> Classifier:
        return self

    def __repr__(self) -> str:
        return f"Classifier({self.name or type(self.network).__name__}, {self.num_classes} classes)"

    def to(self, device: torch.device | str) -> Classifier:
        """Move it, in place.

        Raises:
            ModelError: it cannot be moved.
        """
        wanted = _device(device)
        if wanted.type == "meta":
            raise ModelError("a classifier cannot be moved to the device meta, which keeps no weights")
        if wanted != self.device:
            if self.adapter.held or not any(True for _ in self.network.parameters()):
                raise ModelError(f"this classifier runs where its network does: it cannot be moved to {wanted}")
            self.adapter.module = self.network.to(wanted)
            self.device, self._probe = wanted, self._probe.to(wanted)
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] with mean and std applied."""
        constants = self._normal(images)
        return images if constants is None else (images - constants[0]) / constants[1]

    def _normal(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and deviation (1, c, 1, 1), if there are any."""
        p = self.preprocessing
        if p.mean is None or p.std is None:
            return None
        mean, std = (like.new_tensor(v).view(1, -1, 1, 1) for v in (p.mean, p.std))
        return mean, std

    def prepare(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] as the network takes them, in memory of their own: it may write into them."""
        if images.requires_grad and torch.is_grad_enabled():
            batch = self.normalise(images).contiguous(memory_format=self.layout)
            return batch.clone() if batch.data_ptr() == images.data_ptr() else batch
        batch = torch.empty_like(images, memory_format=self.layout)  # the only copy that is made
        constants = self._normal(images)
        return (
            batch.copy_(images) if constants is None else torch.sub(images, constants[0], out=batch).div_(constants[1])
        )

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
            turn = ": .permute(0, 3, 1, 2) brings the channels to the front" * (images.shape[3] == self.channels)
            shape = tuple(images.shape)
            raise DataError(f"expected {self.channels} channels, got {images.shape[1]} (shape {shape}){turn}")
        size = self.preprocessing.size
        if size is not None and tuple(images.shape[2:]) != tuple(size):
            raise DataError(f"expected images of {size[0]} x {size[1]}, got {images.shape[2]} x {images.shape[3]}")
        if images.dtype == torch.uint8:
            return images.to(self.device).contiguous().to(torch.float32) / 255
        if not images.is_floating_point() or images.element_size() == 1:
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
        if images.requires_grad and torch.is_grad_enabled() and not self.differentiable:
            raise ModelError(
                "this classifier gives no gradient (it is a function, a file, a served or quantised model, or its "
                "forward is detached): use attacks that need none, such as square, or a surrogate"
            )
        return batched_forward(self._forward, images, self.batch_size)

    def predict(self, images: Tensor) -> Tensor:
        """The class (n,) given to each of images (n, c, h, w), as they are given to `check`; on the CPU."""
        classes = [self.logits(self.check(x)).argmax(1).cpu() for x in images.split(64)]
        return torch.cat(classes) if len(images) else torch.zeros(0, dtype=torch.int64, device="cpu")

    def _forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            logits = self.adapter(self.prepare(images))
        if self.num_classes and logits.shape[1] != self.num_classes:  # a served model may be replaced by another
            raise ModelError(f"the model answers {logits.shape[1]} classes; it had {self.num_classes}")
        return logits

    def answers_as_before(self) -> bool:
        """Whether it answers a few images as when this was asked first: a served model may be replaced by another."""
        with torch.no_grad():
            now = self._forward(self._probe)
        if self._answers is None:
            self._answers = now
        slack = 1e-3 * float(self._answers.abs().max().clamp_min(1e-6))
        return bool((now - self._answers).abs().max() <= slack)

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
        if self._module is None:
            self._module = AsModule(self)
        return self._module


def _device(named: torch.device | str) -> torch.device:
    """A device that is here.

    Raises:
        ModelError: it is not.
    """
    try:
        return torch.empty(0, dtype=torch.float32, device=named).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"device {named}: there is none here ({first_line(error, 100)}); expected cpu, or cuda"
        ) from None


def untrained(classifier: Classifier, seed: int = 0) -> Classifier:
    """The same architecture with parameters drawn anew, as its layers draw them (batch norm folded away).

    Parameters that belong to no layer that can (a transformer's positions) keep their mean and deviation only.
    """
    network = copy.deepcopy(classifier.network)
    before = {name: value.clone() for name, value in network.named_parameters()}
    with torch.random.fork_rng(), torch.inference_mode(False):
        torch.manual_seed(seed)
        for module in network.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if callable(reset):
                reset()
        for name, value in network.named_parameters():
            if value.numel() > 1 and torch.equal(value, before[name]) and float(value.std()) > 0:
                torch.nn.init.normal_(value, float(value.mean()), float(value.std()))
    preprocessing = classifier.preprocessing
    return Classifier(
        network.eval(), size=preprocessing.size, mean=preprocessing.mean, std=preprocessing.std,
        channels=classifier.channels, device=classifier.device, output=classifier.adapter.output,
    )  # fmt: skip
