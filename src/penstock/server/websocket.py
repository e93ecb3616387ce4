"""A WebSocket, over HTTP/1 or a stream of HTTP/2: its handshake, and Hypercorn's stream with its reading half replaced.

What differs from Hypercorn 0.18, and the test that says when the difference can go:

- A handshake with non-ASCII or doubled fields is refused; Hypercorn's process ends (`test_malformed_requests_are_refused_and_closed`).
- permessage-deflate is not accepted unless asked for, and then otherwise: see `deflate.py` (`test_no_deflate`).
- The app is told the client's own close code and reason, not 1006 (`test_close_code_reaches_the_app`).
- A client that sends more than `websocket_frames_per_s` is closed with 1008: each frame costs us more than it.
- A message's limit counts bytes, not characters (`test_message_size_is_in_bytes`).
- The app hears of the end before our close frame is written, so that nothing follows it (`test_nothing_follows_a_close`).
- A broken or oversized message closes the connection with its code; Hypercorn goes on to collect the oversized one
  (`test_oversized_message_is_1009`).
- Over HTTP/2 the close frame goes out before the stream's end, a client that ends its half has left, and what the reader
  answers does not wait for the client's window, which only the reader could open (`test_websocket_over_http2.py`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

import trio
from hypercorn.protocol.events import Body, Data, Event, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.events import Event as WebSocketEvent
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason as Code
from wsproto.utilities import LocalProtocolError

from penstock.closing import CloseReason
from penstock.limits import ServerLimits
from penstock.server.deflate import Deflate
from penstock.server.request import Request

_FRAGMENT_BYTES = 1024
"""A fragment from here on costs its sender more than us, and is not counted. Some clients cut a message at 4 KiB."""
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_HANDSHAKE = (b"connection", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol")


def is_upgrade(request: Request) -> bool:
    """Tell whether a request asks for a WebSocket."""
    upgrade = connection = b""
    for name, value in request.headers:
        if name == b"upgrade":
            upgrade = value
        elif name == b"connection":
            connection += b"," + value
    return (
        request.method == "GET"
        and upgrade.strip().lower() == b"websocket"
        and b"upgrade" in {token.strip() for token in connection.lower().split(b",")}
    )


def refuse_upgrade(request: Request) -> int | None:
    """Return the status that a malformed handshake is refused with; None for a good one. Source: RFC 6455 section 4.2.1."""
    fields = _fields(request.headers)
    keys = fields.get(b"sec-websocket-key", [])
    good = _is_handshake(fields) and request.http_version == "1.1" and len(keys) == 1 and _is_nonce(keys[0])
    return None if good else 400


def refuse_connect(headers: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Return the status that an HTTP/2 CONNECT is refused with; None for a WebSocket's handshake.

    Source: RFC 8441 section 4, RFC 9220 section 3 for the 501.
    """
    fields = _fields(headers)
    if fields.get(b":protocol") != [b"websocket"]:
        return 501
    return None if _is_handshake(fields) else 400


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    fields: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        fields.setdefault(name, []).append(value)
    return fields


def _is_handshake(fields: dict[bytes, list[bytes]]) -> bool:
    """Check what handshakes over HTTP/1 and HTTP/2 have in common."""
    ascii_only = all(value.isascii() for name in _HANDSHAKE for value in fields.get(name, ()))
    bodiless = b"content-length" not in fields and b"transfer-encoding" not in fields
    version = fields.get(b"sec-websocket-version") == [b"13"]
    protocols = b",".join(fields.get(b"sec-websocket-protocol", [b"x"])).split(b",")
    return ascii_only and bodiless and version and all(_TOKEN.fullmatch(each.strip()) for each in protocols)


