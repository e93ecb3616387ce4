"""An upstream on a raw socket that does what no well-behaved server does, and turns that relay it."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
import trio

from penstock import Hub, TurnState, open_hub
from penstock.errors import UpstreamError
from penstock.limits import Limits, RelayLimits
from penstock.relay.upstream import relay
from penstock.testing import user_message
from penstock.turns.turn import Producer, Turn
from penstock.wire.assembly import assemble
from penstock.wire.chunks import AnyChunk
from penstock.wire.messages import UIMessage


class Ended(NamedTuple):
    """A turn that has ended."""

    state: TurnState
    chunks: list[AnyChunk]
    error: UpstreamError | None

    @property
    def message(self) -> UIMessage:
        """The message that the chunks make."""
        return msgspec.convert(assemble(self.chunks, ""), UIMessage)


async def run_turn_in(hub: Hub, chat_id: str, producer: Producer, *messages: UIMessage) -> Ended:
    """Run one turn, followed to its end."""
    raised: list[UpstreamError] = []

    async def answer(turn: Turn) -> None:
        try:
            await producer(turn)
        except UpstreamError as exc:
            raised.append(exc)
            raise

    turn = await hub.start_turn(chat_id, answer, messages or [user_message("Hello")])
    chunks: list[AnyChunk] = []
    with turn.follow() as subscription:
        try:
            while True:
                chunks += [entry.chunk for entry in await subscription.next_batch(100)]
        except trio.EndOfChannel:
            pass
    return Ended(await turn.wait_ended(), chunks, raised[0] if raised else None)


async def run_turn(producer: Producer, *messages: UIMessage) -> Ended:
    """Run one turn in a hub of its own."""
    async with open_hub() as hub:
        return await run_turn_in(hub, "chat", producer, *messages)


Script = Callable[[trio.SocketStream], Awaitable[None]]

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Scripted(NamedTuple):
    """A server that does as it is told."""

    url: str
    requests: list[bytes]


async def read_request(stream: trio.SocketStream) -> bytes:
    """Read one request, head and body."""
    request = b""
    while not (head := re.search(rb"\r\n\r\n", request)):
        if not (data := await stream.receive_some()):
            raise trio.BrokenResourceError
        request += data
    found = re.search(rb"\r\ncontent-length: (\d+)\r\n", request[: head.end()], re.IGNORECASE)
    while len(request) < head.end() + (int(found[1]) if found else 0):
        if not (data := await stream.receive_some()):
            raise trio.BrokenResourceError
        request += data
    return request


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[Scripted]:
    """Serve a script: it is run for each connection after the request was read, and the connection is closed."""
    server = Scripted("", [])

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                server.requests.append(await read_request(stream))
                await script(stream)
            except trio.BrokenResourceError:
                pass  # the client left, as it should

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        yield server._replace(url=f"http://127.0.0.1:{port}/v1")
        nursery.cancel_scope.cancel()


def chunked(data: bytes) -> bytes:
    """Frame data as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str, finish_reason: str | None = None) -> bytes:
    """Make an event of the API as one HTTP chunk."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return chunked(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())


def sends(*pieces: bytes, then: Script | None = None) -> Script:
    """Make a script that sends pieces, then does something or closes."""

    async def script(stream: trio.SocketStream) -> None:
        for piece in pieces:
            await stream.send_all(piece)
        if then is not None:
            await then(stream)

    return script


async def hang(stream: trio.SocketStream) -> None:
    """Say nothing more."""
    await trio.sleep_forever()


async def reset(stream: trio.SocketStream) -> None:
    """Close with an RST."""
    await trio.sleep(0.02)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def impatient(**limits: Any) -> Limits:
    """Make limits that a test can wait for."""
    return Limits(
        relay=RelayLimits(
            **{
                "first_byte_s": 0.1,
                "silence_s": 0.1,
                "trailer_s": 0.05,
                "retries": 0,
                "thinking_s": 60,
                **limits,
            }
        )
    )


async def relayed(script: Script, *, limits: Limits | None = None, **options: Any) -> Ended:
    """Run one turn on a scripted upstream."""
    async with scripted(script) as server:
        return await run_turn(relay(server.url, "m", limits=limits or impatient(), **options))


def answer_with(
    body: bytes, content_type: str = "application/json", status: str = "200 OK", more: str = ""
) -> Script:
    """Make a script that sends one plain response."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return sends(head.encode() + body)


def one_after_another(*scripts: Script) -> Script:
    """Make a script that does another thing for each connection, and the last one from then on."""
    rest = list(scripts)

    async def script(stream: trio.SocketStream) -> None:
        await (rest.pop(0) if len(rest) > 1 else rest[0])(stream)

    return script
