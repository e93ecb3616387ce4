"""The direct way to a response's client: the bytes that `send` would have written, in the same order, to nobody else."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import test_server_tls
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import GET, RawClient, Receive, Scope, Send, TestServer, open_server, respond, start_stream, wait_for
from test_server_http2 import Http2Client
from test_server_websocket import HANDSHAKE

from penstock.asgi import DirectStream
from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits

Body = list[tuple[str, bytes]]
"""Pieces of a body, each with the way it goes."""

LAST_GET = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
BIG = 8 << 20
"""More than any socket holds."""

certificate = test_server_tls.certificate


def direct_of(scope: Scope) -> DirectStream:
    """The extension."""
    stream: DirectStream = scope["extensions"]["penstock.stream"]
    return stream


async def begin(send: Send) -> None:
    """Send the head of a chunked response."""
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def end(send: Send) -> None:
    """End the response."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def put(scope: Scope, send: Send, way: str, piece: bytes) -> None:
    """Write a piece of the body in one way or the other, waiting for room."""
    if way == "send":
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        return
    stream = direct_of(scope)
    assert stream.direct
    while not stream.write(piece):
        await stream.wait_writable()


class Playing:
    """An app that answers with the pieces that it is given."""

    def __init__(self) -> None:
        self.body: Body = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        for way, piece in self.body:
            await put(scope, send, way, piece)
        await end(send)


@asynccontextmanager
async def one_client(
    app: Callable[[Scope, Receive, Send], Awaitable[None]], request: bytes = GET, **options: Any
) -> AsyncIterator[tuple[TestServer, RawClient]]:
    """Serve an app, and connect."""
    receive_buffer = options.pop("receive_buffer", None)
    async with open_server(app, **options) as server:
        yield server, await server.connect(request, receive_buffer=receive_buffer)


def unchunked(body: bytes) -> bytes:
    """Take a body out of its chunks."""
    whole = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return whole
        assert rest[length : length + 2] == b"\r\n"
        whole, body = whole + rest[:length], rest[length + 2 :]


sizes = st.one_of(st.integers(0, 40), st.sampled_from([255, 256, 4095, 4096, 65535, 65536]), st.just(300_000))
pieces = st.lists(st.tuples(st.booleans(), sizes), max_size=12)


@given(pieces=pieces, receive_buffer=st.sampled_from([None, 4096]))
@settings(max_examples=25, deadline=None)
async def test_the_same_writes_are_the_same_bytes_in_any_mixture(
    pieces: list[tuple[bool, int]], receive_buffer: int | None
) -> None:
    app = Playing()
    texts = [bytes([97 + number]) * size for number, (_, size) in enumerate(pieces)]
    seen: dict[str, bytes] = {}
    async with open_server(app) as server:
        for how in ("send", "write", "both"):
            app.body = [
                (("write" if direct else "send") if how == "both" else how, text)
                for (direct, _), text in zip(pieces, texts, strict=True)
            ]
            client = await server.connect(LAST_GET, receive_buffer=receive_buffer)
            with trio.fail_after(10):
                data, ended = await client.read_to_end()
            assert ended == "eof"
            seen[how] = data.partition(b"\r\n\r\n")[2]
    assert seen["send"] == seen["write"] == seen["both"]
    assert unchunked(seen["send"]) == b"".join(texts)


async def test_one_piece_for_many_clients_is_framed_for_each() -> None:
    """The frame of the last piece is kept: it may go to nobody who was to get another."""
    streams: dict[str, DirectStream] = {}
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        streams[scope["path"]] = direct_of(scope)
        await done.wait()
        await end(send)

    async with open_server(app) as server:
        clients = [
            await server.connect(f"GET /{number} HTTP/1.1\r\nhost: x\r\n\r\n".encode()) for number in "012"
        ]
        await wait_for(lambda: len(streams) == 3)
        shared, other = b"shared" * 10, b"other"
        for path, piece in (
            *(("/0", shared), ("/1", shared), ("/1", other), ("/2", shared), ("/0", other), ("/0", other)),
            *(("/2", b"".join([other, b""])), ("/1", bytes(bytearray(shared)))),
        ):
            assert streams[path].write(piece)
        done.set()
        bodies = [(await client.read_response())[2] for client in clients]
    assert bodies == [shared + other * 2, shared + other + shared, shared + other]