def _is_nonce(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def without_extensions(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the request's headers without its offer of WebSocket extensions."""
    return [(name, value) for name, value in headers if name != b"sec-websocket-extensions"]


def extensions_of(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Return that offer."""
    return [value for name, value in headers if name == b"sec-websocket-extensions"]


@dataclass(frozen=True)
class Reply(Data):
    """What the reader says to the client. It must not wait for what only the reader can bring about."""

    may_drop: bool
    """Whether it may be left out where a lot waits already, as the answer to one of many pings."""


class _Buffer(WebsocketBuffer):
    """A message so far. Stock counts the characters of a text."""

    def extend(self, event: Message[Any]) -> None:
        super().extend(event)
        if isinstance(event, TextMessage) and not event.data.isascii():
            self.length += len(event.data.encode()) - len(event.data)
            if self.length > self.max_length:
                raise FrameTooLargeError


class WebSocket(WSStream):
    """The server's side of one WebSocket."""

    pong_due = inf
    """When the client must have said anything, by Trio's clock; infinite while no ping is on its way."""
    ended = False
    """Whether our last word was said: nothing is to be written any more."""
    _limits: ServerLimits
    _deflate: Deflate | None
    _second = -1
    _frames = 0
    """What came in that second of Trio's clock."""

    def limit(self, limits: ServerLimits, deflate: Deflate | None) -> None:
        """Set what the client may send, and what was agreed upon with it."""
        self.buffer = _Buffer(limits.websocket_message_bytes)
        self._limits = limits
        self._deflate = deflate

    @property
    def open(self) -> bool:
        """Whether it was accepted, and neither side has begun to close."""
        return self.handshake.accepted and self.connection.state is ConnectionState.OPEN

    async def ping(self) -> None:
        """Send a ping, unless we are closing; see `ping_sent`."""
        if self.open:
            await self._send_wsproto_event(Ping())
            self.ping_sent()

    def ping_sent(self) -> None:
        """Give the client `pong_wait_s` for any sign of life, unless it has to show one already."""
        if self.pong_due == inf:
            self.pong_due = trio.current_time() + self._limits.pong_wait_s

    async def handle(self, event: Event) -> None:
        """Take what came for this socket."""
        if isinstance(event, Body | Data) and not self.closed:
            self.pong_due = inf  # Whatever it says, it lives.
            if not self.handshake.accepted:
                # Over HTTP/2 nobody keeps it meanwhile, and no client is to say anything before it is accepted.
                await self._send_error_response(400)
                await self.leave()
                return
        await super().handle(event)

    async def leave(self) -> None:
        """End without a word: the client has, or no word is possible."""
        if not self.closed and self.app_put is not None:
            self.closed = True
            await self.app_put({"type": "websocket.disconnect", "code": int(Code.ABNORMAL_CLOSURE)})
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: Any) -> None:
        """Take what the app says; None once it has ended."""
        if message is None and self.state is ASGIWebsocketState.CONNECTED and not self.closed:
            await self._end(CloseConnection(code=Code.INTERNAL_ERROR))
        else:
            await super().app_send(message)

    async def _accept(self, message: Any) -> None:
        # Stock also offers wsproto's own deflate, writes an access log, and starts a pinger.
        headers = list(message.get("headers", []))
        extensions: list[Extension] = []
        if self._deflate is not None:
            headers.append((b"sec-websocket-extensions", self._deflate.header))
            extensions = [self._deflate]
        status, headers, _ = self.handshake.accept(message.get("subprotocol"), headers)
        self.connection = Connection(ConnectionType.SERVER, extensions)
        self.state = ASGIWebsocketState.CONNECTED
        await self.send(Response(stream_id=self.stream_id, status_code=status, headers=headers))

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if self._is_flood(event):
                await self._end_for(CloseReason.too_many_frames)
                return
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    await self._end_for(CloseReason.too_big)
                    return
                if event.message_finished:
                    assert self.app_put is not None
                    await self.app_put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._reply(event.response(), may_drop=True)
            elif isinstance(event, CloseConnection):
                if event.code is Code.MESSAGE_TOO_BIG and self.connection.state is ConnectionState.OPEN:
                    await self._end_for(CloseReason.too_big)  # Inflated, it would be.
                else:
                    # A close frame, or what wsproto makes of a frame that breaks the protocol.
                    await self._end(event)
                return

    def _is_flood(self, event: object) -> bool:
        if (
            isinstance(event, Message)
            and not event.message_finished
            and (not event.frame_finished or len(event.data) >= _FRAGMENT_BYTES)
        ):
            return False
        second = int(trio.current_time())
        if second != self._second:
            self._second, self._frames = second, 0
        self._frames += 1
        return self._frames > self._limits.websocket_frames_per_s

    async def _end_for(self, reason: CloseReason) -> None:
        assert reason.code is not None
        await self._end(CloseConnection(code=reason.code, reason=reason.value))

    async def _end(self, close: CloseConnection) -> None:
        assert self.app_put is not None
        self.closed = True
        # The app first: from here on it writes nothing, and so nothing after our close frame.
        await self.app_put(
            {"type": "websocket.disconnect", "code": int(close.code), "reason": close.reason or ""}
        )
        await self._reply(close.response(), may_drop=False)
        self.ended = True
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _reply(self, event: WebSocketEvent, *, may_drop: bool) -> None:
        try:
            data = self.connection.send(event)
        except LocalProtocolError:
            return  # We have closed already.
        await self.send(Reply(stream_id=self.stream_id, data=data, may_drop=may_drop))
