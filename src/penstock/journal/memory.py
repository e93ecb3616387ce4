"""The `memory:` store: everything in dictionaries of this process, gone with it.

It keeps the guarantees of `store.py` trivially: no method has a checkpoint, so each is atomic on the event loop.
Ended turns go oldest first when there are more than `kept_turns` or more than `kept_bytes` of them; chats go when there
are more than `kept_chats`, the one that was longest without a new turn first, and never one that is being answered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from penstock.errors import LocalProtocolError, TurnNotFoundError, TurnSealedError
from penstock.journal.store import Batch, ChatRecord, RunningTurnError, TurnRecord, TurnState
from penstock.limits import HubLimits
from penstock.wire.messages import UIMessage


class _Turn:
    __slots__ = ("bytes", "entries", "record")

    def __init__(self, record: TurnRecord) -> None:
        self.record = record
        self.entries: list[bytes] = []
        self.bytes = 0


class _Chat:
    __slots__ = ("messages", "newest")

    def __init__(self) -> None:
        self.messages: list[UIMessage] = []
        self.newest: TurnRecord | None = None


class MemoryStore:
    """A store in this process's memory."""

    def __init__(self, limits: HubLimits = HubLimits()) -> None:
        self._limits = limits
        self._chats: OrderedDict[str, _Chat] = OrderedDict()
        self._turns: dict[tuple[str, str], _Turn] = {}
        # Ended turns in the order in which they ended: the order in which they go.
        self._ended: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._ended_bytes = 0

    async def begin(
        self, chat_id: str, turn_id: str, request_key: str, messages: Sequence[UIMessage], started_at: float
    ) -> TurnRecord:
        """See `Store.begin`."""
        chat = self._chats.get(chat_id)
        if chat is not None and chat.newest is not None and not chat.newest.state.ended:
            raise RunningTurnError(chat.newest)
        if chat is None:
            chat = self._chats[chat_id] = _Chat()
        self._chats.move_to_end(chat_id)
        record = TurnRecord(
            chat_id=chat_id, turn_id=turn_id, epoch=1, request_key=request_key, started_at=started_at
        )
        chat.messages = list(messages)
        self._turns[chat_id, turn_id] = _Turn(record)
        chat.newest = record
        self._trim_chats()
        return record

    async def append(self, batches: Sequence[Batch]) -> None:
        """See `Store.append`."""
        refused = False
        for batch in batches:
            try:
                self._append(batch)
            except TurnSealedError:
                refused = True
        if refused:
            raise TurnSealedError("a turn has ended")

    def _append(self, batch: Batch) -> _Turn:
        turn = self._turns.get((batch.turn.chat_id, batch.turn.turn_id))
        if turn is None:
            raise TurnSealedError("the turn is gone")
        if turn.record.state.ended or turn.record.epoch != batch.turn.epoch:
            raise TurnSealedError("the turn has ended")
        have = len(turn.entries)
        if batch.offset > have:
            raise LocalProtocolError("an append past the end of a turn would leave a hole")
        new = batch.entries[have - batch.offset :]
        turn.entries.extend(new)
        turn.bytes += sum(map(len, new))
        return turn

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, ended_at: float) -> bool:
        """See `Store.seal`."""
        key = (batch.turn.chat_id, batch.turn.turn_id)
        held = self._turns.get(key)
        if held is None:
            raise TurnNotFoundError("the turn is gone")
        if held.record.state.ended:
            return (
                held.record.state is state
                and held.record.epoch == batch.turn.epoch
                and held.entries[batch.offset :] == list(batch.entries)
            )
        turn = self._append(batch)
        turn.record = msgspec.structs.replace(
            turn.record, state=state, entries=len(turn.entries), ended_at=ended_at
        )
        chat = self._chats[batch.turn.chat_id]
        chat.newest = turn.record
        if message is not None:
            chat.messages = [old for old in chat.messages if old.id != message.id] + [message]
        self._ended[key] = None
        self._ended_bytes += turn.bytes
        self._trim_turns()
        return True

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """See `Store.chat`."""
        chat = self._chats.get(chat_id)
        if chat is None:
            return None
        return ChatRecord(chat_id=chat_id, messages=tuple(chat.messages), turn=chat.newest)

    async def turn(self, chat_id: str, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""
        turn = self._turns.get((chat_id, turn_id))
        return None if turn is None else msgspec.structs.replace(turn.record, entries=len(turn.entries))

    async def read(self, chat_id: str, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """See `Store.read`."""
        turn = self._turns.get((chat_id, turn_id))
        return () if turn is None else turn.entries[offset : offset + count]

    async def aclose(self) -> None:
        """See `Store.aclose`. There is nothing to close."""

    def _trim_turns(self) -> None:
        while self._ended and (
            len(self._ended) > self._limits.kept_turns or self._ended_bytes > self._limits.kept_bytes
        ):
            key, _ = self._ended.popitem(last=False)
            self._ended_bytes -= self._turns.pop(key).bytes

    def _trim_chats(self) -> None:
        if len(self._chats) <= self._limits.kept_chats:
            return
        for chat_id, chat in self._chats.items():
            if chat.newest is None or chat.newest.state.ended:
                del self._chats[chat_id]
                return