async def test_a_full_socket_refuses_whole_pieces_and_loses_none() -> None:
    """What the kernel took a part of is sent to its end, once; what was refused was not sent at all."""
    refused = trio.Event()
    taken: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await begin(send)
        number = 0
        while stream.write(piece(number)):
            taken.append(number)
            number += 1
            assert number < 10_000
        for _ in range(3):
            assert not stream.write(b"never")
        refused.set()
        while len(taken) < number + 300:
            await stream.wait_writable()
            if stream.write(piece(len(taken))):
                taken.append(len(taken))
        await end(send)

    def piece(number: int) -> bytes:
        return b"%06d," % number * 1500

    async with one_client(app, receive_buffer=2048) as (_, client):
        with trio.fail_after(10):
            await refused.wait()
            # It stays so while nobody reads.
            before = len(taken)
            await trio.sleep(0.05)
            assert len(taken) == before
            status, _, body = await client.read_response()
    assert status == 200
    assert body == b"".join(map(piece, taken))
    assert taken == list(range(before + 300))


async def test_pieces_that_go_both_ways_keep_their_order_at_a_full_socket() -> None:
    began = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await begin(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, scope, send, "send", b"a" * BIG)
            await trio.testing.wait_all_tasks_blocked()
            assert not stream.write(b"b")  # it would be in the middle of the first
            nursery.start_soon(put, scope, send, "send", b"c" * 1000)
            await trio.testing.wait_all_tasks_blocked()
            began.set()
            await stream.wait_writable()
            assert stream.write(b"d")
        await end(send)

    async with one_client(app) as (_, client):
        with trio.fail_after(10):
            await began.wait()
            assert (await client.read_response())[2] == b"a" * BIG + b"c" * 1000 + b"d"


async def test_nothing_is_written_behind_an_end_that_waits_for_room() -> None:
    began = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await begin(send)
        assert stream.write(b"a" * BIG)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end, send)
            await trio.testing.wait_all_tasks_blocked()
            assert not stream.direct
            with pytest.raises(RuntimeError):
                stream.write(b"late")
            began.set()
            await stream.wait_writable()
            with pytest.raises((RuntimeError, ClientGoneError)):
                stream.write(b"late")

    async with one_client(app, LAST_GET) as (_, client):
        with trio.fail_after(10):
            await began.wait()
            assert (await client.read_response())[2] == b"a" * BIG
            assert await client.read_to_end() == (b"", "eof")


async def test_waiting_for_room_can_be_cancelled_and_ends_with_the_client() -> None:
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await begin(send)
        await stream.wait_writable()  # there is room
        assert stream.write(b"x" * BIG)
        with trio.move_on_after(0.01) as waiting:
            await stream.wait_writable()
        assert waiting.cancelled_caught
        ends.append("cancelled")
        with pytest.raises(ClientGoneError):
            await stream.wait_writable()
        with pytest.raises(ClientGoneError):
            stream.write(b"x")
        ends.append("gone")

    async with one_client(app) as (_, client):
        await wait_for(lambda: bool(ends))
        client.reset()
        await wait_for(lambda: len(ends) == 2)


async def test_a_client_that_takes_nothing_is_reset_in_time() -> None:
    """The server's own deadline holds for direct writes too."""
    gone_after: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await begin(send)
        began = trio.current_time()
        assert stream.write(b"x" * BIG)
        with pytest.raises(ClientGoneError):
            await stream.wait_writable()
        gone_after.append(trio.current_time() - began)

    async with one_client(app, limits=ServerLimits(write_stall_s=0.2, drain_s=0.1)) as (_, client):
        await wait_for(lambda: bool(gone_after))
        assert 0.15 < gone_after[0] < 1
        assert (await client.read_to_end())[1] == "reset"


