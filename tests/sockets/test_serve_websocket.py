"""`serve_websocket`: chats straight from a Trio listener, for our own client, trio-websocket's and raw bytes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from proxy import Fault, open_proxy
from raw import wait_for
from test_client import EVENTS, QUICK, Mixed
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    wrap_client_stream,
)

from penstock import Hub, Turn, open_client, open_hub, serve_websocket
from penstock.client import Closing, Message, Received, Snapshot
from penstock.errors import RequestRefusedError, StreamLostError
from penstock.limits import ConnectionLimits, Limits, ServerLimits
from penstock.metrics import Counters
from penstock.wire.assembly import assemble


class Served:
    """A hub with a listener, and what counts its connections."""

    def __init__(self, hub: Hub, port: int, metrics: Counters, nursery: trio.Nursery) -> None:
        self.hub = hub
        self.metrics = metrics
        self.nursery = nursery
        self.http = f"http://127.0.0.1:{port}"
        self.url = f"ws://127.0.0.1:{port}/any/path"

    def sockets(self) -> int:
        """Connections that are open."""
        return self.metrics.get("connections_open")


@asynccontextmanager
async def serving(answer: Any, **options: Any) -> AsyncIterator[Served]:
    """Serve a producer; the hub drains when the block ends."""
    metrics = Counters()
    async with open_hub(limits=options.get("limits", Limits())) as hub, trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(partial(serve_websocket, hub, listener, answer, metrics=metrics, **options))
        yield Served(hub, port, metrics, nursery)
        with trio.fail_after(3):
            await hub.drain(1)


@asynccontextmanager
async def websocket(served: Served, **options: Any) -> AsyncIterator[WebSocketConnection]:
    """Open a WebSocket of trio-websocket's, which leaves its stream open where the server closes first."""
    port = int(served.http.rpartition(":")[2])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
        yield await wrap_client_stream(nursery, stream, "test", "/any/path", **options)
        nursery.cancel_scope.cancel("the test is over")


async def ask(socket: WebSocketConnection, kind: str, request_id: str, **fields: Any) -> None:
    """Send a frame."""
    await socket.send_message(msgspec.json.encode({"type": kind, "requestId": request_id, **fields}).decode())


async def hear(socket: WebSocketConnection) -> dict[str, Any]:
    """Receive a frame."""
    with trio.fail_after(3):
        frame: dict[str, Any] = msgspec.json.decode(await socket.get_message())
    return frame


MESSAGE = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}


async def test_another_client_speaks_the_frames() -> None:
    async with serving(Mixed()) as served, websocket(served) as socket:
        await ask(socket, "send", "a", id="c", messages=[MESSAGE], trigger="submit-message")
        frames = [await hear(socket) for _ in range(EVENTS + 2)]
        assert [frame["type"] for frame in frames] == ["start", *["chunk"] * EVENTS, "end"]
        assert [frame["sequence"] for frame in frames[1:-1]] == list(range(EVENTS))
        assert {frame["requestId"] for frame in frames} == {"a"}
        await ask(socket, "resume", "b", id="c", after=frames[-3]["position"])
        assert [(await hear(socket))["type"] for _ in range(3)] == ["start", "chunk", "end"]
        await ask(socket, "stop", "d", id="c")
        assert (await hear(socket))["value"] == {"state": "finished"}
        await socket.ping()
        await socket.send_message("x")
        with pytest.raises(ConnectionClosed) as caught:
            await socket.get_message()
        reason = caught.value.reason
        assert reason is not None
        assert (reason.code, reason.reason) == (1008, "bad_frame")


async def test_our_client_needs_nothing_else() -> None:
    mixed = Mixed(0.001)
    async with serving(mixed) as served, open_client(served.url, limits=QUICK) as client:
        async with client.watch("c") as events:
            assert isinstance(await anext(events), Snapshot)
            async with client.send("c", "Hello") as stream:
                chunks = [event.chunk async for event in stream if isinstance(event, Received)]
            told = [await anext(events) for _ in range(EVENTS + 2)]
            assert isinstance(told[-1], Message)
        state = await client.state("c")
        assert state is not None
        assert assemble(chunks, "") == state["messages"][1]
        assert await client.state("nobody") is None
        assert await client.stop("c") == "finished"
        assert await client.turn("c", str(stream.turn_id)) == {
            **state["turn"],
            "message": state["messages"][-1],
        }
        with pytest.raises(RequestRefusedError):
            await client.approve("c", "x", True)
    assert mixed.runs == 1


