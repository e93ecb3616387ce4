"""`GET {prefix}/{chat}/watch`: a chat for `EventSource`, turn after turn. It never starts or stops anything.

| event | data | id |
|---|---|---|
| `snapshot` | the chat's state, as `GET {prefix}/{chat}` gives it | position |
| `chunk` | one chunk of the running turn | position |
| `message` | a whole `UIMessage`: the user's when a turn begins, the assistant's when it ends | position, of the latter |
| `gap` | `{"reason"}`: what follows is not the continuation of what was sent before | |
| `notice` | `{"ignored": [names]}`: names in `types` that stand for nothing | |
| `closing` | `{"reason", "reconnect", "retryMs", "position"?}`: the last event | |

A client that comes back with its last id is sent what follows it, if that turn is the chat's newest; otherwise the rest
of that turn, and then a snapshot, which has every message whole.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import trio

from penstock.closing import CloseReason
from penstock.connections.connection import Connection
from penstock.connections.pump import pump
from penstock.errors import RemoteProtocolError
from penstock.journal.entry import Entry
from penstock.journal.position import Position
from penstock.journal.store import TurnState
from penstock.limits import Limits
from penstock.metrics import Metrics
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
        self.ignored = sorted(name for name in names - known if _NAME.fullmatch(name))[:10]
        self._types = known if types is not None else None
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
        if self._envelope:
            return b'id: %b\ndata: {"event":"%b","data":%b}\n\n' % (entry.id, kind.encode(), entry.json)
        return b"event: chunk\n" + entry.frame

    def _lane_chunk(self, entry: Entry) -> bytes:
        assert isinstance(entry.chunk, Data)
        if self._lane is None or entry.chunk.data["lane"] != self._lane:
            return b""
        chunk: Any = entry.chunk.data["chunk"]
        kind: str = chunk["type"] if isinstance(chunk, dict) else chunk.kind
        if self._types is not None and kind not in self._types and "chunk" not in self._types:
            return b""
        return self.event(kind if self._envelope else "chunk", chunk, entry.id.decode("ascii"))


async def watch(
    hub: Hub,
    chat_id: str,
    connection: Connection,
    wanted: Filter,
    last_event_id: str | None,
    *,
    limits: Limits,
    metrics: Metrics,
) -> None:
    """Send a chat's events until the connection closes or the hub drains.

    Raises:
        StoreUnavailableError: if it is not known how a turn goes on. The connection must be cut then.
    """

    async def say(event: str, value: object, id: str = "") -> None:
        if wanted.wants(event):
            await connection.send_frame(wanted.event(event, value, id))

    def closing(reason: CloseReason, more: dict[str, str]) -> bytes:
        retry_ms = round(retry_s() * 1000)
        data = {"reason": reason.value, "reconnect": reason.reconnect, "retryMs": retry_ms, **more}
        return b"retry: %d\n%b" % (retry_ms, wanted.event("closing", data))

    shown: tuple[str, int] = ("", -1)
    """The last turn that was shown, and its last offset."""

    async def follow(turn: TurnHandle, after: int) -> None:
        nonlocal shown
        with turn.follow(after) as subscription:

            def farewell() -> bytes:
                position = Position(turn.id, turn.record.epoch, turn.entries - subscription.lag - 1)
                return closing(CloseReason.slow_consumer, {"position": str(position)})

            await pump(
                subscription,
                connection,
                wanted,
                limits=limits.viewer,
                metrics=metrics,
                farewell=farewell,
            )
        await say("message", turn.message(), str(turn.position))
        shown = (turn.id, turn.entries - 1)

    async def snapshot() -> tuple[TurnHandle | None, int]:
        nonlocal shown
        turn = await hub.newest_turn(chat_id)
        record = await hub.chat(chat_id)
        after = -1 if turn is None else turn.entries - 1
        state = {"id": chat_id, "turn": None, "messages": []} if record is None else chat_state(record, turn)
        shown = ("" if turn is None else turn.id, after)
        await say("snapshot", state, "" if turn is None or turn.position is None else str(turn.position))
        return turn, after

    async def run() -> None:
        with hub.watch(chat_id) as watcher:
            if wanted.ignored:
                await say("notice", {"ignored": wanted.ignored})
            turn, after = None, -1
            resumed = None if last_event_id is None else await _resumed(hub, chat_id, last_event_id)
            if resumed is not None:
                turn, after = resumed
                newest = await hub.newest_turn(chat_id)
                if newest is not None and newest.id != turn.id:
                    await follow(turn, after)
                    turn, after = await snapshot()
            else:
                if last_event_id is not None:
                    await say("gap", {"reason": "this position is not in the journal any more"})
                turn, after = await snapshot()
            if turn is not None and (resumed is not None or turn.state is TurnState.running):
                await follow(turn, after)
            while True:
                begun = await watcher.next_turn()
                if begun is None:
                    await say("gap", {"reason": "more turns began than could be followed"})
                    turn, after = await snapshot()
                    if turn is not None:
                        await follow(turn, after)
                    continue
                if begun.turn.id == shown[0] and begun.turn.first_entry <= shown[1]:
                    continue  # it began while the snapshot was taken, and was in it
                if begun.message.role == "user":
                    await say("message", begun.message)
                await follow(begun.turn, begun.turn.first_entry - 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await hub.draining.wait()
        nursery.cancel_scope.cancel("the hub is closing")
    await connection.send_frame(closing(CloseReason.drain, {}))


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
