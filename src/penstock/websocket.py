"""A WebSocket of trio-websocket 0.12, either end, with what that library gets wrong kept inside.

What differs, and the test of `tests/sockets/test_websocket_guard.py` that says when the difference can go:

- Its reader raises where a ping comes while this end is closing (#184), or where the peer's close crosses ours, and would
  take the nursery down with it. Here the reader's exceptions end where it runs (`test_ping_while_closing`).
- It waits for ever for a handshake that the peer cuts off, for a pong or a closing handshake once its reader has ended,
  and for the end of a refusal without a length. Here the reader's end ends each wait (`test_cut_in_the_handshake`,
  `test_a_ping_ends_with_the_connection`, `test_a_refusal_without_a_length`).
- A send that is cancelled leaves half a frame, and the next one follows it. Here there is no next one
  (`test_cancelled_in_the_middle_of_a_message`).
- Closing a connection that the peer has closed leaves its socket open. Here it is always closed
  (`test_a_peer_that_closes_and_stays`).
- A server loses what a client sends before the handshake is answered, as no client may, and hangs up on a broken frame
  without a close code. That is so here, too.
- It stops answering pings while a message waits to be taken. Nothing can be done about that here: who receives has to do
  so at all times (`test_pongs_while_nobody_takes`).
"""

from __future__ import annotations

import logging
import re
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, cast

import h11
import trio
import trio_websocket

logger = logging.getLogger("penstock.websocket")

CLOSE_S = 1.0
"""How long the closing handshake may take. A peer that is there needs one round trip."""
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)[ \r\n]")
_STATUS_BYTES = 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class UpgradeRefusedError(Exception):
    """The server answered the handshake with another status than 101."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upgrade was refused with status {status}")
        self.status = status


class Closed(NamedTuple):
    """How a WebSocket ended."""

    code: int
    """The peer's close code; 1006 for a connection that broke."""
    reason: str


class _Stream(trio.abc.Stream):
    """A byte stream that remembers when bytes came, and how they began."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.inner = stream
        self.heard_at = trio.current_time()
        self.head = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self.inner.receive_some(max_bytes))
        self.heard_at = trio.current_time()
        if len(self.head) < _STATUS_BYTES:
            self.head = (self.head + data)[:_STATUS_BYTES]
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.inner.aclose()


class _Shelter:
    """What trio-websocket takes for a nursery: there its reader runs, and what it raises goes no further."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._over = False
        self._waits: weakref.WeakSet[trio.CancelScope] = weakref.WeakSet()
        self.fault: Exception | None = None
        """What the reader raised."""

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Run the reader."""
        self._nursery.start_soon(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        try:
            await reader()
        except Exception as exc:
            self.fault = exc
            logger.debug("the reader of a WebSocket has ended: %r", exc)
        finally:
            self._over = True
            for scope in list(self._waits):
                scope.cancel("nothing more will be read")

    def cut(self, wait_s: float = float("inf")) -> trio.CancelScope:
        """Return a scope that ends with the reader, or when the time is up."""
        scope = trio.CancelScope(deadline=trio.current_time() + wait_s)
        if self._over:
            scope.cancel("nothing more will be read")
        self._waits.add(scope)
        return scope


class WebSocket:
    """One end. Send from one task, and receive in another, which must go on until `receive` raises."""

    def __init__(
        self, connection: trio_websocket.WebSocketConnection, stream: _Stream, shelter: _Shelter
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._shelter = shelter
        self._ruined = False
        """Whether half a frame was sent."""

    @property
    def heard_at(self) -> float:
        """When bytes came last, by Trio's clock: of a message, a ping or a pong."""
        return self._stream.heard_at

    async def send(self, text: str) -> None:
        """Send a text message. Cancelled, nothing can be sent any more.

        Raises:
            trio.BrokenResourceError: if the connection has ended, or was cut in the middle of a message.
        """
        await self._whole(lambda: self._connection.send_message(text))

    async def ping(self) -> None:
        """Send a ping and wait for its pong, or for the connection's end. Cancelled, nothing can be sent any more.

        Raises:
            trio.BrokenResourceError: as `send`.
        """
        with self._shelter.cut():
            await self._whole(self._connection.ping)

    async def _whole(self, send: Callable[[], Awaitable[None]]) -> None:
        if self._ruined:
            raise trio.BrokenResourceError("the last message was cut in the middle")
        try:
            await send()
        except trio.Cancelled:
            self._ruined = True
            raise
        except Exception as exc:
            raise trio.BrokenResourceError("the connection has ended") from exc

    async def receive(self) -> str | bytes | Closed:
        """Wait for a message, or for how the connection ended. Cancelling it loses nothing."""
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            if exc.reason is None:
                return Closed(1006, "")
            return Closed(int(exc.reason.code), exc.reason.reason or "")

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close, politely where that can be done within a second; the socket is closed in any case."""
        try:
            if not self._ruined:
                with self._shelter.cut(CLOSE_S):
                    await self._connection.aclose(code, reason)
        except Exception as exc:
            logger.debug("a WebSocket could not be closed politely: %r", exc)
        finally:
            await trio.aclose_forcefully(self._stream)

    def reset_on_close(self) -> None:
        """Have the socket's closing drop what waits in it, for a peer that takes nothing."""
        inner = self._stream.inner
        transport = inner.transport_stream if isinstance(inner, trio.SSLStream) else inner
        if isinstance(transport, trio.SocketStream):
            try:
                transport.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass  # It is closed already.


