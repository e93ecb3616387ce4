"""A WebSocket's session that has more than one reason to end: the first one is said, and the socket is never cut for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from penstock import CloseReason, Turn, open_hub
from penstock.asgi import Message
from penstock.connections.connection import Connection, open_connection
from penstock.connections.websocket import AsgiWebSocket
from penstock.limits import Limits
from penstock.metrics import NopMetrics
from penstock.testing import MemoryTransport, user_message
from penstock.turns.hub import Hub
from penstock.web.answers import Answers
from penstock.web.auth import allow_everyone
from penstock.web.socket import Session


class Client(MemoryTransport):
    """Says what its test tells it to, and takes nothing before it is told to read."""

    def __init__(self) -> None:
        super().__init__()
        self.told: CloseReason | None = None
        self._say, self._said = trio.open_memory_channel[Message](10)
        self.receive = self._said.receive

    async def say(self, text: str) -> None:
        """Send a message, and see it dealt with."""
        self._say.send_nowait({"type": "websocket.receive", "text": text})
        await wait_all_tasks_blocked()

    async def finish(self, ending: bytes, reason: CloseReason) -> None:
        """Note what is said."""
        await super().finish(ending, reason)
        self.told = reason


async def endless(turn: Turn) -> None:
    """Says nothing."""
    await trio.sleep_forever()


@asynccontextmanager
async def session_of(client: Client) -> AsyncIterator[tuple[Hub, Connection, trio.Event]]:
    """Serve one client whose writes hang; the event is set when it has been served."""
    served = trio.Event()
    limits = Limits()
    async with open_hub(journal="memory:", limits=limits) as hub, trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[Connection]) -> None:
            scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": []}
            answers = Answers(endless, on_conflict="refuse", orphan_grace_s=None, limits=limits.hub)
            async with open_connection(client, opening=b"", ending=b"") as connection:
                session = Session(
                    connection,
                    AsgiWebSocket(scope, nothing),
                    scope,
                    hub=hub,
                    answers=answers,
                    authorize=allow_everyone,
                    version=7,
                    abort_stops=False,
                    limits=limits,
                    metrics=NopMetrics(),
                )
                task_status.started(connection)
                await session.run(client.receive)
            served.set()

        connection: Connection = await nursery.start(serve)
        client.reading = trio.Event()
        await connection.send_frame(b"what the client does not take")
        await wait_all_tasks_blocked()
        yield hub, connection, served
        nursery.cancel_scope.cancel()


async def nothing(message: Message) -> None:
    """An ASGI `send` that is not used."""
    raise NotImplementedError


@pytest.mark.parametrize("follows", [False, True])
async def test_a_bad_frame_is_answered_with_its_code_though_the_hub_drains(
    autojump_clock: object, follows: bool
) -> None:
    client = Client()
    async with session_of(client) as (hub, connection, served):
        if follows:
            await hub.start_turn("c", endless, [user_message("x")])
            await client.say('{"type":"watch","requestId":"w","id":"c"}')
        await client.say("[]")
        hub.draining.begin()
        await wait_all_tasks_blocked()
        assert not served.is_set()
        client.reading.set()
        await served.wait()
        assert (client.told, connection.close_reason) == (CloseReason.bad_frame, CloseReason.bad_frame)
        assert not client.aborted


@pytest.mark.parametrize(
    "text", ['{"type":"unknown","requestId":"r"}', '{"type":"stop","requestId":"r","id":"none"}']
)
async def test_what_can_not_be_answered_any_more_does_not_cut_a_socket_that_is_closing(
    autojump_clock: object, text: str
) -> None:
    client = Client()
    async with session_of(client) as (_, connection, served), trio.open_nursery() as nursery:
        nursery.start_soon(connection.aclose, CloseReason.slow_consumer)
        await wait_all_tasks_blocked()
        await client.say(text)
        assert not served.is_set()
        client.reading.set()
        await served.wait()
        assert client.told is CloseReason.slow_consumer
        assert not client.aborted