async def test_a_dead_peer_raises_and_is_told_of_once() -> None:
    """By the write that finds it, before any reader does."""
    clients: list[RawClient] = []
    gone: list[str] = []
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await start_stream(send)
        stream.on_gone(lambda: gone.append("gone"))
        await wait_for(lambda: bool(clients))
        clients[0].reset()
        with pytest.raises(ClientGoneError):  # no checkpoint before it
            stream.write(b"x")
        assert gone == ["gone"]
        for _ in range(3):
            with pytest.raises(ClientGoneError):
                stream.write(b"x")
            stream.abort()
        with pytest.raises(ClientGoneError):
            await stream.wait_writable()
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        stream.on_gone(lambda: gone.append("told late"))
        done.set()

    async with open_server(app) as server:
        clients.append(await server.connect(GET))
        with trio.fail_after(2):
            await done.wait()
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert gone == ["gone", "told late"]
        assert server.metrics.get("server_app_errors") == 0
        assert server.metrics.get("server_connection_errors") == 0


def number_of(stream: Any) -> int:
    """The descriptor's number below a direct stream; the test is about what becomes of that number."""
    number: int = stream._socket._tcp._socket.fileno()
    return number


async def by_abort(stream: DirectStream, send: Send, client: RawClient) -> None:
    stream.abort()


async def by_the_end(stream: DirectStream, send: Send, client: RawClient) -> None:
    await end(send)


async def by_the_clients_leaving(stream: DirectStream, send: Send, client: RawClient) -> None:
    client.close()


async def by_reset(stream: DirectStream, send: Send, client: RawClient) -> None:
    client.reset()


@pytest.mark.parametrize("close", [by_abort, by_the_end, by_the_clients_leaving, by_reset])
@pytest.mark.parametrize("full", [False, True])
async def test_a_closed_descriptor_is_never_written_though_its_number_lives_on(
    close: Callable[[DirectStream, Send, RawClient], Awaitable[None]], full: bool
) -> None:
    """The next socket of the process gets the number: none of our bytes."""
    clients: list[RawClient] = []
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await start_stream(send)
        await wait_for(lambda: bool(clients))
        number = number_of(stream)
        if full:
            assert stream.write(b"x" * BIG)
            assert not stream.write(b"y")
        if full and close is by_the_end:
            with trio.move_on_after(0.01):  # its client reads nothing
                await close(stream, send, clients[0])
            clients[0].reset()
        else:
            await close(stream, send, clients[0])
        await wait_for(lambda: number_of(stream) == -1)
        others = list(socket.socketpair())
        while number not in {other.fileno() for other in others} and len(others) < 200:
            others += socket.socketpair()
        try:
            assert number in {other.fileno() for other in others}
            for _ in range(2):
                with pytest.raises(ClientGoneError):
                    stream.write(b"not for you")
                stream.abort()
                await trio.sleep(0.01)
            for other in others:
                other.setblocking(False)
                with pytest.raises(BlockingIOError):
                    other.recv(100)
        finally:
            for other in others:
                other.close()
        done.set()

    limits = ServerLimits(linger_s=0.02, drain_s=0.3, abort_s=0.1)
    async with open_server(app, limits=limits) as server:
        clients.append(await server.connect(LAST_GET))
        with trio.fail_after(3):
            await done.wait()
        assert server.metrics.get("server_app_errors") == 0