@pytest.mark.parametrize("every", [1, 2, 5])
async def test_our_client_makes_good_what_is_cut(every: int) -> None:
    mixed = Mixed()
    async with (
        serving(mixed) as served,
        open_proxy(served.http, Fault("reset", after_events=every)) as proxy,
        open_client(proxy.url, transport="websocket", limits=QUICK) as client,
    ):
        async with client.send("c", "Hello") as stream:
            chunks = [event.chunk async for event in stream if isinstance(event, Received)]
        async with open_client(served.url) as straight:
            state = await straight.state("c")
        assert state is not None
        assert assemble(chunks, "") == state["messages"][1]
    assert mixed.runs == 1


@pytest.mark.parametrize(("restart", "reason", "code"), [(False, "drain", 1001), (True, "restart", 1012)])
async def test_a_drain_says_what_its_caller_says(restart: bool, reason: str, code: int) -> None:
    async with serving(Mixed()) as served, websocket(served) as socket:
        await ask(socket, "watch", "w", id="c")
        assert (await hear(socket))["event"] == "snapshot"
        with trio.fail_after(3):
            await served.hub.drain(1, restart=restart)
        assert (await hear(socket))["data"]["reason"] == reason
        while (frame := await hear(socket))["type"] != "closing":
            pass
        assert (frame["reason"], frame["reconnect"]) == (reason, True)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.get_message()
        assert caught.value.reason is not None
        assert (caught.value.reason.code, caught.value.reason.reason) == (code, reason)


async def test_it_drains_with_its_hub() -> None:
    """The turn that is followed ends; who only watches is told to come back; then it returns."""
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        await turn.data("x", 1)
        await go_on.wait()
        await turn.data("x", 2)

    async with open_hub() as hub:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_client(url, limits=QUICK) as client, open_client(url) as viewer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_websocket, hub, listener, answer)
                async with viewer.watch("other") as events, client.send("c", "Hello") as stream:
                    assert isinstance(await anext(events), Snapshot)
                    await anext(stream)
                    nursery.start_soon(hub.drain, 2)
                    closing = await anext(events)
                    assert isinstance(closing, Closing)
                    assert (closing.reason, closing.reconnect) == ("drain", True)
                    assert hub.statistics().turns_running == 1
                    with pytest.raises(OSError, match="connect"):
                        await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
                    go_on.set()
                    kinds = [event.chunk.kind async for event in stream if isinstance(event, Received)]
            assert kinds == ["data-x", "data-x", "finish"]


async def test_cancelling_it_closes_every_socket_and_no_turn() -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        await turn.data("x", 1)
        await go_on.wait()

    async with serving(answer) as served, open_client(served.url, limits=QUICK) as client:
        async with client.send("c", "Hello") as stream:
            await anext(stream)
            served.nursery.cancel_scope.cancel("it ends")
            with pytest.raises((StreamLostError, RequestRefusedError)):
                async for _ in stream:
                    pass
        assert served.hub.statistics().turns_running == 1
        go_on.set()


async def test_a_client_that_leaves_ends_its_connection_and_its_turn() -> None:
    left = trio.Event()

    async def answer(turn: Turn) -> None:
        try:
            await turn.data("x", 1)
            await trio.sleep_forever()
        finally:
            left.set()

    async with serving(answer, orphan_grace_s=0) as served:
        async with open_client(served.url) as client, client.send("c", "Hello") as stream:
            await anext(stream)
            assert served.sockets() == 1
        with trio.fail_after(2):
            await left.wait()
        await wait_for(lambda: served.sockets() == 0)


async def test_a_client_that_takes_nothing_is_cut() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(200):
                await text.write("x" * 100_000)

    limits = Limits(connection=ConnectionLimits(write_stall_s=0.3))
    async with serving(answer, limits=limits) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", int(served.http.rpartition(":")[2]))
        async with stream:
            await stream.send_all(HANDSHAKE)
            await stream.receive_some(1_000)
            frame = {"type": "send", "requestId": "a", "id": "c", "messages": [MESSAGE]}
            await stream.send_all(masked(msgspec.json.encode(frame)))
            await wait_for(lambda: served.sockets() == 1)
            with trio.fail_after(3):
                while served.sockets():
                    await trio.sleep(0.01)
        assert served.metrics.get("connections_closed", reason="write_stalled") == 1


