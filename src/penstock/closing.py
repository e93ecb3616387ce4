"""Why connections close: one table for WebSocket codes, SSE `closing` events and metric labels.

WebSocket codes follow RFC 6455 section 7.4 where it has one for the case; 4000 to 4999 are private use and ours.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class _Row(NamedTuple):
    code: int | None
    """The WebSocket close code; None where the client can't be told, and is cut: to it that is 1006."""
    reconnect: bool
    """Whether the client gains anything by coming back."""


class CloseReason(Enum):
    """Why a connection closed. The value is its name on the wire and in metrics."""

    finished = "finished"
    """The stream was written to its end."""
    client_gone = "client_gone"
    """The client closed, half-closed or reset its side."""
    write_stalled = "write_stalled"
    """The client took no bytes for `write_stall_s`."""
    slow_consumer = "slow_consumer"
    """The client took bytes, but too slowly for what it must be told."""
    drain = "drain"
    """The server is going away; another one has the turn."""
    restart = "restart"
    """The server is going away, and comes back at once."""
    try_later = "try_later"
    """The server has as many WebSockets as it can hold."""
    bad_frame = "bad_frame"
    """The client sent a frame that can't be understood, nor be answered."""
    too_many_frames = "too_many_frames"
    """The client sent more frames in a second than it may."""
    too_big = "too_big"
    """The client sent a message that is larger than it may be."""
    failed = "failed"
    """Whoever fed the connection has failed. It is cut where an error was raised, and told where the app closes so."""
    cancelled = "cancelled"
    """The scope round the connection was cancelled."""

    @property
    def code(self) -> int | None:
        """The WebSocket close code for this reason; None where the client can't be told."""
        return _TABLE[self].code

    @property
    def reconnect(self) -> bool:
        """Whether a client does well to reconnect after this reason."""
        return _TABLE[self].reconnect


_TABLE = {
    CloseReason.finished: _Row(1000, reconnect=False),
    CloseReason.client_gone: _Row(None, reconnect=False),
    CloseReason.write_stalled: _Row(None, reconnect=True),
    CloseReason.slow_consumer: _Row(4429, reconnect=True),
    CloseReason.drain: _Row(1001, reconnect=True),
    CloseReason.restart: _Row(1012, reconnect=True),
    CloseReason.try_later: _Row(1013, reconnect=True),
    CloseReason.bad_frame: _Row(1008, reconnect=False),
    CloseReason.too_many_frames: _Row(1008, reconnect=False),
    CloseReason.too_big: _Row(1009, reconnect=False),
    CloseReason.failed: _Row(1011, reconnect=True),
    CloseReason.cancelled: _Row(None, reconnect=True),
}
