"""HTTP/2 of one client, where it was asked for: Hypercorn's h2 protocol, mended.

What differs from Hypercorn 0.18, and the test that says when the difference can go:

- Body data for an answered stream is dropped, not a KeyError (`test_http2_early_answer_while_data_comes`).
- An unfinished response resets its stream; Hypercorn leaves the client waiting (`test_unfinished_response_resets`).
- A closed flow-control window holds the app (`test_closed_window_holds_the_app`).

Not cured: the 1,001st request on a connection ends it with its streams in flight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import h2.errors
import h2.events
import h2.exceptions
from hypercorn.events import Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup

from penstock.errors import ClientGoneError
from penstock.server.websocket import without_extensions

if TYPE_CHECKING:
    from penstock.server.peer import Peer


class _Buffer(StreamBuffer):
    """A stream's unsent bytes. Stock wakes the app whenever little was taken, even if nothing was."""

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class Http2(H2Protocol):
    """HTTP/2 on one socket."""

    full = False

    def __init__(self, peer: Peer, state: ConnectionState, server: tuple[str, int] | None) -> None:
        service = peer.service

        async def send(event: Event) -> None:
            # One stream's write may find the client gone; each app is told by its own inbox.
            try:
                await peer.send(event)
            except ClientGoneError:
                pass

        super().__init__(
            cast("AppWrapper", service.app),  # only our AppTasks calls it, as an ASGI app
            service.config,
            service.context,
            cast("TaskGroup", peer.apps),
            state,
            service.tls is not None,
            peer.address,
            server,
            send,
        )
        self._peer = peer

    async def resume(self) -> None:
        """Say goodbye, when the server goes away and no stream is open."""
        if self._peer.service.drain.draining.is_set() and self.idle:
            await self.time_out()

    async def time_out(self) -> None:
        """Say goodbye to a client that has had nothing to ask for too long."""
        self.connection.close_connection()
        await self._flush()
        self._peer.close(linger=True)

    def go_away(self) -> None:
        """Let the reader say goodbye."""
        self._peer.kick()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                await super()._handle_events([event])
        await self._flush()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        request.headers = without_extensions(request.headers)
        await super()._create_stream(request)
        # The app has not run yet: it was only just started.
        self.stream_buffers[request.stream_id] = _Buffer(self.context.event_class)

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what one app's stream says to the client."""
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer.complete:
                await self._reset(event.stream_id, buffer)
        await super().stream_send(event)

    async def _reset(self, stream_id: int, buffer: StreamBuffer) -> None:
        try:
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        except h2.exceptions.ProtocolError:
            pass  # The client reset it first.
        await buffer.close()
        # Its entry goes when the sending task next looks at it.
        self.priority.unblock(stream_id)
        await self.has_data.set()
        await self._flush()
