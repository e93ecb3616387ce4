"""`scope["extensions"]["penstock.stream"]`: bytes to one client of an app, without waiting.

An ASGI `send` is a walk through the protocol, and awaits at every step. Once a response's head is sent, its body is a row
of chunks on a socket, and `write` puts one there: one system call. The bytes of the body are those that `send` would
have sent, and the two may be mixed in any order; the response still begins and ends with `send`.

On a WebSocket, once it is accepted, `write` takes text messages in the form that they have on the socket, as
`penstock.wire.websocket.text_message` makes them, or one `PING_FRAME`: a client that answers that with nothing for
`pong_wait_s` is hung up. Where compression was agreed upon, long messages are compressed.

A system call is the dearest part of a short answer, and a task the next. So `start` and `end` do what `send` does at both
ends of a response, each together with a piece of the body, in one write and without waiting. Where an app is wrapped in
something that has put a `send` of its own in between, it is to see both, and they refuse.

Under TLS, over HTTP/1.0, for a response whose length was announced, and on a WebSocket over HTTP/2, `direct` is False and
only `ping`, `abort` and `on_gone` are of use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from penstock.asgi import PING_FRAME
from penstock.errors import ClientGoneError
from penstock.server.apps import Inbox, Message
from penstock.server.deflate import Deflater
from penstock.wire.websocket import message_head, payloads, text_message

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]


class BodyWriter(Protocol):
    """The protocol of one client, as far as this file needs to know it."""

    direct: bool
    """Whether a chunked body or a WebSocket is under way, in clear text."""

    def start(self, send: object, status: int, headers: Headers, data: bytes) -> bool:
        """Start the response; see `DirectStream.start`."""

    def end(self, data: bytes) -> bool:
        """End the response; see `DirectStream.end`."""

    async def ping(self) -> None:
        """Send a ping on a WebSocket."""

    def ping_sent(self) -> None:
        """Note that a ping is on its way."""


class Socket(Protocol):
    """One client's socket."""

    def write_nowait(self, data: bytes) -> bool:
        """Write without waiting; False, and nothing is taken, while earlier bytes wait."""

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


def deflated(messages: bytes, deflater: Deflater) -> bytes:
    """Return text messages and pings with those compressed that gain by it. Source: RFC 7692 section 6."""
    return b"".join([_deflated(text, deflater) if text else PING_FRAME for text in payloads(messages)])


def _deflated(text: bytes, deflater: Deflater) -> bytes:
    data = deflater.deflate(text)
    # The first reserved bit says so.
    return text_message(text) if data is None else message_head(len(data), first=0xC1) + data


class DirectStream:
    """The direct way to the client of one response or WebSocket. It ends with it: the socket may then carry another."""

    __slots__ = ("_body", "_framing", "_inbox", "_socket")

    def __init__(self, inbox: Inbox, body: BodyWriter, socket: Socket, framing: Framing | None) -> None:
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
        if not self._socket.write_nowait(data if self._framing is None else self._framing.frame(data)):
            return False
        if data == PING_FRAME:
            self._body.ping_sent()
        return True

    def start(self, send: object, status: int, headers: Headers, data: bytes) -> bool:
        """Start the response, with the first piece of its body, instead of a `send`.

        Args:
            send: what the app was given.
            status: of the response.
            headers: of the response.
            data: the first piece; it may be empty.

        Returns:
            Whether it did, and is `direct` now. Else nothing was taken, and it is for `send`: where that is not the
            server's own, for a response that can't be direct, and on a socket where earlier bytes wait.

        Raises:
            ClientGoneError: the client has left.
            ValueError: a header that can't be sent.
        """
        return self._body.start(send, status, headers, data)

    def end(self, data: bytes) -> bool:
        """End the response, with the last piece of its body, instead of a `send`.

        Returns:
            Whether it did. Else nothing was taken, and it is for `send`: the end of a response that `send` has started,
            and while earlier bytes wait.

        Raises:
            ClientGoneError: the client has left.
        """
        return self._body.end(data)

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
