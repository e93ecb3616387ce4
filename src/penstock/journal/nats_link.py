"""The one connection to NATS: requests, and subscriptions to what is published.

nats-py is for asyncio, so it runs in a guest loop (trio-asyncio) in one task of ours, and crossing over is what costs: nothing
is awaited across the border. A caller leaves what it has to say in a queue and sleeps; one asyncio task writes all that is in
the queue, in its order, and whatever is answered or published wakes whom it is for. A subscription that was asked for before
a request therefore holds when the request is answered.

A client of nats-py is for one connection. When that is lost, what waits for an answer fails at once, and a new client connects
and subscribes again: the library's own way back would keep what it had yet to send, and send it when nobody waits any more.

A request that gets no answer in `call_s`, while nothing else comes either, ends the connection, because a link that is dead
looks just like that. What was written to it before may still be carried out: every publication is made for that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import random
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import trio
import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error, NoServersError, SlowConsumerError

from penstock.errors import StoreUnavailableError
from penstock.journal.nats_address import NatsAddress
from penstock.limits import NatsLimits

logger = logging.getLogger("penstock.journal")

MORE = "Nats-Num-Pending"
"""The header that says that a request for many is answered with many. The last answer has a status instead."""

Heard = Callable[[bytes, Mapping[str, str]], object]
"""What is called with each message of a subscription, its payload and headers, by the task that reads: it must be quick."""


class Request(NamedTuple):
    """What is published to be answered."""

    subject: str
    payload: bytes = b""
    headers: dict[str, str] | None = None
    many: bool = False
    """Whether answers come until one says that it is the last."""


class Answer(NamedTuple):
    """What came back."""

    payload: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        """The status, as of HTTP; empty where the server had no reason to give one."""
        return self.headers.get("Status", "")


class _Call:
    """Requests that one caller waits for."""

    __slots__ = ("answers", "done", "error", "left", "requests")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.answers: list[list[Answer]] = [[] for _ in requests]
        self.left = len(requests)
        self.done = trio.Event()
        self.error: str | None = None

    def fail(self, error: str) -> None:
        self.error = error
        self.done.set()


_Queued: TypeAlias = "_Call | NatsListener | Subscription | tuple[str, bytes]"


class NatsLink:
    """The connection. `run` keeps it; after it is gone for good, all calls fail."""

    def __init__(self, address: NatsAddress, limits: NatsLimits) -> None:
        self.address = address
        self._limits = limits
        self._tls = ssl.create_default_context() if address.tls else None
        self._last_error = ""
        self._queue: deque[_Queued] = deque()
        self._wake: asyncio.Event | None = None
        self._client: Client | None = None
        self._tried = trio.Event()
        self._failure: str | None = None
        self._closing = False
        self._guest = trio.CancelScope(shield=True)
        self._came = trio.lowlevel.ParkingLot()
        self._pending: dict[str, tuple[_Call, int]] = {}
        """By the inbox of the answer."""
        self._inbox = f"_INBOX.{secrets.token_hex(11)}."
        self._serial = itertools.count()
        self._received = 0
        self._listeners: dict[NatsListener, Subscription | None] = {}
        self.max_payload = 1 << 20
        """What the server takes as one message."""

    async def run(self) -> None:
        """Keep a connection, until `close`."""
        # Shielded, so that the guests end in order; not for longer than `close_s` once it is closed.
        with self._guest:
            async with trio_asyncio.open_loop():
                await trio_asyncio.aio_as_trio(self._keep)()

    async def wait_tried(self) -> str | None:
        """Sleep until there is a connection, and return None, or until each server was tried, and return what is wrong."""
        await self._tried.wait()
        return self._failure

    def close(self) -> None:
        """End `run`, soon."""
        self._closing = True
        self._guest.deadline = trio.current_time() + self._limits.close_s
        self._wake_up()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._client is not None

    @property
    def recheck_s(self) -> float:
        """For how long to trust that there would be news."""
        return self._limits.recheck_s

    async def request(self, requests: Sequence[Request]) -> list[list[Answer]]:
        """Publish requests in order, all in one write, and return the answers to each.

        Raises:
            StoreUnavailableError: if one is not answered; then nothing is known of any.

        Cancelled, nothing is known of them either. It is not more than `call_s` under way.
        """
        if not requests:
            return []
        call = _Call(requests)
        received = self._received
        sent = False
        with trio.move_on_after(self._limits.call_s):
            while self._client is None:
                await self._came.park()
            received = self._received
            sent = True
            self._put(call)
            await call.done.wait()
        if not call.done.is_set():
            call.fail("it was given up")
            if not sent:
                raise StoreUnavailableError(f"the journal at {self.address} can't be reached")
            if self._received == received:
                self._client = None
                self._wake_up()
            raise StoreUnavailableError(f"the journal at {self.address} does not answer")
        if call.error is not None:
            raise StoreUnavailableError(f"the journal at {self.address} is gone: {call.error}")
        return call.answers

    def publish_nowait(self, subject: str, payload: bytes) -> bool:
        """Publish something that nobody answers, and that may get lost.

        Returns:
            False if there is no connection, or too much waits already: then it is dropped.
        """
        if self._client is None or self._client.pending_data_size > self._limits.unsent_bytes:
            return False
        self._put((subject, payload))
        return True

    def listen(self, subject: str, heard: Heard, *, missed: Callable[[], object]) -> NatsListener:
        """Return a subscription, as a context manager.

        Args:
            subject: what to listen to.
            heard: called with each message.
            missed: called when messages may have been missed.
        """
        return NatsListener(self, subject, heard, missed)

    def begin(self, listener: NatsListener) -> None:
        """Subscribe, before what is asked next is asked."""
        self._listeners[listener] = None
        if self._client is not None:
            self._put(listener)

    def end(self, listener: NatsListener) -> None:
        """Subscribe no more."""
        subscription = self._listeners.pop(listener)
        if subscription is not None and self._client is not None:
            self._put(subscription)

    def _put(self, what: _Queued) -> None:
        self._queue.append(what)
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None:
            self._wake.set()

    # What follows runs in the guest loop.

    async def _keep(self) -> None:
        servers = list(self.address.servers)
        random.shuffle(servers)
        first_tries = len(servers)
        backoff_s = self._limits.first_backoff_s
        for server in itertools.cycle(servers):
            if self._closing:
                break
            self._wake = asyncio.Event()
            client = Client()
            try:
                connected = await self._connect(client, server)
                first_tries -= 1
                if not self._tried.is_set() and (connected or not first_tries):
                    self._failure = None if connected else self._last_error
                    self._tried.set()
                if connected:
                    backoff_s = self._limits.first_backoff_s
                    await self._serve(client)
            finally:
                self._lost()
                await self._end(client)  # noqa: ASYNC102 (it has a deadline, and this is asyncio)
            if not self._closing:
                if connected:
                    logger.warning("the connection to %s is lost", self.address)
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, self._limits.backoff_max_s)

    async def _connect(self, client: Client, server: str) -> bool:
        self._last_error = ""

        async def note(error: Exception) -> None:
            if not isinstance(error, NoServersError):
                self._last_error = _text(error)
            if isinstance(error, SlowConsumerError):
                for listener in list(self._listeners):
                    listener.missed()

        async def closed() -> None:
            self._wake_up()

        try:
            await asyncio.wait_for(
                client.connect(
                    f"nats://{server}",
                    name="penstock",
                    user=self.address.username,
                    password=self.address.password,
                    token=self.address.token,
                    tls=self._tls,
                    connect_timeout=math.ceil(self._limits.connect_s),
                    allow_reconnect=False,
                    # It tries twice, with this between, and gives up.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=math.ceil(self._limits.ping_s),
                    pending_size=0,
                    skip_subject_validation=True,
                    error_cb=note,
                    closed_cb=closed,
                ),
                self._limits.connect_s,
            )
        except (OSError, Error, TimeoutError) as exc:
            await note(exc)
            return False
        return True

    async def _serve(self, client: Client) -> None:
        """Write what is in the queue, until the connection is lost."""
        assert self._wake is not None
        self.max_payload = client.max_payload
        self._queue.clear()
        await client.subscribe(
            f"{self._inbox}*", cb=self._answered, pending_msgs_limit=0, pending_bytes_limit=0
        )
        for listener in self._listeners:
            await self._subscribe(client, listener)
        self._client = client
        # Nobody knows what was said meanwhile.
        for listener in list(self._listeners):
            listener.missed()
        self._came.unpark_all()
        while not self._closing and client.is_connected and self._client is client:
            self._wake.clear()
            while self._queue:
                await self._write(client, self._queue.popleft())
            await self._wake.wait()

    async def _write(self, client: Client, what: _Queued) -> None:
        try:
            if isinstance(what, _Call):
                for i, request in enumerate(what.requests):
                    inbox = f"{self._inbox}{next(self._serial)}"
                    self._pending[inbox] = (what, i)
                    await client.publish(request.subject, request.payload, inbox, request.headers)
            elif isinstance(what, NatsListener):
                if what in self._listeners and self._listeners[what] is None:
                    await self._subscribe(client, what)
            elif isinstance(what, Subscription):
                await what.unsubscribe()
            else:
                await client.publish(*what)
        except Error as exc:
            if isinstance(what, _Call):
                what.fail(str(exc))

    async def _subscribe(self, client: Client, listener: NatsListener) -> None:
        self._listeners[listener] = await client.subscribe(
            listener.subject, cb=listener.take, pending_msgs_limit=self._limits.unheard_messages
        )

    async def _answered(self, message: Msg) -> None:
        self._received += 1
        found = self._pending.get(message.subject)
        if found is None:
            return
        call, i = found
        answer = Answer(message.data, message.headers or _NO_HEADERS)
        call.answers[i].append(answer)
        if call.requests[i].many and answer.status == "" and MORE in answer.headers:
            return
        del self._pending[message.subject]
        call.left -= 1
        if not call.left:
            call.done.set()

    def _lost(self) -> None:
        """Tell those who wait that they need not."""
        self._client = None
        failed = [call for call, _ in self._pending.values()]
        failed += [what for what in self._queue if isinstance(what, _Call)]
        self._pending.clear()
        self._queue.clear()
        for call in failed:
            call.fail(self._last_error or "the connection was lost")
        for listener in self._listeners:
            self._listeners[listener] = None

    async def _end(self, client: Client) -> None:
        try:
            await asyncio.wait_for(client.close(), self._limits.close_s / 2)
        except (OSError, Error, TimeoutError):
            pass


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


_NO_HEADERS: Mapping[str, str] = {}


class NatsListener:
    """A subscription; see `NatsLink.listen`."""

    def __init__(self, link: NatsLink, subject: str, heard: Heard, missed: Callable[[], object]) -> None:
        self._link = link
        self.subject = subject
        self._heard = heard
        self.missed = missed

    def __enter__(self) -> Self:
        self._link.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.end(self)

    async def take(self, message: Msg) -> None:
        """Hand on a message."""
        self._heard(message.data, message.headers or _NO_HEADERS)


class NatsNews:
    """News of one turn; see `News`."""

    __slots__ = ("_link", "_listener", "_parked", "_there")

    def __init__(self, link: NatsLink, subject: str) -> None:
        self._link = link
        self._listener = link.listen(subject, lambda payload, headers: self._tell(), missed=self._tell)
        self._there = False
        self._parked = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Self:
        """See `News`."""
        self._listener.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `News`."""
        self._listener.__exit__(kind, value, trace)

    def _tell(self) -> None:
        self._there = True
        self._parked.unpark_all()

    async def wait(self, poll_s: float) -> None:
        """See `News.wait`. While there is a connection, `poll_s` means nothing: `recheck_s` is for what gets lost."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self._link.recheck_s if self._link.connected else poll_s):
            while not self._there:
                await self._parked.park()
        self._there = False
