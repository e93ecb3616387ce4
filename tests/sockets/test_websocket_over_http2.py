"""WebSockets over HTTP/2 (RFC 8441): a raw client of `h2` and wsproto, stream by stream."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
from raw import RawClient, TestServer, open_server, wait_for
from test_server_websocket import Echo
from test_websocket import hello
from test_websocket_hostile import BROKEN, PEACEFUL, raw_frame
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from penstock import AsgiWebSocket, CloseReason, Limits, chat_app, open_connection
from penstock.asgi import ASGIApp, Receive, Scope, Send
from penstock.errors import ClientGoneError
from penstock.limits import ConnectionLimits, ServerLimits
from penstock.wire.websocket import text_message

LIMITS = ServerLimits(drain_s=0.3, abort_s=0.1, linger_s=0.1, keep_alive_s=0.2)
CONNECT = {
    ":method": "CONNECT",
    ":protocol": "websocket",
    ":scheme": "http",
    ":path": "/api/chat/ws",
    ":authority": "test",
    "sec-websocket-version": "13",
}


class Http2Client:
    """One HTTP/2 connection. What comes is kept by stream."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.protocol = h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding="ascii", validate_outbound_headers=False)
        )
        self.protocol.initiate_connection()
        self.heads: dict[int, dict[str, str]] = {}
        self.data: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self.acknowledges = True

    async def flush(self) -> None:
        """Send what h2 has to say."""
        await self.raw.send(self.protocol.data_to_send())

    async def ask(self, stream: int, **changes: str) -> None:
        """Ask for a WebSocket; a field given as "" is left out, and `_` stands for `-`."""
        fields = {**CONNECT, **{name.replace("_", "-"): value for name, value in changes.items()}}
        pseudo = {name: value for name, value in fields.items() if name.startswith(":")}
        self.protocol.send_headers(stream, [(k, v) for k, v in {**pseudo, **fields}.items() if v])
        await self.flush()

    async def more(self) -> None:
        """Take what comes next."""
        with trio.fail_after(2):
            data = await self.raw.stream.receive_some(1 << 16)
        if not data:
            raise EOFError
        for event in self.protocol.receive_data(bytes(data)):
            stream = getattr(event, "stream_id", None) or 0
            if isinstance(event, h2.events.ResponseReceived):
                self.heads[stream] = {str(k): str(v) for k, v in event.headers or ()}
            elif isinstance(event, h2.events.DataReceived):
                self.data[stream] += event.data or b""
                if self.acknowledges:
                    self.protocol.acknowledge_received_data(event.flow_controlled_length or 0, stream)
            elif isinstance(event, h2.events.StreamEnded):
                self.ended.add(stream)
            elif isinstance(event, h2.events.StreamReset):
                self.resets[stream] = int(event.error_code or 0)
        await self.flush()

    async def read_to_end(self) -> None:
        """Read until the server closes."""
        try:
            while True:
                await self.more()
        except EOFError:
            pass

    async def status(self, stream: int) -> int:
        """Wait for a stream's status."""
        while stream not in self.heads:
            await self.more()
        return int(self.heads[stream][":status"])


class Stream:
    """One WebSocket on it."""

    def __init__(self, client: Http2Client, stream: int) -> None:
        self.client = client
        self.stream = stream
        self.protocol = Connection(ConnectionType.CLIENT)

    async def send(self, *events: Event) -> None:
        """Send events of wsproto's."""
        await self.send_bytes(b"".join(self.protocol.send(event) for event in events))

    async def send_bytes(self, data: bytes) -> None:
        """Send any bytes, as the server's window lets us."""
        while data:
            room = self.client.protocol.local_flow_control_window(self.stream)
            piece = data[: min(room, 16_000)]
            if piece:
                self.client.protocol.send_data(self.stream, piece)
                await self.client.flush()
                data = data[len(piece) :]
            else:
                await self.client.more()
            if self.stream in self.client.ended:
                return

    async def next(self) -> Event:
        """Return the next event of wsproto's. Raises EOFError at the stream's end or reset."""
        while True:
            self.protocol.receive_data(self.client.data.pop(self.stream, b""))
            for event in self.protocol.events():
                return event
            if self.stream in self.client.ended or self.stream in self.client.resets:
                raise EOFError
            await self.client.more()

    async def close_code(self) -> int:
        """Read to the close frame, and return its code; 1006 where there is none."""
        try:
            while not isinstance(event := await self.next(), CloseConnection):
                pass
        except EOFError:
            return 1006
        return int(event.code)

    async def frame(self) -> dict[str, Any]:
        """Return the next frame of a chat's."""
        text = ""
        while True:
            event = await self.next()
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    frame: dict[str, Any] = json.loads(text)
                    return frame


