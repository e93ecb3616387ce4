"""What waits for a client: a memory channel of explicit capacity, in frames and in bytes.

It is there while something waits: most clients keep up, and an empty channel costs as much as a small task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import trio

from penstock.limits import ConnectionLimits

_Channel: TypeAlias = tuple[trio.MemorySendChannel[bytes], trio.MemoryReceiveChannel[bytes]]


class FrameQueue:
    """From a connection's producer to its writer."""

    __slots__ = ("_channel", "_closed", "_limits", "_line", "_room", "bytes")

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._channel: _Channel | None = None
        self._closed = False
        self._room = trio.lowlevel.ParkingLot()
        self._line: trio.StrictFIFOLock | None = None
        """Those who wait for room, the first of them in `_room`; made when somebody does."""
        self.bytes = 0
        """What waits, with what is being written."""

    @property
    def frames(self) -> int:
        """How many frames wait."""
        return 0 if self._channel is None else self._channel[0].statistics().current_buffer_used

    @property
    def crowded(self) -> bool:
        """Whether somebody waits for room, and so comes first."""
        return self._line is not None and self._line.locked()

    def put(self, frame: bytes) -> bool:
        """Put a frame in if there is room. One that is larger than the whole allowance passes alone."""
        if self._closed or (self.bytes and self.bytes + len(frame) > self._limits.queue_bytes):
            return False
        try:
            self._open()[0].send_nowait(frame)
        except trio.WouldBlock:
            return False
        self.bytes += len(frame)
        return True

    def _open(self) -> _Channel:
        if self._channel is None:
            self._channel = trio.open_memory_channel[bytes](self._limits.frames)
        return self._channel

    def line(self) -> trio.StrictFIFOLock:
        """Return the line to stand in for room: a large frame needs all of it, which small ones would never leave."""
        self._line = self._line or trio.StrictFIFOLock()
        return self._line

    async def wait_room(self) -> None:
        """Sleep until something was written, or nothing will be."""
        await self._room.park()

    def take_nowait(self) -> bytes | None:
        """Take everything that waits, joined; None if nothing does.

        Raises:
            trio.EndOfChannel: nothing waits, and nothing will.
        """
        if self._channel is None:
            if self._closed:
                raise trio.EndOfChannel
            return None
        try:
            frame = self._channel[1].receive_nowait()
        except trio.WouldBlock:
            return None
        return b"".join([frame, *self._rest()])

    def take_first(self) -> bytes:
        """Like `take_nowait`, but empty where nothing waits, or ever will."""
        return b"" if self._channel is None else b"".join(self._rest())

    async def take(self) -> bytes:
        """Like `take_nowait`, but sleep until there is something."""
        if self._channel is None and self._closed:
            raise trio.EndOfChannel
        frame = await self._open()[1].receive()
        return b"".join([frame, *self._rest()])

    def _rest(self) -> Iterator[bytes]:
        assert self._channel is not None
        try:
            while True:
                yield self._channel[1].receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            pass

    def written(self, size: int) -> None:
        """Note that so many of the bytes that were taken are written."""
        self.bytes -= size
        self.wake()

    def rest(self) -> None:
        """Let go of the channel, which is empty, until something has to wait again."""
        self._channel = None

    def close(self) -> None:
        """Take no more frames; those that wait are still there to be taken."""
        self._closed = True
        if self._channel is not None:
            self._channel[0].close()

    def wake(self) -> None:
        """Wake those who wait for room: there is some, or never will be."""
        if self._room:
            self._room.unpark_all()
