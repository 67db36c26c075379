"""Attacks by name, made by torchattacks, foolbox (extra `attacks`) or this package; libraries are imported late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn import models
from advconn.attacks import own_attacks
from advconn.attacks.catalog import (
    GRADIENT_FREE,
    INTEGERS,
    KINDS,
    STEP_SHARES,
    TARGETS,
    TEXTS,
    format_number,
    parse_number,
)
from advconn.attacks.libraries import LIBRARIES
from advconn.attacks.surrogate import train_surrogate
from advconn.errors import AdvconnError, AttackError, expected_one_of, first_line
from advconn.models.classifier import Classifier
from advconn.runtime.forward_passes import gradients_enabled
from advconn.runtime.parallel import Runner


@dataclass(frozen=True)
class Attack:
    """A named attack with its parameters.

    Example:
        >>> import torch
        >>> from advconn import Classifier, attacks
        >>> classifier = Classifier(torch.nn.Flatten().eval(), size=2, channels=1)
        >>> attack = attacks.Attack.parse("fgsm:eps=51/255")
        >>> attack.run(classifier, torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])).flatten()
        tensor([0.3000, 0.7000, 0.7000, 0.7000])
    """

    name: str
    params: tuple[tuple[str, float | str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Attack:
        """Read NAME or NAME:key=value,...; a value is a number or a fraction.

        Raises:
            AttackError: unknown name or key, or a value that is no number.
        """
        name, _, rest = text.strip().partition(":")
        if name not in KINDS:
            raise AttackError(
                f"no attack named {name!r}: {expected_one_of(name, KINDS)} (--list-attacks shows all; foolbox:NAME is "
                "an attack of another library)"
            )
        keys = set(KINDS[name].defaults) | ({"alpha"} if name in STEP_SHARES else set())
        texts = TEXTS.get(name, ())
        params: dict[str, float | str] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if not equals or key not in keys | set(texts):
                expected = ", ".join(sorted(keys | set(texts)))
                raise AttackError(f"{name} has no parameter {part!r}: expected {expected} as key=value")
            params[key] = value if key in texts else parse_number(name, key, value)
        if params.get("target", TARGETS[0]) not in TARGETS:
            raise AttackError(f"{name}: target is {' or '.join(TARGETS)}, got {params['target']!r}")
        if "weights" in params and "surrogate" not in params:
            raise AttackError(f"{name}: weights go with surrogate=SPEC")
        return cls(name, tuple(sorted(params.items())))

    def __str__(self) -> str:
        shown = [f"{k}={v if isinstance(v, str) else format_number(k, v)}" for k, v in self.params]
        return self.name + (":" + ",".join(shown) if shown else "")

    @property
    def settings(self) -> dict[str, float]:
        """Every number, the defaults included; the step size alpha, if not given, is a share of the largest change."""
        given = {k: v for k, v in self.params if not isinstance(v, str)}
        values = dict(KINDS[self.name].defaults) | given
        if self.name in STEP_SHARES:
            values.setdefault("alpha", values.get("eps", values.get("size", 1.0)) * STEP_SHARES[self.name])
        return values

    @property
    def family(self) -> str:
        """Its family, one of FAMILIES."""
        return KINDS[self.name].family

    def run(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        """Attacked copies (n, c, h, w) in [0, 1]; those given another class than their label succeeded.

        A targeted attack (target=random or least-likely) succeeds by any wrong class, too.

        Args:
            classifier: what is attacked.
            images: (n, c, h, w) in [0, 1] or uint8.
            labels: their classes (n,).
            seed: of all that is drawn.
            options: of `batches`.
        """
        return torch.cat(list(self.batches(classifier, images, labels, seed=seed, **options)))

    def batches(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor,
        *,
        seed: int = 0,
        batch_size: int = 128,
        source: Classifier | None = None,
        runner: Runner | None = None,
    ) -> Iterator[Tensor]:
        """The same as `run`, a batch at a time.

        Args:
            classifier: what is attacked.
            images: (n, c, h, w) in [0, 1] or uint8.
            labels: their classes (n,).
            seed: of all that is drawn.
            batch_size: images attacked at once.
            source: what it is made on; `self.source(classifier, images)` unless given.
            runner: where each batch is made; the copies are the same whatever it is.

        Raises:
            AttackError: it needs a gradient that `source` does not give, or its library fails on such images.
        """
        source = self.source(classifier, images, seed=seed) if source is None else source
        parts = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        calls = ((source, x, y, seed * 1_000_003 + i) for i, (x, y) in enumerate(parts))
        yield from (Runner() if runner is None else runner.carrying(source)).spread(self._batch, calls)

    def _batch(self, source: Classifier, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        devices: list[torch.device] = [source.device] if source.device.type == "cuda" else []
        with seed_everything(seed, devices), gradients_enabled():
            out = self._attack(source, source.check(images.clone()), labels.clone().to(source.device))
        return out.detach().clamp(0, 1)

    @property
    def needs_gradient(self) -> bool:
        """Whether it can be made only on a classifier that gives one; `transfer` makes or is given one of its own."""
        return KINDS[self.name].gradient and self.name != "transfer"

    def source(self, classifier: Classifier, images: Tensor, *, seed: int = 0) -> Classifier:
        """The classifier that it is made on: of `transfer` its surrogate, or a network that imitates `classifier`.

        Args:
            classifier: what is attacked.
            images: (n, c, h, w) what the imitation is trained on, with the classifier's answers.
            seed: of that training.

        Raises:
            AttackError: a surrogate of other classes.
            ModelError: a surrogate that cannot be loaded.
        """
        if self.name != "transfer":
            return classifier
        given = dict(self.params)
        if "surrogate" not in given:
            return train_surrogate(classifier, images, seed=seed)
        surrogate = models.load(
            str(given["surrogate"]),
            None if "weights" not in given else Path(str(given["weights"])),
            size=classifier.preprocessing.size,
            channels=classifier.channels,
            device=str(classifier.device),
        )
        if surrogate.num_classes != classifier.num_classes:
            raise AttackError(
                f"{self}: the surrogate has {surrogate.num_classes} classes, the classifier {classifier.num_classes}: "
                "give a network of the same classes"
            )
        return surrogate

    def _attack(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        settings: dict[str, Any] = {k: int(v) if k in INTEGERS else v for k, v in self.settings.items()}
        kind = KINDS[self.name]
        if kind.gradient and not classifier.differentiable:
            raise AttackError(
                f"{self.name} needs gradients, and this classifier gives none: use {' or '.join(GRADIENT_FREE)}, or "
                "make it on a surrogate"
            )
        library, _, cls = kind.made_by.rpartition(":")
        if not library:
            out: Tensor = getattr(own_attacks, cls)(classifier, images, labels, **settings)
            return out
        if self.name == "autoattack" and classifier.num_classes < 4:
            raise AttackError("autoattack needs four classes or more: its targeted part aims at three wrong ones")
        extra = {"n_classes": classifier.num_classes} if self.name == "autoattack" else {}
        options = {kind.renamed.get(k, k): v for k, v in settings.items()} | dict(kind.fixed) | extra
        options |= {k: v for k, v in self.params if k == "target"}
        try:
            return LIBRARIES[library](cls, classifier, images, labels, options)
        except AdvconnError:
            raise
        except (RuntimeError, ValueError, LookupError, AssertionError, ArithmeticError) as error:  # on odd images
            shape = " x ".join(map(str, images.shape[1:]))
            raise AttackError(
                f"{self.name}: {library} fails on this classifier's images of {shape} ({first_line(error, 100)}): use "
                "another attack"
            ) from error


@contextmanager
def seed_everything(seed: int, devices: list[torch.device]) -> Iterator[None]:
    """torch's and NumPy's global generators at a seed, and afterwards as they were."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def compatible_attacks(classifier: Classifier, texts: Iterable[str]) -> tuple[str, ...]:
    """Those of the attacks that are made for images of so many channels."""
    return tuple(
        spec
        for spec in texts
        if not (made_for := KINDS[Attack.parse(spec).name].channels) or classifier.channels in made_for
    )


