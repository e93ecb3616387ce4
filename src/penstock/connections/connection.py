"""One client's stream, as a nursery.

    open_connection ── nursery
        ├── the block under `async with`: the producer. It sends frames into a memory channel of explicit capacity.
        ├── writer      takes everything that waits in the channel and makes ONE transport write of it.
        ├── keepalive   a timer: asks for a comment when nothing was written for `keepalive_s`, and gives up on a
        │               client that takes nothing of one write for `write_stall_s`. One task may do it for many.
        └── watcher     sleeps until the client has gone, where the transport does not call by itself.

**The fast lane.** On a transport that is direct, a frame is written where it was sent, with no task switch, as long as
nothing waits before it and the socket is ready. The writer is then at rest: it is started when something has to wait, and
ends when nothing does. What is written, and in which order, is the same.

The first cause to close wins and stays: `CloseReason`. It cancels the nursery, and with it the producer, so whoever
feeds a connection needs no code for disconnects. Leaving the block normally drains the channel, writes the stream's
end and closes as `finished`. Leaving it by an exception cuts the stream: a client takes a polite end for success.

On-close callbacks run in the block's own task, before the nursery waits for a writer that may be stuck.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial

import trio

from penstock.closing import CloseReason
from penstock.connections.callbacks import Callback, OnClose, Registration
from penstock.connections.frame_queue import FrameQueue
from penstock.connections.keepalive import Keepalive
from penstock.connections.statistics import ConnectionStatistics
from penstock.connections.transport import Transport
from penstock.errors import ConnectionClosedError, ConnectionFullError
from penstock.limits import ConnectionLimits
from penstock.metrics import Metrics, NopMetrics
from penstock.wire.chunks import AnyChunk
from penstock.wire.codec import encode
from penstock.wire.sse import DONE, chunk_frame, comment

OPENING = comment("stream-start")
KEEPALIVE = comment("keepalive")
_FRAMES_PER_CHECKPOINT = 32
"""Frames sent in a row without a scheduler pass: a client that takes everything at once must not hold the others."""


class Connection:
    """A client's stream. Made by `open_connection`."""

    __slots__ = (
        "_bytes", "_callbacks", "_closed", "_drained", "_ending", "_ending_reason", "_fast", "_finishing",
        "_frames", "_keepalive_frame", "_keepalives", "_last_write", "_limits", "_metrics", "_now",
        "_nursery", "_opening", "_transport", "_waiting", "_write_began", "_writes", "close_reason",
    )  # fmt: skip

    def __init__(
        self,
        transport: Transport,
        limits: ConnectionLimits,
        metrics: Metrics,
        opening: bytes,
        ending: bytes,
        keepalive_frame: bytes,
        nursery: trio.Nursery,
    ) -> None:
        self._transport = transport
        self._nursery = nursery
        self._opening, self._ending, self._keepalive_frame = opening, ending, keepalive_frame
        self._limits = limits
        self._metrics = metrics
        self._callbacks = OnClose(limits.callback_s, metrics)
        self._waiting = FrameQueue(limits)
        self._closed = trio.lowlevel.ParkingLot()
        self._fast = False
        """Whether the writer is at rest: nothing waits, and a frame may be written at once."""
        self._finishing = self._drained = False
        """Whether the stream's end is on its way, and whether the transport has it all."""
        self._ending_reason: CloseReason | None = None
        """Why the connection is to close once what waits is written."""
        self._write_began: float | None = None
        self._now = trio.lowlevel.current_clock().current_time
        self._last_write = self._now()
        self._frames = self._writes = self._bytes = self._keepalives = 0
        self.close_reason: CloseReason | None = None
        """Why the connection closed: the first cause. None while it is open."""

    def __repr__(self) -> str:
        state = "open" if self.close_reason is None else self.close_reason.value
        return f"<Connection {state} waiting_bytes={self._waiting.bytes}>"

    async def send(self, chunk: AnyChunk) -> None:
        """Encode a chunk and queue it, waiting for room. Cancelled, it has queued nothing.

        Raises:
            ConnectionClosedError: if the connection is closed; always with the first reason.
            LocalProtocolError: if the chunk has no JSON form.
        """
        await self.send_frame(chunk_frame(encode(chunk)))

    def send_nowait(self, chunk: AnyChunk) -> None:
        """Like `send`, but raises `ConnectionFullError` where that would wait."""
        self.send_frame_nowait(chunk_frame(encode(chunk)))

    async def send_frame(self, frame: bytes) -> None:
        """Like `send`, for bytes that are framed already: one event or many."""
        if (self._frames + 1) % _FRAMES_PER_CHECKPOINT:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        try:
            if not self._waiting.crowded:
                try:
                    return self.send_frame_nowait(frame)
                except ConnectionFullError:
                    pass
            async with self._waiting.line():
                while True:
                    try:
                        return self.send_frame_nowait(frame)
                    except ConnectionFullError:
                        await self._waiting.wait_room()
        except ConnectionClosedError as exc:
            closed = exc
        # This very write may have found that the client is gone. Who is cancelled for that is to see no error.
        await trio.lowlevel.checkpoint()
        raise closed

    def send_frame_nowait(self, frame: bytes) -> None:
        """Like `send_frame`, but raises `ConnectionFullError` where that would wait."""
        if self.offer(frame) or self._queue(frame):
            return
        if (reason := self.close_reason or self._ending_reason) is not None:
            raise ConnectionClosedError(reason)
        raise ConnectionFullError("the client is behind")

    def offer(self, frame: bytes) -> bool:
        """Take a frame if that keeps nothing waiting: on the fast lane write it at once, and else queue it.

        Returns:
            Whether it was taken. A client that does not keep up refuses, and so does a closed connection.
        """
        if not self._fast:
            # On a direct transport something waits already, and the frame had better wait where it comes from.
            return not self._transport.direct and not self._waiting.crowded and self._queue(frame)
        try:
            if not self._transport.write_nowait(frame):
                return False
        except OSError:
            self.close(CloseReason.client_gone)
            return False
        self._last_write = self._now()
        self._frames += 1
        self._writes += 1
        self._bytes += len(frame)
        return True

    def end_with(self, frame: bytes) -> bool:
        """Have a frame go out in one write with the stream's ending, when nothing is sent any more before that.

        Returns:
            Whether it was taken: only on the fast lane, for the ending then is the next write.
        """
        if self._fast:
            self._frames += 1
            self._ending = frame + self._ending
        return self._fast

    def _queue(self, frame: bytes) -> bool:
        if self.close_reason is not None or self._ending_reason is not None or not self._waiting.put(frame):
            return False
        self._frames += 1
        self._wake_writer()
        return True

    def on_close(self, callback: Callback) -> Registration:
        """Have `callback(reason)` run once when the connection closes; the result can unregister it.

        Raises:
            ConnectionClosedError: if the callbacks have run.
        """
        return self._callbacks.register(callback)

    async def aclose(self, reason: CloseReason = CloseReason.finished) -> None:
        """Write what waits, then the stream's ending and the end of the response. Nothing can be sent any more.

        A reason that no client can be told (one without a code in `closing.py`) cuts the stream instead.

        After `drain_s` the stream is cut instead. Idempotent. Cancelled, it is still closing.
        """
        if reason.code is None:
            self.close(reason)
        self._begin_ending(reason)
        self._wake_writer()
        with trio.move_on_after(self._limits.drain_s):
            while self.close_reason is None:
                await self._closed.park()
        self.close(CloseReason.write_stalled)

    def _begin_ending(self, reason: CloseReason) -> None:
        self._ending_reason = self._ending_reason or reason
        self._waiting.close()

    async def _end(self) -> None:
        """End as finished, when nobody but the caller can write any more."""
        if not self._fast:
            await self.aclose()
            return
        # The writer is at rest, and is not needed for one write.
        self._begin_ending(CloseReason.finished)
        self._fast = False
        self._finishing = True
        try:
            self._drained = self._transport.finish_nowait(self._ending, CloseReason.finished)
        except OSError:
            self.close(CloseReason.client_gone)
        if self._drained:
            self._count(self._ending)
            self.close(CloseReason.finished)
        elif self.close_reason is None:
            await self._write()

    def close(self, reason: CloseReason) -> None:
        """Cut the stream and cancel the producer, unless the connection is closed: the first reason stays."""
        if self.close_reason is None:
            self.close_reason = reason
            self._fast = False
            if not self._drained:
                self._transport.abort()
            if reason is not CloseReason.finished:
                self._nursery.cancel_scope.cancel(f"the connection closed: {reason.value}")
            if self._closed:
                self._closed.unpark_all()
            self._waiting.wake()
            self._metrics.count("connections_closed", reason=reason.value)

    def statistics(self) -> ConnectionStatistics:
        """Count what was done and what waits."""
        return ConnectionStatistics(
            frames=self._frames,
            writes=self._writes,
            bytes_written=self._bytes,
            keepalives=self._keepalives,
            waiting_frames=self._waiting.frames,
            waiting_bytes=self._waiting.bytes,
        )

    def _wake_writer(self) -> None:
        if self._fast:
            self._fast = False
            self._nursery.start_soon(self._write)

    def _start(self) -> None:
        try:
            self._fast = self._transport.start_nowait(self._opening)
        except OSError:
            self.close(CloseReason.client_gone)
        if self._fast:
            self._count(self._opening)
        elif self.close_reason is None:
            self._nursery.start_soon(partial(self._write, starts=True))

    async def _write(self, *, starts: bool = False) -> None:
        """The writer task: nothing else touches the sending side of the transport meanwhile."""
        try:
            if starts:
                first = self._waiting.take_first()
                await self._timed(self._transport.start(self._opening + first))
                self._count(self._opening + first)
                self._waiting.written(len(first))
            while True:
                data = self._waiting.take_nowait()
                if data is None:
                    if self._transport.direct:
                        self._waiting.rest()
                        self._fast = True
                        return
                    data = await self._waiting.take()
                await self._timed(self._transport.write(data))
                self._count(data)
                self._waiting.written(len(data))
        except trio.EndOfChannel:
            pass
        except OSError:
            self.close(CloseReason.client_gone)
            return
        try:
            self._finishing = True
            await self._timed(
                self._transport.finish(self._ending, self._ending_reason or CloseReason.finished)
            )
            self._count(self._ending)
            self._drained = True
        except OSError:
            self.close(CloseReason.client_gone)
        self.close(self._ending_reason or CloseReason.finished)

    def _count(self, data: bytes) -> None:
        if data:
            self._writes += 1
            self._bytes += len(data)

    async def _timed(self, write: Awaitable[None]) -> None:
        self._write_began = self._now()
        await write
        self._write_began = None
        self._last_write = self._now()

    def look(self, now: float) -> float:
        """The keepalive timer's look: one for the quiet stream and for the stalled one."""
        keepalive_s, stall_s = self._limits.keepalive_s, self._limits.write_stall_s
        if self._write_began is not None:
            due = self._write_began + stall_s
            if due <= now:
                self.close(CloseReason.write_stalled)
                return math.inf
        else:
            due = self._last_write + keepalive_s
            if due <= now:
                try:
                    self.send_frame_nowait(self._keepalive_frame)
                    self._keepalives += 1
                except (ConnectionFullError, ConnectionClosedError):
                    pass  # then something is about to be written, or nothing ever again
                due = now + keepalive_s
        # A write that begins or ends until then is seen before what it makes due.
        return min(due, now + stall_s, now + keepalive_s)

    async def _watch(self) -> None:
        """The watcher task."""
        await self._transport.wait_gone()
        self._client_gone()

    def _client_gone(self) -> None:
        # That a client leaves with the whole stream is not news, and of one that leaves without, the write tells.
        if not self._finishing:
            self.close(CloseReason.client_gone)


