"""A WebSocket as a connection's transport, and as the server's direct stream: who hears of the end, once, and of what."""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import lanes
import pytest
import trio
import trio.testing
from chat_socket import ChatSocket, chat_server, connect, handshake
from raw import TestServer, open_server, wait_for
from wsproto.events import CloseConnection, TextMessage

from penstock import AsgiWebSocket, CloseReason, Turn, chat_app, open_connection
from penstock.asgi import PING_FRAME, Receive, Scope, Send
from penstock.errors import ClientGoneError
from penstock.limits import ConnectionLimits, ServerLimits
from penstock.testing import MemoryTransport
from penstock.wire.websocket import text_message

LIMITS = ServerLimits(linger_s=0.2, drain_s=0.3, abort_s=0.1)


class Connected:
    """An app that holds a connection and notes how it ended."""

    def __init__(self, *, reads: bool = True, writes: bool = False) -> None:
        self.reads = reads
        self.writes = writes
        self.ends: list[tuple[CloseReason, tuple[int, str] | None]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        transport = AsgiWebSocket(scope, send)
        open_it = functools.partial(open_connection, opening=b"", ending=b"", keepalive_frame=PING_FRAME)
        async with open_it(transport) as connection:
            connection.on_close(lambda reason: self.ends.append((reason, transport.client_close)))
            while self.writes:
                await connection.send_frame(text_message(b'{"a":1}'))
                await trio.sleep(0.001)
            while not self.reads:
                await trio.sleep_forever()
            while (message := await receive())["type"] != "websocket.disconnect":
                pass
            transport.client_left(message)


LEAVING: dict[str, tuple[bytes, tuple[int, str]]] = {
    "with a code of its own": (b"\x88\x85\0\0\0\0\x0f\xa1bye", (4001, "bye")),
    "without a code": (b"\x88\x80\0\0\0\0", (1005, "")),
    "normally, after messages": (b"\x81\x82\0\0\0\0{}" * 50 + b"\x88\x82\0\0\0\0\x03\xe8", (1000, "")),
    "by breaking a rule": (b"\x83\x80\0\0\0\0", (1002, "Invalid opcode 0x3")),
    "by talking too much": (b"\x8a\x80\0\0\0\0" * 300, (1008, "too_many_frames")),
    "without a word": (b"", (1006, "")),
}


# Only our own server tells an app that does not ask.
@pytest.mark.parametrize(("fast", "writes"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize("case", LEAVING)
async def test_on_close_hears_once_how_the_client_left(case: str, fast: bool, writes: bool) -> None:
    data, close = LEAVING[case]
    app = Connected(writes=writes)
    async with open_server(app if fast else lanes.fallback(app), limits=LIMITS) as server:
        client = await connect(server)
        await client.raw.send(data)
        if not data:
            client.raw.reset()
        await wait_for(lambda: bool(app.ends))
        await trio.sleep(0.02)
        assert app.ends == [(CloseReason.client_gone, close)]
        assert server.metrics.get("server_app_errors") == 0


async def test_an_app_that_neither_reads_nor_writes_hears_of_the_end() -> None:
    app = Connected(reads=False)
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        await client.say(TextMessage(data="unread"))
        await client.say(CloseConnection(code=4002))
        await wait_for(lambda: app.ends == [(CloseReason.client_gone, (4002, ""))])


async def test_while_the_client_is_there_it_has_not_closed() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        transport = AsgiWebSocket(scope, send)
        async with open_connection(transport, opening=b"", ending=b"") as connection:
            seen.append(transport.client_close)
            await connection.aclose(CloseReason.slow_consumer)
            assert connection.close_reason is CloseReason.slow_consumer

    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        assert await client.end() == (4429, "slow_consumer")
        assert seen == [None]
        await wait_for(lambda: server.metrics.get("server_connections") == 0)


@pytest.mark.parametrize("reason", list(CloseReason))
async def test_the_table_of_reasons_can_be_said(reason: CloseReason) -> None:
    """Each has a code that a close frame may carry, or is one that nobody can be told: then the client is cut."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        async with open_connection(AsgiWebSocket(scope, send), opening=b"", ending=b"") as connection:
            await receive()
            await connection.aclose(reason)
        assert connection.close_reason is reason

    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        await client.say(TextMessage(data="close"))
        assert await client.end() == ((1006, "") if reason.code is None else (reason.code, reason.value))


async def say_directly(scope: Scope, send: Send) -> None:
    """Write past `send`, waiting for room."""
    stream = scope["extensions"]["penstock.stream"]
    while not stream.write(text_message(b'{"n":1}')):
        await stream.wait_writable()


async def say(scope: Scope, send: Send) -> None:
    """Write with `send`."""
    await send({"type": "websocket.send", "text": '{"n":1}'})


@pytest.mark.parametrize("how", [say, say_directly])
@pytest.mark.parametrize("leaves", ["close", "reset", "politely"])
async def test_a_handler_that_only_writes_ends_when_its_flooding_client_leaves(
    how: Callable[[Scope, Send], Awaitable[None]], leaves: str
) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await how(scope, send)
                await trio.sleep(0.05)
        except ClientGoneError:
            ended.set()

    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        with trio.move_on_after(0.1):
            for _ in range(180):
                await client.say(TextMessage(data="x" * 5_000))
        if leaves == "politely":
            with trio.move_on_after(0.05):
                await client.say(CloseConnection(code=1000))
        client.raw.reset() if leaves == "reset" else client.raw.close()
        with trio.fail_after(1):
            await ended.wait()
        await wait_for(lambda: server.metrics.get("server_connections") == 0)


async def test_nothing_follows_a_close() -> None:
    """A writer beside the one who closes, and a client that breaks a rule in the middle of all."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        stream = scope["extensions"]["penstock.stream"]
        text = text_message(b'{"type":"n","requestId":"%b"}' % (b"x" * 200_000))

        async def write() -> None:
            try:
                while True:
                    # More than the socket takes: the close frame has to wait, and so have we.
                    if not stream.write(text):
                        await stream.wait_writable()
            except ClientGoneError:
                pass
            except RuntimeError:
                assert scope["query_string"] == b"ours"  # else the app could not have known

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            if scope["query_string"] == b"ours":
                await trio.sleep(0.02)
                await send({"type": "websocket.close", "code": 4000})

    async with open_server(app, limits=LIMITS) as server:
        for query, code in (("ours", 4000), ("theirs", 1002)) * 5:
            client = ChatSocket(await server.connect(handshake(f"/api/chat/ws?{query}"), receive_buffer=4096))
            await client.accepted()
            await trio.sleep(0.03)
            if query == "theirs":
                await client.raw.send(b"\x83\x80\0\0\0\0")
            assert (await client.end())[0] == code
            rest = client.protocol._proto._frame_decoder.buffer
            data, _ = await client.raw.read_to_end()
            assert bytes(rest.buffer) + data == b""
            client.raw.close()
        assert server.metrics.get("server_app_errors") == 0


@pytest.mark.parametrize(("data", "fits"), [("x" * 9_990, True), ("€" * 3_330, True), ("€" * 4_000, False)])
async def test_message_size_is_in_bytes(data: str, fits: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "text": json.dumps(message["type"])})

    async with open_server(app, limits=ServerLimits(websocket_message_bytes=10_000, drain_s=0.1)) as server:
        client = await connect(server)
        await client.say(TextMessage(data=data[:1_000], message_finished=False))
        await client.say(TextMessage(data=data[1_000:]))
        if fits:
            await client.raw.stream.receive_some(1)
        else:
            assert (await client.end())[0] == 1009


async def count_tasks(server: TestServer, opening: Callable[[], Awaitable[object]], count: int = 50) -> float:
    """Open clients, and count the tasks that each one keeps."""

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    before = tasks()
    for _ in range(count):
        await opening()
    await trio.sleep(0.1)
    return (tasks() - before) / count


async def test_an_idle_websocket_has_as_many_tasks_as_an_idle_viewer() -> None:
    """Its client's reader, and the app."""

    async def answer(turn: Turn) -> None:
        raise NotImplementedError

    async with chat_server(chat_app(answer)) as server:

        async def websocket() -> None:
            await connect(server, sec_websocket_extensions="permessage-deflate; client_max_window_bits")

        async def viewer() -> None:
            client = await server.connect(b"GET /api/chat/c/watch HTTP/1.1\r\nhost: x\r\n\r\n")
            await client.read_until(b"snapshot")

        assert await count_tasks(server, viewer) == 2
        assert await count_tasks(server, websocket) == 2


@pytest.mark.parametrize("rides", [False, True])
async def test_a_large_frame_is_not_passed_by_small_ones_for_ever(rides: bool) -> None:
    """It needs all the room there is, which a steady stream of small ones would never leave."""
    transport = MemoryTransport()
    sent: list[str] = []
    limits = ConnectionLimits(queue_bytes=1_000)
    async with open_connection(transport, limits=limits, opening=b"", ending=b"") as connection:
        transport.reading = trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:

            async def small() -> None:
                while "large" not in sent:
                    if not (rides and connection.offer(b"s" * 400)):
                        await connection.send_frame(b"s" * 400)
                    sent.append("small")
                    await trio.lowlevel.checkpoint()

            async def large() -> None:
                await connection.send_frame(b"L" * 900)
                sent.append("large")

            nursery.start_soon(small)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(large)
            await trio.testing.wait_all_tasks_blocked()
            assert sent == ["small"] * 2
            for _ in range(6):
                # The client takes one write.
                reading, transport.reading = transport.reading, trio.Event()
                reading.set()
                await trio.testing.wait_all_tasks_blocked()
            assert "large" in sent
            transport.reading.set()
            sent.append("large")
