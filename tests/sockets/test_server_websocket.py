"""WebSockets over HTTP/1: the handshake, the messages, the closing."""

from __future__ import annotations

import pytest
import trio
from raw import (
    Message,
    RawClient,
    Receive,
    Scope,
    Send,
    TestServer,
    open_server,
    parse_head,
    wait_for,
    write_for_ever,
)
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits

LIMITS = ServerLimits(linger_s=0.2, drain_s=0.2, websocket_message_bytes=10_000)
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: keep-alive, Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-extensions: permessage-deflate\r\n\r\n"
)


class WebSocketClient:
    """One WebSocket, on a raw connection."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.protocol = Connection(ConnectionType.CLIENT)
        self.headers: dict[str, str] = {}

    async def send(self, event: Event) -> None:
        await self.raw.send(self.protocol.send(event))

    async def accepted(self) -> None:
        status, self.headers = parse_head(await self.raw.read_until(b"\r\n\r\n"))
        assert status == 101
        self.protocol.receive_data(bytes(self.raw.seen))
        self.raw.seen.clear()

    async def next_event(self) -> Event:
        while True:
            for event in self.protocol.events():
                return event
            data = await self.raw.stream.receive_some(1 << 16)
            if not data:
                raise EOFError("the server closed")
            self.protocol.receive_data(bytes(data))


async def connect(server: TestServer, *ahead: Event) -> WebSocketClient:
    """Connect, and send events before the handshake is answered."""
    client = WebSocketClient(await server.connect())
    await client.raw.send(HANDSHAKE + b"".join(client.protocol.send(event) for event in ahead))
    await client.accepted()
    return client


class Echo:
    """An app that echoes, and keeps what it was told."""

    def __init__(self, *, decide_s: float = 0) -> None:
        self.messages: list[Message] = []
        self.decide_s = decide_s
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        self.scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        await trio.sleep(self.decide_s)
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            self.messages.append(message)
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message["text"], "bytes": message["bytes"]})


async def test_messages_go_both_ways() -> None:
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        await client.send(TextMessage(data="héllo"))
        assert await client.next_event() == TextMessage(data="héllo")
        await client.send(BytesMessage(data=b"\x00" * 5_000))
        event = await client.next_event()
        assert isinstance(event, BytesMessage)
        await client.send(Ping(payload=b"are you there"))
        while not isinstance(event, Pong):
            event = await client.next_event()
        assert event.payload == b"are you there"
        assert "penstock.stream" in app.scopes[0]["extensions"]
        assert not app.scopes[0]["extensions"]["penstock.server"]["draining"].is_set()


async def test_no_deflate() -> None:
    """Every browser offers permessage-deflate; accepting costs 100 KiB for each socket."""
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        assert "sec-websocket-extensions" not in client.headers
        assert b"sec-websocket-extensions" not in dict(app.scopes[0]["headers"])


@pytest.mark.parametrize("pause_s", [0, 0.02])
async def test_frames_before_the_answer_are_kept(pause_s: float) -> None:
    """hypercorn#225: such bytes ended the process."""
    app = Echo(decide_s=pause_s)
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server, TextMessage(data="early"), TextMessage(data="bird"))
        assert await client.next_event() == TextMessage(data="early")
        assert await client.next_event() == TextMessage(data="bird")


async def test_frames_while_the_app_decides_are_kept() -> None:
    async with open_server(Echo(decide_s=0.05), limits=LIMITS) as server:
        client = WebSocketClient(await server.connect(HANDSHAKE))
        await trio.sleep(0.02)
        await client.send(TextMessage(data="early"))
        await client.accepted()
        assert await client.next_event() == TextMessage(data="early")


async def test_a_refused_handshake_is_403_and_closed() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async with open_server(refuse, limits=LIMITS) as server:
        client = await server.connect(HANDSHAKE + b"\x81\x80\x00\x00\x00\x00")
        assert (await client.read_response())[0] == 403
        assert (await client.read_to_end()) == (b"", "eof")


async def test_close_code_reaches_the_app() -> None:
    """Hypercorn tells it 1006 for every close."""
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        await client.send(CloseConnection(code=4001, reason="enough"))
        answer = await client.next_event()
        assert isinstance(answer, CloseConnection)
        assert answer.code == 4001
        await wait_for(lambda: bool(app.messages))
        assert app.messages == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}]
        assert await client.raw.read_to_end() == (b"", "eof")


