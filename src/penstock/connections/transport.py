"""How a connection reaches its client.

A transport knows nothing of chunks or turns: it starts, writes bytes, finishes politely or aborts, and says when the
client has gone. Each method has one caller at a time: `start`, `write` and `finish` the connection's writer,
`wait_disconnected` its watcher. `abort` may come from anywhere, also in the middle of a write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from penstock.asgi import Receive, Scope, Send


class Transport(Protocol):
    """One client's end."""

    async def start(self) -> None:
        """Send what precedes the stream: the response's head."""

    async def write(self, data: bytes) -> None:
        """Write bytes; return when they are on their way.

        Cancelled, an unknown part of `data` was written, and nothing may be written after it.

        Raises:
            OSError: if the client has gone.
        """

    async def finish(self) -> None:
        """End the stream as one that is complete."""

    def abort(self) -> None:
        """Cut the stream at once, as one that is not complete; a `write` that is stuck returns or raises."""

    async def wait_disconnected(self) -> None:
        """Sleep until the client has gone."""


class AsgiTransport:
    """An HTTP response of any ASGI server on Trio.

    `abort` is prompt only where the server offers `penstock.stream`. Elsewhere a stream is cut by returning from the
    app with the response unfinished, and a write that the server shields ends when the server ends it.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self._receive = receive
        self._send = send
        self._headers = list(headers)
        stream = scope.get("extensions", {}).get("penstock.stream")
        self._abort: Callable[[], None] | None = None if stream is None else stream["abort"]

    async def start(self) -> None:
        """See `Transport.start`."""
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """See `Transport.finish`."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def abort(self) -> None:
        """See `Transport.abort`."""
        if self._abort is not None:
            self._abort()

    async def wait_disconnected(self) -> None:
        """See `Transport.wait_disconnected`."""
        # One task holds `receive` for the whole response: some servers lose the message when it is polled.
        while (await self._receive())["type"] != "http.disconnect":
            pass
