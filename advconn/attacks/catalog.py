"""Attacks by name and family, how each is made, and the mixture that a detector is fitted on: tables alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType

from advconn.errors import AttackError

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "linf": "gradient steps within a largest change of every pixel",
        "l2": "gradient steps within a Euclidean length",
        "minimum": "the smallest change that is enough",
        "single": "one step",
        "sparse": "few pixels, or a small sum of changes",
        "score": "queries for the classifier's scores alone",
        "decision": "queries for the predicted class alone",
        "transfer": "made on another network",
        "smooth": "low frequencies",
        "universal": "one change for many images",
        "patch": "a square of any content",
        "spatial": "turned and shifted",
        "colour": "other light and colours",
        "laundered": "made to survive being saved as JPEG",
    }
)


DECISION_BASED = ("foolbox:SaltAndPepperNoiseAttack", "foolbox:SpatialAttack")  # that ask for the class alone
WHITE_BOX, BLACK_BOX_QUERIES, BLACK_BOX_TRANSFER = "AML.T0043.000", "AML.T0043.001", "AML.T0043.002"


@dataclass(frozen=True)
class AttackSpec:
    """A kind of attack.

    Attributes:
        family: one of FAMILIES.
        made_by: 'library:Class' of torchattacks or foolbox, or the name of a function in own_attacks.
        defaults: its parameters unless told.
        source: where it comes from.
        fixed: further arguments of the class.
        renamed: parameters that the library calls otherwise.
        gradient: whether it needs one.
        channels: of the images it is made for; empty for any number.
    """

    family: str
    made_by: str
    defaults: Mapping[str, float]
    source: str
    fixed: Mapping[str, object] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    gradient: bool = True
    channels: tuple[int, ...] = ()

    @property
    def atlas(self) -> str:
        """MITRE ATLAS's technique: how the adversarial data are crafted."""
        if self.family == "transfer":
            return BLACK_BOX_TRANSFER
        return WHITE_BOX if self.gradient else BLACK_BOX_QUERIES

    @property
    def nist(self) -> str:
        """The name of the evasion attack in NIST AI 100-2 E2025."""
        if self.family == "transfer":
            return "black-box, transfer"
        if self.gradient:
            return "white-box"
        by_class = self.family == "decision" or self.made_by in DECISION_BASED
        return "black-box, decision-based" if by_class else "black-box, score-based"


