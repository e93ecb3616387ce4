"""Requests that take too long, or are too large, end; streams do not."""

from __future__ import annotations

import pytest
import trio
from raw import GET, Message, Receive, Scope, Send, TestServer, open_server, respond, start_stream, wait_for

from penstock.limits import ServerLimits

LIMITS = ServerLimits(head_s=0.1, body_s=0.15, keep_alive_s=0.2, linger_s=0.1, drain_s=0.1)


async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    if message["type"] == "http.request":
        await respond(send)


async def drip(server: TestServer, data: bytes, *, pause_s: float = 0.01) -> tuple[bytes, float]:
    """Send byte by byte; return what the server said, and when it had had enough."""
    client = await server.connect()
    started = trio.current_time()
    answer = b""
    ended = started

    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            nonlocal answer, ended
            answer, _ = await client.read_to_end()
            ended = trio.current_time()
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        for byte in data:
            try:
                await client.send(bytes([byte]))
            except trio.BrokenResourceError:
                break
            await trio.sleep(pause_s)
        await trio.sleep(1)
    return answer, ended - started


async def test_a_dripped_head_is_cut() -> None:
    """Each byte does not renew the deadline."""
    async with open_server(read_all, limits=LIMITS) as server:
        answer, after_s = await drip(server, GET[:-2] + b"x-drip: " + b"x" * 1000)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 0.09 < after_s < 1
        assert server.metrics.get("server_timeouts", phase="head") == 1


@pytest.mark.parametrize("framing", [b"content-length: 5000", b"transfer-encoding: chunked"])
async def test_a_dripped_body_is_cut(framing: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nhost: test\r\n" + framing + b"\r\n\r\n"
    async with open_server(read_all, limits=LIMITS) as server:
        client = await server.connect(head)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                while True:
                    await client.send(b"1\r\nx\r\n")
                    await trio.sleep(0.01)

            nursery.start_soon(feed)
            assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
            nursery.cancel_scope.cancel()
        assert 0.14 < trio.current_time() - started < 1
        assert server.metrics.get("server_timeouts", phase="body") == 1


async def test_a_refusal_does_not_break_into_an_answer() -> None:
    """The body is late and the answer under way: it is cut, and nothing is added to it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await read_all(scope, receive, send)

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\n")
        answer, _ = await client.read_to_end()
        assert answer.endswith(b"\r\n\r\n5\r\nfirst\r\n")
        assert server.metrics.get("server_timeouts", phase="body") == 1


async def test_a_body_that_its_app_does_not_take_is_cut() -> None:
    """The reader that waits for the app still has its deadline."""

    async def ignore(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    async with open_server(ignore, limits=LIMITS) as server:
        client = await server.connect(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n")
        await client.send(bytes(300_000))
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_a_body_has_its_own_time() -> None:
    """However late in the idle time its head came, and though its app is slow to take it."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.2)
        await read_all(scope, receive, send)

    limits = ServerLimits(keep_alive_s=0.2, body_s=5, unread_bytes=1_000, drain_s=0.1)
    async with open_server(slow, limits=limits) as server:
        client = await server.connect()
        await trio.sleep(0.15)
        await client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 500000\r\n\r\n" + bytes(500_000))
        assert (await client.read_response())[0] == 200


async def test_a_body_that_never_stops_is_cut() -> None:
    """However fast it comes, and though its app takes it all: the reader finds its socket never empty."""
    async with open_server(read_all, limits=LIMITS) as server:
        client = await server.connect(
            b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000000\r\n\r\n"
        )
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                with pytest.raises(trio.BrokenResourceError):
                    await client.send_for_ever(bytes(1 << 20))

            nursery.start_soon(flood)
            with trio.fail_after(2):
                assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")


async def test_a_body_that_was_not_taken_in_time_is_never_taken_for_whole() -> None:
    """What found no room in the app's inbox is gone, so that nothing after it may reach the app, least of all the end."""
    messages: list[Message] = []

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.4)
        while not messages or messages[-1]["type"] == "http.request":
            messages.append(await receive())

    limits = ServerLimits(body_s=0.1, unread_bytes=1_000, drain_s=0.1)
    async with open_server(late, limits=limits) as server:
        client = await server.connect(
            b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 300000\r\n\r\n" + bytes(300_000)
        )
        assert (await client.read_response())[0] == 408
        await wait_for(lambda: bool(messages) and messages[-1]["type"] == "http.disconnect")
    assert all(message["more_body"] for message in messages[:-1])
    assert sum(len(message["body"]) for message in messages[:-1]) < 300_000


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    async with open_server(read_all, limits=LIMITS) as server:
        client = await server.connect()
        with trio.fail_after(1):
            assert await client.read_to_end() == (b"", "eof")


async def test_an_idle_connection_is_closed_after_a_request() -> None:
    """The next request still has its whole time if it begins in time; empty lines are no beginning."""
    async with open_server(read_all, limits=LIMITS) as server:
        client = await server.connect(GET)
        await client.read_response()
        await trio.sleep(0.12)
        await client.send(GET)
        assert (await client.read_response())[0] == 200
        started = trio.current_time()
        for _ in range(3):
            await trio.sleep(0.05)
            await client.send(b"\r\n")
        with trio.fail_after(1):
            assert (await client.read_to_end())[0] == b""
        assert 0.15 < trio.current_time() - started < 1


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """A clock that jumps when nothing has happened for a moment, sockets included."""
    return trio.testing.MockClock(autojump_threshold=0.02)


async def test_a_quiet_stream_stays(patient_clock: trio.testing.MockClock) -> None:
    """Ten minutes without a byte in either direction."""

    async def quiet(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await trio.sleep(600)
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(quiet, limits=ServerLimits()) as server:
        client = await server.connect(GET)
        started = trio.current_time()
        assert (await client.read_response())[2] == b"firstlast"
        assert trio.current_time() - started >= 600


@pytest.mark.parametrize("together", [True, False])
async def test_a_large_head_is_refused(together: bool) -> None:
    """Also one that arrives at once, which h11 accepts up to its read size."""
    async with open_server(read_all) as server:
        fields = b"".join(b"x-%d: %s\r\n" % (number, b"x" * 100) for number in range(200))
        client = await server.connect(GET[:-2])
        if together:
            await client.send(fields + b"\r\n")
        else:
            await client.send(fields * 20)
        status, headers, body = await client.read_response()
        assert status == 431
        assert headers["connection"] == "close"
        assert body == b"The request's head is too large.\n"
        assert (await client.read_to_end())[1] == "eof"
        assert server.metrics.get("server_requests_refused", status="431") == 1


async def test_an_endless_head_is_refused_at_its_limit() -> None:
    async with open_server(read_all, limits=ServerLimits(linger_s=0.05, drain_s=0.1)) as server:
        client = await server.connect(b"GET / HTTP/1.1\r\nhost: test\r\nx: ")
        with pytest.raises(trio.BrokenResourceError):
            await client.send_for_ever(b"x" * 10_000)
        await wait_for(lambda: server.metrics.get("server_connections") == 0)


async def test_a_body_of_a_fast_client_is_not_cut() -> None:
    async with open_server(read_all, limits=LIMITS) as server:
        body = bytes(2_000_000)
        client = await server.connect(
            b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        assert (await client.read_response())[0] == 200
