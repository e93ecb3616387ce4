"""An app hears that its client has left, however it leaves, and a write to nobody is an error."""

from __future__ import annotations

import pytest
import trio
from lanes import LANES
from raw import (
    GET,
    Message,
    RawClient,
    Receive,
    Scope,
    Send,
    open_server,
    start_stream,
    wait_for,
    write_for_ever,
)

from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits

PROMPT_S = 0.05
"""What the server promises."""


LEAVINGS = {"FIN": RawClient.close, "half-close": RawClient.half_close, "RST": RawClient.reset}
AHEAD = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "half an empty line": b"\r",
    "a request": GET,
    "half a request": GET[:7],
    "garbage": b"\x00\xff garbage",
}


class Watching:
    """An app that streams nothing more and waits for the disconnect, of which it is told in two ways."""

    def __init__(self) -> None:
        self.told_at: list[float] = []
        self.called_at: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        scope["extensions"]["penstock.stream"].on_gone(lambda: self.called_at.append(trio.current_time()))
        while (await receive())["type"] != "http.disconnect":
            pass
        self.told_at.append(trio.current_time())


@pytest.mark.parametrize("leave", LEAVINGS)
@pytest.mark.parametrize("ahead", AHEAD)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("fields", [b"", b"connection: close\r\n", b"upgrade: h2c\r\n"])
async def test_disconnect_after_stray_bytes(leave: str, ahead: str, together: bool, fields: bytes) -> None:
    """It is seen within 50 ms while the response runs, whatever the client sent after its request."""
    app = Watching()
    request = b"GET / HTTP/1.1\r\nhost: test\r\n" + fields + b"\r\n"
    async with open_server(app) as server:
        waited_s: list[float] = []
        for _ in range(3):  # a busy machine has its moments
            app.told_at.clear()
            app.called_at.clear()
            client = await server.connect(request + AHEAD[ahead] if together else request)
            await client.read_until(b"first")
            if not together:
                await client.send(AHEAD[ahead])
                await trio.sleep(0.005)
            left_at = trio.current_time()
            LEAVINGS[leave](client)
            await wait_for(lambda: bool(app.told_at))
            waited_s.append(app.told_at[0] - left_at)
            if waited_s[-1] < PROMPT_S:
                break
            assert len(app.called_at) == 1
        assert min(waited_s) < PROMPT_S
        assert len(app.called_at) == 1
        assert app.called_at[0] <= app.told_at[0]


async def test_a_client_that_sends_too_far_ahead_is_not_read() -> None:
    """`paused_bytes` bounds what it makes the server keep, and its requests are all answered in the end."""
    answered = 0
    release = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        answered += 1
        if answered > 200:
            await release.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with open_server(app, limits=ServerLimits(paused_bytes=2_000, drain_s=0.5)) as server:
        client = await server.connect()
        sent = 0
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                nonlocal sent
                while True:
                    await client.send(GET * 1_000)
                    sent += len(GET) * 1_000

            nursery.start_soon(flood)
            await wait_for(lambda: answered > 200)
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert sent < 5_000_000
        release.set()
        for _ in range(500):
            assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")


@pytest.mark.parametrize("reads", [True, False])
async def test_a_body_nobody_reads_does_not_hide_the_disconnect(reads: bool) -> None:
    """Hypercorn's queue holds ten messages; an app that does not `receive` then never learns that its client left."""
    told = trio.Event()

    async def only_write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        if reads:
            await trio.sleep(0.1)
            types = [(await receive())["type"] for _ in range(40)]
            assert types[0] == "http.request"
            assert types[-1] == types[-2] == "http.disconnect"
        else:
            chunk = {"type": "http.response.body", "body": b".", "more_body": True}
            with pytest.raises(OSError, match="left"):
                await write_for_ever(send, chunk, pause_s=0.001)
        told.set()

    async with open_server(only_write) as server:
        client = await server.connect(b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
        await client.read_until(b"first")
        for _ in range(30):
            await client.send(b"1\r\nx\r\n")
            await trio.sleep(0.001)
        await client.send(b"0\r\n\r\n")
        client.close()
        with trio.fail_after(1):
            await told.wait()


async def test_a_body_nobody_reads_is_bounded() -> None:
    """The server stops reading; it does not collect what its app does not want."""

    async def ignore(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await trio.sleep_forever()

    async with open_server(ignore, limits=ServerLimits(unread_bytes=10_000, drain_s=0.1)) as server:
        client = await server.connect(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n")
        sent = 0
        with trio.move_on_after(0.15):
            while True:
                await client.send(bytes(1 << 16))
                sent += 1 << 16
        assert sent < 20_000_000


@pytest.mark.parametrize("lane", LANES)
async def test_a_write_to_nobody_raises(lane: str) -> None:
    """Hypercorn returns, so that an app which only writes goes on for ever."""
    errors: list[OSError] = []

    async def only_write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        direct = scope["extensions"]["penstock.stream"]
        try:
            while True:
                if lane == "fallback":
                    await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                elif not direct.write(b"x" * 1000):
                    await direct.wait_writable()
                else:
                    await trio.lowlevel.checkpoint()
        except OSError as error:
            errors.append(error)
            # As ASGI has it, an app need not understand: what escapes it is no error of the app.
            raise

    async with open_server(only_write) as server:
        client = await server.connect(GET)
        await client.read_until(b"first")
        client.close()
        await wait_for(lambda: bool(errors))
        assert isinstance(errors[0], ClientGoneError)
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_app_errors") == 0
        assert server.metrics.get("server_connection_errors") == 0


async def test_an_app_that_ignores_the_error_does_not_hold_the_others() -> None:
    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        while scope["path"] == "/stubborn":
            try:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            except OSError:
                pass
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(stubborn) as server:
        client = await server.connect(b"GET /stubborn HTTP/1.1\r\nhost: test\r\n\r\n")
        await client.read_until(b"first")
        client.close()
        with trio.fail_after(1):
            assert (await server.get())[2] == b"firstlast"


async def test_the_app_is_told_of_a_client_that_leaves_in_mid_body() -> None:
    messages: list[Message] = []

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while not messages or messages[-1]["type"] == "http.request":
            messages.append(await receive())

    async with open_server(read) as server:
        client = await server.connect(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345")
        await wait_for(lambda: len(messages) == 1)
        client.close()
        await wait_for(lambda: len(messages) == 2)
        assert messages[0] == {"type": "http.request", "body": b"12345", "more_body": True}
        assert messages[1] == {"type": "http.disconnect"}
