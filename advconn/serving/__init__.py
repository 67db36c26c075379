"""A detector behind HTTP, and as one callable for the frameworks that serve models or map over data."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advconn.serving.judge import Judge

__all__ = ["Judge"]


def __getattr__(name: str) -> Any:
    """Judge, when it is asked for: a worker that reads requests needs no torch."""
    if name != "Judge":
        raise AttributeError(f"module 'advconn.serving' has no attribute {name!r}")
    from advconn.serving.judge import Judge

    return Judge
