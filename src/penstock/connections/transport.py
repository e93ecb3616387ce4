"""How a connection reaches its client.

A transport knows nothing of chunks or turns: it starts, writes bytes, finishes politely or aborts, and says when the
client has gone. `start`, `write` and `finish` have one caller at a time, the connection's writer. `abort` may come from
anywhere, also in the middle of a write.

Where a transport is `direct`, bytes can also be written without waiting, and so without a task of their own: that is the
fast lane of a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from penstock.asgi import DirectStream, Receive, Scope, Send
from penstock.closing import CloseReason


class Transport(Protocol):
    """One client's end."""

    @property
    def direct(self) -> bool:
        """Whether `write_nowait` can write, once `start` has returned."""

    def start_nowait(self, opening: bytes) -> bool:
        """Do what `start` does if that needs no wait, and be `direct`; else return False and have done nothing.

        Raises:
            OSError: if the client has gone.
        """

    async def start(self, opening: bytes) -> None:
        """Send what precedes the stream, the response's head, and its first bytes; there may be none.

        Raises:
            OSError: if the client has gone.
        """

    async def write(self, data: bytes) -> None:
        """Write bytes; return when they are on their way.

        Cancelled, an unknown part of `data` was written, and nothing may be written after it.

        Raises:
            OSError: if the client has gone.
        """

    def write_nowait(self, data: bytes) -> bool:
        """Write bytes if that needs no wait, for a `direct` transport; else return False and have written nothing.

        Raises:
            OSError: if the client has gone.
        """

    def finish_nowait(self, ending: bytes, reason: CloseReason) -> bool:
        """Do what `finish` does if that needs no wait; else return False and have done nothing.

        Raises:
            OSError: if the client has gone.
        """

    async def finish(self, ending: bytes, reason: CloseReason) -> None:
        """Send the stream's last bytes, possibly none, and end it politely.

        The client is told the reason where its protocol has a place for it.

        Raises:
            OSError: if the client has gone.
        """

    def abort(self) -> None:
        """Cut the stream at once, as one that is not complete; a `write` that is stuck returns or raises."""

    def on_gone(self, gone: Callable[[], None]) -> bool:
        """Have `gone` called once when the client has gone; False where the transport can't, see `wait_gone`."""

    async def wait_gone(self) -> None:
        """Sleep until the client has gone."""


def _not_now(data: bytes) -> bool:
    return False


class AsgiTransport:
    """An HTTP response of any ASGI server on Trio.

    Where the server offers `penstock.stream`, `abort` is prompt, and the stream may be direct. Elsewhere a stream is cut
    by returning from the app with the response unfinished, and a write that the server shields ends when the server ends it.
    """

    __slots__ = ("_headers", "_receive", "_send", "_stream", "direct", "write_nowait")

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self._receive = receive
        self._send = send
        self._headers: Sequence[tuple[bytes, bytes]] = tuple(headers)
        self._stream: DirectStream | None = scope.get("extensions", {}).get("penstock.stream")
        self.direct = False
        self.write_nowait: Callable[[bytes], bool] = _not_now
        """See `Transport.write_nowait`. Where it can, the stream's own: a fan-out calls it for each viewer and pass."""

    def start_nowait(self, opening: bytes) -> bool:
        """See `Transport.start_nowait`."""
        if self._stream is None or not self._stream.start(self._send, 200, self._headers, opening):
            return False
        self._started()
        return True

    async def start(self, opening: bytes) -> None:
        """See `Transport.start`."""
        await self._send({"type": "http.response.start", "status": 200, "headers": list(self._headers)})
        self._started()
        if opening:
            await self.write(opening)

    def _started(self) -> None:
        self._headers = ()
        if self._stream is not None and self._stream.direct:
            self.direct = True
            self.write_nowait = self._stream.write

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        if self._stream is None or not self.direct:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            return
        while not self._stream.write(data):
            await self._stream.wait_writable()
        # Until the socket has it all: what waits meanwhile is better kept in one place.
        await self._stream.wait_writable()

    def finish_nowait(self, ending: bytes, reason: CloseReason) -> bool:
        """See `Transport.finish_nowait`."""
        return self._stream is not None and self._stream.end(ending)

    async def finish(self, ending: bytes, reason: CloseReason) -> None:
        """See `Transport.finish`."""
        await self._send({"type": "http.response.body", "body": ending, "more_body": False})

    def abort(self) -> None:
        """See `Transport.abort`."""
        if self._stream is not None:
            self._stream.abort()

    def on_gone(self, gone: Callable[[], None]) -> bool:
        """See `Transport.on_gone`."""
        if self._stream is None:
            return False
        self._stream.on_gone(gone)
        return True

    async def wait_gone(self) -> None:
        """See `Transport.wait_gone`."""
        # One task holds `receive` for the whole response: some servers lose the message when it is polled.
        while (await self._receive())["type"] != "http.disconnect":
            pass
