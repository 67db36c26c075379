"""Attacks by name, made with torchattacks, and the mixture that a detector is fitted on.

torchattacks is imported only where an attack is made, so that scoring works where it is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor

from advconn.classifier import Classifier, margin
from advconn.errors import AttackError


@dataclass(frozen=True)
class Kind:
    """A torchattacks class, what its parameters are unless told, and where it comes from."""

    cls: str
    defaults: Mapping[str, float]
    source: str
    fixed: Mapping[str, object] = field(default_factory=dict)


_LINF = {"eps": 8 / 255, "steps": 10}
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "fgsm": Kind("FGSM", {"eps": 8 / 255}, "Goodfellow et al. 2015"),
        "ffgsm": Kind("FFGSM", {"eps": 8 / 255}, "Wong et al. 2020"),
        "bim": Kind("BIM", _LINF, "Kurakin et al. 2017"),
        "pgd": Kind("PGD", _LINF, "Madry et al. 2018"),
        "pgd-l2": Kind("PGDL2", {"eps": 0.5, "steps": 10}, "Madry et al. 2018"),
        "pgd-stop": Kind("", _LINF, "PGD that stops at a clean image's confidence"),
        "jitter": Kind("Jitter", _LINF, "Schwinn et al. 2021"),
        "cw": Kind("CW", {"c": 1.0, "kappa": 0.0, "steps": 100, "lr": 0.01}, "Carlini & Wagner 2017"),
        "deepfool": Kind("DeepFool", {"steps": 50, "overshoot": 0.02}, "Moosavi-Dezfooli et al. 2016"),
        "square": Kind("Square", {"eps": 8 / 255, "n_queries": 1000}, "Andriushchenko et al. 2020", {"norm": "Linf"}),
        "autoattack": Kind(
            "AutoAttack", {"eps": 8 / 255}, "Croce & Hein 2020", {"norm": "Linf", "version": "standard"}
        ),
    }
)
_STEPS = {"ffgsm": 1.25} | dict.fromkeys(("bim", "pgd", "pgd-l2", "pgd-stop", "jitter"), 0.25)  # of eps
_INTEGERS = {"steps", "n_queries"}

MIXTURE: tuple[str, ...] = (
    "pgd:eps=8/255,steps=10",
    "pgd:alpha=6/255,eps=8/255,steps=2",
    "pgd:eps=4/255,steps=3",
    "pgd:eps=2/255,steps=20",
    "pgd:eps=1/255,steps=10",
    "pgd-l2:eps=1,steps=10",
    "pgd-l2:eps=0.25,steps=10",
    "pgd-l2:alpha=1.5,eps=1.5,steps=1",
    "pgd-stop:eps=8/255,steps=20",
    "pgd-stop:eps=2/255,steps=20",
    "cw:kappa=0,steps=100",
    "cw:kappa=3,steps=60",
    "fgsm:eps=8/255",
    "fgsm:eps=4/255",
    "fgsm:eps=2/255",
    "square:eps=8/255,n_queries=500",
)


def _number(text: str) -> float:
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, ZeroDivisionError):
        raise AttackError(f"not a number: {text!r} (expected such as 10, 0.5 or 8/255)") from None


@dataclass(frozen=True)
class Attack:
    """A named attack with its parameters; `Attack.parse("pgd:eps=2/255,steps=50")`."""

    name: str
    params: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Attack:
        """Read NAME or NAME:key=value,...; a value is a number or a fraction.

        Raises:
            AttackError: unknown name or key, or a value that is no number.
        """
        name, _, rest = text.strip().partition(":")
        if name not in KINDS:
            raise AttackError(f"no attack named {name!r}: expected one of {', '.join(KINDS)}")
        known = set(KINDS[name].defaults) | ({"alpha"} if name in _STEPS else set())
        params = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals or key not in known:
                raise AttackError(f"{name} has no parameter {part!r}: expected {', '.join(sorted(known))} as key=value")
            params[key] = _number(value)
            if params[key] < 0 or (key in _INTEGERS and params[key] < 1):
                raise AttackError(f"{name}: {key} must be positive, got {value}")
            if key in _INTEGERS and params[key] % 1:
                raise AttackError(f"{name}: {key} must be a whole number, got {value}")
            if key == "eps" and name != "pgd-l2" and params[key] > 1:
                raise AttackError(f"{name}: eps is at most 1 for images in [0, 1], got {value} (8/255, perhaps?)")
        return cls(name, tuple(sorted(params.items())))

    def __str__(self) -> str:
        shown = [f"{k}={v:g}" if k not in ("eps", "alpha") else f"{k}={_fraction(v)}" for k, v in self.params]
        return self.name + (":" + ",".join(shown) if shown else "")

    @property
    def settings(self) -> dict[str, float]:
        """Every parameter, the defaults included; the step size alpha, if not given, is a share of eps."""
        values = dict(KINDS[self.name].defaults) | dict(self.params)
        if self.name in _STEPS:
            values.setdefault("alpha", values["eps"] * _STEPS[self.name])
        return values

    def run(
        self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0, batch_size: int = 128
    ) -> Tensor:
        """Attacked copies (n, c, h, w) in [0, 1] of images (n, c, h, w) with labels (n,), untargeted.

        Whether they succeeded is for the caller to see: predictions that differ from `labels`.
        """
        return torch.cat(list(self.batches(classifier, images, labels, seed=seed, batch_size=batch_size)))

    def batches(
        self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0, batch_size: int = 128
    ) -> Iterator[Tensor]:
        """The same, a batch at a time."""
        for i, (x, y) in enumerate(zip(images.split(batch_size), labels.split(batch_size), strict=True)):
            devices: list[torch.device] = [classifier.device] if classifier.device.type == "cuda" else []
            with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
                torch.manual_seed(seed * 1_000_003 + i)
                out = self._attack(classifier, classifier.check(x.clone()), y.clone().to(classifier.device))
            yield out.detach().clamp(0, 1)

    def _attack(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        settings: dict[str, object] = {k: int(v) if k in _INTEGERS else v for k, v in self.settings.items()}
        if self.name == "pgd-stop":
            return _stopped(classifier, images, labels, **self.settings)
        try:
            import torchattacks
        except ImportError:
            raise AttackError("attacks need torchattacks: pip install torchattacks") from None
        kind = KINDS[self.name]
        if self.name == "autoattack" and classifier.num_classes < 4:
            raise AttackError("autoattack needs four classes or more: its targeted part aims at three wrong ones")
        extra = {"n_classes": classifier.num_classes} if self.name == "autoattack" else {}
        attack = getattr(torchattacks, kind.cls)(classifier.module, **settings, **kind.fixed, **extra)
        attack.set_device(classifier.device)
        out: Tensor = attack(images, labels)
        return out


def _fraction(value: float) -> str:
    whole = value * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-9 and value < 1 else f"{value:.4g}"


def _stopped(
    classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, alpha: float, steps: float
) -> Tensor:
    """PGD (Linf) in which every image stops once it is misclassified as confidently as another clean image is right."""
    with torch.no_grad():
        goal = margin(classifier.logits(images), labels).roll(1).clamp(max=0)
    point = (images + eps * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
    live = torch.arange(len(images), device=images.device)
    for step in range(int(steps) + 1):
        leaf = point[live].requires_grad_()
        logits = classifier.logits(leaf)
        predicted = logits.argmax(1)
        confident = margin(logits, predicted) <= goal[live]
        going = (predicted == labels[live]) | ~confident
        if step == int(steps) or not bool(going.any()):
            break
        (slope,) = torch.autograd.grad(margin(logits, labels[live]).sum(), leaf)
        origin = images[live]
        moved = (leaf.detach() + alpha * slope.sign()).clamp(origin - eps, origin + eps).clamp(0, 1)
        point[live[going]] = moved[going]
        live = live[going]
    return point


def succeeded(classifier: Classifier, attacked: Tensor, labels: Tensor) -> Tensor:
    """(n,) whether each attacked image is given another class than its label."""
    return classifier.logits(classifier.check(attacked)).argmax(1) != labels.to(classifier.device)


def round_to_bytes(images: Tensor) -> Tensor:
    """The same images on the grid of 8-bit files."""
    return (images * 255).round() / 255


def parse_all(specs: Sequence[str | Attack]) -> tuple[Attack, ...]:
    """Attacks from their specifications."""
    return tuple(spec if isinstance(spec, Attack) else Attack.parse(spec) for spec in specs)
