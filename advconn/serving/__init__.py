"""A detector behind HTTP, and as one callable for the frameworks that serve models or map over data.

It imports scoring and what is below it. `Judge` is imported late: a worker that reads requests needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from advconn.lazy import attach

if TYPE_CHECKING:
    from advconn.serving.framework_callable import Judge
    from advconn.serving.query_watch import QueryWatch

__all__ = ["Judge", "QueryWatch"]
__getattr__, __dir__ = attach(__name__, {"Judge": "framework_callable", "QueryWatch": "query_watch"})
