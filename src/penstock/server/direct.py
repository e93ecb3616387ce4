"""`scope["extensions"]["penstock.stream"]`: bytes to one client of an app, without waiting.

An ASGI `send` is a walk through the protocol, and awaits at every step. Once a response's head is sent, its body is a row
of chunks on a socket, and `write` puts one there: one system call. The bytes of the body are those that `send` would
have sent, and the two may be mixed in any order; the response still begins and ends with `send`.

On a WebSocket, once it is accepted, `write` takes text messages, each ended by a line feed, which JSON never has inside.
An empty line is a ping, and a client that answers it with nothing for `pong_wait_s` is hung up. Where compression was
agreed upon, long messages are compressed.

A system call is the dearest part of a short answer. So `http.response.start` may have a key `penstock.hold`, for an app
that is about to write: then the head waits for the body's first bytes; and what is given to `hold` waits for the body's end.

Under TLS, over HTTP/1.0, for a response whose length was announced, and on a WebSocket over HTTP/2, `direct` is False and
only `ping`, `abort` and `on_gone` are of use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from penstock.asgi import PING_LINE
from penstock.errors import ClientGoneError
from penstock.server.apps import Inbox, Message
from penstock.server.deflate import Deflater


class BodyWriter(Protocol):
    """The protocol of one client, as far as this file needs to know it."""

    direct: bool
    """Whether a chunked body or a WebSocket is under way, in clear text."""

    async def ping(self) -> None:
        """Send a ping on a WebSocket."""

    def ping_sent(self) -> None:
        """Note that a ping is on its way."""


class Socket(Protocol):
    """One client's socket."""

    def write_nowait(self, data: bytes) -> bool:
        """Write without waiting; False, and nothing is taken, while earlier bytes wait."""

    def hold(self, data: bytes) -> bool:
        """Keep bytes for the next write; False, and they are not kept, while earlier bytes wait."""

    async def wait_writable(self) -> None:
        """Wait until `write_nowait` takes bytes again."""

    def abort(self) -> None:
        """Reset the socket at once."""


class Framing:
    """Puts bytes into frames. The last are kept: a fan-out writes one and the same to a thousand clients."""

    __slots__ = ("_data", "_encode", "_framed")

    def __init__(self, encode: Callable[[bytes], bytes]) -> None:
        self._encode = encode
        self._data = self._framed = b""

    def frame(self, data: bytes) -> bytes:
        """Return data in its frames."""
        if data is not self._data:
            self._data = data
            self._framed = self._encode(data)
        return self._framed


def chunk(data: bytes) -> bytes:
    """Return data as one chunk of HTTP/1.1's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def messages(lines: bytes, deflater: Deflater | None = None) -> bytes:
    """Return lines as WebSocket text messages, and empty ones as pings. Source: RFC 6455 section 5.2."""
    each = lines.split(b"\n")[:-1]
    if deflater is not None:
        return b"".join([_message(line, deflater) for line in each])
    # A turn's end may bring a hundred thousand: those of usual length are a look into a table.
    return b"".join(
        [_HEADS[len(line)] + line if len(line) < _USUAL else _head(len(line)) + line for line in each]
    )


def _message(line: bytes, deflater: Deflater) -> bytes:
    deflated = deflater.deflate(line)
    # RFC 7692 section 6: the first reserved bit says so.
    return _head(len(line)) + line if deflated is None else _head(len(deflated), first=0xC1) + deflated


def _head(size: int, first: int = 0x81) -> bytes:
    if size < 126:
        return b"%c%c" % (first, size) if size else b"\x89\x00"
    if size < 1 << 16:
        return b"%c\x7e%b" % (first, size.to_bytes(2, "big"))
    return b"%c\x7f%b" % (first, size.to_bytes(8, "big"))


_USUAL = 1024
_HEADS = tuple(_head(size) for size in range(_USUAL))


class DirectStream:
    """The direct way to the client of one response or WebSocket. It ends with it: the socket may then carry another."""

    __slots__ = ("_body", "_framing", "_inbox", "_socket")

    def __init__(self, inbox: Inbox, body: BodyWriter, socket: Socket, framing: Framing) -> None:
        self._inbox = inbox
        self._body = body
        self._socket = socket
        self._framing = framing

    @property
    def direct(self) -> bool:
        """Whether `write` may be used, now that the response's head was sent, or the WebSocket accepted."""
        return self._body.direct and not self._inbox.ended

    def write(self, data: bytes) -> bool:
        """Write a piece of the body, or messages, in one system call and without a checkpoint.

        Returns:
            Whether it was taken: all or nothing. What of it the socket has no room for is kept and sent in order, and
            until then nothing more is taken; see `wait_writable`.

        Raises:
            ClientGoneError: the client has left, or has the whole response.
            RuntimeError: not `direct`.
        """
        if self._inbox.ended:
            raise ClientGoneError("the client has left, or has the whole response")
        if not self._body.direct:
            raise RuntimeError("this can't be written directly")
        if not data:
            return True  # An empty chunk would be the end of the body.
        if not self._socket.write_nowait(self._framing.frame(data)):
            return False
        if data == PING_LINE:
            self._body.ping_sent()
        return True

    def hold(self, data: bytes) -> bool:
        """Keep a piece of the body, to go out with what is written next, in one system call and in order.

        For the last piece, before the `send` that ends the response: nothing else is sure to follow.

        Returns:
            Whether it was taken. Not while earlier bytes wait, and not unless `direct`.
        """
        return self.direct and (not data or self._socket.hold(self._framing.frame(data)))

    @property
    def disconnect(self) -> Message | None:
        """The ASGI message that says how the client left; None while it is here."""
        return self._inbox.disconnect

    async def ping(self) -> None:
        """Send a ping on a WebSocket, direct or not; a client that answers with nothing for `pong_wait_s` is hung up.

        Raises:
            ClientGoneError: the client has left.
        """
        if self._inbox.ended:
            raise ClientGoneError("the client has left")
        await self._body.ping()

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