@asynccontextmanager
async def client_of(
    app: ASGIApp, limits: ServerLimits = LIMITS, **options: Any
) -> AsyncIterator[tuple[TestServer, Http2Client]]:
    """Serve an app, and connect."""
    async with open_server(app, limits=limits, http2=True, lifespan=True, **options) as server:
        client = Http2Client(await server.connect())
        await client.flush()
        yield server, client
        assert server.metrics.get("server_connection_errors") == 0


async def open_stream(client: Http2Client, stream: int, **fields: str) -> Stream:
    """Open a WebSocket."""
    await client.ask(stream, **fields)
    assert await client.status(stream) == 200
    return Stream(client, stream)


async def test_chats_on_two_streams_of_one_connection() -> None:
    async with client_of(chat_app(hello)) as (server, client):
        streams = [await open_stream(client, number) for number in (1, 3)]
        assert client.protocol.remote_settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
        message = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": "x"}]}
        for number, stream in enumerate(streams):
            fields = {"type": "send", "requestId": "r", "id": f"c{number}", "messages": [message]}
            await stream.send(TextMessage(data=json.dumps(fields)))
        for stream in streams:
            text = ""
            while (frame := await stream.frame())["type"] != "end":
                text += frame.get("chunk", {}).get("delta", "")
            assert text == "Hello, you."
        server.shutdown.set()
        for stream in streams:
            assert (await stream.frame())["reason"] == "drain"
            assert await stream.close_code() == 1001
            assert stream.stream in client.ended


async def test_the_clients_code_reaches_the_app_and_ours_comes_before_the_streams_end() -> None:
    app = Echo()
    async with client_of(app) as (_, client):
        stream = await open_stream(client, 1)
        await stream.send(TextMessage(data="héllo"), BytesMessage(data=b"\0" * 5_000))
        assert await stream.next() == TextMessage(data="héllo")
        assert isinstance(await stream.next(), BytesMessage)
        await stream.send(CloseConnection(code=4001, reason="enough"))
        assert await stream.close_code() == 4001
        while 1 not in client.ended:
            await client.more()
        assert not client.resets
        await client.read_to_end()  # Nothing is asked for any more: the connection ends, too.
        assert app.messages[-1] == {"type": "websocket.disconnect", "code": 4001, "reason": "enough"}


@pytest.mark.parametrize("how", ["half-closes", "resets", "vanishes"])
async def test_a_client_that_leaves_without_a_word_is_1006(how: str) -> None:
    app = Echo()
    async with client_of(app) as (_, client):
        await open_stream(client, 1)
        other = await open_stream(client, 3)
        if how == "half-closes":
            client.protocol.end_stream(1)
        elif how == "resets":
            client.protocol.reset_stream(1)
        else:
            client.raw.reset()
        if how != "vanishes":
            await client.flush()
        await wait_for(lambda: bool(app.messages))
        assert app.messages[0]["code"] == 1006
        if how != "vanishes":
            await other.send(TextMessage(data="still here"))
            assert await other.next() == TextMessage(data="still here")


async def test_malformed_bytes_are_answered_with_their_code_and_harm_no_other_stream() -> None:
    """Every case that there is over HTTP/1, each on a stream of its own."""
    cases = {**BROKEN, **PEACEFUL}
    app = Echo()
    async with client_of(chat_app(hello), ServerLimits(drain_s=0.3, abort_s=0.1)) as (server, client):
        bystander = await open_stream(client, 1)
        for number, (case, (data, code)) in enumerate(cases.items(), 1):
            stream = await open_stream(client, 2 * number + 1)
            await stream.send_bytes(data)
            assert await stream.close_code() == code, case
        await bystander.send(TextMessage(data='{"type":"resume","requestId":"r","id":"none"}'))
        assert (await bystander.frame())["type"] == "no-active"
        assert server.metrics.get("server_app_errors") == 0
    assert not app.messages


REFUSALS: dict[str, tuple[dict[str, str], int]] = {
    "no protocol": ({":protocol": "", ":scheme": "", ":path": ""}, 501),
    "another protocol": ({":protocol": "connect-udp"}, 501),
    "no version": ({"sec-websocket-version": ""}, 400),
    "an old version": ({"sec-websocket-version": "8"}, 400),
    "a protocol that is not ASCII": ({"sec-websocket-protocol": "chät"}, 400),
    "a protocol that is no token": ({"sec-websocket-protocol": "a b"}, 400),
    "a foreign origin": ({"origin": "https://evil.example"}, 403),
    "another path": ({":path": "/other"}, 404),
    "a path that is not ASCII": ({":path": "/ä"}, 400),
    "such a path of a GET": ({":method": "GET", ":protocol": "", ":path": "/\xff"}, 400),
}


async def test_http2_refusals() -> None:
    async with client_of(chat_app(hello)) as (_, client):
        client.protocol.config.header_encoding = "latin-1"
        for number, (case, (fields, status)) in enumerate(REFUSALS.items()):
            await client.ask(2 * number + 1, **fields)
            assert await client.status(2 * number + 1) == status, case
        await open_stream(client, 2 * number + 3)


