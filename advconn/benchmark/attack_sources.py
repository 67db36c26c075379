"""Attacks of a benchmark: advconn's by specification, those of other libraries, and anyone's by file and name."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from advconn.attacks.attack import Attack, seed_everything
from advconn.attacks.libraries import LIBRARIES
from advconn.benchmark.cache_keys import code, parameters
from advconn.errors import AttackError, wrap_user_errors
from advconn.models import user_code
from advconn.models.classifier import Classifier

SLACK = 0.01  # outside [0, 1], which is cut off
OWN = "given"  # the family of an attack that says none


class AttackProtocol(Protocol):
    """What makes attacked images: anyone's object with a name."""

    name: str

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Attacked copies (n, c, h, w) in [0, 1] of images (n, c, h, w) with labels (n,).

        Args:
            classifier: what is attacked.
            images: clean ones (n, c, h, w) in [0, 1].
            labels: their classes (n,).
            seed: of all that is drawn.
        """
        ...


@dataclass(frozen=True)
class NamedAttack:
    """An attack under its name.

    Attributes:
        family: one of attacks.catalog.FAMILIES, or OWN.
        key: what its images depend on besides images, labels, seed and classifier.
    """

    name: str
    family: str
    made_by: Any = field(compare=False)
    key: str

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int = 0) -> Tensor:
        """Attacked copies (n, c, h, w) of images (n, c, h, w) with labels (n,).

        Args:
            classifier: what is attacked.
            images: clean ones (n, c, h, w) in [0, 1].
            labels: their classes (n,).
            seed: of all that is drawn.

        Raises:
            AttackError: of an attack that is not advconn's, where it fails or gives other than such copies.
        """
        with wrap_user_errors(self.name, AttackError):
            out = self.made_by.run(classifier, images, labels, seed=seed)
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


@dataclass(frozen=True)
class SavedAttack:
    """An attack whose copies are saved before anything judges them.

    Attributes:
        attack: name of the attack.
        family: of the attack.
        saved_as: a way of saving, see data.laundering.
    """

    attack: str
    family: str
    saved_as: str

    @classmethod
    def of(cls, attack: NamedAttack, way: str) -> SavedAttack:
        """The attack, saved in this way."""
        return cls(attack.name, attack.family, way)

    @property
    def name(self) -> str:
        """Of both."""
        return f"{self.attack} saved as {self.saved_as}"


def to_attack(given: str | AttackProtocol) -> NamedAttack:
    """An attack from its specification, or from an object with a name and a `run`.

    A specification is NAME:key=value,... of advconn's, FILE.py:FACTORY whose call gives such an object, or
    LIBRARY:CLASS(key=value, ...) with foolbox, torchattacks, art or advlib as the library.

    Raises:
        AttackError: none of these, or an object without name or run.
    """
    if not isinstance(given, str):
        return _of(given)
    library, _, rest = given.partition(":")
    if library in LIBRARIES:
        return _adapted(library, rest)
    if given.endswith(".py"):
        raise AttackError(f"{given}: name what gives the attack, {given}:FACTORY")
    if library.endswith(".py"):
        factory = user_code.load_attribute(given)
        with wrap_user_errors(given, AttackError):
            return _of(factory())
    return _of(Attack.parse(given))


def _of(made: Any) -> NamedAttack:
    if isinstance(made, Attack):
        texts = [(k, v) for k, v in made.params if isinstance(v, str)]
        return NamedAttack(str(made), made.family, made, f"{made.name} {sorted(made.settings.items())} {texts}")
    name = getattr(made, "name", None)
    if not isinstance(name, str) or not callable(getattr(made, "run", None)):
        raise AttackError(
            f"{type(made).__name__} is no attack: it needs a `name` and `run(classifier, images, labels, *, seed)`"
        )
    key = f"{sorted(parameters(made).items())!r} {code(made)}"
    return NamedAttack(name, str(getattr(made, "family", OWN)), made, key)


@dataclass(frozen=True)
class LibraryAttack:
    """An attack of another library, made anew for every classifier that it is run on.

    attack: its class's name. options: keywords of the class.
    """

    name: str
    library: str
    attack: str
    options: Mapping[str, Any]

    def run(self, classifier: Classifier, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Attacked copies (n, c, h, w).

        Args:
            classifier: what is attacked.
            images: clean ones (n, c, h, w) in [0, 1].
            labels: their classes (n,).
            seed: of all that is drawn.
        """
        devices = [images.device] if images.device.type == "cuda" else []
        with seed_everything(seed, devices), torch.enable_grad():
            return LIBRARIES[self.library](self.attack, classifier, images.clone(), labels, self.options)


def _adapted(library: str, text: str) -> NamedAttack:
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
    return NamedAttack(name, OWN, LibraryAttack(name, library, call.func.id, options), name)


def _value(node: ast.AST) -> Any:
    """A literal, or a fraction of two such as 8/255."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return float(_value(node.left)) / float(_value(node.right))
    return ast.literal_eval(node)


def to_attacks(given: Sequence[str | AttackProtocol]) -> tuple[NamedAttack, ...]:
    """All of them, none twice.

    Raises:
        AttackError: two of one name.
    """
    parsed = [to_attack(spec) for spec in given]
    by_name: dict[str, NamedAttack] = {}
    for attack in parsed:
        if by_name.setdefault(attack.name, attack).key != attack.key:
            raise AttackError(f"two attacks are called {attack.name}: give each a name of its own")
    return tuple(by_name.values())
