"""Attacks of a benchmark: advconn's by specification, those of other libraries, and anyone's by file and name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from advconn import models
from advconn.attacks import Attack
from advconn.benchmark.keys import code, parameters
from advconn.classifier import Classifier
from advconn.errors import AdvconnError, AttackError, line_of

SLACK = 0.01  # outside [0, 1], which is cut off
OWN = "given"  # the family of an attack that says none


class Runs(Protocol):
    """What makes attacked images: anyone's object with a name."""

    name: str

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Attacked copies (n, c, h, w) in [0, 1] of images (n, c, h, w) with labels (n,)."""
        ...


@dataclass(frozen=True)
class Attacker:
    """An attack under its name.

    family: one of kinds.FAMILIES, or OWN. key: what its images depend on besides images, labels, seed and classifier.
    """

    name: str
    family: str
    made_by: Any = field(compare=False)
    key: str

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
        """Attacked copies (n, c, h, w) of images (n, c, h, w) with labels (n,).

        Raises:
            AttackError: of an attack that is not advconn's, where it fails or gives other than such copies.
        """
        try:
            out = self.made_by.run(classifier, images, labels, seed=seed)
        except AdvconnError:
            raise
        except Exception as error:  # anyone's code may raise anything
            raise AttackError(f"{self.name}: fails ({type(error).__name__}: {line_of(error, 120)})") from error
        if not isinstance(out, Tensor) or out.shape != images.shape or not bool(torch.isfinite(out).all()):
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise AttackError(f"{self.name}: run gives {given}; expected finite images {tuple(images.shape)} in [0, 1]")
        low, high = (float(v) for v in (out.min(), out.max())) if len(out) else (0.0, 1.0)
        if not out.is_floating_point() or low < -SLACK or high > 1 + SLACK:
            raise AttackError(
                f"{self.name}: run gives {str(out.dtype).removeprefix('torch.')} values from {low:.3g} to {high:.3g}; "
                "expected floats in [0, 1] (divide bytes by 255)"
            )
        return out.detach().clamp(0, 1)


def attacker(given: str | Runs) -> Attacker:
    """An attack from its specification, or from an object with a name and a `run`.

    A specification is NAME:key=value,... of advconn's, FILE.py:FACTORY whose call gives such an object, or
    LIBRARY:CLASS(key=value, ...) with foolbox, torchattacks, art or advlib as the library.

    Raises:
        AttackError: none of these, or an object without name or run.
    """
    if not isinstance(given, str):
        return _of(given)
    library, _, rest = given.partition(":")
    if library in ADAPTERS:
        return _adapted(library, rest)
    if given.endswith(".py"):
        raise AttackError(f"{given}: name what gives the attack, {given}:FACTORY")
    if library.endswith(".py"):
        factory = models.named_in_file(given)
        try:
            return _of(factory())
        except AdvconnError:
            raise
        except Exception as error:  # anyone's code may raise anything
            raise AttackError(f"{given}: fails ({type(error).__name__}: {line_of(error, 120)})") from error
    return _of(Attack.parse(given))


def _of(made: Any) -> Attacker:
    if isinstance(made, Attack):
        texts = [(k, v) for k, v in made.params if isinstance(v, str)]
        return Attacker(str(made), made.family, made, f"{made.name} {sorted(made.settings.items())} {texts}")
    name = getattr(made, "name", None)
    if not isinstance(name, str) or not callable(getattr(made, "run", None)):
        raise AttackError(
            f"{type(made).__name__} is no attack: it needs a `name` and `run(classifier, images, labels, *, seed)`"
        )
    key = f"{sorted(parameters(made).items())!r} {code(made)}"
    return Attacker(name, str(getattr(made, "family", OWN)), made, key)


@dataclass(frozen=True)
class Adapted:
    """An attack of another library, made anew for every classifier that it is run on.

    attack: its class's name. options: keywords of the class.
    """

    name: str
    library: str
    attack: str
    options: Mapping[str, Any]

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Attacked copies (n, c, h, w)."""
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            return ADAPTERS[self.library](self.attack, classifier, images.clone(), labels, dict(self.options))


