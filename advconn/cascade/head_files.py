"""A detector's head as a file: by skops, and only out of a short list of types whose arrays are checked.

skops tells which types it does not trust; it trusts every scikit-learn estimator, and checks no content. Some of them
walk their arrays in compiled code without bounds, or start processes. So here the list is positive.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from advconn.cascade import scaling
from advconn.cascade.scaling import LARGEST as LARGEST_OUTPUT
from advconn.cascade.scaling import BoundedScaler
from advconn.data.arrays import header_of
from advconn.errors import BundleError, first_line

sys.modules.setdefault("advconn.scaling", scaling)  # where heads of earlier versions look for BoundedScaler

LARGEST = 2**26  # bytes of all its arrays
LARGEST_SCHEMA = 2**20
TRUSTED = (  # what skops would ask about
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "advconn.cascade.scaling.BoundedScaler",
    "advconn.scaling.BoundedScaler",
)
_SKLEARN = {
    ("sklearn.pipeline", "Pipeline"),
    ("sklearn.preprocessing._data", "StandardScaler"),
    ("advconn.cascade.scaling", "BoundedScaler"),
    ("advconn.scaling", "BoundedScaler"),
    ("sklearn.linear_model._logistic", "LogisticRegression"),
    ("sklearn.neural_network._multilayer_perceptron", "MLPClassifier"),
    ("sklearn.preprocessing._label", "LabelBinarizer"),
    ("sklearn.neural_network._stochastic_optimizers", "AdamOptimizer"),
}
NODES = frozenset(
    {(module, name, "ObjectNode") for module, name in _SKLEARN}
    | {
        ("builtins", "dict", "DictNode"),
        ("builtins", "list", "ListNode"),
        ("builtins", "tuple", "TupleNode"),
        ("builtins", "str", "JsonNode"),
        ("builtins", "str", "TypeNode"),
        ("numpy", "ndarray", "NdArrayNode"),
        ("numpy.random.mtrand", "RandomState", "RandomStateNode"),
    }
    | {
        ("numpy", kind, "NdArrayNode")
        for kind in ("float64", "float32", "int64", "int32", "bool", "bool_", "uint32", "uint64")
    }
)
# Attributes that hold functions of scikit-learn's or types, by name only.
_TYPES = {"dict", "list", "tuple", "str", "int", "float", "bool", "ndarray", "float64", "int64", "float32", "bool_"}


def save(head: Any, path: Path) -> None:
    """Write a fitted head.

    Raises:
        BundleError: it holds a type that is not loaded again.
    """
    from skops.io import dump

    dump(head, path)
    with zipfile.ZipFile(path) as archive:
        foreign = next(_foreign(json.loads(archive.read("schema.json"))), None)
    if foreign is not None:
        raise BundleError(f"this head cannot be saved safely: it holds {foreign}; use a linear model or a network")


def load(path: Path, features: int) -> Any:
    """The head in a file, for so many features.

    Raises:
        BundleError: damaged, of other types, of other shapes, or with values that are not finite.
    """
    from skops.io import load as load_head

    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if sum(sizes.values()) > LARGEST or sizes.get("schema.json", 0) > LARGEST_SCHEMA:
                raise BundleError(f"{path}: is too large for a head")
            foreign = next(_foreign(json.loads(archive.read("schema.json"))), None)
            if foreign is not None:
                raise BundleError(f"{path}: holds {foreign}, which advconn does not load")
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    with archive.open(info) as stream:
                        shape, item, _, start, _ = header_of(stream)
                    if item * int(np.prod(shape, dtype=np.float64)) + start != info.file_size:
                        raise BundleError(f"{path}: {info.filename} is not as large as its shape {shape} says")
        head = load_head(path, trusted=list(TRUSTED))
        return _checked(head, features)
    except BundleError:
        raise
    except Exception as error:  # a forged file makes zipfile, json, skops and NumPy raise anything
        raise BundleError(
            f"{path}: not a readable head ({first_line(error, 80)}); fit or copy the detector again"
        ) from error


def _foreign(schema: Any) -> Iterator[str]:
    """Nodes that are not in the list."""
    if isinstance(schema, dict):
        if "__class__" in schema or "__loader__" in schema:
            node = tuple(schema.get(key) for key in ("__module__", "__class__", "__loader__"))
            if node not in NODES:
                yield ".".join(map(str, node[:2]))
            if node[2] == "TypeNode":
                kind = schema.get("content")
                name = kind.get("__class__") if isinstance(kind, dict) else kind
                if isinstance(name, str) and name not in _TYPES:
                    yield name
        for value in schema.values():
            yield from _foreign(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _foreign(value)


def _checked(head: Any, features: int) -> Any:
    """The same, if its arrays fit one another and are finite; it starts no processes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps = [step for _, step in head.steps] if type(head) is Pipeline else [head]
    if type(head) is Pipeline:
        head.memory, head.verbose = None, False
    width = features
    for step in steps[:-1]:
        if type(step) is BoundedScaler:
            step.floor = None  # of the fit alone
        elif type(step) is not StandardScaler:
            raise BundleError(f"a head with a {type(step).__name__} in it, which advconn does not load")
        for values in (step.center_ if type(step) is BoundedScaler else step.mean_, step.scale_):
            _fits(values, (width,))
        if not (np.asarray(step.scale_) > 0).all():
            raise BundleError("a head whose scale is not above 0")
        width *= len(LARGEST_OUTPUT) if type(step) is BoundedScaler else 1
    last = steps[-1]
    if type(last) is LogisticRegression:
        rows = 1 if len(last.classes_) == 2 else len(last.classes_)
        last.n_jobs = None
        _fits(last.coef_, (rows, width))
        _fits(last.intercept_, (rows,))
    elif type(last) is MLPClassifier:
        before = width
        for weights, bias in zip(last.coefs_, last.intercepts_, strict=True):
            _fits(weights, (before, len(bias)))
            _fits(bias, (len(bias),))
            before = len(bias)
    else:
        raise BundleError(f"a head of type {type(last).__name__}, which advconn does not load")
    return head


def _fits(values: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != shape:
        raise BundleError(f"a head with an array of shape {getattr(values, 'shape', None)} where {shape} is needed")
    if not np.isfinite(values).all():
        raise BundleError("a head with values that are not finite")
