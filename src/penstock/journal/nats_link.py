"""The connection to NATS: requests, and subscriptions to what is published.

All tasks share a connection, and each waits for its own answers: a call is one write, and what is answered wakes its caller. What
one task writes is carried out in its order, so a subscription that was asked for before a request holds when the request is
answered.

When the connection is lost, what waits for an answer fails at once, and another is made, to the next of the servers. Who listens
is told that it may have missed something.

A request that gets no answer in `call_s`, while nothing else comes either, ends the connection, because a link that is dead
looks just like that. What was written to it before may still be carried out: every publication is made for that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import trio
import trio_asyncio

from penstock.errors import StoreUnavailableError
from penstock.journal.nats_address import NatsAddress
from penstock.journal.nats_client import NatsClient, end_of_subscription, publication, subscription
from penstock.limits import NatsLimits

logger = logging.getLogger("penstock.journal")

MORE = "Nats-Num-Pending"
"""The header that says that a request for many is answered with many. The last answer has a status instead."""

Heard = Callable[[str, bytes, Mapping[str, str]], object]
"""What is called with each message of a subscription: its subject, payload and headers. It must be quick."""

_INBOX_SID = 1


class Request(NamedTuple):
    """What is published to be answered."""

    subject: str
    payload: bytes = b""
    headers: dict[str, str] | None = None
    many: bool = False
    """Whether answers come until one says that it is the last."""
    word: bool = False
    """Whether nobody answers. Then we do ourselves, when the server has handed it on."""


class Answer(NamedTuple):
    """What came back."""

    payload: bytes
    headers: Mapping[str, str]

    @property
    def status(self) -> str:
        """The status, as of HTTP; empty where the server had no reason to give one."""
        return self.headers.get("Status", "")


class OtherConnectionError(StoreUnavailableError):
    """The connection over which something was learned is no more, and what was learned may be wrong."""


class _Call:
    """Requests that one caller waits for."""

    __slots__ = ("answers", "done", "error", "left", "requests")

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.answers: list[list[Answer]] = [[] for _ in requests]
        self.left = len(requests)
        self.done = trio.Event()
        self.error: str | None = None


class NatsLink:
    """The connection. `run` keeps it, until `close`."""

    def __init__(self, address: NatsAddress, limits: NatsLimits) -> None:
        self.address = address
        self._limits = limits
        self._tls = ssl.create_default_context() if address.tls else None
        self._client: NatsClient | None = None
        """While it is connected."""
        self._changed: asyncio.Event | None = None
        """Set when it is lost, or to be closed."""
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
        """Answers, to whomever."""
        self._sids = itertools.count(_INBOX_SID + 1)
        self._listeners: dict[int, NatsListener] = {}
        self.connections = 0
        """How many there were."""
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
        self._change()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._client is not None

    @property
    def trusted_s(self) -> float:
        """For how long to trust that there would be news."""
        return self._limits.recheck_s if self.connected else 0.0

    async def request(self, requests: Sequence[Request], connection: int | None = None) -> list[list[Answer]]:
        """Publish requests in order, all in one write, and return the answers to each.

        Args:
            requests: what is asked.
            connection: which of the `connections` it must be; None for any.

        Raises:
            OtherConnectionError: if it is another by now; then nothing was published.
            StoreUnavailableError: if one is not answered; then nothing is known of any.

        Cancelled, nothing is known of them either. It is not more than `call_s` under way.
        """
        if not requests:
            return []
        call = _Call(requests)
        client = None
        received = 0
        inboxes: list[str] = []
        try:
            with trio.move_on_after(self._limits.call_s):
                while self._client is None:
                    await self._came.park()
                if connection is not None and connection != self.connections:
                    raise OtherConnectionError(f"the journal at {self.address} was away")
                client, received = self._client, self._received
                client.say(b"".join(self._commands(call, inboxes)))
                await call.done.wait()
        finally:
            # What was not answered by now is of no use to anybody.
            for inbox in inboxes:
                self._pending.pop(inbox, None)
        if client is None:
            raise StoreUnavailableError(f"the journal at {self.address} can't be reached")
        if not call.done.is_set():
            if self._received == received and self._client is client:
                self._client = None  # which ends `_serve`
                self._change()
            raise StoreUnavailableError(f"the journal at {self.address} does not answer")
        if call.error is not None:
            raise StoreUnavailableError(f"the journal at {self.address} is gone: {call.error}")
        return call.answers

    def _commands(self, call: _Call, inboxes: list[str]) -> list[bytes]:
        commands = []
        for i, request in enumerate(call.requests):
            if len(request.payload) + _HEADERS_BYTES > self.max_payload:
                raise StoreUnavailableError(f"the journal at {self.address} takes no message of this size")
            inbox = f"{self._inbox}{next(self._serial)}"
            self._pending[inbox] = (call, i)
            inboxes.append(inbox)
            if request.word:
                commands += [publication(request.subject, request.payload), publication(inbox, b"")]
            else:
                commands.append(publication(request.subject, request.payload, inbox, request.headers))
        return commands

    def publish_nowait(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> bool:
        """Publish something that nobody answers, and that may get lost.

        Returns:
            False if there is no connection, too much waits already, or it is too large: then it is dropped.
        """
        client = self._client
        size = len(payload) + _HEADERS_BYTES
        if client is None or size > self.max_payload or client.unsent + size > self._limits.unsent_bytes:
            return False
        client.say(publication(subject, payload, headers=headers))
        return True

    def listen(
        self,
        subject: str,
        heard: Heard,
        *,
        missed: Callable[[], object] = lambda: None,
        lost: Callable[[], object] = lambda: None,
    ) -> NatsListener:
        """Return a subscription, as a context manager.

        Args:
            subject: what to listen to.
            heard: called with each message.
            missed: called when messages may have been missed, and more will come.
            lost: called when the connection is lost.
        """
        return NatsListener(self, subject, heard, missed, lost)

    def begin(self, listener: NatsListener) -> int:
        """Subscribe, before what is asked next is asked. Returns the subscription's number."""
        sid = next(self._sids)
        self._listeners[sid] = listener
        if self._client is not None:
            self._client.say(subscription(listener.subject, sid))
        return sid

    def end(self, sid: int) -> None:
        """Subscribe no more."""
        del self._listeners[sid]
        if self._client is not None:
            self._client.say(end_of_subscription(sid))

    def _change(self) -> None:
        if self._changed is not None:
            self._changed.set()

    def _take(self, sid: int, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        if sid != _INBOX_SID:
            if (listener := self._listeners.get(sid)) is not None:
                listener.heard(subject, payload, headers)
            return
        self._received += 1
        found = self._pending.get(subject)
        if found is None:
            return
        call, i = found
        answer = Answer(payload, headers)
        call.answers[i].append(answer)
        if call.requests[i].many and MORE in headers and not answer.status:
            return
        del self._pending[subject]
        call.left -= 1
        if not call.left:
            call.done.set()

    def _begin(self, client: NatsClient) -> None:
        self.max_payload = client.max_payload
        self.connections += 1
        client.say(
            b"".join(
                [
                    subscription(f"{self._inbox}*", _INBOX_SID),
                    *(subscription(listener.subject, sid) for sid, listener in self._listeners.items()),
                ]
            )
        )
        self._client = client
        # Nobody knows what was said meanwhile.
        for listener in list(self._listeners.values()):
            listener.missed()
        self._came.unpark_all()

    def _lose(self, why: str) -> None:
        """Tell those who wait that they need not."""
        self._client = None
        failed = [call for call, _ in self._pending.values()]
        self._pending.clear()
        for call in failed:
            call.error = why
            call.done.set()
        for listener in list(self._listeners.values()):
            listener.lost()

    # What follows runs in the guest loop.

    async def _keep(self) -> None:
        servers = list(self.address.servers)
        random.shuffle(servers)
        first_tries = len(servers)
        backoff_s = self._limits.first_backoff_s
        changed = self._changed = asyncio.Event()
        for server in itertools.cycle(servers):
            if self._closing:
                break
            changed.clear()
            client = NatsClient(self._take, self._change)
            try:
                connected = await client.open(server, self.address, self._tls, self._limits)
                first_tries -= 1
                if connected:
                    backoff_s = self._limits.first_backoff_s
                    self._begin(client)
                if not self._tried.is_set() and (connected or not first_tries):
                    self._failure = None if connected else client.failure
                    self._tried.set()
                while self._client is client and client.is_connected and not self._closing:
                    await changed.wait()
                    changed.clear()
                if connected:
                    self._lose(client.failure)
            finally:
                await client.end(self._limits.close_s / 2)  # noqa: ASYNC102 (asyncio's, and it has a deadline)
            if not self._closing:
                if connected:
                    logger.warning("the connection to %s is lost", self.address)
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, self._limits.backoff_max_s)


_HEADERS_BYTES = 1 << 10
"""What headers take at most, of our own making."""


class NatsListener:
    """A subscription; see `NatsLink.listen`."""

    def __init__(
        self,
        link: NatsLink,
        subject: str,
        heard: Heard,
        missed: Callable[[], object],
        lost: Callable[[], object],
    ) -> None:
        self._link = link
        self.subject = subject
        self.heard = heard
        self.missed = missed
        self.lost = lost
        self._sid = 0

    def __enter__(self) -> Self:
        self._sid = self._link.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.end(self._sid)
