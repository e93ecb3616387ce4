"""A WebSocket client of our own for chats: wsproto on a raw connection, and frames as dicts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import trio
from raw import RawClient, TestServer, open_server, parse_head
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage

from penstock.asgi import ASGIApp
from penstock.limits import ServerLimits

Json: TypeAlias = dict[str, Any]

WAIT_S = 5.0
"""For anything that is sure to come."""
LIMITS = ServerLimits(linger_s=0.2, drain_s=1, abort_s=0.1)


def handshake(path: str = "/api/chat/ws", **headers: str) -> bytes:
    """Return an upgrade request; a header given as "" is left out."""
    fields = {
        "host": "test",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value]
    return f"GET {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode("latin-1")


def user(text: str, id: str = "u1") -> Json:
    """A user's message."""
    return {"id": id, "role": "user", "parts": [{"type": "text", "text": text}]}


class ChatSocket:
    """One WebSocket. Frames come one by one with `next`, or to the end of a request with `until`."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.protocol = Connection(ConnectionType.CLIENT)
        self.headers: dict[str, str] = {}
        self.frames: list[Json] = []
        """All that came."""
        self.raw_chunks: dict[str, list[str]] = {}
        """The JSON of each request's chunks, as it came; "" for a chunk without a position."""
        self.pings = 0
        self.answers_pings = True
        self.closed: tuple[int, str] | None = None
        self._text = ""
        self._sending = trio.Lock()

    async def accepted(self) -> None:
        """Read the handshake's answer."""
        status, self.headers = parse_head(await self.raw.read_until(b"\r\n\r\n"))
        assert status == 101
        self.protocol.receive_data(bytes(self.raw.seen))
        self.raw.seen.clear()

    async def say(self, event: Event) -> None:
        """Send an event of wsproto's."""
        await self.send_bytes(self.protocol.send(event))

    async def send_bytes(self, data: bytes) -> None:
        """Send any bytes, after those that are being sent."""
        async with self._sending:
            await self.raw.send(data)

    async def ask(self, type: str, request_id: str, **fields: Any) -> None:
        """Send a frame."""
        await self.say(TextMessage(data=json.dumps({"type": type, "requestId": request_id, **fields})))

    async def send(self, request_id: str, text: str, chat: str = "c", **fields: Any) -> None:
        """Send a user's message."""
        message = user(text, f"u-{chat}-{text}")
        await self.ask("send", request_id, id=chat, messages=[message], **fields)

    async def next(self) -> Json:
        """Return the next frame.

        Raises:
            EOFError: the server closed; `closed` says how.
        """
        with trio.fail_after(WAIT_S):
            while True:
                for event in self.protocol.events():
                    if isinstance(event, Ping):
                        self.pings += 1
                        if self.answers_pings:
                            await self.say(event.response())
                    elif isinstance(event, CloseConnection):
                        self.closed = (event.code, event.reason or "")
                        with suppress(trio.BrokenResourceError):
                            await self.say(event.response())
                        raise EOFError
                    elif not isinstance(event, Pong):
                        assert isinstance(event, TextMessage)
                        self._text += event.data
                        if event.message_finished:
                            return self._frame()
                await self.more()

    def _frame(self) -> Json:
        text, self._text = self._text, ""
        frame: Json = json.loads(text)
        if frame["type"] == "chunk":
            _, _, rest = text.partition(',"chunk":')
            self.raw_chunks.setdefault(frame["requestId"], []).append(rest.rpartition(',"position":')[0])
        self.frames.append(frame)
        return frame

    async def more(self) -> int:
        """Feed the protocol; return with how many bytes."""
        try:
            data = await self.raw.stream.receive_some(1 << 20)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise EOFError
        self.protocol.receive_data(bytes(data))
        return len(data)

    async def until(self, type: str, request_id: str | None = None) -> Json:
        """Return the next frame of a type, of any request or of one."""
        while True:
            frame = await self.next()
            if frame["type"] == type and request_id in (None, frame["requestId"]):
                return frame

    async def chunk(self, kind: str) -> Json:
        """Return the next frame with a chunk of a kind."""
        while (frame := await self.until("chunk"))["chunk"]["type"] != kind:
            pass
        return frame

    async def end(self) -> tuple[int, str]:
        """Read to the end, and return the server's close code and reason; 1006 where there was none."""
        try:
            while True:
                await self.next()
        except EOFError:
            return self.closed or (1006, "")

    def of(self, request_id: str) -> list[Json]:
        """What came for a request."""
        return [frame for frame in self.frames if frame["requestId"] == request_id]

    def chunks(self, request_id: str) -> list[Json]:
        """The chunks of a request, whose numbers are checked."""
        frames = [frame for frame in self.of(request_id) if frame["type"] == "chunk"]
        assert [frame["sequence"] for frame in frames] == list(range(len(frames)))
        return [frame["chunk"] for frame in frames]

    def text(self, request_id: str) -> str:
        """The text that a request was answered with."""
        return "".join(chunk.get("delta", "") for chunk in self.chunks(request_id))


async def connect(server: TestServer, path: str = "/api/chat/ws", **headers: str) -> ChatSocket:
    """Open a WebSocket."""
    socket = ChatSocket(await server.connect(handshake(path, **headers)))
    with trio.fail_after(WAIT_S):
        await socket.accepted()
    return socket


@asynccontextmanager
async def chat_server(
    app: ASGIApp, limits: ServerLimits = LIMITS, **options: Any
) -> AsyncIterator[TestServer]:
    """Serve an app with its lifespan; the test may shut it down itself."""
    async with open_server(app, limits=limits, lifespan=True, **options) as server:
        yield server
