"""HTTP/1 of one client: which request is read, which is answered, and what follows.

A request is read by `request.py`, and answered by its app through `exchange.py`; while it is, what the client sends is
kept. The WebSocket that a request may become is Hypercorn's, mended (`websocket.py`). What holds here, and its test:

- A byte after the request does not stop the reading, so the disconnect is still seen (`test_disconnect_after_stray_bytes`).
- Deadlines for the head, the body and the idle time (`test_server_deadlines.py`).
- What can't be understood is refused, and the connection is closed, so that nothing after it is taken for a request
  (`test_malformed_requests_are_refused_and_closed`).
- An answer to a request that is not read to its end survives the closing (`test_early_answer_arrives`).
- An unfinished response never looks finished, to HTTP/1.0 neither (`test_server_unfinished.py`).
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import trio
from hypercorn.events import Event, RawData
from hypercorn.protocol.events import Body, Data, EndBody, EndData, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Request as UpgradeRequest
from hypercorn.protocol.events import Response as UpgradeResponse
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup
from wsproto.connection import ConnectionState as WebSocketState

from penstock.server.deflate import agree
from penstock.server.direct import Headers
from penstock.server.exchange import Exchange
from penstock.server.refusals import refusal
from penstock.server.request import PREFACE, PrefaceError, RefusedError, Request
from penstock.server.response import CONTINUE, Response, switching
from penstock.server.websocket import (
    WebSocket,
    extensions_of,
    is_upgrade,
    refuse_upgrade,
    without_extensions,
)

if TYPE_CHECKING:
    from penstock.server.peer import Peer


class _Phase(Enum):
    idle = auto()
    """Between two requests; nothing of the next one is here."""
    head = auto()
    """A part of a request's head is here."""
    body = auto()
    """The head is here, the body not yet."""
    answer = auto()
    """The request is here; the app answers it. Also a WebSocket, to its end."""


