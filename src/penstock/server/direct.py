"""`scope["extensions"]["penstock.stream"]`: an HTTP/1.1 response's body, written without waiting.

An ASGI `send` is a walk through the protocol, and awaits at every step. Once a response's head is sent, its body is a row
of chunks on a socket, and `write` puts one there: one system call. The bytes of the body are those that `send` would
have sent, and the two may be mixed in any order; the response still begins and ends with `send`.

Under TLS, and for a response whose length was announced, `direct` is False and only `abort` and `on_gone` are of use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from penstock.errors import ClientGoneError
from penstock.server.apps import Inbox


class BodyWriter(Protocol):
    """The protocol of one client, as far as this file needs to know it."""

    chunked: bool
    """Whether a response's head has been sent, in chunked encoding and clear text, and its end has not."""


class Socket(Protocol):
    """One client's socket."""

    def write_nowait(self, data: bytes) -> bool:
        """Write without waiting; False, and nothing is taken, while earlier bytes wait."""

    async def wait_writable(self) -> None:
        """Wait until `write_nowait` takes bytes again."""

    def abort(self) -> None:
        """Reset the socket at once."""


class ChunkFraming:
    """HTTP/1.1's chunked encoding. The last chunk is kept: a fan-out writes one and the same to a thousand clients."""

    __slots__ = ("_data", "_framed")

    def __init__(self) -> None:
        self._data = self._framed = b""

    def frame(self, data: bytes) -> bytes:
        """Return data as one chunk."""
        if data is not self._data:
            self._data = data
            self._framed = b"%x\r\n%b\r\n" % (len(data), data)
        return self._framed


class DirectStream:
    """The direct way to one response's client. It ends with the response: the socket may then carry another."""

    __slots__ = ("_body", "_framing", "_inbox", "_socket")

    def __init__(self, inbox: Inbox, body: BodyWriter, socket: Socket, framing: ChunkFraming) -> None:
        self._inbox = inbox
        self._body = body
        self._socket = socket
        self._framing = framing

    @property
    def direct(self) -> bool:
        """Whether `write` may be used, now that the response's head was sent."""
        return self._body.chunked and not self._inbox.ended

    def write(self, data: bytes) -> bool:
        """Write a piece of the body, in one system call and without a checkpoint.

        Returns:
            Whether it was taken: all or nothing. What of it the socket has no room for is kept and sent in order, and
            until then nothing more is taken; see `wait_writable`.

        Raises:
            ClientGoneError: the client has left, or has the whole response.
            RuntimeError: not `direct`.
        """
        if self._inbox.ended:
            raise ClientGoneError("the client has left, or has the whole response")
        if not self._body.chunked:
            raise RuntimeError("the body of this response can't be written directly")
        # An empty chunk would be the end of the body.
        return not data or self._socket.write_nowait(self._framing.frame(data))

    async def wait_writable(self) -> None:
        """Wait until `write` takes something again.

        Raises:
            ClientGoneError: the client has left, or took nothing for `write_stall_s`.
        """
        await self._socket.wait_writable()

    def abort(self) -> None:
        """Reset the client's socket at once, unless it has the whole response. Idempotent."""
        if not self._inbox.ended:
            self._socket.abort()

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, synchronously, when the client leaves or has the whole response."""
        self._inbox.call_when_ended(callback)
