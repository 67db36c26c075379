"""What `advconn benchmark` measures, from its options: the detector, images, attacks, baselines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advconn.cli.common import classifier_of, default_subject, detector_of, note, read
from advconn.errors import DataError

if TYPE_CHECKING:
    from advconn.benchmark.splits import Ready
    from advconn.data.collection import Item
    from advconn.data.datasets import Data
    from advconn.detector.detector import Detector
    from advconn.models.classifier import Classifier
    from advconn.parallel import Progress

STAMP = re.compile(r"^\d{5}-")  # which `advconn attack` puts before a file's name
EVERY = (
    "pgd:eps=8/255,steps=10",
    "pgd:eps=2/255,steps=50",
    "pgd-l2",
    "fgsm",
    "bim",
    "cw",
    "deepfool",
    "autoattack",
    "square",
    "jitter",
    "pgd-stop",
)


def baselines(names: Sequence[str]) -> tuple[Any, ...]:
    """Names of BASELINES, and classes by FILE.py:CLASS."""
    from advconn.benchmark.baselines import BASELINES
    from advconn.benchmark.candidate import Candidate
    from advconn.models import user_code

    out: list[Any] = []
    for name in names or BASELINES:
        if ".py:" in name:
            kind = user_code.named_in_file(name)
            is_candidate = isinstance(kind, type) and issubclass(kind, Candidate)
            if not is_candidate or not kind.name or kind.measure is Candidate.measure:
                raise DataError(
                    f"--baseline {name}: expected a class of advconn.benchmark.Candidate's with a name and `measure`"
                )
            out.append(kind)
        elif name in BASELINES:
            out.append(name)
        else:
            raise DataError(f"no baseline {name!r}: expected FILE.py:CLASS or some of {', '.join(BASELINES)}")
    return tuple(out)


def second(given: dict[str, Any], subject: Classifier) -> Classifier | None:
    """Another classifier of the same classes, for the baselines that need one."""
    from advconn import models

    if given["second"] is None:
        return None
    return models.load(
        given["second"], given["second_weights"], size=subject.preprocessing.size, num_classes=subject.num_classes,
        device=str(subject.device),
    )  # fmt: skip


def subject(given: dict[str, Any], progress: Progress) -> tuple[Detector, Data, list[Item]]:
    """The detector that is measured, images that it has not seen, and what they are called."""
    import numpy as np
    import torch

    from advconn.data.collection import Collection
    from advconn.data.datasets import Data
    from advconn.detector.fitting import fit
    from advconn.parallel import Runner

    data, folder, asked, device = (given[name] for name in ("data", "detector", "asked", "device"))
    reading = {name: given[name] for name in ("labels", "max_bad", "accept")}
    if data is None:
        if asked.model is not None or folder is not None or given["attacked"]:
            raise DataError(
                "--data is needed with --detector, --model or --attacked: clean images that the classifier takes"
            )
        return (*default_subject(device), [])
    collection = Collection(data, **given["how"])
    if asked.model is None or folder is not None:
        detector = detector_of(folder, asked, device)
        pixels, labels, items = read(collection, detector.connectivity.classifier, **reading)
        return detector, Data(data.name, pixels, labels), items
    classifier = classifier_of(asked, collection, device)
    pixels, labels, items = read(collection, classifier, **reading)
    order = torch.from_numpy(np.random.default_rng(given["seed"]).permutation(len(pixels)))
    apart, rest = order[: len(order) // 2], order[len(order) // 2 :]
    note(f"a detector is fitted on {len(apart)} of the images first; the other {len(rest)} are measured on")
    detector = fit(
        classifier, pixels[apart], None if labels is None else labels[apart], fpr=given["fpr"], seed=given["seed"],
        runner=Runner(progress=progress), note=note, accept_accuracy=True,
    )  # fmt: skip
    remaining = [items[i] for i in rest.tolist()]
    return detector, Data(data.name, pixels[rest], None if labels is None else labels[rest]), remaining


def ready(path: Path, originals: Sequence[Item], classifier: Classifier, given: dict[str, Any]) -> Ready:
    """Attacked images of a path, with the rows of the clean ones of the same name, or of the same row of an array."""
    import torch

    from advconn.benchmark.splits import Ready
    from advconn.data.collection import Collection

    collection = Collection(path, classifier.channels, **given["how"])
    batches = list(collection.batches(classifier.preprocessing))
    if any(any(batch.resized) for batch in batches):
        note(f"images of {path} are of another size than the classifier's: they were resized, which changes them too")
    _same_rows(path, collection.items, originals)
    index = {_called(item, given["data"]): i for i, item in enumerate(originals)}
    stems = {name.rpartition("/")[2]: i for name, i in index.items()}
    stems = stems if len(stems) == len(index) else {}
    names = [_called(item, path) for batch in batches for item in batch.items]
    indices = [index.get(name, stems.get(STAMP.sub("", name.rpartition("/")[2]), -1)) for name in names]
    rows = torch.tensor(indices, dtype=torch.int64, device="cpu")
    if not bool((rows >= 0).any()):
        inside = next(iter(collection.arrays), None)
        array = f" ({Path(path) / Path(inside).name} may be one)" if inside else ""
        raise DataError(
            f"--attacked {path}: none is called like an image of --data; give copies under the originals' names, or an "
            f"array of as many rows{array}"
        )
    if bool((rows < 0).any()):
        note(f"{int((rows < 0).sum())} of {len(rows)} images of {path} have no original in --data: they are left out")
    images = torch.cat([batch.images for batch in batches])
    return Ready(path.name, images[rows >= 0], rows[rows >= 0])


def _same_rows(path: Path, attacked: Sequence[Item], originals: Sequence[Item]) -> None:
    """Raise DataError where an array has other rows than the clean images' one, or labels that contradict theirs."""
    rows = [item.row for item in originals if item.row is not None]
    count = len([item for item in attacked if item.row is not None])
    if not rows or not count:
        return
    if count != max(rows) + 1:
        raise DataError(
            f"--attacked {path}: {count} rows, and --data has {max(rows) + 1}: each row is the attacked copy of "
            "the same row; give as many, or folders of pictures under the same names"
        )
    labels = {item.row: item.label for item in originals}
    other = [i for i in attacked if None not in (i.label, labels.get(i.row)) and i.label != labels[i.row]]
    if other:
        raise DataError(
            f"--attacked {path}: {len(other)} of {count} labels are others than --data's in the same rows: the rows "
            "do not go together"
        )


def _called(item: Item, root: Path) -> str:
    """What an image and its attacked copy have in common: the row, or the path under the folder without its ending."""
    if item.row is not None:
        return str(item.row)
    inside = item.path.relative_to(root) if root.is_dir() else Path(item.path.name)
    return inside.with_suffix("").as_posix()


def suited(detector: Detector, told: Callable[[str], None]) -> tuple[str, ...]:
    """Every attack that the classifier can be attacked with."""
    if detector.connectivity.classifier.num_classes >= 4:
        return EVERY
    told("autoattack is left out: it needs four classes or more")
    return tuple(name for name in EVERY if name != "autoattack")


def named(attacks: Sequence[str], images: Data, asked: bool) -> tuple[str, ...]:
    """Full specifications: a bare name, or one that was not asked for, stands for strengths that suit the images."""
    out = []
    for spec in attacks:
        name = spec.partition(":")[0]
        bare = spec == name or (not asked and name in images.attacks)
        out.append(images.attacks.get(name, spec) if bare else spec)
    return tuple(dict.fromkeys(out))