def _adapted(library: str, text: str) -> Attacker:
    """From CLASS or CLASS(key=value, ...) with plain values."""
    try:
        call = ast.parse(text if text.endswith(")") else f"{text}()", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        options = {str(k.arg): _value(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise AttackError(
            f"{library}:{text}: expected {library}:CLASS(key=value, ...) with numbers and texts as values"
        ) from None
    shown = ", ".join(f"{k}={v!r}" for k, v in options.items())
    name = f"{library}:{call.func.id}({shown})"
    return Attacker(name, OWN, Adapted(name, library, call.func.id, options), name)


def _value(node: ast.AST) -> Any:
    """A literal, or a fraction of two such as 8/255."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return float(_value(node.left)) / float(_value(node.right))
    return ast.literal_eval(node)


def _missing(library: str, error: ImportError) -> AttackError:
    return AttackError(f"{library} is not installed ({error.name}): pip install {INSTALLED_AS[library]}")


def _class(library: str, module: Any, name: str) -> Any:
    found = getattr(module, name, None)
    if found is None:
        raise AttackError(f"{library} has no attack {name!r}")
    return found


def _torchattacks(name: str, classifier: Classifier, images: Tensor, labels: Tensor, options: dict[str, Any]) -> Tensor:
    import torchattacks

    made = _class("torchattacks", torchattacks, name)(classifier.module, **options)
    return torch.as_tensor(made(images, labels))


def _foolbox(name: str, classifier: Classifier, images: Tensor, labels: Tensor, options: dict[str, Any]) -> Tensor:
    try:
        import foolbox
        from foolbox.models.pytorch import PyTorchModel
    except ImportError as error:
        raise _missing("foolbox", error) from None
    epsilons = options.pop("epsilons", None)
    attack = _class("foolbox", foolbox.attacks, name)(**options)
    model = PyTorchModel(classifier.module, bounds=(0, 1), device=classifier.device)
    return torch.as_tensor(attack(model, images, labels, epsilons=epsilons)[1])


def _art(name: str, classifier: Classifier, images: Tensor, labels: Tensor, options: dict[str, Any]) -> Tensor:
    try:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier
    except ImportError as error:
        raise _missing("art", error) from None
    model = PyTorchClassifier(
        classifier.module,
        torch.nn.CrossEntropyLoss(),
        input_shape=tuple(images.shape[1:]),
        nb_classes=classifier.num_classes,
        clip_values=(0, 1),
        device_type="gpu" if classifier.device.type == "cuda" else "cpu",
    )
    made = _class("art", evasion, name)(model, **options).generate(images.cpu().numpy(), labels.cpu().numpy())
    return torch.from_numpy(made).to(images)


def _advlib(name: str, classifier: Classifier, images: Tensor, labels: Tensor, options: dict[str, Any]) -> Tensor:
    try:
        from adv_lib import attacks
    except ImportError as error:
        raise _missing("advlib", error) from None
    return torch.as_tensor(_class("advlib", attacks, name)(classifier.module, images, labels, **options))


Adapter = Callable[[str, Classifier, Tensor, Tensor, dict[str, Any]], Tensor]
ADAPTERS: Mapping[str, Adapter] = {
    "torchattacks": _torchattacks,
    "foolbox": _foolbox,
    "art": _art,
    "advlib": _advlib,
}
INSTALLED_AS = {"foolbox": "'advconn[attacks]'", "art": "adversarial-robustness-toolbox", "advlib": "adv-lib"}


def attackers(given: Sequence[str | Runs]) -> tuple[Attacker, ...]:
    """All of them, none twice.

    Raises:
        AttackError: two of one name.
    """
    found = [attacker(one) for one in given]
    by_name: dict[str, Attacker] = {}
    for one in found:
        if by_name.setdefault(one.name, one).key != one.key:
            raise AttackError(f"two attacks are called {one.name}: give each a name of its own")
    return tuple(by_name.values())