_LINF = {"eps": 8 / 255, "steps": 10}
_MADRY, _FMN = "Madry et al. 2018", "Pintor et al. 2021"
KINDS: Mapping[str, AttackSpec] = MappingProxyType(
    {
        "fgsm": AttackSpec("single", "torchattacks:FGSM", {"eps": 8 / 255}, "Goodfellow et al. 2015"),
        "ffgsm": AttackSpec("single", "torchattacks:FFGSM", {"eps": 8 / 255}, "Wong et al. 2020"),
        "bim": AttackSpec("linf", "torchattacks:BIM", _LINF, "Kurakin et al. 2017"),
        "pgd": AttackSpec("linf", "torchattacks:PGD", _LINF, _MADRY),
        "mifgsm": AttackSpec("linf", "torchattacks:MIFGSM", _LINF, "Dong et al. 2018"),
        "apgd": AttackSpec("linf", "torchattacks:APGD", _LINF, "Croce & Hein 2020", {"norm": "Linf"}),
        "pgd-stop": AttackSpec("linf", "stop_at_boundary", _LINF, "PGD that stops at a clean image's confidence"),
        "jitter": AttackSpec("linf", "torchattacks:Jitter", _LINF, "Schwinn et al. 2021"),
        "autoattack": AttackSpec(
            "linf",
            "torchattacks:AutoAttack",
            {"eps": 8 / 255},
            "Croce & Hein 2020",
            {"norm": "Linf", "version": "standard"},
        ),
        "pgd-l2": AttackSpec("l2", "torchattacks:PGDL2", {"eps": 0.5, "steps": 10}, _MADRY),
        "cw": AttackSpec(
            "minimum", "torchattacks:CW", {"c": 1.0, "kappa": 0.0, "steps": 100, "lr": 0.01}, "Carlini & Wagner 2017"
        ),
        "deepfool": AttackSpec(
            "minimum", "torchattacks:DeepFool", {"steps": 50, "overshoot": 0.02}, "Moosavi-Dezfooli et al. 2016"
        ),
        "ddn": AttackSpec("minimum", "foolbox:DDNAttack", {"steps": 50}, "Rony et al. 2019"),
        "fmn-l2": AttackSpec("minimum", "foolbox:L2FMNAttack", {"steps": 50}, _FMN),
        "fmn-linf": AttackSpec("minimum", "foolbox:LInfFMNAttack", {"steps": 50}, _FMN),
        "ead": AttackSpec(
            "sparse",
            "torchattacks:EADL1",
            {"kappa": 0.0, "steps": 50, "searches": 4},
            "Chen et al. 2018",
            renamed={"steps": "max_iterations", "searches": "binary_search_steps"},
        ),
        "fmn-l0": AttackSpec("sparse", "foolbox:L0FMNAttack", {"steps": 50}, _FMN),
        "onepixel": AttackSpec(
            "sparse",
            "torchattacks:OnePixel",
            {"pixels": 5, "steps": 10, "popsize": 20},
            "Su et al. 2019",
            gradient=False,
        ),
        "pixle": AttackSpec("sparse", "torchattacks:Pixle", {"restarts": 20}, "Pomponi et al. 2022", gradient=False),
        "saltpepper": AttackSpec(
            "sparse", "foolbox:SaltAndPepperNoiseAttack", {"steps": 200}, "Rauber et al. 2017", gradient=False
        ),
        "square": AttackSpec(
            "score",
            "torchattacks:Square",
            {"eps": 8 / 255, "n_queries": 1000},
            "Andriushchenko et al. 2020",
            {"norm": "Linf"},
            gradient=False,
        ),
        "spsa": AttackSpec(
            "score",
            "torchattacks:SPSA",
            {"eps": 8 / 255, "steps": 10, "samples": 64},
            "Uesato et al. 2018",
            renamed={"steps": "nb_iter", "samples": "nb_sample"},
            gradient=False,
        ),
        "noise": AttackSpec(
            "decision",
            "noise",
            {"eps": 16 / 255, "tries": 20},
            "random signs, the first of several tries that succeeds",
            gradient=False,
        ),
        "boundary": AttackSpec(
            "decision", "foolbox:BoundaryAttack", {"steps": 1000}, "Brendel et al. 2018", gradient=False
        ),
        "hopskipjump": AttackSpec(
            "decision",
            "foolbox:HopSkipJumpAttack",
            {"steps": 10},
            "Chen et al. 2020",
            {"max_gradient_eval_steps": 200, "initial_gradient_eval_steps": 50},
            gradient=False,
        ),
        "transfer": AttackSpec(
            "transfer",
            "torchattacks:MIFGSM",
            _LINF,
            "Dong et al. 2018, on a network that imitates this one, or on surrogate=SPEC",
        ),
        "tifgsm": AttackSpec("smooth", "torchattacks:TIFGSM", _LINF, "Dong et al. 2019", channels=(3,)),
        "low-frequency": AttackSpec(
            "smooth", "low_frequency", {"eps": 16 / 255, "steps": 20, "grid": 8}, "PGD on a coarse grid, enlarged"
        ),
        "universal": AttackSpec(
            "universal", "universal", {"eps": 10 / 255, "steps": 40}, "Moosavi-Dezfooli et al. 2017"
        ),
        "patch": AttackSpec("patch", "patch", {"side": 8, "alpha": 0.1, "steps": 40}, "Brown et al. 2017"),
        "spatial": AttackSpec(
            "spatial",
            "foolbox:SpatialAttack",
            {"rotation": 30, "shift": 3},
            "Engstrom et al. 2019",
            renamed={"rotation": "max_rotation", "shift": "max_translation"},
            gradient=False,
        ),
        "colour": AttackSpec("colour", "colour", {"size": 0.08, "steps": 20}, "a matrix that mixes the channels"),
        "pgd-jpeg": AttackSpec(
            "laundered", "through_jpeg", _LINF | {"quality": 75}, "PGD straight through a JPEG codec", channels=(1, 3)
        ),
        "pgd-jpeg-eot": AttackSpec(
            "laundered",
            "through_any_jpeg",
            _LINF | {"samples": 4},
            "Athalye et al. 2018, in expectation over JPEG qualities from 50 to 95",
            channels=(1, 3),
        ),
    }
)
STEP_SHARES: Mapping[str, float] = {  # step size as a share of the largest change, unless alpha is given
    "ffgsm": 1.25,
    "universal": 0.1,
    "colour": 0.15,
    "low-frequency": 0.2,
} | dict.fromkeys(
    ("bim", "pgd", "mifgsm", "pgd-l2", "pgd-stop", "jitter", "tifgsm", "transfer", "pgd-jpeg", "pgd-jpeg-eot"), 0.25
)
INTEGERS = {
    "steps", "n_queries", "tries", "pixels", "popsize", "restarts", "searches", "samples", "grid", "side", "quality",
}  # fmt: skip
TARGETED = ("fgsm", "ffgsm", "bim", "pgd", "mifgsm", "jitter", "pgd-l2", "cw", "ead", "tifgsm", "transfer")
TARGETS = ("random", "least-likely")  # wrong classes that a targeted attack aims at
TEXTS: Mapping[str, tuple[str, ...]] = dict.fromkeys(TARGETED, ("target",)) | {
    "transfer": ("surrogate", "target", "weights")
}
GRADIENT_FREE = tuple(name for name, kind in KINDS.items() if not kind.gradient)

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
    "tifgsm:eps=8/255",
    "low-frequency:eps=16/255",
    "pixle",
    "noise:eps=16/255,tries=20",
    "transfer:eps=8/255",
    "pgd-jpeg:eps=8/255,quality=60",
)  # as benchmarks/research/mixture.py found, and one through JPEG
BLACK_BOX: tuple[str, ...] = (  # for a classifier without a gradient, and nothing to make transferred attacks with
    "square:eps=8/255,n_queries=500",
    "square:eps=4/255,n_queries=500",
    "square:eps=16/255,n_queries=300",
    "noise:eps=16/255,tries=20",
    "noise:eps=32/255,tries=20",
)


