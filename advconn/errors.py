"""What advconn raises on purpose: one line that says what was wrong, what was expected and what to do.

AdvconnError
├── ModelError     the classifier, or the way it was given
│   └── Unanswered  it gives no answer in time
├── DataError      images, labels or files of images
├── PathError      a path that cannot be searched as asked
├── AttackError    an attack's name or parameters
├── FitError       a detector cannot be fitted, or is used before it was
└── BundleError    a detector's folder
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

LONGEST = 300


def printable(text: str) -> str:
    """The same with control characters, unpaired surrogates and right-to-left overrides escaped, and a long one cut."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return safe if len(safe) <= 4 * LONGEST else f"{safe[: 4 * LONGEST]}..."


def expected_one_of(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar ones, or all if none is similar.

    Args:
        name: that is unknown.
        known: all names that are expected.
    """
    names = list(known)
    similar = get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(similar)}?" if similar else f"expected one of {', '.join(names)}"


class AdvconnError(ValueError):
    """Anything that advconn refuses; its text is one line, of characters that a terminal may show."""

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(" ".join(str(text).split())))


class ModelError(AdvconnError):
    """The classifier cannot be used as it was given."""


class Unanswered(ModelError):
    """The classifier gives no answer in time: asking again would only wait as long again."""


class DataError(AdvconnError):
    """The images or labels cannot be used; `name` is that of the image, where it is one's."""

    def __init__(self, text: str = "", name: str | None = None) -> None:
        super().__init__(text)
        self.name = name


class PathError(AdvconnError):
    """A path cannot be searched in this way, or not in this space."""


class AttackError(AdvconnError):
    """No such attack, or not with these parameters."""


class FitError(AdvconnError):
    """A detector cannot be fitted on this, or has not been fitted."""


class BundleError(AdvconnError):
    """A detector's folder is missing, damaged, or made for something else."""


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of what an error says, or its type."""
    lines = str(error).strip().splitlines()
    return (" ".join(lines[0].split())[:most] if lines else "") or type(error).__name__


@contextmanager
def wrap_user_errors(what: str, kind: type[AdvconnError]) -> Iterator[None]:
    """Around anyone's own code, which may raise anything: one line that says whose it is.

    Raises:
        AdvconnError: what was raised on purpose as it is, anything else as this kind.
    """
    try:
        yield
    except AdvconnError:
        raise
    except Exception as error:
        raise kind(f"{what}: fails ({type(error).__name__}: {first_line(error, 120)})") from error


class AdvconnWarning(UserWarning):
    """What a user should know; the command line prints it as a note."""