REQUESTS = {
    "HTTP/1.0": b"GET / HTTP/1.0\r\nhost: test\r\n\r\n",
    "HEAD": b"HEAD / HTTP/1.1\r\nhost: test\r\n\r\n",
    "content-length": GET,
    "204": GET,
    "304": GET,
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_a_body_that_is_not_chunked_is_not_direct(case: str) -> None:
    """There is no body, or its bytes are counted by somebody else."""
    looks: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        looks.append(stream.direct)
        headers = [(b"Content-Length", b"2")] if case == "content-length" else []
        status = int(case) if case.isdigit() else 200
        await send({"type": "http.response.start", "status": status, "headers": headers})
        looks.append(stream.direct)
        with pytest.raises(RuntimeError, match="can't be written directly"):
            stream.write(b"no")
        body = b"ok" if status == 200 else b""
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async with one_client(app, REQUESTS[case]) as (server, client):
        data = await client.read_until(b"\r\n\r\n")
        assert b"no" not in data
        if case in ("HTTP/1.0", "content-length"):
            assert await client.read_until(b"ok") == b"ok"
        client.half_close()
        assert await client.read_to_end() == (b"", "eof")
        assert looks == [False, False]
        assert server.metrics.get("server_app_errors") == 0


async def test_before_the_head_nothing_is_direct() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        looks = [stream.direct]
        with pytest.raises(RuntimeError):
            stream.write(b"x")
        await begin(send)
        looks.append(stream.direct)
        assert stream.write(b"x")
        await send({"type": "http.response.body", "body": b"y"})
        looks.append(stream.direct)
        assert looks == [False, True, False]

    async with one_client(app) as (server, client):
        assert (await client.read_response())[2] == b"xy"
        assert server.metrics.get("server_app_errors") == 0


async def test_under_tls_nothing_is_direct_and_abort_works(certificate: dict[str, Any]) -> None:
    gone: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        stream.on_gone(lambda: gone.append("gone"))
        await start_stream(send)
        assert not stream.direct
        with pytest.raises(RuntimeError):
            stream.write(b"in the clear")
        await put(scope, send, "send", b"last")
        stream.abort()
        stream.abort()

    async with open_server(app, **certificate) as server:
        client = await test_server_tls.connect(server, certificate, "http/1.1")
        await client.send(GET)
        await client.read_until(b"last\r\n")
        assert await client.read_to_end() == (b"", "reset")
        assert gone == ["gone"]
        assert server.metrics.get("server_app_errors") == 0


async def test_http2_does_not_have_it() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await respond(send)

    async with open_server(app, http2=True) as server:
        client = Http2Client(await server.connect())
        await client.get(1)
        await wait_for(lambda: bool(scopes))
    assert scopes[0]["http_version"] == "2"
    assert "penstock.stream" not in scopes[0]["extensions"]


async def test_a_websocket_that_is_not_accepted_is_not_direct() -> None:
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await receive()
        assert not stream.direct
        with pytest.raises(RuntimeError):
            stream.write(b"no\n")
        await send({"type": "websocket.close"})
        assert not stream.direct
        with pytest.raises((RuntimeError, ClientGoneError)):
            stream.write(b"no\n")
        done.set()

    async with one_client(app, HANDSHAKE) as (server, client):
        with trio.fail_after(2):
            await done.wait()
        data, _ = await client.read_to_end()
        assert data.startswith(b"HTTP/1.1 403 ")
        assert b"no" not in data.partition(b"\r\n\r\n")[2]
        assert server.metrics.get("server_app_errors") == 0


async def test_an_empty_piece_is_not_the_end() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await begin(send)
        for piece in (b"", b"one", b"", b"", b"two", b""):
            assert stream.write(piece)
        await end(send)

    async with one_client(app, LAST_GET) as (_, client):
        data, _ = await client.read_to_end()
    assert data.partition(b"\r\n\r\n")[2] == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize("full", [False, True])
async def test_a_stream_that_has_ended_does_not_touch_the_next_on_its_socket(
    pipelined: bool, full: bool
) -> None:
    """Neither by a write nor by an abort; and is told of its end once."""
    old: list[DirectStream] = []
    gone: list[str] = []
    first = b"x" * BIG if full else b"x"

    def refuses() -> None:
        assert not old[0].direct
        with pytest.raises(ClientGoneError):
            old[0].write(b"late")
        old[0].abort()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path, stream = scope["path"], direct_of(scope)
        old.append(stream)
        stream.on_gone(lambda: gone.append(path))
        await begin(send)
        await put(scope, send, "write", first if path == "/1" else b"second ")
        if path == "/2":
            refuses()
            assert gone == ["/1"]
            await put(scope, send, "write", b"third")
        await end(send)
        if path == "/1":
            refuses()
            await trio.sleep(0.01)  # an app may go on after its answer
            refuses()

    requests = [f"GET /{number} HTTP/1.1\r\nhost: test\r\n\r\n".encode() for number in (1, 2)]
    async with open_server(app) as server:
        client = await server.connect(b"".join(requests) if pipelined else requests[0])
        with trio.fail_after(5):
            assert (await client.read_response())[2] == first
            if not pipelined:
                await client.send(requests[1])
            assert (await client.read_response())[2] == b"second third"
            await wait_for(lambda: gone == ["/1", "/2"])
            await client.send(b"GET /3 HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            assert (await client.read_response())[2] == b"second "
        assert server.metrics.get("server_app_errors") == 0


async def test_abort_cuts_once_and_tells_once() -> None:
    gone: list[str] = []
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await start_stream(send)
        stream.on_gone(lambda: gone.append("gone"))
        assert stream.write(b"x")
        stream.abort()
        assert gone == ["gone"]
        stream.abort()
        with pytest.raises(ClientGoneError):
            await end(send)
        done.set()

    async with one_client(app) as (server, client):
        with trio.fail_after(2):
            await done.wait()
        assert (await client.read_to_end())[1] == "reset"
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
    assert gone == ["gone"]


async def test_a_callback_may_abort_and_write_and_ends_nothing_else() -> None:
    """As a connection's does, which is told of the end in the middle of its own write."""
    calls: list[str] = []
    clients: list[RawClient] = []
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        await start_stream(send)

        def gone() -> None:
            calls.append("gone")
            stream.abort()
            with pytest.raises(ClientGoneError):
                stream.write(b"x")

        stream.on_gone(gone)
        await wait_for(lambda: bool(clients))
        clients[0].reset()
        with pytest.raises(ClientGoneError):
            stream.write(b"x")
        done.set()

    async with open_server(app) as server:
        clients.append(await server.connect(GET))
        with trio.fail_after(2):
            await done.wait()
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_connection_errors") == 0
    assert calls == ["gone"]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_what_an_app_is_wrapped_in_sees_how_each_response_starts_and_ends(wrapped: bool) -> None:
    """As of any ASGI server: else its headers, its logs and its clean-up were missing."""
    seen: list[str] = []
    taken: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stream = direct_of(scope)
        taken.append(stream.start(send, 200, [(b"x-app", b"1")], b"first "))
        if not taken[-1]:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
            assert stream.write(b"first ")
        assert stream.write(b"second ")
        taken.append(stream.end(b"third"))
        if not taken[-1]:
            await send({"type": "http.response.body", "body": b"third", "more_body": False})

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: dict[str, Any]) -> None:
            seen.append(message["type"])
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-outer", b"2"))
            await send(message)

        await app(scope, receive, noting)

    async with open_server(outer if wrapped else app) as server:
        client = await server.connect()
        for _ in range(2):  # the connection stays
            await client.send(GET)
            _, headers, body = await client.read_response()
            assert body == b"first second third"
            assert headers["x-app"] == "1"
            assert ("x-outer" in headers) is wrapped
    assert taken == [not wrapped] * 4
    assert seen == ["http.response.start", "http.response.body"] * (2 if wrapped else 0)


async def test_a_start_that_waits_is_for_send() -> None:
    """Under HTTP/1.0, for a HEAD, and while earlier bytes wait, nothing is taken."""
    taken: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        taken.append(direct_of(scope).start(send, 200, [], b"body"))
        assert not direct_of(scope).end(b"")
        await respond(send, b"plain")

    async with open_server(app) as server:
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"HEAD / HTTP/1.1\r\nhost: test\r\n\r\n"):
            client = await server.connect(request)
            await client.read_until(b"\r\n\r\n")
    assert taken == [False, False]
