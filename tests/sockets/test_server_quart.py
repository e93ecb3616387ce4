"""Quart-Trio on this server: its apps are cancelled by the disconnect that ends each of their own responses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from quart import Response
from quart_trio import QuartTrio
from raw import GET, open_server, wait_for

from penstock.limits import ServerLimits

LIMITS = ServerLimits(keep_alive_s=0.15, drain_s=0.3)


def make_app() -> tuple[QuartTrio, list[str]]:
    app = QuartTrio(__name__)
    events: list[str] = []

    @app.get("/")
    async def hello() -> str:
        await trio.lowlevel.checkpoint()
        return "hello"

    @app.get("/stream")
    async def stream() -> Response:
        async def ticks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"tick"
                    await trio.sleep(0.005)
            finally:
                events.append("ended")

        await trio.lowlevel.checkpoint()
        response = Response(ticks(), content_type="text/event-stream")
        response.timeout = None
        return response

    @app.after_serving
    async def stopped() -> None:
        await trio.lowlevel.checkpoint()
        events.append("stopped")

    return app, events


async def test_quart_trio_connections_close() -> None:
    """At the client's word, and when they have been idle for long: with Hypercorn 0.18 they never do."""
    app, events = make_app()
    async with open_server(app, limits=LIMITS, lifespan=True) as server:
        client = await server.connect(GET[:-2] + b"connection: close\r\n\r\n")
        with trio.fail_after(1):
            answer, end = await client.read_to_end()
        assert answer.endswith(b"hello")
        assert end == "eof"

        client = await server.connect()
        for _ in range(3):
            await client.send(GET)
            assert (await client.read_response())[2] == b"hello"
        idle_since = trio.current_time()
        with trio.fail_after(1):
            assert await client.read_to_end() == (b"", "eof")
        assert 0.1 < trio.current_time() - idle_since < 0.9
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
    assert events == ["stopped"]


async def test_a_stream_ends_with_its_client() -> None:
    app, events = make_app()
    async with open_server(app, limits=LIMITS) as server:
        client = await server.connect(GET.replace(b" / ", b" /stream ") + b"\r\n")
        await client.read_until(b"tick")
        client.close()
        left_at = trio.current_time()
        await wait_for(lambda: bool(events))
        assert trio.current_time() - left_at < 0.5
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_app_errors") == 0
        assert server.metrics.get("server_connection_errors") == 0


async def test_it_drains_with_a_stream_open() -> None:
    app, events = make_app()
    async with open_server(app, limits=LIMITS, lifespan=True) as server:
        client = await server.connect(GET.replace(b" / ", b" /stream "))
        await client.read_until(b"tick")
        asked_at = trio.current_time()
        server.shutdown.set()
        _, end = await client.read_to_end()
        assert end == "reset"
    assert trio.current_time() - asked_at < 1
    assert events == ["ended", "stopped"]