@pytest.mark.parametrize("how", ["close", "reset", "half_close"])
async def test_a_vanished_client_is_1006_at_once(how: str) -> None:
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        left_at = trio.current_time()
        getattr(client.raw, how)()
        await wait_for(lambda: bool(app.messages))
        assert app.messages[0]["code"] == 1006
        assert trio.current_time() - left_at < 0.5


@pytest.mark.parametrize("fragments", [1, 50])
async def test_oversized_message_is_1009(fragments: int) -> None:
    """It is not collected beyond the limit either."""
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        for number in range(fragments):
            await client.send(TextMessage(data="x" * (20_000 // fragments), message_finished=number == 49))
        event = await client.next_event()
        assert isinstance(event, CloseConnection)
        assert event.code == 1009
        await wait_for(lambda: bool(app.messages))
        assert [message["type"] for message in app.messages] == ["websocket.disconnect"]


BROKEN = {
    "unmasked": (b"\x81\x02hi", 1002),
    "reserved bit": (b"\xc1\x80\x00\x00\x00\x00", 1002),
    "unknown opcode": (b"\x83\x80\x00\x00\x00\x00", 1002),
    "not UTF-8": (b"\x81\x82\x00\x00\x00\x00\xff\xff", 1007),
    "length with the top bit": (b"\x82\xff" + b"\xff" * 8 + b"\x00\x00\x00\x00", 1002),
    "fragmented ping": (b"\x09\x80\x00\x00\x00\x00", 1002),
    "continuation of nothing": (b"\x80\x80\x00\x00\x00\x00", 1002),
    "close with one byte": (b"\x88\x81\x00\x00\x00\x00\x03", 1002),
    "close with code 1005": (b"\x88\x82\x00\x00\x00\x00\x03\xed", 1002),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_broken_frames_are_answered_with_their_code(case: str) -> None:
    frame, code = BROKEN[case]
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        await client.raw.send(frame)
        event = await client.next_event()
        assert isinstance(event, CloseConnection)
        assert event.code == code
        await wait_for(lambda: bool(app.messages))
        assert await client.raw.read_to_end() == (b"", "eof")
        assert server.metrics.get("server_connection_errors") == 0


async def test_frames_after_the_close_are_dropped() -> None:
    app = Echo()
    async with open_server(app, limits=LIMITS) as server:
        client = await connect(server)
        await client.send(CloseConnection(code=1000))
        await client.raw.send(b"\x81\x82\x00\x00\x00\x00hi" * 100)
        await client.next_event()
        await trio.sleep(0.02)
        await client.raw.send(b"\xff" * 100)
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_connection_errors") == 0


async def test_the_app_closes_and_the_client_need_not_answer() -> None:
    async def close(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4002, "reason": "done"})
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.close"})
        with pytest.raises(ClientGoneError):
            await send({"type": "websocket.send", "text": "more"})

    async with open_server(close, limits=LIMITS) as server:
        client = await connect(server)
        event = await client.next_event()
        assert isinstance(event, CloseConnection)
        assert (event.code, event.reason) == (4002, "done")
        with trio.fail_after(1):
            assert await client.raw.read_to_end() == (b"", "eof")
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_app_errors") == 0


async def test_a_failed_app_is_1011() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise ValueError("no")

    async with open_server(fail, limits=LIMITS) as server:
        client = await connect(server)
        event = await client.next_event()
        assert isinstance(event, CloseConnection)
        assert event.code == 1011


async def test_an_app_that_only_writes_hears_of_the_end() -> None:
    """Its client has sent more than is kept for it, and gone: the next write says so."""
    told = trio.Event()

    async def only_write(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        with pytest.raises(OSError, match="left"):
            await write_for_ever(send, {"type": "websocket.send", "text": "x"}, pause_s=0.002)
        told.set()

    async with open_server(only_write, limits=LIMITS) as server:
        client = await connect(server)
        with trio.move_on_after(0.05):
            while True:
                await client.send(TextMessage(data="x" * 5_000))
        client.raw.close()
        with trio.fail_after(1):
            await told.wait()


async def test_a_quiet_socket_stays() -> None:
    """No deadline of HTTP's applies to it."""
    limits = ServerLimits(head_s=0.02, body_s=0.02, keep_alive_s=0.02, drain_s=0.1)
    async with open_server(Echo(decide_s=0.1), limits=limits) as server:
        client = await connect(server)
        await trio.sleep(0.1)
        await client.send(TextMessage(data="still here"))
        assert await client.next_event() == TextMessage(data="still here")
