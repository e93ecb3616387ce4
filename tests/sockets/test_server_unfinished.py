"""A response that its app does not finish never looks finished, and a finished one always arrives whole."""

from __future__ import annotations

import pytest
import trio
from raw import GET, RawClient, Receive, Scope, Send, open_server, respond, start_stream, wait_for

from penstock.limits import ServerLimits

LIMITS = ServerLimits(drain_s=0.2, linger_s=0.1)


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("length", [None, b"1000"])
async def test_http11_sees_a_cut_body(raises: bool, length: bytes | None) -> None:
    """No last chunk, or fewer bytes than announced."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [] if length is None else [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if raises:
            raise ValueError("no")

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(GET)
        with trio.fail_after(1):
            answer, _ = await client.read_to_end()
        assert b"first" in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert server.metrics.get("server_connection_errors") == 0


@pytest.mark.parametrize("raises", [True, False])
async def test_http10_sees_a_reset(raises: bool) -> None:
    """To HTTP/1.0 the end of the connection is the end of the body, so that only a reset tells."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        if raises:
            raise ValueError("no")

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(b"GET / HTTP/1.0\r\n\r\n")
        with trio.fail_after(1):
            _, end = await client.read_to_end()
        assert end == "reset"


async def test_http10_sees_the_end_of_a_finished_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(b"GET / HTTP/1.0\r\n\r\n")
        answer, end = await client.read_to_end()
        assert answer.endswith(b"\r\n\r\nfirstlast")
        assert end == "eof"


async def test_a_body_that_is_still_being_written_is_not_cut_by_the_closing() -> None:
    """`connection: close` with a full socket: the end is in the server's hands, not yet in the kernel's."""
    body = bytes(4 << 20)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, body)

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(GET[:-2] + b"connection: close\r\n\r\n")
        await trio.sleep(0.05)
        answer, end = await client.read_to_end()
        assert len(answer) > len(body)
        assert answer.endswith(body)
        assert end == "eof"


async def test_an_app_that_gives_up_a_write_still_delivers_it() -> None:
    """It is cancelled in its last `send`, by its own timeout, and returns."""
    body = bytes(4 << 20)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.move_on_after(0.02):
            await respond(send, body)

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(GET)
        await trio.sleep(0.1)
        assert (await client.read_response())[2] == body
        with trio.fail_after(5):
            assert await client.read_to_end() == (b"", "eof")


async def test_an_app_that_says_nothing_is_a_500() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async with open_server(app, limits=LIMITS) as server:
        assert (await server.get())[0] == 500


async def test_an_app_that_fails_just_as_its_client_leaves() -> None:
    """There is nobody to say 500 to, and that is no fault of the connection."""
    clients: list[RawClient] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clients.pop().reset()

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect()
        clients.append(client)
        await client.send(GET)
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_connection_errors") == 0


async def test_an_app_that_breaks_http_is_cut() -> None:
    """A header that can't be sent leaves nothing to answer with; the next client is served."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        value = b"a\r\nforged: b" if scope["path"] == "/" else b"good"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", value)]})
        await send({"type": "http.response.body", "body": b""})

    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(GET)
        answer, _ = await client.read_to_end()
        assert b"forged" not in answer
        assert server.metrics.get("server_app_errors") == 1
        assert (await server.get("/good"))[0] == 200
