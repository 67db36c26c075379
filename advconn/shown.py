"""Names as a terminal may show them."""

from __future__ import annotations

LONGEST = 300


def shown(text: str) -> str:
    """The same with control characters, unpaired surrogates and right-to-left overrides escaped, and a long one cut."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return safe if len(safe) <= 4 * LONGEST else f"{safe[: 4 * LONGEST]}..."