def parse_number(name: str, key: str, text: str) -> float:
    """The value of an attack's parameter.

    Args:
        name: of the attack.
        key: of the parameter.
        text: a number or a fraction.

    Raises:
        AttackError: no number, or one that the parameter cannot have.
    """
    value = _number(name, key, text)
    if value < 0 or (key in INTEGERS and value < 1):
        raise AttackError(f"{name}: {key} must be positive, got {text}")
    if key in INTEGERS and value % 1:
        raise AttackError(f"{name}: {key} must be a whole number, got {text}")
    if key == "quality" and value > 100:
        raise AttackError(f"{name}: quality is from 1 to 100, got {text}")
    if key == "eps" and name != "pgd-l2" and value > 1:
        raise AttackError(f"{name}: eps is at most 1 for images in [0, 1], got {text} (8/255, perhaps?)")
    return value


def format_number(key: str, value: float) -> str:
    """The value of a parameter as it is read again; sizes in 255ths."""
    return as_fraction(value) if key in ("eps", "alpha") else f"{value:g}"


def as_fraction(value: float) -> str:
    """A size as people write it: so many 255ths where it is a whole number of them."""
    whole = value * 255
    return f"{round(whole)}/255" if abs(whole - round(whole)) < 1e-9 and value < 1 else f"{value:.4g}"


def _number(name: str, key: str, text: str) -> float:
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
        if not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, ZeroDivisionError):
        raise AttackError(f"{name}: {key} must be a number such as 10, 0.5 or 8/255, got {text!r}") from None