def is_misclassified(classifier: Classifier, attacked: Tensor, labels: Tensor) -> Tensor:
    """Whether each attacked image is given another class than its label, (n,) bool.

    Args:
        classifier: what was attacked.
        attacked: images (n, c, h, w) in [0, 1] or uint8.
        labels: classes (n,) of the clean images.
    """
    return classifier.logits(classifier.check(attacked)).argmax(1) != labels.to(classifier.device)


@dataclass(frozen=True)
class SuccessfulAttacks:
    """Images (n, c, h, w) of an attack that succeeded, the row (n,) each was made from, and how many were tried."""

    images: Tensor
    rows: Tensor
    tried: int


def attack_correct_images(
    classifier: Classifier,
    attack: Any,
    images: Tensor,
    labels: Tensor | None,
    *,
    seed: int = 0,
    **options: Any,
) -> SuccessfulAttacks:
    """What an attack makes of images (n, c, h, w) that the classifier gets right, where it changes their class.

    Every second copy is on the grid of 8-bit files: files hold bytes, an attack inside a pipeline does not.

    Args:
        classifier: what is attacked.
        attack: `run(classifier, images, labels, *, seed)` gives attacked copies.
        images: clean ones (n, c, h, w) in [0, 1] or uint8.
        labels: true classes (n,); None takes the predictions.
        seed: of all that is drawn.
        options: of `attack.run`.
    """
    clean = classifier.check(images)
    predicted = classifier.logits(clean).argmax(1)
    truth = predicted if labels is None else labels.to(predicted)
    right = (predicted == truth).nonzero()[:, 0]
    if not len(right):
        return SuccessfulAttacks(images[:0].float().cpu(), right.cpu(), 0)
    out = attack.run(classifier, clean[right], truth[right], seed=seed, **options).to(clean)
    out[1::2] = round_to_bytes(out[1::2])
    hit = is_misclassified(classifier, out, truth[right])
    return SuccessfulAttacks(out[hit].cpu(), right[hit].cpu(), len(right))


def concat_hits(parts: Sequence[tuple[SuccessfulAttacks, Tensor]], like: Tensor) -> SuccessfulAttacks:
    """Hits of parts of the images, with each part's rows (m,), as one; `like` gives the shape where there is none."""
    images = torch.cat([like[:0].float().cpu(), *(hits.images for hits, _ in parts)])
    rows = [rows[hits.rows] for hits, rows in parts]
    none = torch.zeros(0, dtype=torch.int64, device="cpu")
    return SuccessfulAttacks(images, torch.cat([none, *rows]), sum(hits.tried for hits, _ in parts))


def round_to_bytes(images: Tensor) -> Tensor:
    """The same images on the grid of 8-bit files."""
    return (images * 255).round() / 255


def parse_all(attacks: Sequence[str | Attack]) -> tuple[Attack, ...]:
    """Attacks from their specifications, each once."""
    parsed = [spec if isinstance(spec, Attack) else Attack.parse(spec) for spec in attacks]
    return tuple({str(attack): attack for attack in parsed}.values())
