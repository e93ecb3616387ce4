"""HTTP/1 of one client: Hypercorn's h11 protocol, with its reading half replaced.

What differs from Hypercorn 0.18, and the test that says when the difference can go:

- A byte after the request does not stop the reading, so the disconnect is still seen (`test_disconnect_after_stray_bytes`).
- Deadlines for the head, the body and the idle time (`test_server_deadlines.py`).
- Content-Length with Transfer-Encoding is refused, as are an oversized head that arrives at once, HTTP/2 unless asked
  for, and bad WebSocket handshakes; the connection is closed then (`test_malformed_requests_are_refused_and_closed`).
- An answer to a request that is not read to its end survives the closing (`test_early_answer_arrives`).
- An unfinished response never looks finished, to HTTP/1.0 neither (`test_server_unfinished.py`).
"""

from __future__ import annotations

import re
from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, cast

import h11
import trio
from hypercorn.events import Event, RawData
from hypercorn.protocol.events import Body, Data, EndBody, EndData, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup
from wsproto.connection import ConnectionState as WebSocketState

from penstock.server.deflate import agree
from penstock.server.refusals import refusal
from penstock.server.websocket import (
    WebSocket,
    extensions_of,
    is_upgrade,
    refuse_upgrade,
    without_extensions,
)

if TYPE_CHECKING:
    from penstock.server.peer import Peer

_FRAMING = frozenset([b"connection", b"content-length", b"transfer-encoding"])
_FIELD = re.compile(
    rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+: (?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?\r\n"
)
"""A header field as it is sent: nothing in it can end it before its end. Source: RFC 9110 section 5.5."""
_HOLD = "penstock.hold"
_REQUEST_READ = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)


class _Phase(Enum):
    idle = auto()
    """Between two requests; nothing of the next one is here."""
    head = auto()
    """A part of a request's head is here."""
    body = auto()
    """The head is here, the body not yet."""
    answer = auto()
    """The request is here; the app answers it. Also a WebSocket, to its end."""


