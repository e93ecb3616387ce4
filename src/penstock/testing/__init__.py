"""Helpers for tests of apps on penstock: serve on loopback, record a stream, inject faults.

async with open_server(chat_app(answer)) as url:
    recording = await record(f"{url}/api/chat", "Hello")
    assert recording.message["parts"][0]["text"] == "Hi."
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import trio

from penstock.asgi import ASGIApp
from penstock.closing import CloseReason
from penstock.limits import ServerLimits, WireLimits
from penstock.metrics import Metrics, NopMetrics
from penstock.server import serve
from penstock.wire.assembly import assemble
from penstock.wire.chunks import AnyChunk
from penstock.wire.codec import decode_chunk
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent, SseParser


def user_message(text: str, *, id: str | None = None) -> UIMessage:
    """Make a user's message of one text part."""
    return UIMessage(
        id=id or f"user_{secrets.token_hex(8)}", role="user", parts=[{"type": "text", "text": text}]
    )


@asynccontextmanager
async def open_server(
    app: ASGIApp, *, limits: ServerLimits = ServerLimits(), metrics: Metrics = NopMetrics()
) -> AsyncIterator[str]:
    """Serve an app on a free loopback port and yield its URL. Leaving the block drains it."""
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        binds: list[str] = await nursery.start(
            lambda task_status: serve(
                app, port=0, limits=limits, metrics=metrics, shutdown=shutdown, task_status=task_status
            )
        )
        yield binds[0]
        shutdown.set()


class Recording(msgspec.Struct, frozen=True):
    """One streamed answer, as it came."""

    status: int
    headers: dict[str, str]
    raw: bytes
    """The body."""
    events: list[ServerSentEvent]

    @property
    def chunks(self) -> list[AnyChunk]:
        """The events' chunks, decoded."""
        # A replay has one delta for a whole part, however long that is.
        limits = WireLimits(chunk_bytes=len(self.raw) + 1)
        return [
            decode_chunk(event.data.encode(), limits=limits)
            for event in self.events
            if event.data != "[DONE]"
        ]

    @property
    def message(self) -> dict[str, Any]:
        """The message that a client builds of the chunks."""
        return assemble(self.chunks, "")


async def record(
    url: str,
    text: str,
    *,
    chat_id: str | None = None,
    body: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Recording:
    """POST a user's message and record the answer to its end.

    Args:
        url: the chat endpoint, as `http://127.0.0.1:8000/api/chat`.
        text: the user's message.
        chat_id: the chat; a new one if it is None.
        body: fields of the request to add or replace.
        headers: the request's headers to add.

    Raises:
        httpx2.HTTPError: if the server can't be reached, or cuts the stream.
    """
    request = {
        "id": chat_id or f"chat_{secrets.token_hex(8)}",
        "messages": [msgspec.to_builtins(user_message(text))],
        "trigger": "submit-message",
        **(body or {}),
    }
    raw = bytearray()
    async with (
        httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
        client.stream("POST", url, json=request, headers=headers) as response,
    ):
        async for data in response.aiter_raw():
            raw += data
    limits = WireLimits(sse_line_bytes=len(raw) + 1, sse_event_bytes=len(raw) + 1)
    events = SseParser(limits).feed(bytes(raw)) if response.status_code == 200 else []
    return Recording(response.status_code, dict(response.headers), bytes(raw), events)


class MemoryTransport:
    """A transport without a network: keeps what is written, and does what a test tells it to.

    Args:
        direct: whether it can be written to without waiting, as HTTP/1.1 on our own server can.
    """

    def __init__(self, *, direct: bool = False) -> None:
        self.direct = direct
        self.writes: list[bytes] = []
        self.finished = False
        self.aborted = False
        self.reading = trio.Event()
        """Clear it by assigning a new event, and writes hang until it is set: a client that reads nothing."""
        self.reading.set()
        self.gone = trio.Event()
        """Set it: the client has left."""

    @property
    def data(self) -> bytes:
        """All that was written."""
        return b"".join(self.writes)

    def start_nowait(self, opening: bytes) -> bool:
        """See `Transport.start_nowait`."""
        return self.write_nowait(opening)

    async def start(self, opening: bytes) -> None:
        """See `Transport.start`."""
        await self.write(opening)

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        await trio.lowlevel.checkpoint()
        await self.reading.wait()
        if self.aborted:
            raise BrokenPipeError
        self.writes.append(data)

    def write_nowait(self, data: bytes) -> bool:
        """See `Transport.write_nowait`."""
        if self.aborted:
            raise BrokenPipeError
        if not self.direct or not self.reading.is_set():
            return False
        self.writes.append(data)
        return True

    def finish_nowait(self, ending: bytes, reason: CloseReason) -> bool:
        """See `Transport.finish_nowait`."""
        self.finished = self.write_nowait(ending)
        return self.finished

    async def finish(self, ending: bytes, reason: CloseReason) -> None:
        """See `Transport.finish`."""
        await self.write(ending)
        self.finished = True

    def abort(self) -> None:
        """See `Transport.abort`."""
        self.aborted = True

    def on_gone(self, gone: Callable[[], None]) -> bool:
        """See `Transport.on_gone`."""
        return False

    async def wait_gone(self) -> None:
        """See `Transport.wait_gone`."""
        await self.gone.wait()


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the n-th step of any task inside `run_cancelled_at`."""

    def __init__(self, step: int) -> None:
        self.scope = trio.CancelScope()
        self.steps_left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step of the scheduler, and cancel at the last one."""
        self.steps_left -= 1
        if self.steps_left == 0:
            self.scope.cancel("a fault was injected")


async def run_cancelled_at(step: int, body: Callable[[], Awaitable[None]]) -> bool:
    """Run `body` and cancel it at the n-th scheduler step.

    Call it with 1, 2, 3, … until it returns False: then every point at which `body` can be cancelled was tried.

    Returns:
        Whether the cancellation came before the end of `body`.
    """
    instrument = CancelAtStep(step)
    trio.lowlevel.add_instrument(instrument)
    try:
        with instrument.scope:
            await body()
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return instrument.steps_left <= 0
