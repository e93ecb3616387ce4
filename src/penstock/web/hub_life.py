"""The hub of an app: open round the lifespan of the app behind, or as soon as its journal can be reached."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any, TypeAlias

import trio

from penstock.asgi import ASGIApp, Receive, Scope, Send
from penstock.connections.keepalive import Keepalive
from penstock.errors import StoreUnavailableError
from penstock.interop import open_interop
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.hub import Hub

logger = logging.getLogger("penstock.web")

OpenHub: TypeAlias = Callable[[], AbstractAsyncContextManager[Hub]]


class HubLife:
    """One app's hub, from the app's start to its end.

    Args:
        open_hub: opens it.
        nats_mirror: see `open_interop`.
        nats_watch: see `open_interop`.
        degraded: whether the app starts without a hub if the journal can't be reached, and gets one later.
        limits: how long from one try to the next.
        metrics: where to count.
    """

    def __init__(
        self,
        open_hub: OpenHub,
        *,
        nats_mirror: str | None,
        nats_watch: str | None,
        degraded: bool,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.hub: Hub | None = None
        """None before, after, and while there is no journal."""
        self._open_hub = open_hub
        self._open_interop = partial(
            open_interop, nats_mirror=nats_mirror, nats_watch=nats_watch, limits=limits, metrics=metrics
        )
        self._degraded = degraded
        self._retry_s = limits.hub.flush_retry_s

    async def run(
        self, behind: ASGIApp, keepalive: Keepalive, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a lifespan scope."""
        server = scope.get("extensions", {}).get("penstock.server")
        down = trio.Event()
        async with trio.open_nursery() as late_nursery:
            async with AsyncExitStack() as stack:
                hub = refusal = None
                try:
                    hub = await self._enter(stack)
                except StoreUnavailableError as exc:
                    refusal = None if self._degraded else str(exc)
                    logger.error("the app has no journal: %s", exc)
                except ValueError as exc:
                    refusal = str(exc)
                if refusal is not None:
                    await receive()
                    await send({"type": "lifespan.startup.failed", "message": refusal})
                else:
                    if hub is None:
                        # Outside of what is cancelled below: a hub is not to be torn down but closed.
                        late_nursery.start_soon(self._open_late, server, down)
                    await self._serve(hub, behind, keepalive, server, scope, receive, send)
            down.set()

    async def _serve(
        self,
        hub: Hub | None,
        behind: ASGIApp,
        keepalive: Keepalive,
        server: Mapping[str, Any] | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        async with trio.open_nursery() as nursery:
            if hub is not None:
                nursery.start_soon(_drain_with, hub, server)
            nursery.start_soon(keepalive.run)
            await behind(scope, receive, send)
            nursery.cancel_scope.cancel("the app has shut down")

    async def _open_late(self, server: Mapping[str, Any] | None, down: trio.Event) -> None:
        """Open the hub as soon as its journal is there, and hold it until `down`."""
        while not down.is_set():
            with trio.move_on_after(self._retry_s):
                await down.wait()
            async with AsyncExitStack() as stack:
                try:
                    hub = await self._enter(stack)
                except (ValueError, StoreUnavailableError) as exc:
                    logger.info("there is no journal yet: %s", exc)
                    continue
                logger.error("the journal is there")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_drain_with, hub, server)
                    await down.wait()
                    nursery.cancel_scope.cancel("the app has shut down")

    async def _enter(self, stack: AsyncExitStack) -> Hub:
        """Open the hub, and what goes with it, for as long as the stack."""
        hub = await stack.enter_async_context(self._open_hub())
        await stack.enter_async_context(self._open_interop(hub))
        stack.callback(self._forget)
        self.hub = hub
        return hub

    def _forget(self) -> None:
        self.hub = None


async def _drain_with(hub: Hub, server: Mapping[str, Any] | None) -> None:
    """When the server begins to go away, let turns end; keep a quarter of the time to tell their followers."""
    if server is not None:
        await server["draining"].wait()
        await hub.drain(server["drain_s"] * 0.75, restart=server["restart"])