async def test_data_before_the_answer_is_refused_and_its_app_told() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            told.append((await receive())["type"])
            told.append((await receive())["type"])

    async with client_of(app) as (_, client):
        await client.ask(1)
        client.protocol.send_data(1, raw_frame(1, b"early"))
        await client.flush()
        assert await client.status(1) == 400
        await wait_for(lambda: told == ["websocket.connect", "websocket.disconnect"])


async def test_a_failed_app_is_1011() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            raise ValueError("no")

    async with client_of(app) as (_, client):
        assert await (await open_stream(client, 1)).close_code() == 1011


@pytest.mark.parametrize("answers", [True, False])
async def test_a_quiet_client_is_pinged_and_must_answer(answers: bool) -> None:
    """And one that does not loses this stream only."""
    limits = Limits(connection=ConnectionLimits(keepalive_s=0.1))
    server_limits = ServerLimits(pong_wait_s=0.2, linger_s=0.1, drain_s=0.2)
    async with client_of(chat_app(hello, limits=limits), server_limits) as (server, client):
        streams = [await open_stream(client, number) for number in (1, 3)]
        pings = {1: 0, 3: 0}
        with trio.move_on_after(0.7):
            while 1 not in client.resets:
                await client.more()
                for each in streams:
                    each.protocol.receive_data(client.data.pop(each.stream, b""))
                    for event in each.protocol.events():
                        assert isinstance(event, Ping)
                        pings[each.stream] += 1
                        if answers or each.stream == 3:
                            await each.send(event.response())
        assert (1 in client.resets) is not answers
        assert pings[1] >= (2 if answers else 1)
        assert server.metrics.get("server_timeouts", phase="pong") == (0 if answers else 1)
        await streams[1].send(TextMessage(data='{"type":"resume","requestId":"r","id":"none"}'))
        assert (await streams[1].frame())["type"] == "no-active"


@pytest.mark.parametrize("opens_again", [True, False])
async def test_a_closed_window_holds_the_app_and_not_the_reader(opens_again: bool) -> None:
    """Pings are still read, and what they are answered with does not pile up; the client's close is, too."""
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "text": "x" * 10_000})
        except ClientGoneError:
            ended.set()

    async with client_of(app, ServerLimits(drain_s=0.3, websocket_frames_per_s=10_000)) as (_, client):
        stream = await open_stream(client, 1)
        client.acknowledges = False
        with trio.move_on_after(0.1):
            while True:
                await client.more()
        await stream.send(*[Ping(payload=b"x" * 125)] * 5_000)
        if opens_again:
            # Only the reader can see that.
            client.protocol.increment_flow_control_window(1 << 20)
            client.protocol.increment_flow_control_window(1 << 20, 1)
            await client.flush()
            while len(client.data[1]) < 500_000:
                await client.more()
            stream.protocol.receive_data(client.data.pop(1))
            assert sum(isinstance(event, Pong) for event in stream.protocol.events()) < 500
        await stream.send(CloseConnection(code=1000))
        with trio.fail_after(2):
            await ended.wait()


async def test_a_client_that_takes_nothing_loses_its_stream() -> None:
    """`write_stall_s` after the last byte that went out, and no other stream is touched."""
    closed: list[CloseReason | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        transport = AsgiWebSocket(scope, send)
        limits = ConnectionLimits(write_stall_s=0.2)
        async with open_connection(transport, limits=limits, opening=b"", ending=b"") as connection:
            while scope["path"] == "/flood":
                await connection.send_frame(text_message(b"x" * 10_000))
            while (message := await receive())["type"] != "websocket.disconnect":
                pass
            transport.client_left(message)
        closed.append(connection.close_reason)

    async with client_of(app) as (_, client):
        other = await open_stream(client, 1)
        await open_stream(client, 3, **{":path": "/flood"})
        client.acknowledges = False
        while 3 not in client.resets:
            await client.more()
        assert closed == [CloseReason.write_stalled]
        await other.send(Ping())
        client.protocol.increment_flow_control_window(1 << 20)
        await client.flush()
        assert isinstance(await other.next(), Pong)


async def test_an_app_gives_up_one_stream_and_no_other() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        stream = scope["extensions"]["penstock.stream"]
        gone = trio.Event()
        stream.on_gone(gone.set)
        await send({"type": "websocket.accept"})
        assert not stream.direct
        await receive()
        while (message := await receive())["type"] == "websocket.receive":
            if message["text"] == "abort":
                stream.abort()
                await gone.wait()
            else:
                await send({"type": "websocket.send", "text": message["text"]})

    async with client_of(app) as (_, client):
        streams = [await open_stream(client, number) for number in (1, 3)]
        await streams[0].send(TextMessage(data="abort"))
        with pytest.raises(EOFError):
            await streams[0].next()
        assert client.resets == {1: 2}
        await streams[1].send(TextMessage(data="on"))
        assert await streams[1].next() == TextMessage(data="on")
