"""A TCP link that can be cut: a proxy on loopback, in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Link:
    """Forwards connections to one port."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._whole = True
        self._mended = trio.Event()
        self._nurseries: set[trio.Nursery] = set()

    def cut(self) -> None:
        """Let nothing through any more, in silence: who is connected stays so, and hears nothing."""
        self._whole = False
        self._mended = trio.Event()

    def mend(self) -> None:
        """Let everything through again, also what waited; new connections too."""
        self._whole = True
        self._mended.set()

    def reset(self) -> None:
        """End the connections that there are."""
        for nursery in self._nurseries:
            nursery.cancel_scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """Forward one connection."""
        try:
            if not self._whole:
                await self._mended.wait()
            server = await trio.open_tcp_stream("127.0.0.1", self._target)
            async with client, server, trio.open_nursery() as nursery:
                self._nurseries.add(nursery)
                try:
                    nursery.start_soon(self._forward, client, server, nursery)
                    await self._forward(server, client, nursery)
                finally:
                    self._nurseries.discard(nursery)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(client)

    async def _forward(
        self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        try:
            async for data in source:
                if not self._whole:
                    await self._mended.wait()
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_link(port: int, target: int) -> AsyncIterator[Link]:
    """Open a link from a port to another."""
    link = Link(target)
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, link.serve, [listener])
        yield link
        nursery.cancel_scope.cancel()
