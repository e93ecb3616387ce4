"""The one connection to Redis: calls of scripts, and news of turns.

All tasks share a connection. A call writes its command and waits for its own answer, so that what many tasks ask in one
pass of the scheduler is one write, one read and one wait; and a subscription that was written before a command holds when
the command is answered, so that no news falls between. RESP3 carries the news beside the answers.

coredis is used below its pool. In 6.9 a pool loses a slot for good whenever a connection dies while somebody has it: a
blocking read or a pipeline that is cancelled, a server that restarts. After as many of these as there are slots (64),
every call waits for ever. A connection that nobody borrows needs no slots. A cancelled call doesn't end it either: its
answer is read and dropped, so a cancellation leaves unknown whether the call happened, and costs nobody else anything.

A call that gets no answer in `call_s` ends the connection, because a link that is dead looks just like that. What was
written to it before may still be executed by a server that wakes up late: every script is made for that.
"""

from __future__ import annotations

import hashlib
import logging
import random
import ssl
from collections.abc import Sequence
from contextlib import aclosing
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import ConnectionError, NoScriptError, RedisError

from penstock.errors import StoreUnavailableError
from penstock.journal.notes import HeardNotes
from penstock.journal.redis_address import RedisAddress
from penstock.limits import RedisLimits

logger = logging.getLogger("penstock.journal")

_LUA = Path(__file__).with_name("redis_lua")
_OF_NO_CHAT = frozenset({"ended", "forget"})


