"""`GET {prefix}/{chat}/watch`: a chat for `EventSource`, turn after turn. It never starts or stops anything.

| event | data | id |
|---|---|---|
| `snapshot` | the chat's state, as `GET {prefix}/{chat}` gives it | position |
| `chunk` | one chunk of the running turn | position |
| `message` | a whole `UIMessage`: the user's when a turn begins, the assistant's when it ends | position, of the latter |
| `gap` | `{"reason"}`: what follows is not the continuation of what was sent before | |
| `notice` | `{"ignored": [names]}`: names in `types` that stand for nothing | |
| any | what another service said in the chat, as it named it: see `penstock.interop` | |
| `error` | `{"reason"}`: other services can't be heard | |
| `closing` | `{"reason", "reconnect", "retryMs", "position"?}`: the last event | |

A client that comes back with its last id is sent what follows it, if that turn is the chat's newest; otherwise the rest
of that turn, and then a snapshot, which has every message whole.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import trio

from penstock.closing import CloseReason
from penstock.connections.connection import Connection
from penstock.connections.pump import pump
from penstock.errors import ConnectionClosedError, RemoteProtocolError, StoreUnavailableError
from penstock.journal.entry import Entry
from penstock.journal.position import Position
from penstock.journal.store import TurnState
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.foreign import ForeignEvent, ForeignListener
from penstock.turns.handle import TurnHandle
from penstock.turns.hub import Hub
from penstock.web.state import chat_state
from penstock.wire.chunks import LANE_CHUNK, Data
from penstock.wire.codec import KINDS, encode_json
from penstock.wire.sse import event as sse_event

EVENTS = frozenset({"snapshot", "chunk", "message", "gap", "notice", "closing"})
ALWAYS = frozenset({"gap", "notice", "closing"})
_NAME = re.compile(r"[a-z0-9-]{1,64}")


def retry_s() -> float:
    """Return after how many seconds a client is to come back: not all of them at once."""
    return random.uniform(0.5, 3.0)


@lru_cache(maxsize=256)
def filter_of(types: str | None, lane: str | None, envelope: bool) -> Filter:
    """Return what a watcher wants, the same one for the same wishes: those who have it share what it makes."""
    return Filter(types, lane, envelope)


class Filter:
    """What a watcher wants: `?types=`, `?lane=`, `?envelope=1`. Called, it renders entries."""

    def __init__(self, types: str | None, lane: str | None, envelope: bool) -> None:
        names = {name.strip() for name in (types or "").split(",")} - {""}
        known = {name for name in names if name in EVENTS or name in KINDS or name.startswith("data-")}
        self.ignored: Sequence[str] = sorted(name for name in names - known if _NAME.fullmatch(name))[:10]
        self._types = known if types is not None else None
        self._names = names if types is not None else None
        self._lane = lane
        self._envelope = envelope

    def wants(self, event: str) -> bool:
        """Say whether an event that is no chunk is to be sent."""
        return self._types is None or event in self._types or event in ALWAYS

    def event(self, event: str, value: object, id: str = "") -> bytes:
        """Frame an event that is no chunk."""
        if self._envelope:
            return sse_event(encode_json({"event": event, "data": value}), id=id)
        return sse_event(encode_json(value), event=event, id=id)

    def foreign(self, event: ForeignEvent) -> bytes:
        """Frame what another service said."""
        name, value, text = event
        if self._names is not None and not self._names & {name, "chunk"} and name not in ALWAYS:
            return b""
        if text is not None and not self._envelope:
            return sse_event(text, event=name)
        return self.event(name, value)

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        """Frame the entries that are wanted."""
        return b"".join([frame for entry in entries if (frame := self._chunk(entry))])

    def _chunk(self, entry: Entry) -> bytes:
        chunk = entry.chunk
        kind = chunk.kind
        if kind == LANE_CHUNK:
            return self._lane_chunk(entry)
        if self._types is not None and kind not in self._types and "chunk" not in self._types:
            return b""
        return self.chunk(entry)

    def chunk(self, entry: Entry) -> bytes:
        """Frame an entry."""
        if self._envelope:
            return b'id: %b\ndata: {"event":"%b","data":%b}\n\n' % (
                entry.id,
                entry.chunk.kind.encode(),
                entry.json,
            )
        return b"event: chunk\n" + entry.frame

    def closing(self, fields: Mapping[str, object], retry_ms: int) -> bytes:
        """Frame the last event."""
        return b"retry: %d\n%b" % (retry_ms, self.event("closing", fields))

    def _lane_chunk(self, entry: Entry) -> bytes:
        assert isinstance(entry.chunk, Data)
        if self._lane is None or entry.chunk.data["lane"] != self._lane:
            return b""
        chunk: Any = entry.chunk.data["chunk"]
        kind: str = chunk["type"] if isinstance(chunk, dict) else chunk.kind
        if self._types is not None and kind not in self._types and "chunk" not in self._types:
            return b""
        return self.event(kind if self._envelope else "chunk", chunk, entry.id.decode("ascii"))


class Wanted(Protocol):
    """What a watcher wants, in the form that it wants it: a `Filter`, for one. Called, it renders entries."""

    @property
    def ignored(self) -> Sequence[str]:
        """Names that stand for nothing."""

    def wants(self, event: str) -> bool:
        """See `Filter`."""

    def event(self, event: str, value: object, id: str = "") -> bytes:
        """See `Filter`."""

    def foreign(self, event: ForeignEvent) -> bytes:
        """See `Filter`."""

    def closing(self, fields: Mapping[str, object], retry_ms: int) -> bytes:
        """See `Filter`."""

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        """See `Filter`."""


class _Watch:
    """One watcher's events, to the connection's end."""

    __slots__ = ("_chat_id", "_connection", "_hub", "_limits", "_metrics", "_shown", "_wanted")

    def __init__(
        self, hub: Hub, chat_id: str, connection: Connection, wanted: Wanted, limits: Limits, metrics: Metrics
    ) -> None:
        self._hub = hub
        self._chat_id = chat_id
        self._connection = connection
        self._wanted = wanted
        self._limits = limits
        self._metrics = metrics
        self._shown: tuple[str, int] = ("", -1)
        """The last turn that was shown, and its last offset."""

    async def run(self, last_event_id: str | None) -> None:
        """Send what there is, then what comes."""
        if self._hub.foreign is None:
            await self._run(last_event_id)
            return
        failure: Exception | None = None
        with self._hub.foreign.listen(self._chat_id) as listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._say_foreign, listener)
                try:
                    await self._run(last_event_id)
                except (StoreUnavailableError, ConnectionClosedError) as exc:
                    failure = exc
                nursery.cancel_scope.cancel("the watch has ended")
        if failure is not None:
            raise failure

    async def _say_foreign(self, listener: ForeignListener) -> None:
        """Send what other services say, until the connection closes."""
        try:
            while True:
                events = await listener.next_events()
                if frames := b"".join([self._wanted.foreign(event) for event in events]):
                    await self._connection.send_frame(frames)
        except ConnectionClosedError:
            pass  # which the watch itself learns, too

    async def _run(self, last_event_id: str | None) -> None:
        with self._hub.watch(self._chat_id) as watcher:
            await self._begin(last_event_id)
            while True:
                begun = await watcher.next_turn()
                if begun is None or (not begun.sure and begun.turn.id != self._shown[0]):
                    await self._say("gap", {"reason": "more turns began than could be followed"})
                    turn, after = await self._snapshot()
                    if turn is not None:
                        await self._follow(turn, after)
                elif begun.turn.id != self._shown[0]:
                    if begun.message.role == "user":
                        await self._say("message", begun.message)
                    await self._follow(begun.turn, begun.turn.first_entry - 1)
                elif begun.turn.state is TurnState.running or begun.turn.entries - 1 > self._shown[1]:
                    await self._follow(begun.turn, self._shown[1])  # it goes on
                # else it began while the snapshot was taken, and was in it

    def closing(self, reason: CloseReason, position: str | None = None) -> bytes:
        """Frame the last event."""
        retry_ms = round(retry_s() * 1000)
        data = {"reason": reason.value, "reconnect": reason.reconnect, "retryMs": retry_ms}
        if position is not None:
            data["position"] = position
        return self._wanted.closing(data, retry_ms)

    async def _begin(self, last_event_id: str | None) -> None:
        if self._wanted.ignored and self._hub.foreign is None:
            await self._say("notice", {"ignored": self._wanted.ignored})
        resumed = None if last_event_id is None else await _resumed(self._hub, self._chat_id, last_event_id)
        if resumed is not None:
            turn, after = resumed
            newest = await self._hub.newest_turn(self._chat_id)
            if newest is None or newest.id == turn.id:
                await self._follow(turn, after)
                return
            await self._follow(turn, after)
        elif last_event_id is not None:
            await self._say("gap", {"reason": "this position is not in the journal any more"})
        shown, after = await self._snapshot()
        if shown is not None and (resumed is not None or shown.state is TurnState.running):
            await self._follow(shown, after)

    async def _say(self, event: str, value: object, id: str = "") -> None:
        if self._wanted.wants(event):
            await self._connection.send_frame(self._wanted.event(event, value, id))

    async def _snapshot(self) -> tuple[TurnHandle | None, int]:
        turn = await self._hub.newest_turn(self._chat_id)
        record = await self._hub.chat(self._chat_id)
        after = -1 if turn is None else turn.entries - 1
        state = (
            {"id": self._chat_id, "turn": None, "messages": []}
            if record is None
            else chat_state(record, turn)
        )
        self._shown = ("" if turn is None else turn.id, after)
        await self._say(
            "snapshot", state, "" if turn is None or turn.position is None else str(turn.position)
        )
        return turn, after

    async def _follow(self, turn: TurnHandle, after: int) -> None:
        with turn.follow(after) as subscription:

            def farewell() -> bytes:
                position = Position(turn.id, turn.record.epoch, turn.entries - subscription.lag - 1)
                return self.closing(CloseReason.slow_consumer, str(position))

            await pump(
                subscription,
                self._connection,
                self._wanted,
                limits=self._limits.viewer,
                metrics=self._metrics,
                farewell=farewell,
            )
        await self._say("message", turn.message(), str(turn.position))
        self._shown = (turn.id, turn.entries - 1)


async def watch(
    hub: Hub,
    chat_id: str,
    connection: Connection,
    wanted: Wanted,
    last_event_id: str | None,
    *,
    limits: Limits,
    metrics: Metrics,
) -> None:
    """Send a chat's events until the connection closes or the hub drains.

    Raises:
        StoreUnavailableError: if it is not known how a turn goes on. The connection must be cut then.
    """
    watch = _Watch(hub, chat_id, connection, wanted, limits, metrics)
    with hub.draining.cut():
        await watch.run(last_event_id)
    try:
        await connection.send_frame(watch.closing(hub.draining.reason))
    except ConnectionClosedError:
        pass  # It is being sent away already, for being slow.


async def _resumed(hub: Hub, chat_id: str, last_event_id: str) -> tuple[TurnHandle, int] | None:
    """Return the turn and the offset that a position names, None if it is void."""
    try:
        position = Position.parse(last_event_id)
    except RemoteProtocolError:
        return None
    turn = await hub.turn(position.turn_id)
    if turn is None or turn.chat_id != chat_id or turn.record.epoch != position.epoch:
        return None
    return (turn, position.offset) if position.offset < turn.entries else None
