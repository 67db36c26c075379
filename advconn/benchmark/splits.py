"""The images of a benchmark: in parts, of which no image is in two, and attacked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.attacks.attack import SuccessfulAttacks, attack_correct_images, concat_hits, is_misclassified
from advconn.attacks.catalog import KINDS
from advconn.benchmark.attack_sources import NamedAttack
from advconn.benchmark.result_types import AttackSize
from advconn.data.input_conversion import as_bytes
from advconn.data.laundering import parse_laundering
from advconn.detector.calibration import check_calibration_size
from advconn.errors import DataError, FitError
from advconn.models.classifier import Classifier
from advconn.runtime.parallel import Runner

CHUNK = 64
SHARES = {"train": 0.4, "calibrate": 0.3}  # of the images; the rest tests


@dataclass(frozen=True)
class Split:
    """Rows of the images in each use; no row is in two."""

    train: Tensor
    calibrate: Tensor
    test: Tensor


def split(count: int, limit: int | None, fpr: float, seed: int, wanted: Tensor | None = None) -> Split:
    """Parts of `count` images; with a limit, at most a quarter more of each, and enough for the rate.

    Args:
        count: images in all.
        limit: images that each attack is run on, at most; None keeps all images.
        fpr: false-alarm rate that the calibration part has to be enough for, in (0, 1).
        seed: of the shuffle.
        wanted: rows (m,) that are to test, as far as they are no more than the part holds.

    Raises:
        FitError: too few images to calibrate or to test on.
    """
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    if wanted is not None:
        last = torch.isin(order, wanted)
        order = torch.cat([order[~last], order[last]])
    first, second = round(SHARES["train"] * count), round((SHARES["train"] + SHARES["calibrate"]) * count)
    parts = [order[:first], order[first:second], order[second:]]
    try:
        check_calibration_size(len(parts[1]), fpr)
    except FitError as error:
        raise FitError(f"of {count} images {len(parts[1])} calibrate: {error}") from error
    if limit is not None:
        most = max(5 * limit // 4, math.ceil(1 / fpr))
        parts = [parts[0][:most], parts[1][:most], parts[2][-most:] if wanted is not None else parts[2][:most]]
    if len(parts[2]) < 10:
        raise FitError(f"{count} images leave {len(parts[2])} to test on: give 100 or more")
    return Split(*parts)


@dataclass(frozen=True)
class PrecomputedAttack:
    """Images that somebody attacked: (m, c, h, w), the row (m,) of the clean image that each was made from, a name."""

    name: str
    images: Tensor
    rows: Tensor

    def __post_init__(self) -> None:
        if len(self.images) != len(self.rows):
            raise DataError(f"{self.name}: {len(self.images)} attacked images and {len(self.rows)} originals")


def attack_images(
    images: np.ndarray, labels: np.ndarray, seed: int, classifier: Classifier, attack: NamedAttack
) -> SuccessfulAttacks:
    """Successful copies of uint8 images with labels, see attack.attack_correct_images.

    Args:
        images: clean ones (n, c, h, w) uint8.
        labels: their classes (n,).
        seed: of all that is drawn.
        classifier: what is attacked.
        attack: how.
    """
    return attack_correct_images(classifier, attack, torch.from_numpy(images), torch.from_numpy(labels), seed=seed)


def predict_images(images: np.ndarray, classifier: Classifier) -> np.ndarray:
    """The class (n,) of each of uint8 images (n, c, h, w)."""
    return np.asarray(classifier.predict(torch.from_numpy(images)).numpy())


class BenchmarkData:
    """Images in their parts, and attacks on them.

    Args:
        images, labels: (n, c, h, w) uint8, (n,) or None: the predictions stand in then.
        limit: see split. ready: attacked images whose originals are among the images.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: Tensor,
        labels: Tensor | None,
        *,
        runner: Runner,
        limit: int | None = None,
        fpr: float = 0.05,
        seed: int = 0,
        ready: Sequence[PrecomputedAttack] = (),
    ) -> None:
        self.classifier, self.images, self.runner, self.fpr, self.seed = classifier, images, runner, fpr, seed
        self.parts = split(len(images), limit, fpr, seed, torch.cat([r.rows for r in ready]) if ready else None)
        self.used = torch.cat([self.parts.train, self.parts.calibrate, self.parts.test])
        self.predicted = torch.full((len(images),), -1, dtype=torch.int64, device="cpu")
        chunks, network = self.used.split(256), classifier_key(classifier)
        calls = [(images[rows].numpy(), classifier) for rows in chunks]
        keys = [(some, network) for some, _ in calls]
        for rows, classes in zip(chunks, runner.map("predict", predict_images, calls, keys), strict=True):
            self.predicted[rows] = torch.from_numpy(classes)
        self.ready = tuple(ready)
        self.labelled = labels is not None
        self.labels = self.predicted if labels is None else labels

    @property
    def accuracy(self) -> float:
        """Of the classifier, on the images in use; nan where no labels are known."""
        if not self.labelled:
            return float("nan")
        return float((self.predicted[self.used] == self.labels[self.used]).float().mean())

    def rows(self, part: str) -> Tensor:
        """Rows of a part."""
        rows: Tensor = getattr(self.parts, part)
        return rows

    def part(self, name: str) -> Tensor:
        """Images of a part, uint8."""
        return self.images[self.rows(name)]

    def right(self, name: str) -> np.ndarray:
        """Which images of a part the classifier gets right."""
        rows = self.rows(name)
        return np.asarray((self.predicted[rows] == self.labels[rows]).numpy())

    def attack(self, name: str, attacks: Sequence[NamedAttack], limit: int | None) -> dict[str, SuccessfulAttacks]:
        """Successful copies of at most `limit` images of a part that are classified right, by each attack's name.

        Args:
            name: of the part: 'train', 'calibrate' or 'test'.
            attacks: with a limit each draws images of its own from the training part, and all take the same of another
                part.
            limit: images that each attack is run on, at most; None takes all.

        Raises:
            FitError: none is classified right.
        """
        rows = self.rows(name)[torch.from_numpy(self.right(name))]
        if not len(rows):
            raise FitError(
                f"the classifier gives none of {len(self.right(name))} {name} images its label: there is nothing to "
                "attack; are the labels in the order of its classes?"
            )
        own = classifier_key(self.classifier)
        chosen: list[tuple[NamedAttack, Tensor]] = []
        calls: list[tuple[Any, ...]] = []
        keys: list[tuple[Any, ...]] = []
        for attack in attacks:
            mine = self._some(rows, attack.name if name == "train" else "", limit)
            for i, chunk in enumerate(mine.split(CHUNK)):
                images, labels = self.images[chunk].numpy(), self.labels[chunk].numpy()
                calls.append((images, labels, self.seed + i, self.classifier, attack))
                keys.append((images, labels, self.seed + i, own, attack.key))
                chosen.append((attack, chunk))
        made = self.runner.map(f"attack {name}", attack_images, calls, keys)
        out: dict[str, list[tuple[SuccessfulAttacks, Tensor]]] = {attack.name: [] for attack in attacks}
        for (attack, chunk), hits in zip(chosen, made, strict=True):
            out[attack.name].append((hits, chunk))
        return {attack: concat_hits(parts, self.images) for attack, parts in out.items()}

    def _some(self, rows: Tensor, turn: str, limit: int | None) -> Tensor:
        """At most `limit` of the rows: for every turn others."""
        if limit is None or limit >= len(rows):
            return rows
        seed = int(hashlib.sha256(turn.encode()).hexdigest()[:6], 16) if turn else self.seed
        return rows[torch.from_numpy(np.random.default_rng(seed).permutation(len(rows))[:limit])]

    def tried(self, ready: PrecomputedAttack, limit: int | None = None) -> SuccessfulAttacks:
        """Those of ready-made images that are of the test part, of images classified right, and change their class.

        limit: of how many originals, at most.

        Raises:
            DataError: none is.
        """
        mine = torch.isin(ready.rows, self.parts.test)
        mine &= self.predicted[ready.rows] == self.labels[ready.rows]
        images, rows = ready.images[mine][:limit], ready.rows[mine][:limit]
        if not len(rows):
            raise DataError(f"{ready.name}: none of its originals is classified right and in the test part")
        hit = torch.cat([
            is_misclassified(self.classifier, x, self.labels[r]).cpu()
            for x, r in zip(images.split(256), rows.split(256), strict=True)
        ])  # fmt: skip
        attacked = self.classifier.check(images[hit]).cpu().float()
        return SuccessfulAttacks(attacked, rows[hit], len(rows))

    def survivors(self, hits: SuccessfulAttacks, way: str) -> SuccessfulAttacks:
        """Those of successful copies that still change the class once they are saved; `tried` counts all of them.

        Args:
            hits: of an attack.
            way: of saving, see data.laundering.
        """
        if not len(hits.rows):
            return SuccessfulAttacks(hits.images, hits.rows, 0)
        shown = parse_laundering(way).change(as_bytes(hits.images), self.seed).float() / 255
        still = torch.cat([
            is_misclassified(self.classifier, x, self.labels[r]).cpu()
            for x, r in zip(shown.split(256), hits.rows.split(256), strict=True)
        ])  # fmt: skip
        return SuccessfulAttacks(shown[still], hits.rows[still], len(hits.rows))

    def mean_l2(self, hits: SuccessfulAttacks) -> float:
        """Mean L2 norm of what an attack changed; NaN of no success."""
        change = (hits.images - self.images[hits.rows].float() / 255).flatten(1)
        return float(change.norm(dim=1).mean()) if len(hits.rows) else math.nan

    def size(self, name: str, family: str, in_training: bool, hits: SuccessfulAttacks) -> AttackSize:
        """How an attack went; in_training: whether it is in the mixture.

        Args:
            name: the attack's.
            family: the attack's.
            in_training: whether the mixture holds the attack.
            hits: the copies that succeeded, with their rows in the bench's images.
        """
        change = (hits.images - self.images[hits.rows].float() / 255).flatten(1)
        shares = [self.classifier.logits(self.classifier.check(x)).softmax(1).amax(1) for x in hits.images.split(256)]
        few = not len(hits.rows)
        return AttackSize(
            attack=name,
            family=family,
            atlas=KINDS[kind].atlas if (kind := name.partition(":")[0]) in KINDS else "",
            in_mixture=in_training,
            tried=hits.tried,
            succeeded=len(hits.rows),
            success=len(hits.rows) / hits.tried if hits.tried else math.nan,
            l2=self.mean_l2(hits),
            linf=math.nan if few else 255 * float(change.abs().amax(1).mean()),
            confidence=math.nan if few else float(torch.cat(shares).mean()),
        )


MADE_WITH = ("advconn", "torch", "torchattacks", "pillow", "foolbox", "adversarial-robustness-toolbox", "adv-lib")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def classifier_key(classifier: Classifier) -> str:
    """What every attack depends on besides its own settings: weights, preprocessing, versions."""
    versions = [_version(name) for name in MADE_WITH]
    return f"{classifier.fingerprint} {classifier.preprocessing} {versions}"
