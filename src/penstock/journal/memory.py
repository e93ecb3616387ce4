"""The `memory:` store: everything in dictionaries of this process, gone with it.

It keeps the guarantees of `store.py` trivially: no method has a checkpoint, so each is atomic on the event loop.
Retention is looked after by the calls that begin and end turns, with their time as now; each drops what is due from
the old end of an ordered dictionary, so the cost is that of what goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from penstock.errors import LocalProtocolError, TurnSealedError
from penstock.journal.news import News
from penstock.journal.notes import HeardNotes
from penstock.journal.store import (
    Batch,
    ChatRecord,
    Look,
    Place,
    Retention,
    RunningTurnError,
    TurnRecord,
    TurnState,
)
from penstock.wire.messages import UIMessage

MEMORY_RETENTION = Retention(bytes=256 << 20)
"""A quarter of what a file may take."""

_json_bytes = msgspec.json.Encoder().encode


class _Turn:
    __slots__ = ("bytes", "entries", "record")

    def __init__(self, record: TurnRecord) -> None:
        self.record = record
        self.entries: list[bytes] = []
        self.bytes = 0

    def now(self) -> TurnRecord:
        return msgspec.structs.replace(self.record, entries=len(self.entries))


class _Chat:
    __slots__ = ("began_at", "bytes", "messages", "turn_ids")

    def __init__(self) -> None:
        self.messages: list[UIMessage] = []
        self.bytes = 0
        self.turn_ids: list[str] = []
        """Oldest first. Retention may have taken the first ones, or all."""
        self.began_at = 0.0
        """When its newest turn began."""


class MemoryStore:
    """A store in this process's memory."""

    shared = False
    private = True

    def __init__(self, retention: Retention = MEMORY_RETENTION) -> None:
        self._retention = retention
        # The chat that was longest without a new turn comes first, the turn that ended first too: they go first.
        self._chats: OrderedDict[str, _Chat] = OrderedDict()
        self._turns: dict[str, _Turn] = {}
        self._running: dict[str, _Turn] = {}
        self._ended: OrderedDict[str, _Turn] = OrderedDict()
        self._bytes = 0
        self._listeners: list[HeardNotes] = []

    async def begin(
        self,
        chat_id: str,
        turn_id: str,
        request_key: str,
        messages: Sequence[UIMessage],
        *,
        at: float,
        lease_until: float,
    ) -> TurnRecord:
        """See `Store.begin`."""
        chat = self._chats.get(chat_id)
        if chat is not None and (newest := self._newest(chat)) is not None and not newest.record.state.ended:
            raise RunningTurnError(newest.now())
        if turn_id in self._turns:
            raise LocalProtocolError("two turns can't have the same id")
        if chat is None:
            chat = self._chats[chat_id] = _Chat()
        self._chats.move_to_end(chat_id)
        chat.began_at = at
        chat.turn_ids.append(turn_id)
        self._set_messages(chat, messages)
        record = TurnRecord.begun(chat_id, turn_id, request_key, at, lease_until)
        self._turns[turn_id] = self._running[turn_id] = _Turn(record)
        self._trim(at)
        return record

    async def resume(
        self, turn: TurnRecord, request_key: str, messages: Sequence[UIMessage], *, lease_until: float
    ) -> TurnRecord:
        """See `Store.resume`."""
        held = self._turns.get(turn.turn_id)
        if (
            held is None
            or held.record.state is not TurnState.suspended
            or held.record.epoch != turn.epoch
            or len(held.entries) != turn.entries
        ):
            raise TurnSealedError("the turn is not waiting to go on")
        self._set_messages(self._chats[held.record.chat_id], messages)
        held.record = msgspec.structs.replace(
            held.record, state=TurnState.running, request_key=request_key, lease_until=lease_until
        )
        self._running[turn.turn_id] = held
        return held.now()

    async def append(self, batches: Sequence[Batch]) -> None:
        """See `Store.append`."""
        refused: LocalProtocolError | TurnSealedError | None = None
        for batch in batches:
            held = self._owned(batch.turn)
            if held is None:
                refused = refused or TurnSealedError("a turn is not running, or not this owner's")
            elif batch.offset > len(held.entries):
                refused = LocalProtocolError("an append past the end of a turn would leave a hole")
            else:
                self._add(held, batch)
        if refused is not None:
            raise refused

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, *, at: float) -> bool:
        """See `Store.seal`."""
        if not batch.entries:
            raise LocalProtocolError("a seal without an entry would not show in the turn")
        held = self._turns.get(batch.turn.turn_id)
        if held is None or held.record.epoch != batch.turn.epoch:
            return False
        if held.record.state is not TurnState.running:
            return held.record.state is state and held.entries[batch.offset :] == list(batch.entries)
        if batch.offset > len(held.entries):
            raise LocalProtocolError("a seal past the end of a turn would leave a hole")
        if batch.offset + len(batch.entries) <= len(held.entries):
            return False
        self._end(held, batch, state, message, at)
        return True

    async def adopt(self, turn: TurnRecord, *, lease_until: float) -> TurnRecord | None:
        """See `Store.adopt`."""
        held = self._turns.get(turn.turn_id)
        if held is None or held.record.state.ended or held.now() != turn:
            return None
        held.record = msgspec.structs.replace(
            held.record, state=TurnState.running, epoch=turn.epoch + 1, lease_until=lease_until
        )
        self._running[turn.turn_id] = held
        return held.now()

    async def renew(self, turns: Sequence[TurnRecord], lease_until: float) -> frozenset[str]:
        """See `Store.renew`."""
        owned = [held for turn in turns if (held := self._owned(turn)) is not None]
        for held in owned:
            held.record = msgspec.structs.replace(held.record, lease_until=lease_until)
        return frozenset(held.record.turn_id for held in owned)

    async def lapsed(self, now: float, count: int) -> Sequence[TurnRecord]:
        """See `Store.lapsed`."""
        found = [
            held.now()
            for held in self._running.values()
            if held.record.lease_until is not None and held.record.lease_until < now
        ]
        return sorted(found, key=lambda record: record.lease_until or 0.0)[:count]

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """See `Store.chat`."""
        chat = self._chats.get(chat_id)
        if chat is None:
            return None
        newest = self._newest(chat)
        return ChatRecord(
            chat_id=chat_id, messages=tuple(chat.messages), turn=None if newest is None else newest.now()
        )

    async def turn(self, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""
        held = self._turns.get(turn_id)
        return None if held is None else held.now()

    async def read(self, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """See `Store.read`."""
        held = self._turns.get(turn_id)
        return () if held is None else held.entries[offset : offset + count]

    async def look(self, places: Sequence[Place], count: int) -> list[Look | None]:
        """See `Store.look`."""
        found = [(self._turns.get(turn.turn_id), offset) for turn, offset in places]
        return [
            None if held is None else Look(held.now(), held.entries[offset : offset + count])
            for held, offset in found
        ]

    def news(self, *turns: TurnRecord) -> News:
        """See `Store.news`."""
        return News(turns)

    async def tell(self, notes: Sequence[bytes]) -> None:
        """See `Store.tell`."""
        for listener in self._listeners:
            for note in notes:
                listener.hear(note)

    @contextmanager
    def notes(self) -> Iterator[HeardNotes]:
        """See `Store.notes`."""
        notes = HeardNotes()
        self._listeners.append(notes)
        try:
            yield notes
        finally:
            self._listeners.remove(notes)

    def _newest(self, chat: _Chat) -> _Turn | None:
        return self._turns.get(chat.turn_ids[-1]) if chat.turn_ids else None

    def _owned(self, turn: TurnRecord) -> _Turn | None:
        """Return a running turn if the record is of its epoch: then its owner asks."""
        held = self._running.get(turn.turn_id)
        return held if held is not None and held.record.epoch == turn.epoch else None

    def _add(self, held: _Turn, batch: Batch) -> None:
        new = batch.entries[len(held.entries) - batch.offset :]
        held.entries.extend(new)
        grown = sum(map(len, new))
        held.bytes += grown
        self._bytes += grown

    def _set_messages(self, chat: _Chat, messages: Sequence[UIMessage]) -> None:
        chat.messages = list(messages)
        self._bytes -= chat.bytes
        chat.bytes = sum(len(_json_bytes(message)) for message in messages)
        self._bytes += chat.bytes

    def _end(self, held: _Turn, batch: Batch, state: TurnState, message: UIMessage | None, at: float) -> None:
        self._add(held, batch)
        turn_id = held.record.turn_id
        self._running.pop(turn_id, None)
        held.record = msgspec.structs.replace(
            held.record, state=state, ended_at=at if state.ended else None, lease_until=None
        )
        if state.ended:
            self._ended[turn_id] = held
        if message is not None:
            chat = self._chats[held.record.chat_id]
            self._set_messages(chat, [old for old in chat.messages if old.id != message.id] + [message])
        self._trim_chat(self._chats[held.record.chat_id])
        self._trim(at)

    def _trim_chat(self, chat: _Chat) -> None:
        """Drop the oldest turns of a chat. All but the newest have ended."""
        ended = [turn_id for turn_id in chat.turn_ids if turn_id in self._ended]
        for turn_id in ended[: -self._retention.turns_per_chat]:
            self._drop_turn(self._turns[turn_id])

    def _trim(self, now: float) -> None:
        while self._ended:
            turn = next(iter(self._ended.values()))
            ended_at = turn.record.ended_at or 0.0
            if self._bytes <= self._retention.bytes and ended_at + self._retention.turn_age_s >= now:
                break
            self._drop_turn(turn)
        while (chat_id := self._oldest_idle_chat()) is not None:
            chat = self._chats[chat_id]
            if self._bytes <= self._retention.bytes and chat.began_at + self._retention.chat_age_s >= now:
                break
            for turn_id in list(chat.turn_ids):
                self._drop_turn(self._turns[turn_id])
            self._bytes -= chat.bytes
            del self._chats[chat_id]

    def _oldest_idle_chat(self) -> str | None:
        """Return the chat that was longest without a new turn, of those that are not being answered."""
        for chat_id, chat in self._chats.items():
            if not chat.turn_ids or chat.turn_ids[-1] not in self._running:
                return chat_id
        return None

    def _drop_turn(self, turn: _Turn) -> None:
        turn_id = turn.record.turn_id
        del self._turns[turn_id]
        self._ended.pop(turn_id, None)
        self._chats[turn.record.chat_id].turn_ids.remove(turn_id)
        self._bytes -= turn.bytes
