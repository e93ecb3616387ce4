"""A connection in numbers."""

from __future__ import annotations

import msgspec


class ConnectionStatistics(msgspec.Struct, frozen=True):
    """What a connection has done, and what waits in it now."""

    frames: int
    writes: int
    bytes_written: int
    keepalives: int
    waiting_frames: int
    waiting_bytes: int
