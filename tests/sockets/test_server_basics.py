"""The server speaks HTTP/1.1: keep-alive, pipelining, errors, what the app is told, what is logged."""

from __future__ import annotations

import logging
import socket
from importlib.metadata import version

import pytest
import trio
from raw import GET, Receive, Scope, Send, open_server, respond, start_stream, wait_for

from penstock.limits import ServerLimits
from penstock.server.log import indented_traceback, one_line
from penstock.server.tcp import TcpStream, accept_nowait, open_listeners


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, scope["path"].encode())


def test_hypercorn_is_the_version_that_was_read() -> None:
    """Much of `server/` replaces Hypercorn's insides: another version must be read before it is used."""
    assert version("hypercorn") == "0.18.0"


async def test_keep_alive_serves_many_requests() -> None:
    async with open_server(hello) as server:
        client = await server.connect()
        for number in range(3):
            await client.send(f"GET /{number} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
            status, headers, body = await client.read_response()
            assert (status, body) == (200, f"/{number}".encode())
            assert "server" not in headers
        assert server.metrics.get("server_connections") == 1
        assert server.metrics.get("server_requests", type="http") == 3


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0.05 if scope["path"] == "/0" else 0)
        await respond(send, scope["path"].encode())

    async with open_server(slow_first) as server:
        requests = [f"GET /{number} HTTP/1.1\r\nhost: test\r\n\r\n".encode() for number in range(20)]
        # Together, in the middle of a request, and byte by byte: also behind a response that still runs.
        client = await server.connect(b"".join(requests)[:-3])
        await trio.sleep(0.01)
        await client.send(b"".join(requests)[-3:] + requests[0])
        for number in [*range(20), 0]:
            assert (await client.read_response())[2] == f"/{number}".encode()


async def test_pipelined_bodies_reach_their_own_apps() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await trio.sleep(0.01)
        await respond(send, body)

    async with open_server(echo) as server:
        bodies = [bytes([65 + number]) * 10_000 * number for number in range(5)]
        post = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s"
        client = await server.connect(b"".join(post % (len(body), body) for body in bodies))
        for body in bodies:
            assert (await client.read_response())[2] == body


async def test_empty_lines_between_requests_are_ignored() -> None:
    """RFC 9112 section 2.2."""
    async with open_server(hello) as server:
        client = await server.connect(GET + b"\r\n")
        await client.read_response()
        await client.send(b"\r\n")
        await client.send(b"\r\n" + GET)
        assert (await client.read_response())[0] == 200