async def connect(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    *,
    host: str,
    target: str,
    headers: Sequence[tuple[bytes, bytes]],
    message_chars: int,
) -> WebSocket:
    """Shake hands over a stream that is connected to a server.

    Args:
        nursery: where the connection is read, until it ends or the nursery is cancelled. No exception comes of it.
        stream: closed with the WebSocket; the caller's to close where this raises.
        host: the header of that name.
        target: path and query.
        headers: more of them.
        message_chars: a longer message ends the connection with 1009.

    Raises:
        UpgradeRefusedError: another status than 101.
        trio.BrokenResourceError: there was no answer, or none that can be understood.
        ValueError: a header can't be sent.
    """
    kept, shelter = _Stream(stream), _Shelter(nursery)
    connection = None
    with shelter.cut():
        connection = await trio_websocket.wrap_client_stream(
            cast("trio.Nursery", shelter),
            cast("trio.SocketStream", kept),
            host,
            target,
            extra_headers=list(headers),
            max_message_size=message_chars,
            receive_buffer_size=None,
        )
    if connection is None:
        if not kept.head and isinstance(shelter.fault, h11.LocalProtocolError):
            raise ValueError("a header can't be sent") from shelter.fault
        status = _STATUS.match(kept.head)
        if status is not None and int(status[1]) != 101:
            raise UpgradeRefusedError(int(status[1]))
        raise trio.BrokenResourceError("the server cut the connection in the handshake")
    return WebSocket(connection, kept, shelter)


class Handshake:
    """A client's request for a WebSocket: `accept` it or `refuse` it."""

    def __init__(self, request: trio_websocket.WebSocketRequest, stream: _Stream, shelter: _Shelter) -> None:
        self._request = request
        self._stream = stream
        self._shelter = shelter

    @property
    def target(self) -> str:
        """Path and query."""
        return self._request.path

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Its headers, in lower case, without `host` and those of the handshake itself."""
        return list(self._request.headers)

    @property
    def subprotocols(self) -> tuple[str, ...]:
        """What the client proposes."""
        return self._request.proposed_subprotocols

    async def accept(self, subprotocol: str | None) -> WebSocket:
        """Answer with 101.

        Raises:
            trio.BrokenResourceError: the client has left.
        """
        try:
            connection = await self._request.accept(subprotocol=subprotocol)
        except Exception as exc:
            raise trio.BrokenResourceError("the client has left") from exc
        return WebSocket(connection, self._stream, self._shelter)

    async def refuse(self, status: int, sentence: str) -> None:
        """Answer with a status and one sentence."""
        try:
            await self._request.reject(
                status,
                extra_headers=[(b"content-type", b"text/plain; charset=utf-8")],
                body=sentence.encode(),
            )
        except Exception as exc:
            logger.debug("a client did not wait for its refusal: %r", exc)


async def accept(nursery: trio.Nursery, stream: trio.abc.Stream, *, message_chars: int) -> Handshake | None:
    """Wait for a client's handshake; None if it left, or spoke of something else.

    Args:
        nursery: as for `connect`.
        stream: closed with the WebSocket; the caller's to close until there is one.
        message_chars: a longer message ends the connection with 1009.
    """
    kept, shelter = _Stream(stream), _Shelter(nursery)
    with shelter.cut():
        request = await trio_websocket.wrap_server_stream(
            cast("trio.Nursery", shelter), kept, max_message_size=message_chars, receive_buffer_size=None
        )
        return Handshake(request, kept, shelter)
    return None