class Script(NamedTuple):
    """A script's text, and the hash that Redis knows it by."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """Read a script from `redis_lua/`."""
    text = (_LUA / f"{name}.lua").read_text()
    if name not in _OF_NO_CHAT:
        text = (_LUA / "common.lua").read_text() + text
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """A call of a script."""

    script: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int]

    def command(self) -> tuple[str | bytes | int, ...]:
        """Write it out."""
        return (b"EVALSHA", script(self.script).sha, len(self.keys), *self.keys, *self.args)


class RedisLink:
    """A connection that comes back. `run` is its task.

    Calls in flight are as many as the tasks that make them, which the hub's limits bound.
    """

    def __init__(self, address: RedisAddress, limits: RedisLimits) -> None:
        self._address = address
        self._limits = limits
        self._tls = ssl.create_default_context() if address.tls else None
        self._connection: TCPConnection | None = None
        self._came = trio.lowlevel.ParkingLot()
        self._listeners: dict[bytes, dict[RedisNews | RedisNotes, None]] = {}
        """By channel."""

    async def run(  # noqa: ASYNC114  # the linter's list has bare names
        self, *, task_status: trio.TaskStatus[Exception | None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep a connection, until cancelled. Started with an error instead of None, the first one failed."""
        started = False
        backoff_s = self._limits.first_backoff_s
        async with trio.open_nursery() as nursery:
            while True:
                connection = TCPConnection(
                    TCPLocation(self._address.host, self._address.port),
                    db=self._address.db,
                    username=self._address.username,
                    password=self._address.password,
                    ssl_context=self._tls,
                    connect_timeout=self._limits.connect_s,
                    stream_timeout=self._limits.connect_s,
                    socket_keepalive=True,
                )
                error = await nursery.start(self._hold, connection)
                if not started:
                    started = True
                    task_status.started(error)
                if error is None:
                    backoff_s = self._limits.first_backoff_s
                    self._begin(connection)
                    await self._listen(connection)
                    self._connection = None
                    logger.warning("the journal's connection to %s is lost", self._address)
                await trio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, self._limits.backoff_max_s)

    async def _hold(  # noqa: ASYNC114
        self, connection: TCPConnection, *, task_status: trio.TaskStatus[Exception | None]
    ) -> None:
        """Run a connection to its end. Started with an error, it has come to its end before it could be used."""
        try:
            await connection.run(task_status=task_status)
        except (RedisError, OSError) as exc:
            # coredis leaves them open if there was nothing to connect to, and Python warns of it.
            for part in vars(connection).values():
                if isinstance(part, MemoryObjectSendStream | MemoryObjectReceiveStream):
                    part.close()
            task_status.started(exc)

    def _begin(self, connection: TCPConnection) -> None:
        self._connection = connection
        if self._listeners:
            connection.send_command(b"SUBSCRIBE", *self._listeners)
        # Nobody knows what was said meanwhile.
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.miss()
        self._came.unpark_all()

    async def _listen(self, connection: TCPConnection) -> None:
        """Hand on what is published, until the connection is lost."""
        try:
            async with aclosing(connection.push_messages) as messages:
                async for message in messages:
                    kind, channel, said = message
                    if kind == b"message":
                        for listener in self._listeners.get(channel, ()):  # type: ignore[arg-type]
                            listener.hear(said)  # type: ignore[arg-type]
        except RedisError:
            pass

    def news(self, channel: str) -> RedisNews:
        """Return the news of a channel."""
        return RedisNews(self, channel.encode())

    def notes(self, channel: str) -> RedisNotes:
        """Return the notes of a channel."""
        return RedisNotes(self, channel.encode())

    def listen(self, listener: RedisNews | RedisNotes) -> None:
        """Tell it of what is published from the next command on."""
        listeners = self._listeners.setdefault(listener.channel, {})
        listeners[listener] = None
        if len(listeners) == 1:
            self._tell_server(b"SUBSCRIBE", listener.channel)

    def ignore(self, listener: RedisNews | RedisNotes) -> None:
        """Tell it no more."""
        listeners = self._listeners[listener.channel]
        del listeners[listener]
        if not listeners:
            del self._listeners[listener.channel]
            self._tell_server(b"UNSUBSCRIBE", listener.channel)

    def _tell_server(self, command: bytes, channel: bytes) -> None:
        if self.connected:
            assert self._connection is not None
            self._connection.send_command(command, channel)

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None and self._connection.usable

    @property
    def recheck_s(self) -> float:
        """For how long to trust that there would be news."""
        return self._limits.recheck_s

    async def call(self, name: str, key: str, *args: str | bytes | int) -> Any:
        """Call a script of one chat and return its answer.

        Raises:
            StoreUnavailableError: if there is no answer, or an error; then nothing is known of the call.

        Cancelled, nothing is known of it either. It is not more than `call_s` under way.
        """
        (answer,) = await self.call_all([Call(name, (key,), args)])
        return answer

    async def call_all(self, calls: Sequence[Call]) -> list[Any]:
        """Make calls in order, all in one write, and return their answers. Like `call` else."""
        answers = await self.send([call.command() for call in calls])
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            texts = {script(calls[i].script).text for i in unknown}
            again = await self.send(
                [(b"SCRIPT", b"LOAD", text) for text in texts] + [calls[i].command() for i in unknown]
            )
            for i, answer in zip(unknown, again[len(texts) :], strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise StoreUnavailableError(f"the journal's Redis refused: {answer}") from answer
        return answers

    async def send(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Send commands in one write and return their answers, or the exceptions that they were answered with.

        Raises:
            StoreUnavailableError: if an answer doesn't come.
        """
        connection = None
        try:
            with trio.fail_after(self._limits.call_s):
                while not self.connected:
                    await self._came.park()
                connection = self._connection
                assert connection is not None
                requests = [
                    connection.create_request(*command, decode=False, raise_exceptions=False)  # type: ignore[arg-type]
                    for command in commands
                ]
                answers: list[Any] = [await request for request in requests]
        except trio.TooSlowError:
            if connection is None:
                raise StoreUnavailableError(f"the journal at {self._address} can't be reached") from None
            connection.invalidate("no answer in time")
            raise StoreUnavailableError(f"the journal at {self._address} does not answer") from None
        for answer in answers:
            if isinstance(answer, ConnectionError | OSError):
                connection.invalidate("it is of no use")
                raise StoreUnavailableError(f"the journal at {self._address} is gone: {answer}") from answer
        return answers


class RedisNews:
    """News of one turn; see `News`."""

    __slots__ = ("_link", "_parked", "_there", "channel")

    def __init__(self, link: RedisLink, channel: bytes) -> None:
        self._link = link
        self.channel = channel
        self._there = False
        self._parked = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Self:
        """See `News`."""
        self._link.listen(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `News`."""
        self._link.ignore(self)

    def hear(self, said: bytes) -> None:
        """There is something."""
        self.miss()

    def miss(self) -> None:
        """There may be something."""
        self._there = True
        self._parked.unpark_all()

    async def wait(self, poll_s: float) -> None:
        """See `News.wait`. While Redis publishes, `poll_s` means nothing: `recheck_s` is for what gets lost."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._link.recheck_s if self._link.connected else poll_s):
            while not self._there:
                await self._parked.park()
        self._there = False


class RedisNotes(HeardNotes):
    """What is published on one channel; see `Notes`."""

    def __init__(self, link: RedisLink, channel: bytes) -> None:
        super().__init__()
        self._link = link
        self.channel = channel

    def __enter__(self) -> Self:
        self._link.listen(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.ignore(self)
