"""The app's lifespan: asked in time, believed, and never waited for without end."""

from __future__ import annotations

import functools
import logging

import pytest
import trio
from raw import Receive, Scope, Send, open_server, respond

from penstock.errors import AppStartupError
from penstock.limits import ServerLimits
from penstock.server import serve


async def test_startup_comes_before_the_first_and_shutdown_after_the_last_request() -> None:
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                # Cancelling `receive` loses nothing.
                with trio.move_on_after(0.01):
                    events.append((await receive())["type"])
                    await send({"type": events[-1] + ".complete"})
                    continue
                events.append((await receive())["type"])
                await send({"type": events[-1] + ".complete"})
        else:
            events.append("request")
            await respond(send)

    async with open_server(app, lifespan=True) as server:
        await server.get()
        await trio.sleep(0.02)
    assert events == ["lifespan.startup", "request", "lifespan.shutdown"]


@pytest.mark.parametrize("returns", [True, False])
async def test_an_app_without_a_lifespan_is_served(returns: bool) -> None:
    """It raises on the scope, or returns: Hypercorn fails at the second."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            if returns:
                return
            raise AssertionError("only http")
        await respond(send)

    async with open_server(app, lifespan=True) as server:
        assert (await server.get())[0] == 200


async def test_an_app_that_refuses_to_start_is_an_error() -> None:
    """Its message is the error's, without a group round it, and nothing is left open."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database\nforged"})

    with pytest.raises(AppStartupError, match=r"^no database\\nforged$"):
        await serve(app, port=0)


async def test_an_app_that_does_not_start_in_time_is_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    with pytest.raises(AppStartupError, match=r"did not start within 60 s"):
        await serve(app, port=0)


async def test_an_app_that_does_not_stop_is_left(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await trio.sleep_forever()

    with trio.fail_after(1), caplog.at_level(logging.ERROR):
        async with open_server(app, lifespan=True, limits=ServerLimits(app_stop_s=0.05)):
            pass
    assert "the app did not stop within 0.05 s" in caplog.text


async def test_an_app_that_fails_to_stop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "still busy"})

    with caplog.at_level(logging.ERROR):
        async with open_server(app, lifespan=True):
            pass
    assert "still busy" in caplog.text


async def test_a_lifespan_that_fails_later_ends_the_server() -> None:
    """What it held for the requests is gone; a supervisor must see that, not a server that answers 500."""
    fail = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await fail.wait()
        raise ValueError("lost the database")

    with pytest.RaisesGroup(
        pytest.RaisesExc(ValueError, match="lost the database"), allow_unwrapped=True, flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            await nursery.start(functools.partial(serve, app, port=0))
            fail.set()
