"""What a stream asks for, and what it is answered with, whichever transport carries it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal, NamedTuple, Protocol

import httpx2
import trio

from penstock.limits import WireLimits
from penstock.wire.sse_parser import ServerSentEvent, SseParser


class Asked(NamedTuple):
    """A request for a stream."""

    kind: Literal["send", "resume", "watch"]
    chat_id: str
    fields: Mapping[str, Any]
    """Of a `send`, the request's body; of a `watch`, its filters."""
    after: str
    """The position after which to go on; empty for the whole."""


class Answer(Protocol):
    """A stream that a server has begun. Over any transport its events are those of server-sent events."""

    @property
    def turn_id(self) -> str | None:
        """The id of the turn that it follows; None of a server that isn't penstock, and of a watch."""

    @property
    def heard_at(self) -> float:
        """When the server gave its last sign of life, by Trio's clock."""

    @property
    def retry_s(self) -> float | None:
        """The reconnection time that the stream has set; None if it has not."""

    async def read(self) -> list[ServerSentEvent] | None:
        """Wait for events; an empty list is a sign of life, None the end. Cancelling it loses nothing.

        Raises:
            httpx2.TransportError: the connection broke.
            RequestRefusedError: the server refused after all.
            StreamLostError: coming back is no use.
        """

    async def aclose(self) -> None:
        """Let go of it."""


class EventAnswer:
    """The body of an HTTP response."""

    def __init__(
        self,
        response: httpx2.Response,
        pieces: AsyncIterator[bytes],
        body: AsyncExitStack,
        wire: WireLimits,
    ) -> None:
        self.turn_id: str | None = response.headers.get("x-penstock-turn")
        self.heard_at = trio.current_time()
        self._pieces = pieces
        self._body = body
        self._parser = SseParser(wire)

    @property
    def retry_s(self) -> float | None:
        """See `Answer.retry_s`."""
        return None if self._parser.retry_ms is None else self._parser.retry_ms / 1000

    async def read(self) -> list[ServerSentEvent] | None:
        """See `Answer.read`."""
        piece = await anext(self._pieces, b"")
        if not piece:
            return None
        self.heard_at = trio.current_time()
        return self._parser.feed(piece)

    async def aclose(self) -> None:
        """See `Answer.aclose`."""
        await self._body.aclose()
