"""One callable for Ray Data's map_batches, LitServe, a KServe transformer: images in, verdicts out, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advconn.data.axis_order import layout
from advconn.data.input_conversion import as_tensor, read_all, require_image_tensor
from advconn.detector.calibration import Calibration, combine_readings
from advconn.detector.detector import Detector
from advconn.detector.judgement import Judgement
from advconn.errors import AdvconnError, DataError, first_line
from advconn.models.classifier import Classifier

OUTPUTS = (
    "advconn_score", "advconn_p_value", "advconn_flag", "advconn_doubtful", "advconn_consensus", "advconn_stage",
    "advconn_error",
)  # fmt: skip


class Judge:
    """A detector that judges batches of arrays; it travels to other processes and loads there.

    Args:
        detector: a fitted Detector, or the folder or the name ('cifar10') of one, which is loaded at the first batch.
        model: the classifier, where a folder does not hold it.
        column: of a batch that is a dict: where its images are.
        device: for a detector that is loaded here.
        verify_key: file of an Ed25519 public key that the folder must be signed with, see bundle.load.

    Raises:
        DataError: a key for a detector that is loaded already.
    """

    def __init__(
        self,
        detector: Detector | Path | str = "cifar10",
        *,
        model: Classifier | None = None,
        column: str = "image",
        device: str | None = None,
        verify_key: Path | str | None = None,
    ) -> None:
        self.column, self.model, self.device = column, model, device
        if verify_key is not None and isinstance(detector, Detector):
            raise DataError("verify_key= is of a folder: a detector that is loaded already cannot be verified")
        self.verify_key = None if verify_key is None else Path(verify_key).absolute()
        from advconn import bundle

        # a path that stays right where another process stands in another folder
        self._given = detector if isinstance(detector, Detector) else bundle.folder_of(detector).absolute()
        self._loaded = detector if isinstance(detector, Detector) else None
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in vars(self).items() if k != "_lock"}
        return kept if isinstance(self._given, Detector) else kept | {"_loaded": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    @property
    def detector(self) -> Detector:
        """The detector, loaded once."""
        with self._lock:
            if self._loaded is None:
                from advconn import bundle

                self._loaded = bundle.load(
                    self._given, model=self.model, device=self.device, verify_key=self.verify_key
                )
            return self._loaded

    def __call__(self, batch: Any) -> dict[str, Any]:
        """What the detector says of images, each (n,) or (n, k): `logits` and those in OUTPUTS.

        Args:
            batch: images (n, h, w, c), (n, c, h, w) or (n, h, w), uint8 or floats in [0, 1], as array or tensor; or a
                dict with them under `column`, whose other entries are handed on.

        Raises:
            DataError: no such images.
        """
        batch = _plain(batch)
        if isinstance(batch, dict) and self.column not in batch:
            there = ", ".join(map(repr, batch)) or "nothing"
            raise DataError(f"the batch has no {self.column!r}, only {there}: column= says where its images are")
        rest = {k: v for k, v in batch.items() if k != self.column} if isinstance(batch, dict) else {}
        taken = sorted({"logits", *OUTPUTS} & set(rest))
        if taken:
            raise DataError(f"the batch has {taken[0]!r} already, which the verdict would overwrite: rename it")
        given = _plain(batch[self.column]) if isinstance(batch, dict) else batch
        if isinstance(given, (list, tuple)) or (isinstance(given, np.ndarray) and given.dtype == object):
            if not _alike(given):
                return rest | self._rows(list(given))
            given = np.stack(list(given))  # as Arrow hands rows of one shape on
        return rest | self.judged(self.images(given))

    def images(self, given: Any) -> Tensor:
        """Images (n, c, h, w) from arrays of either layout.

        Raises:
            DataError: neither layout fits the classifier's channels.
        """
        if isinstance(given, Tensor):
            require_image_tensor(given)
            given = given.detach().cpu()
            given = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
        array = np.asarray(given)
        arrangement = layout(array.shape, self.detector.classifier.channels, "the batch")
        return as_tensor(np.ascontiguousarray(arrangement.images(array)))

    def _rows(self, given: list[Any]) -> dict[str, Any]:
        """The same of images one by one, which may be of several sizes, or missing: each has its own error."""
        classifier = self.detector.classifier
        if not given:
            sides = classifier.preprocessing.size or (8, 8)
            return self.judged(torch.zeros(0, classifier.channels, *sides, dtype=torch.float32, device="cpu"))
        read: list[Tensor | str] = []
        for i, row in enumerate(given):
            try:
                row = row.get("bytes") if isinstance(row, dict) else row  # as Hugging Face's datasets hold a picture
                if row is None:
                    raise DataError(f"row {i} holds no image")
                (image,) = read_all(row, classifier.preprocessing)
                read.append(image.float() / 255 if image.dtype == torch.uint8 else image)
            except Exception as error:  # whatever NumPy and Pillow make of a row
                read.append(first_line(error))
        sizes = {image.shape for image in read if isinstance(image, Tensor)}
        if len(sizes) > 1:
            raise DataError("images of several sizes, and the classifier's input size is not known")
        blank = torch.zeros(next(iter(sizes), (classifier.channels, 8, 8)), dtype=torch.float32, device="cpu")
        images = torch.stack([image if isinstance(image, Tensor) else blank for image in read])
        return self.judged(images, [None if isinstance(image, Tensor) else image for image in read])

    def judged(self, images: Tensor, unread: list[str | None] | None = None) -> dict[str, Any]:
        """The same for images (n, c, h, w); one that cannot be judged is flagged, and told why in `advconn_error`.

        Args:
            images: to judge.
            unread: of each why it could not be read, if it could not.
        """
        classifier = self.detector.classifier
        exact = not images.is_floating_point()  # bytes are all in range
        faults: list[str | None] = [None] * len(images) if exact else _faults(images)
        faults = [one or other for one, other in zip(unread or [None] * len(images), faults, strict=True)]
        sound = [i for i, fault in enumerate(faults) if fault is None]
        judgement = self.detector.judge(classifier.check(images[sound])) if sound else None
        return self._outputs(faults, sound, judgement, classifier.num_classes)

    def _outputs(
        self, faults: list[str | None], sound: list[int], judgement: Judgement | None, classes: int
    ) -> dict[str, Any]:
        n = len(faults)
        out = {
            "logits": np.full((n, classes), np.nan, np.float32),
            "advconn_score": np.full(n, np.inf),
            "advconn_p_value": np.zeros(n),
            "advconn_flag": np.ones(n, bool),
            "advconn_doubtful": np.full(n, self.detector.doubt_ is not None),
            "advconn_consensus": np.full(n, -1, np.int64),
            "advconn_stage": np.zeros(n, np.int64),
        }
        errors = [fault or "" for fault in faults]
        if judgement is not None:
            columns = (
                judgement.logits.detach().float().cpu().numpy(), judgement.score, judgement.p_value,
                judgement.adversarial, False if judgement.doubtful is None else judgement.doubtful,
                judgement.consensus, judgement.stage,
            )  # fmt: skip
            for name, values in zip(out, columns, strict=True):
                out[name][sound] = values
            for i, error in zip(sound, judgement.errors, strict=True):
                errors[i] = error or ""
        return out | {"advconn_error": np.array(errors, dtype=object)}


def _plain(batch: Any) -> Any:
    """A table of pandas or Arrow as a dict of its columns, one column as a list; anything else as it is."""
    if hasattr(batch, "column_names") and hasattr(batch, "column"):  # Arrow
        return {name: batch.column(name).to_pylist() for name in batch.column_names}
    if hasattr(batch, "iloc"):  # pandas
        return {name: list(batch[name]) for name in batch.columns} if hasattr(batch, "columns") else list(batch)
    return batch.to_pylist() if hasattr(batch, "to_pylist") else batch


def _alike(rows: Any) -> bool:
    """Whether rows are arrays of one shape and type, which are judged together."""
    arrays = len(rows) > 0 and all(isinstance(row, np.ndarray) and row.ndim > 1 for row in rows)
    return arrays and len({(row.shape, row.dtype) for row in rows}) == 1


def _faults(images: Tensor) -> list[str | None]:
    """Why each of images (n, c, h, w) of floats cannot be judged, if it cannot."""
    flat = images.flatten(1)
    finite = flat.isfinite().all(1).tolist()
    ends = zip(finite, flat.amin(1).tolist(), flat.amax(1).tolist(), strict=True)
    return [_fault(*bounds) for bounds in ends]


def _fault(finite: bool, low: float, high: float) -> str | None:
    if not finite:
        return "the image holds NaN or infinity"
    if low < -1e-4 or high > 1 + 1e-4:
        return f"the image lies in [{low:.3g}, {high:.3g}]: expected [0, 1]"
    return None


def per_picture(rows: dict[str, Any], readings: Sequence[tuple[str, ...]], calibration: Calibration) -> dict[str, Any]:
    """Verdicts of pictures from those of their readings: the logits are of the first, the verdict as scoring has it.

    Args:
        rows: outputs of all readings, one after the other.
        readings: of each picture.
        calibration: of the detector.
    """
    starts = np.cumsum([0, *map(len, readings)])
    out = {name: values[starts[:-1]] for name, values in rows.items()}
    for i, ways in enumerate(readings):
        if len(ways) == 1:
            continue
        own = {name: values[starts[i] : starts[i + 1]] for name, values in rows.items()}
        p_values, flags = own["advconn_p_value"].tolist(), own["advconn_flag"].tolist()
        first, p_value, flagged = combine_readings(p_values, flags, ways, calibration)
        failed = np.flatnonzero(own["advconn_error"] != "")
        first = int(failed[0]) if len(failed) else first
        for name in OUTPUTS:
            out[name][i] = own[name][first]
        out["advconn_doubtful"][i] = own["advconn_doubtful"].any()
        if not len(failed):
            out["advconn_p_value"][i], out["advconn_flag"][i] = p_value, flagged
    return out


def predict(judge: Judge, images: Tensor) -> dict[str, Any]:
    """What a judge says, where anything but advconn's own errors in a classifier's code becomes one of these.

    Raises:
        AdvconnError: as told.
    """
    try:
        return judge.judged(images)
    except AdvconnError:
        raise
    except Exception as error:  # the classifier's own code may raise anything
        raise AdvconnError(f"the classifier fails: {type(error).__name__}: {str(error)[:200]}") from error
