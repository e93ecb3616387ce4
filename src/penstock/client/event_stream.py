"""An event stream that goes on: asked for again after a drop, from where it was.

One task, the caller's: what it doesn't take is not read, and when it is cancelled nothing is left behind. This file
knows answers, drops and waits. What carries them is the endpoint's matter; what an event means, where a stream goes on and when it is complete is its children's.

What counts as a drop: the body's end, however polite, a broken connection, and silence. The first request of all is
different: a refusal of it, or a server that isn't there, is for the caller to hear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx2
import trio

from penstock.client.answer import Answer, Asked
from penstock.client.backoff import Backoff
from penstock.client.endpoint import TRANSIENT, Endpoint
from penstock.errors import PenstockError, RequestRefusedError, ServerUnreachableError, StreamLostError
from penstock.wire.sse_parser import ServerSentEvent

T = TypeVar("T")


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
        self._answer: Answer | None = None
        self._opened_at = 0.0
        self._events: deque[ServerSentEvent] = deque()
        self._over = False
        self._closed = False

    @abstractmethod
    async def _next_request(self) -> Asked:
        """Return what to ask now: for the beginning, or for the rest."""

    @abstractmethod
    def _take(self, event: ServerSentEvent) -> T | None:
        """Return what an event is to the caller, if anything; set `_over` at the end."""

    def _accept(self, answer: Answer) -> None:
        """Look at an answer before it is read. Raises to refuse it."""

    @abstractmethod
    def _nothing(self) -> None:
        """There is nothing to stream. Raises where that is a loss; the stream is over else."""

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
        await self._let_go()

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
                elif self._answer is None:
                    await self._connect()
                else:
                    await self._read(self._answer)
            except PenstockError:
                self._over = True  # what came after it would not be the rest
                raise

    async def _connect(self) -> None:
        """Ask until there is a stream to read, or it is known that there is none."""
        while self._answer is None and not self._over:
            asked = await self._next_request()
            self._requests += 1
            try:
                answer = await self._endpoint.open(asked)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
                if self._requests == 1:
                    raise ServerUnreachableError(self._endpoint.why(exc)) from exc
                await self._wait(exc)
            except httpx2.TransportError as exc:
                await self._wait(exc)
            except RequestRefusedError as exc:
                await self._refused(exc)
            else:
                if answer is None:
                    self._nothing()
                    self._over = True
                    return
                async with AsyncExitStack() as unless_accepted:
                    unless_accepted.push_async_callback(answer.aclose)
                    self._accept(answer)
                    unless_accepted.pop_all()
                self._answer = answer
                self._answered = True
                self._opened_at = trio.current_time()

    async def _refused(self, refusal: RequestRefusedError) -> None:
        """Wait, if the same request may do better then. Raises it if not."""
        if self._requests == 1 or refusal.status not in TRANSIENT:
            raise refusal
        self._next_wait_s = refusal.retry_after_s or 0.0
        await self._wait(refusal)

    async def _read(self, answer: Answer) -> None:
        """Read what comes next into `_events`, or let go of an answer that has ended."""
        cause: httpx2.TransportError | None = None
        events = None
        with trio.move_on_after(self._endpoint.limits.trailer_s if self._complete else float("inf")):
            try:
                events = await answer.read()
            except httpx2.TransportError as exc:
                cause = exc
            except RequestRefusedError as exc:
                await self._let_go()
                await self._refused(exc)
                return
        if events is not None:
            self._events += events
            return
        await self._let_go()
        if self._complete:
            self._over = True
            return
        if answer.heard_at - self._opened_at >= self._endpoint.limits.backoff_max_s:
            self._backoff.reset()
        self._retry_s = self._retry_s if answer.retry_s is None else answer.retry_s
        if not self._recovers:
            raise StreamLostError(self._endpoint.why(cause)) from cause
        await self._wait(cause)

    async def _let_go(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            await answer.aclose()

    async def _wait(self, cause: httpx2.TransportError | RequestRefusedError | None) -> None:
        """Sleep until the next attempt. Raises StreamLostError if there is none."""
        floor_s = max(self._retry_s, self._next_wait_s)
        self._next_wait_s = 0.0
        if not await self._backoff.wait(floor_s):
            why = str(cause) if isinstance(cause, RequestRefusedError) else self._endpoint.why(cause)
            raise StreamLostError(why) from cause
