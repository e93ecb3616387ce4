"""HTTP/2 of one client, where it was asked for: Hypercorn's h2 protocol, mended.

What differs from Hypercorn 0.18, and the test that says when the difference can go:

- Body data for an answered stream is dropped, not a KeyError (`test_http2_early_answer_while_data_comes`).
- An unfinished response resets its stream; Hypercorn leaves the client waiting (`test_unfinished_response_resets`).
- A closed flow-control window holds the app (`test_closed_window_holds_the_app`), and no longer than the client is there
  (`test_an_app_that_waits_for_a_window_hears_that_its_client_left`).
- A WebSocket (RFC 8441) is ours, with all that it has over HTTP/1 but the direct way; an app can give up one, and so one
  stream, while the others go on (`test_websocket_over_http2.py`).
- What can't be answered is refused, and the connection's other streams go on: a path that is not ASCII, a CONNECT for
  something else (`test_http2_refusals`).

Not cured: the 1,001st request on a connection ends it with its streams in flight.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, cast

import h2.errors
import h2.events
import h2.exceptions
import trio
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request, StreamClosed
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup
from hypercorn.utils import filter_pseudo_headers
from priority.priority import DuplicateStreamError

from penstock.errors import ClientGoneError
from penstock.server.apps import Inbox
from penstock.server.deflate import agree
from penstock.server.direct import Headers
from penstock.server.websocket import (
    Reply,
    WebSocket,
    extensions_of,
    refuse_connect,
    without_extensions,
)

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

    def extend(self, data: bytes) -> None:
        """Add bytes without waiting for room."""
        self.buffer += data

    async def end(self) -> None:
        """Take no more, and let go of an app that waits for room. What is here goes out as the client's window lets it."""
        self.set_complete()
        await self._paused.set()


