"""Chats on plain NATS subjects, for services that are not penstock: a mirror of ours, and what others say in a chat.

| subject | payload |
|---|---|
| `chat.chunk.CHAT` | a chunk of the turn that is being written, as JSON |
| `chat.message.CHAT` | a whole `UIMessage`: the user's when a turn begins, the assistant's when it ends |

CHAT is the chat's id as one token: letters, digits and `_ ~ -` as they are, any other byte as `=` and two hexadecimal digits, so
that no id is a wildcard or two tokens, and `chat.chunk.*` has all chats. All of it is told once, to whoever listens, and kept
by nobody: the journal is the truth.

**The mirror** publishes what the turns that run on this node write. It waits for nobody: while NATS is away, or takes less than
there is, copies are dropped, and counted as `mirror_dropped`. What it publishes has a header, `Penstock-Position`, with the
chunk's position, or the message's, so that a listener knows a gap and a repetition.

**What others say** comes as events to whoever watches the chat. A payload that is a JSON object is named by its `chunk_type`;
one without, or that is no JSON, is a `chunk` or a `message`, as its subject says. What has `Penstock-Position` is left out: it
is a penstock's mirror, and turns are watched in the journal. When NATS can't be reached the watchers get an `error`, and a
`gap` when it can be again.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import trio

from penstock.errors import RemoteProtocolError, StoreUnavailableError
from penstock.journal.nats_address import NatsAddress
from penstock.journal.nats_link import NatsLink
from penstock.journal.nats_text import token
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.feed import Begun
from penstock.turns.foreign import ForeignEvent
from penstock.turns.hub import Hub
from penstock.wire.codec import decode_json, encode_json

POSITION = "Penstock-Position"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OURS = frozenset({"snapshot", "gap", "notice", "closing"})
"""Events that only the server itself may send: a client acts on them."""


@asynccontextmanager
async def open_nats_interop(
    hub: Hub, *, mirror: str | None, watch: str | None, limits: Limits, metrics: Metrics
) -> AsyncIterator[None]:
    """Mirror a hub's turns to one NATS, and have what is said on another, or the same, watched.

    Args:
        hub: whose turns and watchers.
        mirror: the URL of the one; None for no mirror.
        watch: the URL of the other; None for nothing.
        limits: `nats` of them.
        metrics: where to count what was dropped.

    It begins whether or not NATS can be reached, and leaving the block drops what was not sent yet.

    Raises:
        ValueError: if a URL is not understood.
    """
    mirror_to = None if mirror is None else NatsAddress.parse(mirror, what="mirror")
    watch_at = None if watch is None else NatsAddress.parse(watch, what="watched NATS")
    links = [NatsLink(address, limits.nats) for address in {mirror_to, watch_at} if address is not None]
    async with trio.open_nursery() as nursery:
        try:
            for link in links:
                nursery.start_soon(link.run)
                if link.address == mirror_to:
                    nursery.start_soon(Mirror(hub, link, metrics).run)
                if link.address == watch_at:
                    hub.foreign = Others(link, limits, metrics)
            yield
        finally:
            hub.foreign = None
            for link in links:
                link.close()
            nursery.cancel_scope.cancel("the interchange with NATS ends")


class Mirror:
    """Publishes what a hub's turns write."""

    def __init__(self, hub: Hub, link: NatsLink, metrics: Metrics) -> None:
        self._hub = hub
        self._link = link
        self._metrics = metrics

    async def run(self) -> None:
        """Mirror the turns that begin, until cancelled."""
        async with trio.open_nursery() as nursery:

            def begun(begun: Begun) -> None:
                nursery.start_soon(self._mirror, begun, name=f"mirror of {begun.turn.id}")

            self._hub.on_begun = begun
            try:
                await trio.sleep_forever()
            finally:
                self._hub.on_begun = None

    async def _mirror(self, begun: Begun) -> None:
        turn = begun.turn
        chat = token(turn.chat_id)
        offset = turn.first_entry - 1
        if begun.message.role == "user":
            self._publish(f"chat.message.{chat}", encode_json(begun.message), "")
        try:
            while entries := await turn.entries_after(offset):
                for entry in entries:
                    self._publish(f"chat.chunk.{chat}", entry.json, entry.id.decode("ascii"))
                offset += len(entries)
        except StoreUnavailableError:
            return  # nobody knows how it ended
        self._publish(f"chat.message.{chat}", encode_json(turn.message()), str(turn.position))

    def _publish(self, subject: str, payload: bytes, position: str) -> None:
        if not self._link.publish_nowait(subject, payload, {POSITION: position}):
            self._metrics.count("mirror_dropped")