@asynccontextmanager
async def open_connection(
    transport: Transport,
    *,
    limits: ConnectionLimits = ConnectionLimits(),
    metrics: Metrics = NopMetrics(),
    opening: bytes = OPENING,
    ending: bytes = DONE,
    keepalive_frame: bytes = KEEPALIVE,
    keepalive: Keepalive | None = None,
) -> AsyncIterator[Connection]:
    """Stream to one client; the block is the producer.

    Args:
        transport: how the client is reached.
        limits: the numbers that differ from the defaults.
        metrics: where to count.
        opening: what is written at once, before the block has anything to say.
        ending: what is written last, when the block ends normally.
        keepalive_frame: what is written when nothing else was for `keepalive_s`.
        keepalive: a running timer for many connections; None for one of its own.

    The block is cancelled when the connection closes other than by `aclose`. That cancellation ends at this context
    manager, and `close_reason` tells what happened.

    Raises:
        Exception: what the block raised, after the stream was cut.
    """
    failure: Exception | None = None
    metrics.gauge("connections_open", 1)
    try:
        async with trio.open_nursery() as nursery:
            connection = Connection(transport, limits, metrics, opening, ending, keepalive_frame, nursery)
            if not transport.on_gone(connection._client_gone):
                nursery.start_soon(connection._watch)
            if connection.close_reason is None:
                connection._start()
            if keepalive is None:
                keepalive = Keepalive()
                nursery.start_soon(keepalive.run)
            keepalive.add(connection, connection.look(trio.current_time()))
            try:
                yield connection
                await connection._end()
            except Exception as exc:
                failure = exc
                connection.close(CloseReason.failed)
            finally:
                keepalive.discard(connection)
                connection.close(CloseReason.cancelled)
                nursery.cancel_scope.cancel("the connection is closed")
                # Each is shielded, and has a deadline.
                await connection._callbacks.run(connection.close_reason or CloseReason.cancelled)  # noqa: ASYNC102
    finally:
        metrics.gauge("connections_open", -1)
    if failure is not None:
        raise failure
