"""Writes: in order, never stuck for longer than they may be, and never the server's only occupation."""

from __future__ import annotations

import re
import socket

import pytest
import trio
from hypercorn.config import Config
from raw import GET, Receive, Scope, Send, open_server, start_stream, wait_for

from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits
from penstock.metrics import NopMetrics
from penstock.server.drain import Drain
from penstock.server.peer import Peer
from penstock.server.service import Service
from penstock.server.tcp import TcpStream

BIG = 8 << 20
"""More than any socket holds."""


@pytest.mark.parametrize("kernel_helps", [True, False])
async def test_a_client_that_reads_nothing_is_reset(
    kernel_helps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `write_stall_s`; the app is told in both ways, and another stream goes on meanwhile."""
    if not kernel_helps:
        monkeypatch.delattr(socket, "TCP_USER_TIMEOUT", raising=False)
    ends: list[str] = []

    async def write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        if scope["path"] == "/tick":
            while True:
                await send({"type": "http.response.body", "body": b"tick", "more_body": True})
                await trio.sleep(0.01)
        with pytest.raises(ClientGoneError):
            await send({"type": "http.response.body", "body": bytes(BIG), "more_body": True})
        ends.append("send")
        while (await receive())["type"] != "http.disconnect":
            pass
        ends.append("receive")

    async with open_server(write, limits=ServerLimits(write_stall_s=0.2, drain_s=0.1)) as server:
        other = await server.connect(b"GET /tick HTTP/1.1\r\nhost: test\r\n\r\n")
        started = trio.current_time()
        client = await server.connect(GET)
        while len(ends) < 2:
            await other.read_until(b"tick")
            assert trio.current_time() - started < 2
        assert ends == ["send", "receive"]
        assert trio.current_time() - started > 0.15
        if not kernel_helps:
            assert server.metrics.get("server_write_stalls") == 1
        assert (await client.read_to_end())[1] == "reset"
        await other.read_until(b"tick")


async def test_nothing_is_written_after_the_end() -> None:
    """A write after the polite close raises, and does not cut short the time the peer has to hear the last words."""
    ours, theirs = socket.socketpair()
    limits = ServerLimits(linger_s=0.1)
    service = Service(
        app=unused,
        limits=limits,
        metrics=NopMetrics(),
        drain=Drain(1),
        config=Config(),
        state={},
        http2=False,
        deflater=None,
        tls=None,
    )
    peer = Peer(service, TcpStream(ours), None)
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.run)
            await trio.testing.wait_all_tasks_blocked()
            await peer.write(b"last words")
            peer.close(linger=True)
            with pytest.raises(ClientGoneError):
                await peer.write(b"more")
            closed_at = trio.current_time()
            await wait_for(lambda: peer.gone)
            assert trio.current_time() - closed_at > 0.05
        assert theirs.recv(100) == b"last words"
        assert theirs.recv(100) == b""


async def unused(scope: Scope, receive: Receive, send: Send) -> None:
    """Never called."""


async def test_a_slow_reader_is_not_cut() -> None:
    """Only a write of which the peer takes nothing is a stall."""

    async def write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await send({"type": "http.response.body", "body": bytes(2 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(write, limits=ServerLimits(write_stall_s=0.3, drain_s=0.1)) as server:
        client = await server.connect(GET, receive_buffer=4096)
        started = trio.current_time()
        seen = 0
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await client.stream.receive_some(16 << 10)
            seen += len(data)
            tail = (tail + data)[-10:]
            if trio.current_time() - started < 0.6:
                await trio.sleep(0.02)
        assert seen > 2 << 20
        assert trio.current_time() - started > 0.5


async def test_abort_resets_at_once_and_frees_a_stuck_send() -> None:
    freed_at: list[float] = []
    freed_after: list[float] = []

    async def write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        abort = scope["extensions"]["penstock.stream"].abort
        async with trio.open_nursery() as nursery:

            async def stuck() -> None:
                with pytest.raises(ClientGoneError):
                    await send({"type": "http.response.body", "body": bytes(BIG), "more_body": True})
                freed_at.append(trio.current_time())

            nursery.start_soon(stuck)
            await trio.sleep(0.05)
            assert not freed_at
            aborted_at = trio.current_time()
            abort()
            abort()
        freed_after.append(freed_at[0] - aborted_at)
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    async with open_server(write) as server:
        client = await server.connect(GET)
        await wait_for(lambda: bool(freed_after))
        assert freed_after[0] < 0.5
        assert (await client.read_to_end())[1] == "reset"
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_app_errors") == 0


async def test_a_cancelled_send_returns_at_once_and_nothing_is_lost_or_doubled() -> None:
    """Hypercorn shields it without a deadline. Here its bytes are written all the same, before those of later sends."""
    waited: list[float] = []

    async def write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        for letter in b"abc":
            started = trio.current_time()
            with trio.move_on_after(0.02):
                await send({"type": "http.response.body", "body": bytes([letter]) * BIG, "more_body": True})
            waited.append(trio.current_time() - started)
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(write) as server:
        client = await server.connect(GET)
        await wait_for(lambda: len(waited) == 3)
        assert max(waited) < 0.5
        data = bytearray()
        while not data.endswith(b"last\r\n0\r\n\r\n"):
            chunk = await client.stream.receive_some(1 << 20)
            assert chunk, "the response was cut"
            data += chunk
        _, _, body = data.partition(b"first\r\n")
        for letter in b"abc":
            head, body = body[: len(b"800000\r\n")], body[len(b"800000\r\n") :]
            assert int(head, 16) == BIG
            assert body[:BIG] == bytes([letter]) * BIG
            body = body[BIG + 2 :]
        assert body == b"4\r\nlast\r\n0\r\n\r\n"


async def test_writes_of_two_tasks_keep_their_order() -> None:
    """Also when the one waits for a full socket and the other comes later with less."""
    order: list[int] = []

    async def write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)

        async def one(number: int) -> None:
            order.append(number)
            body = bytes([65 + number]) * (BIG // 8 if number % 2 == 0 else 1)
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        await send({"type": "http.response.body", "body": b""})

    async with open_server(write) as server:
        client = await server.connect(GET)
        await wait_for(lambda: len(order) == 8)
        _, _, body = await client.read_response()
        runs = [match[0] for match in re.finditer(rb"A+|B+|C+|D+|E+|F+|G+|H+", body.removeprefix(b"first"))]
        assert [run[0] for run in runs] == [65 + number for number in order]
        assert sorted(map(len, runs)) == [1] * 4 + [BIG // 8] * 4


async def test_an_app_that_never_waits_does_not_hold_the_others() -> None:
    """A client that takes all at once must not make `send` a loop without a scheduler pass."""

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        while scope["path"] == "/flood":
            await send({"type": "http.response.body", "body": b".", "more_body": True})
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(flood) as server:
        client = await server.connect(b"GET /flood HTTP/1.1\r\nhost: test\r\n\r\n")
        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                await client.read_until(b"first")
                nursery.start_soon(client.read_to_end)
                for _ in range(5):
                    assert (await server.get())[2] == b"firstlast"
                nursery.cancel_scope.cancel()