class Tunnel:
    """A WebSocket's stream, as `penstock.stream` needs it: for pings, and for giving it up."""

    direct = False

    def __init__(self, protocol: Http2, websocket: WebSocket, inbox: Inbox) -> None:
        self._protocol = protocol
        self._websocket = websocket
        self._inbox = inbox

    def start(self, send: object, status: int, headers: Headers, data: bytes) -> bool:
        """Refuse: it is a WebSocket."""
        return False

    def end(self, data: bytes) -> bool:
        """Refuse: it is a WebSocket."""
        return False

    async def ping(self) -> None:
        """Send a ping."""
        await self._websocket.ping()
        self.ping_sent()

    def ping_sent(self) -> None:
        """Expect its answer."""
        self._protocol.expect_pongs()

    def write_nowait(self, data: bytes) -> bool:
        """Refuse: the client's windows are not looked at without waiting."""
        return False

    async def wait_writable(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Reset the stream, and no other."""
        self._inbox.end()
        self._protocol.abort(self._websocket)


class Http2(H2Protocol):
    """HTTP/2 on one socket."""

    full = False
    streams: dict[int, HTTPStream | WebSocket]  # type: ignore[assignment]

    def __init__(self, peer: Peer, state: ConnectionState, server: tuple[str, int] | None) -> None:
        service = peer.service

        async def send(event: Event) -> None:
            # One stream's write may find the client gone; each app is told by its own inbox.
            try:
                await peer.send(event)
            except ClientGoneError:
                pass
            if isinstance(event, Updated) and not event.idle:
                self.expect_pongs()

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
        self._created: WebSocket
        self._aborted: list[WebSocket] = []

    async def handle(self, event: Event) -> None:
        """Take bytes, or the news that the socket is closed."""
        await super().handle(event)
        if isinstance(event, Closed):
            # Who waits for the client's window would wait for ever.
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def resume(self) -> None:
        """Reset what was aborted; say goodbye, when the server goes away and no stream is open."""
        while self._aborted:
            await self._cut(self._aborted.pop())
        if self._peer.service.drain.draining.is_set() and self.idle:
            await self.time_out()

    async def time_out(self) -> None:
        """Reset a WebSocket that shows no sign of life; say goodbye to a client that has had nothing to ask for too long."""
        now = trio.current_time()
        late = [websocket for websocket in self._websockets() if websocket.pong_due <= now]
        for websocket in late:
            self._peer.service.metrics.count("server_timeouts", phase="pong")
            await self._cut(websocket)
        if late:
            await self.send(Updated(idle=self.idle))
            return
        self.connection.close_connection()
        await self._flush()
        self._peer.close(linger=True)

    def go_away(self) -> None:
        """Let the reader say goodbye."""
        self._peer.kick()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            stream_id: int = getattr(event, "stream_id", None) or 0
            stream = self.streams.get(stream_id)
            if isinstance(event, h2.events.DataReceived) and stream is None:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded) and isinstance(stream, WebSocket):
                await stream.leave()  # which says what is idle then
            else:
                await super()._handle_events([event])
                if isinstance(event, h2.events.StreamReset) and stream_id in self.stream_buffers:
                    await self.stream_buffers[stream_id].close()
                if isinstance(stream, WebSocket):
                    await self.send(Updated(idle=self.idle))
        await self._flush()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        stream_id, fields = request.stream_id, dict(request.headers)
        method, path = fields[b":method"].upper(), fields.get(b":path", b"")
        status = None if path.isascii() else 400
        if method == b"CONNECT":
            status = status or refuse_connect(request.headers)
        if status is not None:
            self._peer.service.metrics.count("server_requests_refused", status=str(status))
            self.connection.send_headers(stream_id, [(b":status", b"%d" % status)], end_stream=True)
            await self._flush()
            return
        headers = filter_pseudo_headers(without_extensions(request.headers))
        about = (self.ssl, self.client, self.server, self.stream_send, stream_id)
        stream: HTTPStream | WebSocket
        if method == b"CONNECT":
            limits, offers = self._peer.limits, extensions_of(request.headers)
            stream = self._created = WebSocket(self.app, self.config, self.context, self.task_group, *about)
            deflater, message_bytes = self._peer.service.deflater, limits.websocket_message_bytes
            stream.limit(limits, agree(offers, deflater, message_bytes=message_bytes))
        else:
            stream = HTTPStream(self.app, self.config, self.context, self.task_group, *about)
        self.streams[stream_id] = stream
        self.stream_buffers[stream_id] = _Buffer(self.context.event_class)
        try:
            self.priority.insert_stream(stream_id)
        except DuplicateStreamError:
            pass  # A PRIORITY frame came first.
        else:
            self.priority.block(stream_id)
        state = self.connection_state
        await stream.handle(Request(stream_id, headers, "2", method.decode("ascii"), path, state))
        self.keep_alive_requests += 1

    def tunnel(self, inbox: Inbox) -> Tunnel:
        """Return the WebSocket that is just being begun as what `penstock.stream` needs."""
        return Tunnel(self, self._created, inbox)

    def abort(self, websocket: WebSocket) -> None:
        """Have the reader reset a WebSocket's stream."""
        self._aborted.append(websocket)
        self._peer.kick()

    def expect_pongs(self) -> None:
        """Have the reader look when the first WebSocket is late with its sign of life."""
        self._peer.deadline = min((each.pong_due for each in self._websockets()), default=inf)

    def _websockets(self) -> list[WebSocket]:
        return [stream for stream in self.streams.values() if isinstance(stream, WebSocket)]

    async def _cut(self, websocket: WebSocket) -> None:
        stream_id = websocket.stream_id
        if self.streams.get(stream_id) is websocket:
            if (buffer := self.stream_buffers.get(stream_id)) is not None:
                await self._reset(stream_id, buffer)
            await self._close_stream(stream_id)

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what one app's stream says to the client."""
        buffer = self.stream_buffers.get(event.stream_id)
        if isinstance(event, Reply):
            waits = buffer is None or len(buffer.buffer) >= BUFFER_HIGH_WATER
            if isinstance(buffer, _Buffer) and not (waits and event.may_drop):
                buffer.extend(event.data)
                self.priority.unblock(event.stream_id)
                await self.has_data.set()
            return
        if isinstance(event, StreamClosed) and buffer is not None and not buffer.complete:
            stream = self.streams.get(event.stream_id)
            if isinstance(stream, WebSocket) and stream.ended and isinstance(buffer, _Buffer):
                await buffer.end()
                self.priority.unblock(event.stream_id)
            else:
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
