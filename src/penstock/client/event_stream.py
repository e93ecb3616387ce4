"""An event stream that goes on: asked for again after a drop, from where it was.

One task, the caller's: what it doesn't take is not read, and when it is cancelled nothing is left behind. This file
knows responses, drops and waits. What an event means, where a stream goes on and when it is complete is its children's.

What counts as a drop: the body's end, however polite, a broken connection, and silence. The first request of all is
different: a refusal of it, or a server that isn't there, is for the caller to hear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx2
import trio

from penstock.client.backoff import Backoff
from penstock.client.endpoint import Endpoint
from penstock.errors import (
    PenstockError,
    RequestError,
    RequestRefusedError,
    ServerUnreachableError,
    StreamLostError,
)
from penstock.http import open_body
from penstock.wire.sse_parser import ServerSentEvent, SseParser

T = TypeVar("T")

TRANSIENT = frozenset([408, 429, 502, 503, 504])
"""Statuses after which the same request may do better. Source: RFC 9110 section 15, RFC 6585 section 4."""


class EventStream(ABC, Generic[T]):
    """`async with` it, which asks for it, and iterate.

    Cancellation: safe. Nothing that was not handed out counts as seen, so iterating on after a cancelled `anext`
    reconnects and goes on. Leaving the block closes the connection.
    """

    def __init__(self, endpoint: Endpoint, jitter: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._backoff = Backoff(endpoint.limits, jitter)
        self._retry_s = 0.0
        """The stream's reconnection time, which `retry:` sets."""
        self._next_wait_s = 0.0
        """What the server has asked of the next wait alone."""
        self._requests = 0
        self._answered = False
        """Whether any request was answered with a stream."""
        self._response = AsyncExitStack()
        self._pieces: AsyncIterator[bytes] | None = None
        self._parser = SseParser(endpoint.wire)
        self._opened_at = self._heard_at = 0.0
        self._events: deque[ServerSentEvent] = deque()
        self._over = False
        self._closed = False

    @abstractmethod
    async def _next_request(self) -> httpx2.Request:
        """Return what to ask now: for the beginning, or for the rest."""

    @abstractmethod
    def _take(self, event: ServerSentEvent) -> T | None:
        """Return what an event is to the caller, if anything; set `_over` at the end."""

    def _accept(self, response: httpx2.Response) -> None:
        """Look at the head of a stream. Raises to refuse it."""

    @abstractmethod
    def _nothing(self) -> None:
        """A request was answered with 204. Raises where that is a loss; the stream is over else."""

    @property
    @abstractmethod
    def _recovers(self) -> bool:
        """Whether a drop can be made good."""

    @property
    def _complete(self) -> bool:
        """Whether all has come, so that a drop costs nothing."""
        return False

    async def __aenter__(self) -> Self:
        await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, within a second. Iterating raises `trio.ClosedResourceError` from now on."""
        self._closed = True
        self._pieces = None
        await self._response.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            if self._closed:
                raise trio.ClosedResourceError("the stream is closed")
            if self._over:
                raise StopAsyncIteration
            try:
                if self._events:
                    item = self._take(self._events.popleft())
                    if item is not None:
                        return item
                elif self._pieces is None:
                    await self._connect()
                else:
                    await self._read(self._pieces)
            except PenstockError:
                self._over = True  # what came after it would not be the rest
                raise

    async def _connect(self) -> None:
        """Ask until there is a stream to read, or it is known that there is none."""
        while self._pieces is None and not self._over:
            request = await self._next_request()
            self._requests += 1
            try:
                response = await self._endpoint.send(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
                if self._requests == 1:
                    raise ServerUnreachableError(self._endpoint.why(exc)) from exc
                await self._wait(exc)
            except httpx2.TransportError as exc:
                await self._wait(exc)
            else:
                await self._open(response)

    async def _open(self, response: httpx2.Response) -> None:
        """Take a response as the one to read, or deal with its refusal."""
        async with AsyncExitStack() as stack:
            pieces = await stack.enter_async_context(open_body(response))
            if response.status_code == 200:
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise RequestError("The server did not answer with an event stream.")
                self._accept(response)
                self._answered = True
                self._parser = SseParser(self._endpoint.wire)
                self._opened_at = self._heard_at = trio.current_time()
                self._pieces = pieces
                self._response = stack.pop_all()
                return
            if response.status_code == 204:
                self._nothing()
                self._over = True
                return
            refusal = await self._endpoint.refusal(response, pieces)
        if self._requests == 1 or refusal.status not in TRANSIENT:
            raise refusal
        self._next_wait_s = refusal.retry_after_s or 0.0
        await self._wait(refusal)

    async def _read(self, pieces: AsyncIterator[bytes]) -> None:
        """Read what comes next into `_events`, or let go of a response that has ended."""
        cause: httpx2.TransportError | None = None
        piece = b""
        with trio.move_on_after(self._endpoint.limits.trailer_s if self._complete else float("inf")):
            try:
                piece = await anext(pieces, b"")
            except httpx2.TransportError as exc:
                cause = exc
        if piece:
            self._heard_at = trio.current_time()
            self._events += self._parser.feed(piece)
            return
        self._pieces = None
        await self._response.aclose()
        if self._complete:
            self._over = True
            return
        if self._heard_at - self._opened_at >= self._endpoint.limits.backoff_max_s:
            self._backoff.reset()
        if self._parser.retry_ms is not None:
            self._retry_s = self._parser.retry_ms / 1000
        if not self._recovers:
            raise StreamLostError(self._endpoint.why(cause)) from cause
        await self._wait(cause)

    async def _wait(self, cause: httpx2.TransportError | RequestRefusedError | None) -> None:
        """Sleep until the next attempt. Raises StreamLostError if there is none."""
        floor_s = max(self._retry_s, self._next_wait_s)
        self._next_wait_s = 0.0
        if not await self._backoff.wait(floor_s):
            why = str(cause) if isinstance(cause, RequestRefusedError) else self._endpoint.why(cause)
            raise StreamLostError(why) from cause