class Http1(H11Protocol):
    """HTTP/1.0, HTTP/1.1 and WebSocket on one socket."""

    connection: h11.Connection | H11WSConnection
    stream: HTTPStream | WebSocket | None

    def __init__(self, peer: Peer, state: ConnectionState, server: tuple[str, int] | None) -> None:
        service = peer.service
        super().__init__(
            cast("AppWrapper", service.app),  # only our AppTasks calls it, as an ASGI app
            service.config,
            service.context,
            cast("TaskGroup", peer.apps),
            state,
            service.tls is not None,
            peer.address,
            server,
            peer.send,
        )
        del self.can_read  # Of no use to our reading half, and one for each client.
        self._peer = peer
        self._phase = _Phase.idle
        self._paused = False
        self._held = 0
        self._method = ""
        self.direct = False
        """Whether a chunked body or a WebSocket is under way, in clear text: it may be written directly."""
        self.deflates = False
        """Whether it is a WebSocket on which compression was agreed upon."""

    # What the peer asks

    @property
    def idle(self) -> bool:
        """Whether there is no request, nor a part of one."""
        return self._phase is _Phase.idle

    @property
    def full(self) -> bool:
        """Whether the client has sent so much ahead that no more is read for now."""
        return self._held > self._peer.limits.paused_bytes

    async def handle(self, event: Event) -> None:
        """Take bytes, or the news that the socket is closed."""
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        data = event.data
        if isinstance(self.stream, WebSocket) and self.stream.pong_due < inf:
            self.stream.pong_due = self._peer.deadline = inf  # whatever it says, it lives
        if self._phase is _Phase.idle and not self._paused:
            # RFC 9112 section 2.2: a server SHOULD ignore at least one empty line received prior to the request-line.
            data = data.lstrip(b"\r\n")
            if not data:
                return
        self.connection.receive_data(data)
        if self._paused:
            self._held += len(data)
        else:
            await self._handle_events()

    async def resume(self) -> None:
        """Go on with the bytes that came before their time."""
        accepted = isinstance(self.stream, WebSocket) and self.stream.handshake.accepted
        if self._paused and (accepted or self._phase is _Phase.idle):
            self._paused = False
            self._held = 0
            await self._handle_events()

    async def time_out(self) -> None:
        """Refuse a request that takes too long; close an idle connection without a word."""
        if self._phase is _Phase.idle or isinstance(self.connection, H11WSConnection):
            if isinstance(self.stream, WebSocket) and self.stream.pong_due < inf:
                self._peer.service.metrics.count("server_timeouts", phase="pong")
            self._peer.hang_up()
        else:
            self._peer.service.metrics.count("server_timeouts", phase=self._phase.name)
            await self._refuse(408)

    def go_away(self) -> None:
        """Close the idle connection."""
        self._peer.hang_up()

    # Requests

    async def _handle_events(self) -> None:
        while not self._peer.closing and not self._paused:
            connection = self.connection
            if connection.they_are_waiting_for_100_continue:
                await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return
            if isinstance(event, h11.Request):
                if status := self._refusal_of(event):
                    await self._refuse(status)
                    return
                self._enter(_Phase.body, self._peer.limits.body_s)
                await self._create_stream(event)
            elif isinstance(event, h11.Data) and self.stream is not None:
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            elif isinstance(event, Data) and self.stream is not None:
                await self.stream.handle(event)
            elif isinstance(event, h11.EndOfMessage) and self.stream is not None:
                self._enter(_Phase.answer, inf)
                self._pause()
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
                return  # The app may have answered meanwhile, and what is paused now be the next request.
            elif event is h11.PAUSED:
                self._pause()
            else:
                if connection.their_state is h11.IDLE and self._phase is _Phase.idle:
                    self._enter(_Phase.head, self._peer.limits.head_s)
                return

    def _pause(self) -> None:
        """Keep what comes from now on, until the app is through with this request."""
        self._paused = True
        self._held = len(self.connection.trailing_data[0])

    def _enter(self, phase: _Phase, seconds: float) -> None:
        self._phase = phase
        self._peer.deadline = trio.current_time() + seconds

    def _refusal_of(self, request: h11.Request) -> int | None:
        names = {name for name, _ in request.headers}
        size = len(request.target) + sum(len(name) + len(value) + 4 for name, value in request.headers)
        if size > self._peer.limits.head_bytes:
            return 431
        if request.http_version not in {b"1.0", b"1.1"}:
            if request.method == b"PRI" and self._peer.service.http2 and not self.keep_alive_requests:
                raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])
            return 505
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            # RFC 9112 section 6.1: an attempt at request smuggling. h11 believes the one header and keeps the connection.
            return 400
        if request.method == b"CONNECT":
            return 501
        if is_upgrade(request):
            return refuse_upgrade(request)
        return None

    async def _create_stream(self, request: h11.Request) -> None:
        # Stock also honours `Upgrade: h2c`, which RFC 9113 section 3.1 has made obsolete: it is ignored here.
        headers = list(request.headers)
        stream_class: type[HTTPStream | WebSocket] = HTTPStream
        if is_upgrade(request):
            stream_class = WebSocket
            offers, headers = extensions_of(headers), without_extensions(headers)
            message_bytes = self._peer.limits.websocket_message_bytes
            deflate = agree(offers, self._peer.service.deflater, message_bytes=message_bytes)
            self.deflates = deflate is not None
            assert isinstance(self.connection, h11.Connection)
            self.connection = H11WSConnection(self.connection)
            self._paused = True  # until the app has accepted it
            self._held = len(self.connection.buffer)
            self._enter(_Phase.answer, inf)
        self.stream = stream_class(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        if isinstance(self.stream, WebSocket):
            self.stream.limit(self._peer.limits, deflate)
        self._method = request.method.decode("ascii").upper()
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode("ascii"),
                method=self._method,
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _refuse(self, status: int) -> None:
        self._peer.service.metrics.count("server_requests_refused", status=str(status))
        await self._close_stream()  # From here on, nothing of the app's gets between our words.
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._peer.write(refusal(status))
        self._peer.close(linger=True)

    # Responses

    async def stream_send(self, event: StreamEvent) -> None:
        """Take what the app's stream says to the client."""
        if isinstance(event, Response):
            if event.status_code >= 200 and self._peer.service.drain.draining.is_set():
                headers = [(name, value) for name, value in event.headers if name.lower() != b"connection"]
                headers.append((b"connection", b"close"))
                event = Response(stream_id=event.stream_id, headers=headers, status_code=event.status_code)
            if event.status_code == 101:
                # What the client sent ahead of this answer is the reader's to handle, once this is written.
                self._peer.kick()
        elif isinstance(event, Data) and isinstance(self.stream, WebSocket):
            if self.stream.connection.state is not WebSocketState.OPEN:
                self.direct = False  # This is our close frame, and nothing follows it.
        elif isinstance(event, EndData):
            # The app has closed its WebSocket; the client's half of the closing handshake is not waited for for ever.
            assert isinstance(self.stream, WebSocket)
            self.stream.pong_due = inf
            self._peer.deadline = trio.current_time() + self._peer.limits.linger_s
        elif isinstance(event, EndBody):
            self.direct = False
        if isinstance(event, Response) and event.status_code >= 200:
            try:
                head = self._head(event)
            except h11.LocalProtocolError:
                if self.connection.their_state is not h11.ERROR:
                    raise
            else:
                holds = isinstance(self.stream, HTTPStream) and _HOLD in getattr(self.stream, "response", ())
                if not (holds and self._peer.hold(head)):
                    await self._peer.write(head)
                self.direct = self._is_chunked(event)
        else:
            await super().stream_send(event)
            if isinstance(event, Response) and event.status_code == 101:
                self.direct = not self.ssl

    async def ping(self) -> None:
        """Send a ping on the WebSocket; see `ping_sent`."""
        if isinstance(self.stream, WebSocket) and self.stream.open:
            await self.stream.ping()
            self.ping_sent()

    def ping_sent(self) -> None:
        """Give the client of a WebSocket `pong_wait_s` for any sign of life, unless it has to show one already."""
        if isinstance(self.stream, WebSocket) and self.stream.open:
            self.stream.ping_sent()
            self._peer.deadline = self.stream.pong_due

    def _head(self, response: Response) -> bytes:
        """Return a final response's head, and have h11 know that it was sent.

        h11 is given the fields that concern it. It looks at each of the others five times, half the price of a short
        answer; here they are looked at once.

        Raises:
            h11.LocalProtocolError: a field that can't be sent.
        """
        ours = [*response.headers, *self.config.response_headers("h11")]
        if self.keep_alive_requests >= self.config.keep_alive_max_requests:
            ours.append((b"connection", b"close"))
        framing = [field for field in ours if field[0].lower() in _FRAMING]
        head = self.connection.send(h11.Response(status_code=response.status_code, headers=framing))
        assert head is not None
        others = [b"%b: %b\r\n" % field for field in ours if field[0].lower() not in _FRAMING]
        if not all(map(_FIELD.fullmatch, others)):
            raise h11.LocalProtocolError("a header of the response can't be sent")
        return b"".join([head[:-2], *others, b"\r\n"])

    def _is_chunked(self, response: Response) -> bool:
        """Say whether h11 has begun a chunked body. Source: `h11._connection._response_framing`."""
        return (
            self.connection.our_state is h11.SEND_BODY
            and self.connection.their_http_version == b"1.1"
            and self._method != "HEAD"
            and response.status_code not in {204, 304}
            and not any(name.lower() == b"content-length" for name, _ in response.headers)
            and not self.ssl
        )

    async def _close_stream(self) -> None:
        self.direct = False
        await super()._close_stream()

    async def _maybe_recycle(self) -> None:
        connection = self.connection
        await self._close_stream()
        if isinstance(connection, H11WSConnection):
            self._peer.close(linger=True)
        elif connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            self._next_request(connection)
        elif connection.our_state is h11.SEND_BODY and connection.their_http_version != b"1.1":
            # The end of the connection is the end of an HTTP/1.0 body: only a reset says that it is not whole.
            self._peer.abort()
        else:
            whole = connection.their_state in _REQUEST_READ and not connection.trailing_data[0]
            self._peer.close(linger=not whole)

    def _next_request(self, connection: h11.Connection) -> None:
        if self._peer.service.drain.draining.is_set():
            self._peer.close(linger=False)
            return
        self._enter(_Phase.idle, self._peer.limits.keep_alive_s)
        ahead = connection.trailing_data[0].lstrip(b"\r\n")
        self.connection = h11.Connection(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )
        if ahead:
            self.connection.receive_data(ahead)
            self._peer.kick()
        else:
            self._paused = False
            self._held = 0
