"""A WebSocket over HTTP/1: its handshake, and Hypercorn's stream with its reading half replaced.

What differs from Hypercorn 0.18, and the test that says when the difference can go:

- A handshake with non-ASCII or doubled fields is refused; Hypercorn's process ends (`test_malformed_requests_are_refused_and_closed`).
- permessage-deflate is not offered: 100 KiB for each socket, and a bomb to defuse (`test_no_deflate`).
- The app is told the client's own close code and reason, not 1006 (`test_close_code_reaches_the_app`).
- A broken or oversized message closes the connection with its code; Hypercorn goes on to collect the oversized one
  (`test_oversized_message_is_1009`).
"""

from __future__ import annotations

import base64

import h11
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.ws_stream import FrameTooLargeError, WSStream
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

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
    good = ascii_only and bodiless and version and len(keys) == 1 and _is_nonce(keys[0])
    return None if good else 400


def _is_nonce(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def without_extensions(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the request's headers without its offer of WebSocket extensions."""
    return [(name, value) for name, value in headers if name != b"sec-websocket-extensions"]


class WebSocket(WSStream):
    """The server's side of one WebSocket."""

    _closed_by_peer: CloseConnection | None = None

    async def handle(self, event: Event) -> None:
        """Take bytes, or the news that the stream has ended."""
        frame = self._closed_by_peer
        if frame is None or self.closed or not isinstance(event, StreamClosed):
            await super().handle(event)
        elif self.app_put is not None:
            self.closed = True
            await self.app_put(
                {"type": "websocket.disconnect", "code": int(frame.code), "reason": frame.reason or ""}
            )

    async def _handle_events(self) -> None:
        for event in self.connection.events():
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
                self._closed_by_peer = event
                await self._end(event.response())
                return

    async def _end(self, answer: CloseConnection) -> None:
        await self._send_wsproto_event(answer)
        await self.send(StreamClosed(stream_id=self.stream_id))
