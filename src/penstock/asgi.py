"""The types of ASGI 3, as far as they say anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

PING_FRAME = b"\x89\x00"
"""A WebSocket's ping, as `DirectStream.write` knows it: it is to be written by itself."""

ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An application: `await app(scope, receive, send)`. Frameworks type the three each in their own way."""


class DirectStream(Protocol):
    """The extension `penstock.stream` of our own server: past `send`, to the client of one response.

    It is there on HTTP/1, and for WebSockets on HTTP/2. What it does is said where it is made, in `penstock/server/direct.py`.
    """

    @property
    def direct(self) -> bool:
        """Whether `write` may be used, now that the response's head was sent."""

    def write(self, data: bytes) -> bool:
        """Write a piece of the body, or whole messages of a WebSocket, without waiting; False, and nothing is taken, while earlier ones wait."""

    @property
    def disconnect(self) -> dict[str, Any] | None:
        """The ASGI message that says how the client left; None while it is here."""

    def start(self, send: object, status: int, headers: Iterable[tuple[bytes, bytes]], data: bytes) -> bool:
        """Start the response, with the first piece of its body, without waiting; False, and it is for `send`, where it can't."""

    def end(self, data: bytes) -> bool:
        """End the response, with the last piece of its body, without waiting; False, and it is for `send`, where it can't."""

    async def ping(self) -> None:
        """Send a ping on a WebSocket, whether it is direct or not."""

    async def wait_writable(self) -> None:
        """Wait until `write` takes something again."""

    def abort(self) -> None:
        """Reset the client's socket at once, unless it has the whole response."""

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when the client leaves or has the whole response."""
