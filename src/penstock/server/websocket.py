"""A WebSocket over HTTP/1: its handshake, and Hypercorn's stream with its reading half replaced.

What differs from Hypercorn 0.18, and the test that says when the difference can go:

- A handshake with non-ASCII or doubled fields is refused; Hypercorn's process ends (`test_malformed_requests_are_refused_and_closed`).
- permessage-deflate is not offered: 100 KiB for each socket, and a bomb to defuse (`test_no_deflate`).
- The app is told the client's own close code and reason, not 1006 (`test_close_code_reaches_the_app`).
- A client that sends more than `websocket_frames_per_s` is closed with 1008: each frame costs us more than it.
- A message's limit counts bytes, not characters (`test_message_size_is_in_bytes`).
- The app hears of the end before our close frame is written, so that nothing follows it (`test_nothing_follows_a_close`).
- A broken or oversized message closes the connection with its code; Hypercorn goes on to collect the oversized one
  (`test_oversized_message_is_1009`).
"""

from __future__ import annotations

import base64
import re
from typing import Any

import h11
import trio
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.ws_stream import FrameTooLargeError, WebsocketBuffer, WSStream
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from penstock.limits import ServerLimits

_FRAGMENT_BYTES = 1024
"""A fragment from here on costs its sender more than us, and is not counted. Some clients cut a message at 4 KiB."""
_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_HANDSHAKE = (b"connection", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol")


def is_upgrade(request: h11.Request) -> bool:
    """Tell whether a request asks for a WebSocket."""
    upgrade = connection = b""
    for name, value in request.headers:
        if name == b"upgrade":
            upgrade = value
        elif name == b"connection":
            connection += b"," + value
    return (
        request.method == b"GET"
        and upgrade.strip().lower() == b"websocket"
        and b"upgrade" in {token.strip() for token in connection.lower().split(b",")}
    )


def refuse_upgrade(request: h11.Request) -> int | None:
    """Return the status that a malformed handshake is refused with; None for a good one. Source: RFC 6455 section 4.2.1."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in request.headers:
        fields.setdefault(name, []).append(value)
    ascii_only = all(value.isascii() for name in _HANDSHAKE for value in fields.get(name, ()))
    bodiless = b"content-length" not in fields and b"transfer-encoding" not in fields
    version = fields.get(b"sec-websocket-version") == [b"13"] and request.http_version == b"1.1"
    keys = fields.get(b"sec-websocket-key", [])
    protocols = b",".join(fields.get(b"sec-websocket-protocol", [b"x"])).split(b",")
    tokens = all(_TOKEN.fullmatch(protocol.strip()) for protocol in protocols)
    good = ascii_only and tokens and bodiless and version and len(keys) == 1 and _is_nonce(keys[0])
    return None if good else 400


def _is_nonce(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def without_extensions(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the request's headers without its offer of WebSocket extensions."""
    return [(name, value) for name, value in headers if name != b"sec-websocket-extensions"]


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

    _frames_per_s: int
    _second = -1
    _frames = 0
    """What came in that second of Trio's clock."""

    def limit(self, limits: ServerLimits) -> None:
        """Set what the client may send."""
        self.buffer = _Buffer(limits.websocket_message_bytes)
        self._frames_per_s = limits.websocket_frames_per_s

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if self._is_flood(event):
                await self._end(CloseConnection(code=CloseReason.POLICY_VIOLATION, reason="too many frames"))
                return
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    await self._end(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
                    return
                if event.message_finished:
                    assert self.app_put is not None
                    await self.app_put(self.buffer.to_message())
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                # A close frame, or what wsproto makes of a frame that breaks the protocol: both are answered with its code.
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
        return self._frames > self._frames_per_s

    async def _end(self, close: CloseConnection) -> None:
        assert self.app_put is not None
        self.closed = True
        # The app first: from here on it writes nothing, and so nothing after our close frame.
        await self.app_put(
            {"type": "websocket.disconnect", "code": int(close.code), "reason": close.reason or ""}
        )
        await self._send_wsproto_event(close.response())
        await self.send(StreamClosed(stream_id=self.stream_id))