class Http1:
    """HTTP/1.0, HTTP/1.1 and WebSocket on one socket."""

    __slots__ = (
        "_ahead",
        "_exchange",
        "_paused",
        "_phase",
        "_refusal",
        "_request",
        "_requests",
        "_server",
        "_state",
        "_websocket",
        "deflates",
        "direct",
        "socket",
    )

    def __init__(self, peer: Peer, state: ConnectionState, server: tuple[str, int] | None) -> None:
        self.socket = peer
        self.direct = False
        """Whether a chunked body or a WebSocket is under way, in clear text: it may be written directly."""
        self.deflates = False
        """Whether it is a WebSocket on which compression was agreed upon."""
        self._state = state
        self._server = server
        self._phase = _Phase.idle
        self._paused = False
        self._ahead: bytes | bytearray = b""
        """What came before its time."""
        self._requests = 0
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._websocket: WebSocket | None = None
        self._refusal: Response | None = None
        """The answer that a WebSocket is not accepted with."""

    # What the peer asks

    @property
    def idle(self) -> bool:
        """Whether there is no request, nor a part of one."""
        return self._phase is _Phase.idle

    @property
    def full(self) -> bool:
        """Whether the client has sent so much ahead that no more is read for now."""
        return len(self._ahead) > self.socket.limits.paused_bytes

    @property
    def clear(self) -> bool:
        """Whether there is no TLS."""
        return self.socket.service.tls is None

    @property
    def closes(self) -> bool:
        """Whether no further request is wanted."""
        service = self.socket.service
        return service.drain.draining.is_set() or self._requests >= service.config.keep_alive_max_requests

    async def initiate(self) -> None:
        """Nothing is said before the client has."""

    async def handle(self, event: Event) -> None:
        """Take bytes, or the news that the socket is closed."""
        if not isinstance(event, RawData):
            await self._end_app()
            return
        data = event.data
        websocket = self._websocket
        if websocket is not None and websocket.pong_due < inf:
            websocket.pong_due = self.socket.deadline = inf  # whatever it says, it lives
        if not self._paused:
            await self._take(data)
        elif self._ahead:
            self._ahead += data
        else:
            self._ahead = bytearray(data)

    async def resume(self) -> None:
        """Go on with the bytes that came before their time."""
        accepted = self._websocket is not None and self._websocket.handshake.accepted
        if self._paused and (accepted or self._phase is _Phase.idle):
            self._paused = False
            data, self._ahead = bytes(self._ahead), b""
            await self._take(data)

    async def time_out(self) -> None:
        """Refuse a request that takes too long; close an idle connection without a word."""
        metrics = self.socket.service.metrics
        if self._phase is _Phase.idle or self._websocket is not None:
            if self._websocket is not None and self._websocket.pong_due < inf:
                metrics.count("server_timeouts", phase="pong")
            self.socket.hang_up()
        else:
            metrics.count("server_timeouts", phase=self._phase.name)
            await self._refuse(408)

    def go_away(self) -> None:
        """Close the idle connection."""
        self.socket.hang_up()

    # Requests

    async def _take(self, data: bytes) -> None:
        if self._websocket is not None:
            if data:
                await self._websocket.handle(Data(stream_id=STREAM_ID, data=data))
            return
        request = self._request
        if request is None:
            # RFC 9112 section 2.2: a server SHOULD ignore at least one empty line received prior to the request-line.
            data = data.lstrip(b"\r\n")
            if not data:
                return
            request = self._request = Request()
        try:
            rest = request.read(data, head_bytes=self.socket.limits.head_bytes)
        except RefusedError as error:
            if isinstance(error, PrefaceError) and self.socket.service.http2 and not self._requests:
                raise H2ProtocolAssumedError(PREFACE + error.rest) from None
            await self._refuse(error.status)
            return
        if not request.begun:
            if self._phase is _Phase.idle:
                self._enter(_Phase.head, self.socket.limits.head_s)
        elif request.upgrade and self._exchange is None and is_upgrade(request):
            await self._begin_websocket(request, rest)
        else:
            await self._feed(request, rest)

    async def _feed(self, request: Request, rest: bytes) -> None:
        """Give the app what came of its request. Waits while it has much to take before there is more."""
        peer, exchange, body = self.socket, self._exchange, request.take_body()
        if request.complete:
            # What comes from now on is kept until the app is through with this request.
            self._phase = _Phase.answer
            self._paused = True
            self._ahead = rest
            peer.deadline = inf
        elif exchange is None:
            self._enter(_Phase.body, peer.limits.body_s)
        if exchange is None:
            exchange = self._begin(request)
            if request.expects_continue and not body and not request.complete:
                await peer.write(CONTINUE)
        if body or request.complete:
            exchange.inbox.put_nowait(
                {"type": "http.request", "body": body, "more_body": not request.complete}
            )
        if not request.complete:
            await exchange.inbox.wait_for_room(peer)

    def _begin(self, request: Request) -> Exchange:
        peer = self.socket
        path, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "http_version": request.http_version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": request.method,
            "scheme": "http" if self.clear else "https",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": peer.service.config.root_path,
            "headers": request.headers,
            "client": peer.address,
            "server": self._server,
            "state": self._state.copy(),
            "extensions": {},
        }
        inbox = peer.apps.open_inbox(scope)
        exchange = self._exchange = Exchange(self, request, inbox)
        self._requests += 1
        peer.apps.start(peer.service.app, scope, inbox, exchange.send, exchange.end)
        return exchange

    def start(self, send: object, status: int, headers: Headers, data: bytes) -> bool:
        """See `DirectStream.start`."""
        return self._exchange is not None and self._exchange.start_nowait(send, status, headers, data)

    def end(self, data: bytes) -> bool:
        """See `DirectStream.end`."""
        return self._exchange is not None and self._exchange.end_nowait(data)

    def finish(self, exchange: Exchange) -> None:
        """Go on to the next request, or close, now that the app has nothing more to say to this one."""
        peer, request, response = self.socket, exchange.request, exchange.response
        assert response is not None
        self.direct = False
        self._exchange = None
        exchange.inbox.end()
        if not response.ended and request.http_version != "1.1":
            # The end of the connection is the end of an HTTP/1.0 body: only a reset says that it is not whole.
            peer.abort()
        elif not (response.ended and request.complete) or response.closes:
            peer.close(linger=not request.complete or bool(self._ahead))
        elif peer.service.drain.draining.is_set():
            peer.close(linger=False)
        else:
            self._request = None
            self._enter(_Phase.idle, peer.limits.keep_alive_s)
            if self._ahead:
                peer.kick()
            else:
                self._paused = False

    async def _refuse(self, status: int) -> None:
        peer, exchange = self.socket, self._exchange
        peer.service.metrics.count("server_requests_refused", status=str(status))
        await self._end_app()  # From here on, nothing of the app's gets between our words.
        if exchange is None or exchange.response is None:
            await peer.write(refusal(status))
        peer.close(linger=True)

    async def _end_app(self) -> None:
        """Tell the app that its client has left."""
        self.direct = False
        if self._request is not None:
            self._request.close()
        exchange, self._exchange = self._exchange, None
        websocket, self._websocket = self._websocket, None
        if exchange is not None:
            exchange.inbox.end()
        elif websocket is not None:
            await websocket.handle(StreamClosed(stream_id=STREAM_ID))

    def _enter(self, phase: _Phase, seconds: float) -> None:
        self._phase = phase
        self.socket.deadline = trio.current_time() + seconds

    # WebSocket

    async def ping(self) -> None:
        """Send a ping on the WebSocket; see `ping_sent`."""
        if self._websocket is not None and self._websocket.open:
            await self._websocket.ping()
            self.ping_sent()

    def ping_sent(self) -> None:
        """Give the client of a WebSocket `pong_wait_s` for any sign of life, unless it has to show one already."""
        if self._websocket is not None and self._websocket.open:
            self._websocket.ping_sent()
            self.socket.deadline = self._websocket.pong_due

    async def _begin_websocket(self, request: Request, rest: bytes) -> None:
        if status := refuse_upgrade(request):
            await self._refuse(status)
            return
        peer, service = self.socket, self.socket.service
        deflate = agree(
            extensions_of(request.headers),
            service.deflater,
            message_bytes=peer.limits.websocket_message_bytes,
        )
        self.deflates = deflate is not None
        self._phase = _Phase.answer
        self._paused = True  # until the app has accepted it
        self._ahead = rest
        peer.deadline = inf
        self._websocket = WebSocket(
            cast("AppWrapper", service.app),  # only our AppTasks calls it, as an ASGI app
            service.config,
            service.context,
            cast("TaskGroup", peer.apps),
            not self.clear,
            peer.address,
            self._server,
            self._send,
            STREAM_ID,
        )
        self._websocket.limit(peer.limits, deflate)
        self._requests += 1
        await self._websocket.handle(
            UpgradeRequest(
                stream_id=STREAM_ID,
                headers=without_extensions(request.headers),
                http_version=request.http_version,
                method=request.method,
                raw_path=request.target,
                state=self._state,
            )
        )

    async def _send(self, event: StreamEvent) -> None:
        """Take what the WebSocket says to the client."""
        peer, websocket = self.socket, self._websocket
        if isinstance(event, Data):
            if websocket is not None and websocket.connection.state is not WebSocketState.OPEN:
                self.direct = False  # This is our close frame, and nothing follows it.
            await peer.write(event.data)
        elif isinstance(event, EndData):
            # The app has closed it; the client's half of the closing handshake is not waited for for ever.
            if websocket is not None:
                websocket.pong_due = inf
                peer.deadline = trio.current_time() + peer.limits.linger_s
        elif isinstance(event, UpgradeResponse):
            if event.status_code == 101:
                head = switching(event.headers)
                self.direct = self.clear
                # What the client sent ahead of this answer is the reader's to handle, once this is written.
                peer.kick()
            else:
                assert self._request is not None
                self._refusal = Response(self._request)
                head = self._refusal.head(event.status_code, event.headers, closes=True)
            await peer.write(head)
        elif isinstance(event, Body) and self._refusal is not None:
            await peer.write(self._refusal.body(event.data))
        elif isinstance(event, EndBody) and self._refusal is not None:
            await peer.write(self._refusal.end())
        elif isinstance(event, StreamClosed):
            await self._end_app()
            peer.close(linger=True)
