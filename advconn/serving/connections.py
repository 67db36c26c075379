"""Connections of a server: how many there are, and how long one may take to ask."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1000  # connections at once
HEAD_SECONDS = 10.0  # in which the head of a request must have come


class Protocol(H11Protocol):
    """HTTP/1.1; of too many connections the one that has asked nothing for longest is closed."""

    every: ClassVar[OrderedDict[Protocol, None]] = OrderedDict()
    late: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it; where there are too many, in the place of an idle one."""
        super().connection_made(transport)
        if len(self.every) >= MOST:
            other = next((one for one in self.every if one.idle), None)
            (other or self).transport.abort()
            if other is None:
                return
            self.every.pop(other, None)
        self.every[self] = None
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self.every.pop(self, None)
        if self.late is not None:
            self.late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The next request may come."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Close it unless a request begins in time."""
        if not self.idle and self.late is not None:
            self.late.cancel()
            self.late = None
        elif self.idle and self.late is None:
            self.late = self.loop.call_later(HEAD_SECONDS, self._end)

    def _end(self) -> None:
        self.late = None
        if self.idle and not self.transport.is_closing():
            self.transport.close()

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: Any) -> bool:
        return self is other