async def test_a_client_that_answers_no_ping_is_cut() -> None:
    limits = Limits(connection=ConnectionLimits(keepalive_s=0.1), server=ServerLimits(pong_wait_s=0.3))
    async with serving(Mixed(), limits=limits) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", int(served.http.rpartition(":")[2]))
        async with stream, websocket(served) as alive:
            await stream.send_all(HANDSHAKE)
            await wait_for(lambda: served.sockets() == 2)
            with trio.fail_after(3):
                while served.sockets() == 2:
                    await trio.sleep(0.01)
            await alive.ping()
            assert served.sockets() == 1


HANDSHAKE = (
    b"GET /ws?sdk=7 HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
)


def masked(data: bytes) -> bytes:
    """A short text message of a client's, with a mask of zeros."""
    assert len(data) < 126
    return bytes([0x81, 0x80 | len(data)]) + bytes(4) + data


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: test\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (HANDSHAKE.replace(b"sdk=7", b"sdk=8"), b"400"),
        (HANDSHAKE.replace(b"host: test\r\n", b"host: test\r\norigin: https://evil.example\r\n"), b"403"),
        (HANDSHAKE.replace(b"host: test\r\n", b"host: test\r\norigin: https://good.example\r\n"), b"101"),
        (b"G", None),
    ],
)
async def test_what_is_no_client_of_ours_is_refused_and_harms_nobody(
    said: bytes, status: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(server=ServerLimits(head_s=0.3))
    with caplog.at_level(logging.WARNING, "penstock"):
        async with (
            serving(Mixed(), limits=limits, origins=["https://good.example"]) as served,
            open_client(served.url) as client,
        ):
            await client.state("c")
            stream = await trio.open_tcp_stream("127.0.0.1", int(served.http.rpartition(":")[2]))
            async with stream:
                await stream.send_all(said)
                seen = b""
                with trio.move_on_after(0.8) as scope:
                    try:
                        while data := await stream.receive_some():
                            seen += data
                    except trio.BrokenResourceError:
                        pass
            assert seen[9:12] == (status or b"")
            assert scope.cancelled_caught == (status == b"101"), "it was not hung up on"
            async with client.send("c", "Hello") as answer:
                assert len([event async for event in answer]) == EVENTS
    assert caplog.records == []


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (masked(b"x"), b"\x88\x0b\x03\xf0bad_frame"),
        (masked(b"\xff"), b""),
        (b"\xff\xff\xff", b""),
        (b"\x81\x01x", b""),
        (b"\x88\x80" + bytes(4), b"\x88\x00"),
        (b"\x89\x81" + bytes(4) + b"x", b"\x8a\x01x"),
    ],
)
async def test_bad_frames_end_their_own_connection(
    said: bytes, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """trio-websocket does not say which rule was broken, but it hangs up."""
    async with serving(Mixed()) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", int(served.http.rpartition(":")[2]))
        async with stream:
            await stream.send_all(HANDSHAKE)
            await stream.receive_some(1_000)
            await stream.send_all(said)
            seen = bytearray()
            with trio.fail_after(2):
                try:
                    while (len(seen) < len(answer) or not answer) and (data := await stream.receive_some()):
                        seen += data
                except trio.BrokenResourceError:
                    assert not answer
            assert seen == answer
        await wait_for(lambda: served.sockets() == 0)
    assert caplog.records == []


async def test_one_socket_too_many_is_told_to_try_later() -> None:
    async with (
        serving(Mixed(), limits=Limits(server=ServerLimits(websockets=1))) as served,
        websocket(served),
        websocket(served) as late,
    ):
        assert (await hear(late))["reason"] == "try_later"
        with pytest.raises(ConnectionClosed) as caught:
            await late.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1013


async def test_a_full_listener_refuses_with_a_sentence() -> None:
    limits = Limits(server=ServerLimits(connections=1))
    async with serving(Mixed(), limits=limits) as served, websocket(served):
        stream = await trio.open_tcp_stream("127.0.0.1", int(served.http.rpartition(":")[2]))
        async with stream:
            await stream.send_all(HANDSHAKE)
            answer = b"".join([bytes(data) async for data in stream])
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"\r\n\r\nThe server is full. Please try again.")


async def test_a_message_that_is_too_big_is_1009() -> None:
    limits = Limits(server=ServerLimits(websocket_message_bytes=1_000))
    async with serving(Mixed(), limits=limits) as served, open_client(served.url, limits=QUICK) as client:
        with pytest.raises(RequestRefusedError, match="1009"):
            async with client.send("c", "x" * 2_000):
                pass


async def test_a_subprotocol_that_is_offered_is_chosen() -> None:
    async with (
        serving(Mixed()) as served,
        websocket(served, subprotocols=["one", "two"]) as socket,
    ):
        assert socket.subprotocol == "one"
