"""A client that says exactly what it is told to, and a server to say it to."""

from __future__ import annotations

import functools
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from penstock.asgi import ASGIApp
from penstock.limits import ServerLimits
from penstock.metrics import Counters
from penstock.server import serve

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
"""A whole request."""


class RawClient:
    """One TCP connection, byte by byte."""

    def __init__(self, stream: trio.abc.Stream, sock: trio.socket.SocketType) -> None:
        self.stream = stream
        self.socket = sock
        self.seen = bytearray()

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send_all(data)

    async def send_for_ever(self, data: bytes) -> None:
        """Send again and again; the server ends it by closing, which raises."""
        while True:
            await self.stream.send_all(data)

    async def read_until(self, mark: bytes) -> bytes:
        """Read until `mark` has come and return all up to its end; what follows waits for the next call."""
        while mark not in self.seen:
            data = await self.stream.receive_some(1 << 16)
            if not data:
                raise EOFError(f"{mark!r} never came, only {bytes(self.seen)!r}")
            self.seen += data
        end = self.seen.index(mark) + len(mark)
        found = bytes(self.seen[:end])
        del self.seen[:end]
        return found

    async def read_response(self) -> tuple[int, dict[str, str], bytes]:
        """Read one HTTP/1.1 response with a length or in chunks."""
        status, headers = parse_head(await self.read_until(b"\r\n\r\n"))
        body = bytearray()
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self.seen) < length:
                self.seen += await self.stream.receive_some(1 << 16) or fail_eof(self.seen)
            body += self.seen[:length]
            del self.seen[:length]
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.read_until(b"\r\n"), 16):
                while len(self.seen) < size + 2:
                    self.seen += await self.stream.receive_some(1 << 16) or fail_eof(self.seen)
                body += self.seen[:size]
                del self.seen[: size + 2]
            await self.read_until(b"\r\n")
        return status, headers, bytes(body)

    async def read_to_end(self) -> tuple[bytes, str]:
        """Read all that comes, and say how it ended: `eof` or `reset`."""
        end = "eof"
        try:
            while data := await self.stream.receive_some(1 << 16):
                self.seen += data
        except trio.BrokenResourceError:
            end = "reset"
        data = bytes(self.seen)
        self.seen.clear()
        return data, end

    def half_close(self) -> None:
        """Send FIN and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Leave with FIN."""
        self.socket.close()


def fail_eof(seen: bytes | bytearray) -> bytes:
    """Raise, where bytes were due."""
    raise EOFError(f"the body ended early: {bytes(seen)!r}")


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Take a response's head apart."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.1 (\d\d\d) .*", first)
    assert match is not None, first
    fields = (line.split(": ", 1) for line in lines)
    return int(match[1]), {name.lower(): value for name, value in fields}


@dataclass
class TestServer:
    """A running server."""

    __test__ = False

    port: int
    shutdown: trio.Event
    metrics: Counters
    clients: list[RawClient] = field(default_factory=list)

    async def connect(self, data: bytes = b"", *, receive_buffer: int | None = None) -> RawClient:
        """Open a connection, and send. `receive_buffer` makes it one that soon takes no more."""
        sock = trio.socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        client = RawClient(trio.SocketStream(sock), sock)
        self.clients.append(client)
        await client.send(data)
        return client

    async def get(self, path: str = "/") -> tuple[int, dict[str, str], bytes]:
        """Get one answer on a connection of its own."""
        client = await self.connect(
            f"GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n".encode()
        )
        try:
            return await client.read_response()
        finally:
            client.close()


@asynccontextmanager
async def open_server(
    app: ASGIApp, *, limits: ServerLimits | None = None, lifespan: bool = False, **options: Any
) -> AsyncIterator[TestServer]:
    """Serve `app` on a loopback port; drain, for half a second at most, when the block ends.

    The app is not asked about its lifespan unless `lifespan` says so.
    """

    async def asked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" or lifespan:
            await app(scope, receive, send)

    limits = limits or ServerLimits(drain_s=0.5, abort_s=0.1)
    metrics = Counters()
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(
            functools.partial(
                serve, asked, port=0, limits=limits, metrics=metrics, shutdown=shutdown, **options
            )
        )
        server = TestServer(int(urls[0].rpartition(":")[2]), shutdown, metrics)
        try:
            yield server
        finally:
            for client in server.clients:
                client.close()
            shutdown.set()


async def respond(send: Send, body: bytes = b"", status: int = 200) -> None:
    """Answer with a whole response."""
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def start_stream(send: Send) -> None:
    """Begin a chunked response with a first chunk."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})


async def write_for_ever(send: Send, message: Message, *, pause_s: float = 0) -> None:
    """Send a message again and again; the server ends it by raising."""
    while True:
        await send(message)
        await trio.sleep(pause_s)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for two seconds at most."""
    with trio.fail_after(2):
        # What is waited for is a number of the server's, or a list of the test's.
        while not condition():
            await trio.sleep(0.002)