class Others:
    """What others say in the chats that are watched here; see `ForeignChats`."""

    def __init__(self, link: NatsLink, limits: Limits, metrics: Metrics) -> None:
        self._link = link
        self._limits = limits
        self._metrics = metrics
        self._chats: dict[str, _Chat] = {}

    def listen(self, chat_id: str) -> Listener:
        """See `ForeignChats.listen`."""
        return Listener(self, chat_id, self._limits.nats.foreign_events)

    def begin(self, chat_id: str, listener: Listener) -> None:
        """Have somebody hear what is said in a chat."""
        chat = self._chats.get(chat_id)
        if chat is None:
            chat = self._chats[chat_id] = _Chat(self._link, chat_id, self._limits, self._metrics)
            chat.subscription.__enter__()
        chat.listeners[listener] = None
        if not self._link.connected:
            listener.add(_AWAY)

    def end(self, chat_id: str, listener: Listener) -> None:
        """Have somebody hear no more."""
        chat = self._chats[chat_id]
        del chat.listeners[listener]
        if not chat.listeners:
            del self._chats[chat_id]
            chat.subscription.__exit__(None, None, None)


class _Chat:
    """One chat that somebody watches: its subjects, heard once for all watchers."""

    def __init__(self, link: NatsLink, chat_id: str, limits: Limits, metrics: Metrics) -> None:
        self.listeners: dict[Listener, None] = {}
        self._limits = limits
        self._metrics = metrics
        # One subscription, so that what is said on both subjects keeps its order.
        self.subscription = link.listen(
            f"chat.*.{token(chat_id)}", self._take, missed=self._missed, lost=self._lost
        )

    def _take(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> None:
        kind = subject.split(".")[1]
        if POSITION in headers or kind not in ("chunk", "message"):
            return
        if len(payload) > self._limits.wire.chunk_bytes:
            self._metrics.count("watch_refused")
            return
        self._tell(read_foreign(kind, payload, self._limits))

    def _missed(self) -> None:
        self._tell(_BACK)

    def _lost(self) -> None:
        self._tell(_AWAY)

    def _tell(self, event: ForeignEvent) -> None:
        for listener in self.listeners:
            listener.add(event)


_AWAY = ForeignEvent("error", {"reason": "other services can't be heard now"})
_BACK = ForeignEvent("gap", {"reason": "what other services said meanwhile was not heard"})
_BEHIND = ForeignEvent("gap", {"reason": "other services said more than could be sent"})


def read_foreign(kind: str, payload: bytes, limits: Limits) -> ForeignEvent:
    """Read what somebody else published on a subject of this kind, `chunk` or `message`. Anything can be read."""
    try:
        value = decode_json(payload, limits=limits.wire)
    except RemoteProtocolError:
        text = payload.decode("utf-8", "replace")
        return ForeignEvent("chunk", text, text)
    name = value.get("chunk_type") if isinstance(value, dict) else None
    if not isinstance(name, str) or _NAME.fullmatch(name) is None or name in _OURS:
        name = kind
    return ForeignEvent(name, value)


class Listener:
    """What one watcher has yet to be sent; see `ForeignListener`."""

    def __init__(self, others: Others, chat_id: str, count: int) -> None:
        self._others = others
        self._chat_id = chat_id
        self._count = count
        self._events: deque[ForeignEvent] = deque()
        self._news = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Self:
        """See `ForeignListener`."""
        self._others.begin(self._chat_id, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `ForeignListener`."""
        self._others.end(self._chat_id, self)

    def add(self, event: ForeignEvent) -> None:
        """Have the watcher told. One that is too far behind is told that it missed some."""
        if len(self._events) >= self._count:
            self._events.clear()
            self._events.append(_BEHIND)
        self._events.append(event)
        self._news.unpark_all()

    async def next_events(self) -> list[ForeignEvent]:
        """See `ForeignListener.next_events`."""
        await trio.lowlevel.checkpoint()
        while not self._events:
            await self._news.park()
        events = list(self._events)
        self._events.clear()
        return events
