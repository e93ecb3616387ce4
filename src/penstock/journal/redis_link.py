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
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import ConnectionError, NoScriptError, RedisError

from penstock.errors import StoreUnavailableError
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


class _Command(NamedTuple):
    """What coredis needs to know of one of the commands that it writes together."""

    name: bytes
    serialized_arguments: Sequence[str | bytes | int]
    decode: bool = False


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
        self._listeners: dict[bytes, dict[RedisListener, None]] = {}
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
                connection._push_message_buffer_in.close()
                connection._push_message_buffer_in = _Ear(self._take)  # type: ignore[assignment]
                lost = trio.Event()
                error = await nursery.start(self._hold, connection, lost)
                if not started:
                    started = True
                    task_status.started(error)
                if error is None:
                    backoff_s = self._limits.first_backoff_s
                    self._begin(connection)
                    await lost.wait()
                    self._connection = None
                    logger.warning("the journal's connection to %s is lost", self._address)
                await trio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, self._limits.backoff_max_s)

    async def _hold(  # noqa: ASYNC114
        self, connection: TCPConnection, lost: trio.Event, *, task_status: trio.TaskStatus[Exception | None]
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
        lost.set()

    def _begin(self, connection: TCPConnection) -> None:
        self._connection = connection
        if self._listeners:
            connection.send_command(b"SUBSCRIBE", *self._listeners)
        # Nobody knows what was said meanwhile.
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.missed()
        self._came.unpark_all()

    def _take(self, message: Sequence[Any]) -> None:
        """Hand on what is published."""
        kind, channel, said = message
        if kind == b"message":
            for listener in self._listeners.get(channel, ()):
                listener.heard(said)

    def listen(
        self, channel: str, heard: Callable[[bytes], object], *, missed: Callable[[], object]
    ) -> RedisListener:
        """Return a subscription, as a context manager.

        Args:
            channel: what to listen to.
            heard: called with what is published there.
            missed: called when something may have been missed.
        """
        return RedisListener(self, channel.encode(), heard, missed)

    def begin(self, listener: RedisListener) -> None:
        """Tell it of what is published from the next command on."""
        listeners = self._listeners.setdefault(listener.channel, {})
        listeners[listener] = None
        if len(listeners) == 1:
            self._tell_server(b"SUBSCRIBE", listener.channel)

    def end(self, listener: RedisListener) -> None:
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
    def trusted_s(self) -> float:
        """For how long to trust that there would be news."""
        return self._limits.recheck_s if self.connected else 0.0

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
        if not commands:
            return []  # coredis would wait for an answer that is another's
        connection = None
        try:
            with trio.fail_after(self._limits.call_s):
                while not self.connected:
                    await self._came.park()
                connection = self._connection
                assert connection is not None
                batch = connection.create_request_batch(
                    [_Command(name, args) for name, *args in commands]  # type: ignore[misc,arg-type]
                )
                batch.disconnect_on_cancellation = False
                answers: list[Any] = await batch
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


class _Ear:
    """Stands where coredis has a buffer for what the server pushes, which it would take a task to empty one by one."""

    def __init__(self, take: Callable[[Sequence[Any]], object]) -> None:
        self.send_nowait = take

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def reason(error: BaseException) -> str:
    """Return what was first to go wrong: coredis says of everything else only that there is no connection."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


class RedisListener:
    """A subscription; see `RedisLink.listen`."""

    __slots__ = ("_link", "channel", "heard", "missed")

    def __init__(
        self, link: RedisLink, channel: bytes, heard: Callable[[bytes], object], missed: Callable[[], object]
    ) -> None:
        self._link = link
        self.channel = channel
        self.heard = heard
        self.missed = missed

    def __enter__(self) -> Self:
        self._link.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.end(self)
