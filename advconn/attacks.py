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
        "noise": Kind("", {"eps": 16 / 255, "tries": 20}, "random signs, the first of several tries that succeeds"),
        "square": Kind("Square", {"eps": 8 / 255, "n_queries": 1000}, "Andriushchenko et al. 2020", {"norm": "Linf"}),
        "autoattack": Kind(
            "AutoAttack", {"eps": 8 / 255}, "Croce & Hein 2020", {"norm": "Linf", "version": "standard"}
        ),
    }
)
_STEPS = {"ffgsm": 1.25} | dict.fromkeys(("bim", "pgd", "pgd-l2", "pgd-stop", "jitter"), 0.25)  # of eps
_INTEGERS = {"steps", "n_queries", "tries"}
GRADIENT_FREE = ("square", "noise")

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
BLACK_BOX: tuple[str, ...] = (  # for a classifier without a gradient, and nothing to make transferred attacks with
    "square:eps=8/255,n_queries=500",
    "square:eps=4/255,n_queries=500",
    "square:eps=16/255,n_queries=300",
    "noise:eps=16/255,tries=20",
    "noise:eps=32/255,tries=20",
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

    @property
    def needs_gradient(self) -> bool:
        """Whether it can be made only on a classifier that gives one."""
        return self.name not in GRADIENT_FREE

    def _attack(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        settings: dict[str, object] = {k: int(v) if k in _INTEGERS else v for k, v in self.settings.items()}
        if self.needs_gradient and not classifier.differentiable:
            raise AttackError(
                f"{self.name} needs gradients, and this classifier gives none: use {' or '.join(GRADIENT_FREE)}, or "
                "make it on a surrogate"
            )
        if self.name == "pgd-stop":
            return _stopped(classifier, images, labels, **self.settings)
        if self.name == "noise":
            return _noise(classifier, images, labels, **self.settings)
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
    live = torch.arange(len(images), device=images.device, dtype=torch.int64)
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


def _noise(classifier: Classifier, images: Tensor, labels: Tensor, *, eps: float, tries: float) -> Tensor:
    """Random signs of size eps, drawn anew for each image until it is misclassified."""
    out = images.clone()
    live = torch.arange(len(images), device=images.device, dtype=torch.int64)
    for _ in range(int(tries)):
        signs = torch.randint(0, 2, images[live].shape, dtype=torch.float32, device="cpu").to(images.device) * 2 - 1
        out[live] = (images[live] + eps * signs).clamp(0, 1)
        live = live[classifier.logits(out[live]).argmax(1) == labels[live]]
        if not len(live):
            break
    return out


def suited(classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0, most: int = 64) -> tuple[str, ...]:
    """A mixture at the strengths at which this classifier falls, found on some images that it gets right.

    The smallest Linf radius at which PGD of ten steps (Square of 300 queries, without a gradient) changes nine of ten
    predictions is looked for by factors of two between 1/255 and 1/2; the mixture spans half of it to twice it, and
    8/255 in any case, in the shapes of MIXTURE.
    """
    right = classifier.logits(classifier.check(images)).argmax(1) == labels.to(classifier.device)
    rows = right.nonzero()[:most, 0].cpu()
    if not len(rows):
        raise AttackError("the classifier gets none of the images right: there is nothing to attack")
    clean, truth = classifier.check(images[rows]), labels[rows].to(classifier.device)
    name = "pgd:steps=10" if classifier.differentiable else "square:n_queries=300"
    eps = 1 / 255
    while eps < 0.5:
        made = Attack.parse(f"{name},eps={eps}").run(classifier, clean, truth, seed=seed)
        if float(succeeded(classifier, made, truth).float().mean()) >= 0.9:
            break
        eps = min(2 * eps, 0.5)
    if not classifier.differentiable:
        return tuple(
            f"{kind}:eps={_fraction(min(factor * eps, 0.5 if kind == 'square' else 0.25))},{rest}"
            for kind, rest in (("square", "n_queries=500"), ("noise", "tries=20"))
            for factor in ((0.5, 1, 2) if kind == "square" else (2, 4))
        )
    strong = min(max(2 * eps, 8 / 255), 0.5)
    far = math.sqrt(clean[0].numel()) * eps / 2  # as long as an Linf step of half that size in every pixel
    shapes = [
        *(f"pgd:eps={_fraction(e)},steps=10" for e in (strong, eps, eps / 2)),
        f"pgd:alpha={_fraction(0.75 * strong)},eps={_fraction(strong)},steps=2",
        *(f"pgd-l2:eps={f:.3g},steps=10" for f in (far, far / 4)),
        f"pgd-l2:alpha={far:.3g},eps={far:.3g},steps=1",
        *(f"pgd-stop:eps={_fraction(e)},steps=20" for e in (strong, eps)),
        *(f"cw:kappa={k},lr={max(0.01, eps / 4):.2g},steps=100" for k in (0, 3)),
        *(f"fgsm:eps={_fraction(e)}" for e in (strong, eps, eps / 2)),
        f"square:eps={_fraction(strong)},n_queries=500",
    ]
    return tuple(dict.fromkeys(str(Attack.parse(spec)) for spec in shapes))


def succeeded(classifier: Classifier, attacked: Tensor, labels: Tensor) -> Tensor:
    """(n,) whether each attacked image is given another class than its label."""
    return classifier.logits(classifier.check(attacked)).argmax(1) != labels.to(classifier.device)


def round_to_bytes(images: Tensor) -> Tensor:
    """The same images on the grid of 8-bit files."""
    return (images * 255).round() / 255


def parse_all(specs: Sequence[str | Attack]) -> tuple[Attack, ...]:
    """Attacks from their specifications."""
    return tuple(spec if isinstance(spec, Attack) else Attack.parse(spec) for spec in specs)
