"""HTTP/2 by prior knowledge, where it was asked for."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from raw import (
    RawClient,
    Receive,
    Scope,
    Send,
    TestServer,
    open_server,
    respond,
    start_stream,
    wait_for,
    write_for_ever,
)

from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits

LIMITS = ServerLimits(drain_s=0.3, linger_s=0.1, keep_alive_s=0.2)


class Http2Client:
    """One HTTP/2 connection."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.protocol = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="ascii"))
        self.protocol.initiate_connection()

    async def flush(self) -> None:
        await self.raw.send(self.protocol.data_to_send())

    async def get(self, stream: int, path: str = "/") -> None:
        fields = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "test")]
        self.protocol.send_headers(stream, fields, end_stream=True)
        await self.flush()

    async def wait_event(self, kind: type[h2.events.Event], *, acknowledge: bool = True) -> h2.events.Event:
        with trio.fail_after(2):
            while True:
                data = await self.raw.stream.receive_some(1 << 16)
                if not data:
                    raise EOFError("the server closed")
                found = None
                for event in self.protocol.receive_data(data):
                    if isinstance(event, h2.events.DataReceived) and acknowledge:
                        assert event.flow_controlled_length is not None
                        assert event.stream_id is not None
                        self.protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if isinstance(event, kind):
                        found = event
                await self.flush()
                if found is not None:
                    return found


async def connect(server: TestServer) -> Http2Client:
    client = Http2Client(await server.connect())
    await client.flush()
    return client


async def test_streams_are_answered_side_by_side() -> None:
    scopes: list[Scope] = []
    answered = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        if scope["path"] == "/slow":
            await answered.wait()
        await respond(send, scope["path"].encode())
        answered.set()

    async with open_server(app, limits=LIMITS, http2=True) as server:
        client = await connect(server)
        await client.get(1, "/slow")
        await client.get(3, "/fast")
        for stream in (3, 1):
            event = await client.wait_event(h2.events.StreamEnded)
            assert isinstance(event, h2.events.StreamEnded)
            assert event.stream_id == stream
        assert scopes[0]["http_version"] == "2"
        assert "penstock.stream" not in scopes[0]["extensions"]
        assert "penstock.server" in scopes[0]["extensions"]


async def test_unfinished_response_resets() -> None:
    """The client must neither take it for whole nor wait for the rest; the connection goes on."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        if scope["path"] == "/whole":
            await send({"type": "http.response.body", "body": b""})

    async with open_server(app, limits=LIMITS, http2=True) as server:
        client = await connect(server)
        await client.get(1)
        event = await client.wait_event(h2.events.StreamReset)
        assert isinstance(event, h2.events.StreamReset)
        assert event.error_code == 2
        await client.get(3, "/whole")
        await client.wait_event(h2.events.StreamEnded)
        assert server.metrics.get("server_connection_errors") == 0


async def test_closed_window_holds_the_app() -> None:
    """Hypercorn let it push 669 MB in four seconds."""
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await start_stream(send)
        while True:
            await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
            sent += 10_000

    async with open_server(app, limits=LIMITS, http2=True) as server:
        client = await connect(server)
        await client.get(1)
        await client.wait_event(h2.events.DataReceived, acknowledge=False)
        await trio.sleep(0.1)
        assert 0 < sent < 300_000
        held = sent
        client.protocol.increment_flow_control_window(1 << 20)
        client.protocol.increment_flow_control_window(1 << 20, 1)
        await client.flush()
        with trio.fail_after(2):
            while sent < held + 500_000:
                await client.raw.stream.receive_some(1 << 16)


@pytest.mark.parametrize("leaves", ["connection", "stream"])
async def test_an_app_that_waits_for_a_window_hears_that_its_client_left(leaves: str) -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        with pytest.raises(ClientGoneError):
            await write_for_ever(
                send, {"type": "http.response.body", "body": bytes(10_000), "more_body": True}
            )
        ended.set()

    async with open_server(app, limits=LIMITS, http2=True) as server:
        client = await connect(server)
        await client.get(1)
        await client.wait_event(h2.events.DataReceived, acknowledge=False)
        await trio.sleep(0.1)
        if leaves == "connection":
            client.raw.reset()
        else:
            client.protocol.reset_stream(1)
            await client.flush()
        with trio.fail_after(1):
            await ended.wait()


async def test_a_reset_stream_tells_its_app_alone() -> None:
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await trio.sleep(0.005)
        except ClientGoneError:
            ends.append(scope["path"])

    async with open_server(app, limits=LIMITS, http2=True) as server:
        client = await connect(server)
        await client.get(1, "/one")
        await client.get(3, "/three")
        await client.wait_event(h2.events.DataReceived)
        client.protocol.reset_stream(1)
        await client.flush()
        await wait_for(lambda: bool(ends))
        assert ends == ["/one"]
        await client.wait_event(h2.events.DataReceived)
        client.raw.close()
        await wait_for(lambda: len(ends) == 2)


async def test_apps_are_told_before_anything_else_when_the_client_leaves() -> None:
    """Also when another stream's write found out first: then they are not cancelled, they may clean up."""
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        if scope["path"] == "/write":
            chunk = {"type": "http.response.body", "body": b"x" * 100, "more_body": True}
            with pytest.raises(ClientGoneError):
                await write_for_ever(send, chunk)
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
        await trio.sleep(0.05)
        ends.append(scope["path"])

    async with open_server(app, limits=LIMITS, http2=True) as server:
        for turn in range(1, 6):
            client = await connect(server)
            await client.get(1, "/write")
            await client.get(3, "/wait")
            await client.wait_event(h2.events.DataReceived)
            client.raw.reset()
            await wait_for(lambda expected=2 * turn: len(ends) == expected)  # type: ignore[misc]


async def test_an_idle_connection_is_told_goodbye() -> None:
    """After `keep_alive_s`, and at once when the server goes away."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async with open_server(app, limits=LIMITS, http2=True) as server:
        for going_away in (False, True):
            client = await connect(server)
            await client.get(1)
            await client.wait_event(h2.events.StreamEnded)
            asked_at = trio.current_time()
            if going_away:
                server.shutdown.set()
            await client.wait_event(h2.events.ConnectionTerminated)
            assert (trio.current_time() - asked_at < 0.1) is going_away


async def test_a_stream_in_flight_ends_before_the_goodbye() -> None:
    release = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await release.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(app, limits=LIMITS, http2=True) as server:
        client = await connect(server)
        await client.get(1)
        await client.wait_event(h2.events.DataReceived)
        server.shutdown.set()
        await trio.sleep(0.02)
        release.set()
        await client.wait_event(h2.events.StreamEnded)
