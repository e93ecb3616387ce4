"""A TCP proxy that breaks connections where it is told to."""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import trio

_EVENT = re.compile(rb"data: [^\n]*\n\n")
_FRAME_EVENTS = (b'{"type":"chunk"', b'{"type":"event"')


@dataclass(frozen=True)
class Fault:
    """What is done to a connection once so much of its answers has been passed on."""

    do: Literal["reset", "close", "stall"]
    after_bytes: int | None = None
    after_events: int | None = None

    def passes(self, seen: bytes) -> int | None:
        """Return how many of the bytes so far are passed on before the fault; None: it is not due yet."""
        if self.after_bytes is not None:
            return self.after_bytes if len(seen) >= self.after_bytes else None
        assert self.after_events is not None
        head = seen.find(b"\r\n\r\n") + 4
        if head < 4:
            return None
        if seen.startswith(b"HTTP/1.1 101 "):
            frames = list(_frames(seen, head))
            if self.after_events == 0:
                return next((end for end, data in frames if data.startswith(b'{"type":"start"')), None)
            ends = [end for end, data in frames if data.startswith(_FRAME_EVENTS)]
        elif self.after_events == 0:
            return head
        else:
            ends = [match.end() for match in _EVENT.finditer(seen)]
        return ends[self.after_events - 1] if len(ends) >= self.after_events else None


def _frames(seen: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield where each whole frame of a server's WebSocket ends, and what it holds."""
    while len(seen) >= at + 2:
        length, at = seen[at + 1], at + 2
        if length >= 126:
            width = 2 if length == 126 else 8
            length, at = int.from_bytes(seen[at : at + width], "big"), at + width
        if len(seen) < at + length:
            return
        yield at + length, seen[at : at + length]
        at += length


@dataclass
class Proxy:
    """A running proxy: the n-th connection gets the n-th fault, and those beyond get the last or, if None, no fault."""

    url: str = ""
    faults: list[Fault | None] = field(default_factory=list)
    connections: int = 0
    """Connections that were accepted."""
    open: int = 0
    """Connections that are open."""

    def next_fault(self) -> Fault | None:
        """Return the fault of a new connection."""
        self.connections += 1
        if len(self.faults) > 1:
            return self.faults.pop(0)
        return self.faults[0] if self.faults else None


@asynccontextmanager
async def open_proxy(url: str, *faults: Fault | None) -> AsyncIterator[Proxy]:
    """Open a proxy to a server on loopback, and yield it; its `url` is where to go instead."""
    port = int(url.rpartition(":")[2])
    proxy = Proxy(faults=list(faults))

    async def carry(client: trio.SocketStream) -> None:
        fault = proxy.next_fault()
        proxy.open += 1
        try:
            async with client, await trio.open_tcp_stream("127.0.0.1", port) as server:
                async with trio.open_nursery() as nursery:

                    async def up() -> None:
                        try:
                            async for data in client:
                                await server.send_all(data)
                        except (trio.BrokenResourceError, trio.ClosedResourceError):
                            pass
                        nursery.cancel_scope.cancel("the client has left")

                    nursery.start_soon(up)
                    try:
                        await _down(server, client, fault)
                    except trio.BrokenResourceError:
                        pass
                    nursery.cancel_scope.cancel("the answer is over")
        finally:
            proxy.open -= 1

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, carry, 0, host="127.0.0.1"))
        proxy.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield proxy
        nursery.cancel_scope.cancel("the test is over")


async def _down(server: trio.SocketStream, client: trio.SocketStream, fault: Fault | None) -> None:
    seen = bytearray()
    passed = 0
    async for data in server:
        seen += data
        end = None if fault is None else fault.passes(bytes(seen))
        await client.send_all(bytes(seen[passed:end]))
        passed = len(seen)
        if end is None:
            continue
        assert fault is not None
        if fault.do == "stall":
            await trio.sleep_forever()
        if fault.do == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return
