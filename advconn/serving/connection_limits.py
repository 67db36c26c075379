"""Connections of a server: how many there are, and how long one may take to ask."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1000  # connections at once
HEAD_SECONDS = 10.0  # in which the head of a request must have come
STUCK_SECONDS = 20.0  # in which a client must have read something of its answer
PIECE = 2**12  # bytes of a request that are read at a time: others have their turn between


class Protocol(H11Protocol):
    """HTTP/1.1; of too many connections the one that has asked nothing for longest is closed."""

    every: ClassVar[OrderedDict[Protocol, None]] = OrderedDict()
    late: asyncio.TimerHandle | None = None
    stuck: asyncio.TimerHandle | None = None
    unread = 0
    pending = b""

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    @property
    def waits(self) -> bool:
        """Whether it waits for its client: for the rest of a body, or until an answer is read."""
        body = self.cycle is not None and self.cycle.more_body and not self.cycle.response_started
        return self.idle or body or self.transport.get_write_buffer_size() > 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it; where there are too many, in the place of one that waits for its client."""
        super().connection_made(transport)
        if len(self.every) >= MOST:
            other = next((one for one in self.every if one.idle), None)
            other = other or next((one for one in self.every if one.waits), None)
            (other or self).transport.abort()
            if other is None:
                return
            self.every.pop(other, None)
        self.every[self] = None
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self.every.pop(self, None)
        self.pending = b""
        for timer in (self.late, self.stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request came: a piece of it is read, and the next one at the next turn."""
        begun = bool(self.pending)
        self.pending += data
        if not begun:
            self._read()

    def _read(self) -> None:
        piece, self.pending = self.pending[:PIECE], self.pending[PIECE:]
        if piece and not self.transport.is_closing():
            super().data_received(piece)
            self._watch()
        if self.pending and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_soon(self._read)
        elif not self.flow.read_paused:
            self.transport.resume_reading()

    def on_response_complete(self) -> None:
        """The next request may come."""
        super().on_response_complete()
        self._watch()

    def _look(self) -> None:
        """Close it where nothing of an answer was read since it was looked at last."""
        self.stuck, unread = None, self.transport.get_write_buffer_size()
        if unread and unread >= self.unread > 0:
            self.transport.abort()
            return
        self.unread = unread
        if unread:
            self.stuck = self.loop.call_later(STUCK_SECONDS, self._look)

    def _watch(self) -> None:
        """Close it unless a request begins in time, and unless its answer is read."""
        if self.stuck is None and self.transport.get_write_buffer_size() > 0:
            self._look()
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