async def test_connection_close_is_honoured() -> None:
    async with open_server(hello) as server:
        client = await server.connect(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        answer, end = await client.read_to_end()
        assert b"connection: close" in answer.lower()
        assert end == "eof"
        client = await server.connect(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.read_to_end())[1] == "eof"


async def test_a_connection_ends_after_a_thousand_requests() -> None:
    """What a long life has gathered goes with it. The client is told, and nothing it sent ahead is answered."""
    async with open_server(hello) as server:
        client = await server.connect(GET * 1_001)
        for number in range(1_000):
            _, headers, _ = await client.read_response()
            assert (headers.get("connection") == "close") is (number == 999)
        assert await client.read_to_end() == (b"", "eof")


async def test_expectation_is_answered() -> None:
    async def read_all(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        await respond(send)

    async with open_server(read_all) as server:
        client = await server.connect(
            b"POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
        )
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        await client.send(b"{}")
        assert (await client.read_response())[0] == 200
        # The next one's body is here with its head: it waits for nothing.
        await client.send(
            b"POST / HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}"
        )
        assert (await client.read_response())[0] == 200


async def test_an_unread_body_does_not_hold_the_next_request() -> None:
    """The reader still waits for room in the app's inbox when the app has already answered."""
    limits = ServerLimits(unread_bytes=10, head_s=0.05, keep_alive_s=0.15, drain_s=0.1)
    async with open_server(hello, limits=limits) as server:
        client = await server.connect()
        for _ in range(3):
            await client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 20\r\n\r\n" + bytes(20))
            assert (await client.read_response())[0] == 200
        await client.send((b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 20\r\n\r\n" + bytes(20)) * 3)
        for _ in range(3):
            with trio.fail_after(1):
                assert (await client.read_response())[0] == 200
        assert await client.read_to_end() == (b"", "eof")


async def test_early_answer_arrives() -> None:
    """An answer to a body that is not read to its end is not lost in a reset."""

    async def too_large(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"too large", 413)

    async with open_server(too_large) as server:
        client = await server.connect(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\n")
        for _ in range(10):
            await client.send(bytes(50_000))
            await trio.sleep(0.002)
        client.half_close()
        assert (await client.read_response())[0] == 413
        assert await client.read_to_end() == (b"", "eof")


async def test_a_scope_is_what_asgi_says() -> None:
    scopes: list[Scope] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await respond(send)

    async with open_server(look) as server:
        client = await server.connect(b"PUT /a%20b/%C3%A9?c=%20d HTTP/1.1\r\nHost: A\r\nX-Y:  z \r\n\r\n")
        await client.read_response()
    (scope,) = scopes
    assert scope.pop("client")[0] == "127.0.0.1"
    assert scope.pop("server") == ("127.0.0.1", server.port)
    assert set(scope.pop("extensions")) == {"penstock.server", "penstock.stream"}
    assert scope == {
        "type": "http",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/a b/é",
        "raw_path": b"/a%20b/%C3%A9",
        "query_string": b"c=%20d",
        "root_path": "",
        "headers": [(b"host", b"A"), (b"x-y", b"z")],
        "state": {},
    }


async def test_scopes_have_the_extensions() -> None:
    scopes: list[Scope] = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        if scope["type"] == "http":
            await respond(send)
        elif scope["type"] == "lifespan":
            await receive()
            scope["state"]["shared"] = object()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

    async with open_server(look, limits=ServerLimits(drain_s=0.25), lifespan=True) as server:
        await server.get()
        lifespan, request = scopes
        for scope in scopes:
            assert scope["extensions"]["penstock.server"]["drain_s"] == 0.25
            assert not scope["extensions"]["penstock.server"]["draining"].is_set()
        assert callable(request["extensions"]["penstock.stream"].abort)
        assert "penstock.stream" not in lifespan["extensions"]
        assert request["state"]["shared"] is lifespan["state"]["shared"]
        assert request["client"][0] == "127.0.0.1"
        assert request["server"] == ("127.0.0.1", server.port)


async def test_a_failing_app_is_a_500_and_one_record(caplog: pytest.LogCaptureFixture) -> None:
    """What a client wrote into the path or an exception's text can't forge a log record."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise ValueError(scope["path"])

    with caplog.at_level(logging.DEBUG, "penstock.server"):
        async with open_server(fail) as server:
            status, headers, _ = await server.get("/%0aERROR%20forged%1b[31m%00")
            assert status == 500
            assert headers["connection"] == "close"
            assert server.metrics.get("server_app_errors") == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    first, *rest = record.getMessage().split("\n")
    assert "ValueError" in first
    assert all(line.startswith("  ") for line in rest)
    assert "\x1b" not in record.getMessage()
    assert "\x00" not in record.getMessage()


def test_log_lines_are_printable() -> None:
    assert one_line("a\r\nb\x1b[0m\u2028c\ud800") == r"a\r\nb\x1b[0m\u2028c\ud800"
    assert len(one_line("x" * 10_000)) < 1_000
    assert all(line.startswith("  ") for line in indented_traceback(ValueError("a\nb")).split("\n"))


async def test_no_handlers_are_installed_and_requests_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = [list(logging.getLogger(name).handlers) for name in ("", "hypercorn.error", "hypercorn.access")]
    with caplog.at_level(logging.INFO):
        async with open_server(hello) as server:
            await server.get("/secret")
    assert "/secret" not in caplog.text
    after = [list(logging.getLogger(name).handlers) for name in ("", "hypercorn.error", "hypercorn.access")]
    assert after == before


async def test_sockets_of_the_caller_are_served_and_closed() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    async with open_server(hello, sockets=[sock]) as server:
        assert server.port == port
        assert (await server.get())[0] == 200
    assert sock.fileno() == -1


async def test_every_address_of_a_name_is_bound_on_one_port() -> None:
    listeners = await open_listeners("localhost", 0, limits=ServerLimits())
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    finally:
        for listener in listeners:
            listener.close()


async def test_a_port_in_use_is_an_oserror() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            await open_listeners("127.0.0.1", taken.getsockname()[1], limits=ServerLimits())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="TCP_USER_TIMEOUT is Linux only")
async def test_accepted_sockets_notice_a_peer_that_vanished() -> None:
    (listener,) = await open_listeners("127.0.0.1", 0, limits=ServerLimits(write_stall_s=7))
    with listener, socket.create_connection(listener.getsockname()):
        await trio.lowlevel.wait_readable(listener)
        accepted = accept_nowait(listener)
        assert accepted is not None
        with accepted[0] as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_a_closed_stream_never_touches_its_number_again() -> None:
    """The descriptor's number is soon another client's."""
    ours, theirs = socket.socketpair()
    with theirs:
        stream = TcpStream(ours)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await stream.receive_some()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            stream.abort()
        stream.abort()
        stream.close()
        with pytest.raises(OSError, match="Bad file"):
            stream.send_nowait(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()


async def test_a_deadline_holds_for_a_client_that_always_has_more_to_say() -> None:
    """Bytes that wait already are no way round a cancellation, and are not lost to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.send(b"more")
        async with TcpStream(ours) as stream:
            with trio.move_on_after(0) as scope:
                await stream.receive_some()
            assert scope.cancelled_caught
            assert await stream.receive_some() == b"more"


async def test_an_app_may_go_on_after_its_answer() -> None:
    """Its work after the response neither holds the connection nor reaches the next request's socket."""
    aborts = []
    release = trio.Event()

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            await respond(send)
            await release.wait()
            scope["extensions"]["penstock.stream"].abort()
            aborts.append(scope["path"])
        else:
            await start_stream(send)
            await release.wait()
            await wait_for(lambda: bool(aborts))
            await send({"type": "http.response.body", "body": b"last"})

    async with open_server(work) as server:
        client = await server.connect(b"GET /first HTTP/1.1\r\nhost: test\r\n\r\n")
        await client.read_response()
        await client.send(GET)
        await client.read_until(b"first")
        release.set()
        await client.read_until(b"last\r\n0\r\n\r\n")
