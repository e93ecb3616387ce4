"""What trio-websocket gets wrong, and that it stays inside `penstock.websocket`. The peer is wsproto, byte by byte."""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

from penstock.websocket import Closed, UpgradeRefusedError, WebSocket, accept, connect

FOREVER = 2
"""Seconds after which something that ought to have ended has not."""


class Peer:
    """A server on the other end of a pair of TCP streams, that says what it is told to."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.protocol = Connection(ConnectionType.SERVER)

    async def read_head(self) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await self.stream.receive_some()
        return head

    async def shake_hands(self) -> None:
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", await self.read_head())
        assert key is not None
        await self.stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-accept: " + generate_accept_token(key[1]) + b"\r\n\r\n"
        )

    async def say(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self.protocol.send(event) for event in events))

    async def hear(self) -> Event:
        while True:
            for event in self.protocol.events():
                return event
            data = await self.stream.receive_some()
            if not data:
                raise EOFError
            self.protocol.receive_data(bytes(data))

    async def gone(self) -> None:
        """Read until the client's socket is closed."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[trio.Nursery, trio.SocketStream, Peer]]:
    """Open a nursery that must survive, and two connected streams."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(5):
        async with listener, trio.open_nursery() as nursery:
            client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            server = await listener.accept()
            async with client, server:
                yield nursery, client, Peer(server)
                nursery.cancel_scope.cancel("the test is over")


async def upgrade(nursery: trio.Nursery, stream: trio.abc.Stream) -> WebSocket:
    return await connect(
        nursery, stream, host="test", target="/ws", headers=[(b"x", b"y")], message_chars=1_000_000
    )


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[trio.Nursery, WebSocket, Peer]]:
    async with pair() as (nursery, stream, peer):
        nursery.start_soon(peer.shake_hands)
        yield nursery, await upgrade(nursery, stream), peer


async def test_messages_go_both_ways_and_both_ends_close() -> None:
    async with connected() as (_nursery, websocket, peer):
        await websocket.send("é")
        assert await peer.hear() == TextMessage(data="é")
        await peer.say(TextMessage(data="ü"))
        assert await websocket.receive() == "ü"
        await peer.say(CloseConnection(code=4429, reason="slow_consumer"))
        assert await websocket.receive() == Closed(4429, "slow_consumer")
        with pytest.raises(trio.BrokenResourceError):
            await websocket.send("x")
        await websocket.aclose()


async def test_ping_while_closing() -> None:
    """The reader raises; nobody but it ends, and the socket is closed."""
    async with connected() as (nursery, websocket, peer):

        async def ping() -> None:
            assert isinstance(await peer.hear(), CloseConnection)
            await peer.stream.send_all(b"\x89\x01x")
            await peer.gone()

        nursery.start_soon(ping)
        started = trio.current_time()
        await websocket.aclose()
        assert trio.current_time() - started < 0.5


async def test_cut_in_the_handshake() -> None:
    for said in (b"", b"HTTP/1.1 101 Swi"):
        async with pair() as (nursery, stream, peer):

            async def cut(peer: Peer = peer, said: bytes = said) -> None:
                await peer.read_head()
                await peer.stream.send_all(said) if said else None
                await peer.stream.aclose()

            nursery.start_soon(cut)
            with trio.fail_after(FOREVER), pytest.raises(trio.BrokenResourceError):
                await upgrade(nursery, stream)


async def test_an_answer_that_is_no_http() -> None:
    async with pair() as (nursery, stream, peer):
        await peer.stream.send_all(b"220 smtp.example ESMTP\r\n\r\n")
        with trio.fail_after(FOREVER), pytest.raises(trio.BrokenResourceError):
            await upgrade(nursery, stream)


@pytest.mark.parametrize("length", [b"content-length: 2\r\n", b"", b"connection: close\r\n"])
async def test_a_refusal_without_a_length(length: bytes) -> None:
    async with pair() as (nursery, stream, peer):

        async def refuse() -> None:
            await peer.read_head()
            await peer.stream.send_all(b"HTTP/1.1 403 Forbidden\r\n" + length + b"\r\nNo")
            await peer.stream.aclose()

        nursery.start_soon(refuse)
        with trio.fail_after(FOREVER), pytest.raises(UpgradeRefusedError) as caught:
            await upgrade(nursery, stream)
        assert caught.value.status == 403


async def test_a_ping_ends_with_the_connection() -> None:
    async with connected() as (nursery, websocket, peer):

        async def leave() -> None:
            assert isinstance(await peer.hear(), Ping)
            await peer.stream.aclose()

        nursery.start_soon(leave)
        with trio.fail_after(FOREVER):
            await websocket.ping()
        assert await websocket.receive() == Closed(1006, "")


async def test_a_ping_is_answered() -> None:
    async with connected() as (nursery, websocket, peer):

        async def answer() -> None:
            event = await peer.hear()
            assert isinstance(event, Ping)
            await peer.say(event.response())

        nursery.start_soon(answer)
        before = websocket.heard_at
        await websocket.ping()
        assert websocket.heard_at > before


async def test_cancelled_in_the_middle_of_a_message() -> None:
    """What was sent is the beginning of one frame, and nothing follows it: not even a close frame."""
    async with connected() as (nursery, websocket, peer):
        scope = trio.CancelScope()

        async def send() -> None:
            with scope:
                await websocket.send("x" * 20_000_000)

        nursery.start_soon(send)
        seen = bytearray(await peer.stream.receive_some(14))
        scope.cancel("in the middle")
        await trio.testing.wait_all_tasks_blocked()
        assert scope.cancelled_caught
        with pytest.raises(trio.BrokenResourceError):
            await websocket.send("y")
        await websocket.aclose()
        try:
            while data := await peer.stream.receive_some():
                seen += data
        except trio.BrokenResourceError:
            pass
    assert 14 < len(seen) < 20_000_000
    key = seen[10:14]
    assert bytes(c ^ key[i % 4] for i, c in enumerate(seen[-50:], start=len(seen) - 64)) == b"x" * 50


async def test_a_peer_that_closes_and_stays() -> None:
    """It has sent its close frame, and leaves its socket open: ours is closed all the same."""
    async with connected() as (_nursery, websocket, peer):
        await peer.say(CloseConnection(code=1001))
        assert await websocket.receive() == Closed(1001, "")
        await websocket.aclose()
        with trio.fail_after(FOREVER):
            await peer.gone()


async def test_a_peer_that_answers_no_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.websocket.CLOSE_S", 0.2)
    async with connected() as (_nursery, websocket, _peer):
        started = trio.current_time()
        await websocket.aclose()
        assert 0.15 < trio.current_time() - started < 1


async def test_both_close_at_once() -> None:
    async with connected() as (_nursery, websocket, peer):
        await peer.say(CloseConnection(code=1001))
        await websocket.aclose(4000, "mine")
        with trio.fail_after(FOREVER):
            await peer.gone()


async def test_pongs_while_nobody_takes() -> None:
    """They stop, which is why a client takes at all times: this is what the library does, not what we want."""
    async with connected() as (_nursery, websocket, peer):
        await peer.say(*[TextMessage(data="x")] * 5, Ping(payload=b"p"))
        with trio.move_on_after(0.1) as scope:
            await peer.hear()
        assert scope.cancelled_caught
        for _ in range(5):
            await websocket.receive()
        assert isinstance(await peer.hear(), Pong)


@pytest.mark.parametrize("broken", [b"\xff\x00", b"\x81\x02\xff\xff", b"\x83\x00", b"\x88\x01x", b"\x81\xfe"])
async def test_frames_that_break_the_protocol_end_the_connection(broken: bytes) -> None:
    async with connected() as (nursery, websocket, peer):
        await peer.stream.send_all(broken)
        if broken == b"\x81\xfe":
            await peer.stream.send_eof()
        with trio.fail_after(FOREVER):
            assert isinstance(await websocket.receive(), Closed)
            nursery.start_soon(peer.gone)
            await websocket.aclose()


async def test_a_message_that_is_too_long_ends_the_connection() -> None:
    async with connected() as (nursery, websocket, peer):

        async def say() -> None:
            try:
                await peer.stream.send_all(b"\x81\x7f" + struct.pack("!Q", 2_000_000) + b"x" * 2_000_000)
            except trio.BrokenResourceError:
                pass  # It was not read to its end.

        nursery.start_soon(say)
        closed = await websocket.receive()
        assert isinstance(closed, Closed)
        assert closed.code == 1009
        await websocket.aclose()


async def test_a_header_that_cannot_be_sent() -> None:
    async with pair() as (nursery, stream, _peer):
        with pytest.raises(ValueError, match="header"):
            await connect(
                nursery, stream, host="test", target="/", headers=[(b"x", b"a\nb")], message_chars=1
            )


@pytest.mark.parametrize(
    "said", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01 tls", b"POST / HTTP/1.1\r\n\r\n"]
)
async def test_a_client_that_speaks_of_something_else_is_none(said: bytes) -> None:
    async with pair() as (nursery, stream, peer):
        if said:
            await peer.stream.send_all(said)
        await peer.stream.send_eof()
        with trio.fail_after(FOREVER):
            assert await accept(nursery, stream, message_chars=100) is None
