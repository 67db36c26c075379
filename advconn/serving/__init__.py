"""A detector behind HTTP, and as one callable for the frameworks that serve models or map over data."""

from advconn.serving.judge import Judge

__all__ = ["Judge"]
