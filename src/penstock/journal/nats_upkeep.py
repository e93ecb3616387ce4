"""What the NATS store does now and then: finds turns whose owner is gone, and removes what retention doesn't keep.

A note says of a turn that it may be running, from before it runs until after it ended, and another that it has ended and when;
both are hints, and the turn's record is the truth. The notes of ended turns are in the order in which turns ended, give or take
`trim_s`, and the chats in the order in which they were last changed, so that what is oldest is what the stream has first.

A turn goes all at once, with the purge of its subject. If it is its chat's newest, the chat is given what was said in it
before. Every node looks after it, and each step may be made twice, or by two at once.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.nats_log import NatsLog
from penstock.journal.nats_seen import Change, Next, Seen
from penstock.journal.nats_stream import Message, Publication
from penstock.journal.nats_text import (
    ChatHead,
    TurnEvent,
    encode_messages,
    head_and_rest,
    read_chat_head,
    read_token,
)
from penstock.journal.store import Retention, TurnRecord, TurnState
from penstock.limits import NatsLimits

logger = logging.getLogger("penstock.journal")

_AT_ONCE = 200
"""Turns that are asked about in one write."""

_LOOKED_AT = 16
"""Notes or chats that are read at once, of which the first is seldom due."""


class NatsUpkeep:
    """Notes of turns, and a task that acts on them."""

    def __init__(self, log: NatsLog, retention: Retention, limits: NatsLimits) -> None:
        self._log = log
        self._stream = log.stream
        self._retention = retention
        self._limits = limits
        self._leases: dict[str, float] = {}
        """Of the turns which may be running, by their notes' subjects: no need to look before."""
        self._ended: deque[tuple[TurnRecord, float]] = deque(maxlen=limits.remembered_turns)
        self._excess: dict[str, tuple[str, ...]] = {}
        """By chat: what goes when the turn that is running has ended."""
        self._due: deque[tuple[str, str]] = deque(maxlen=limits.remembered_turns)
        self._looks_over = 0
        """How often in a row there was too much, and no ended turn to be removed."""
        self._unclaimed: deque[TurnRecord] = deque(maxlen=limits.remembered_turns)

    def crowded(self, chat_id: str, gone: Sequence[str], turns: Sequence[str]) -> None:
        """Note which turns of a chat go now that one began, and which are there when it ends."""
        self._due.extend((chat_id, turn_id) for turn_id in gone)
        excess = tuple(turns[: -max(self._retention.turns_per_chat, 1)])
        if excess and len(self._excess) < self._limits.remembered_turns:
            self._excess[chat_id] = excess

    def ended(self, turn: TurnRecord, at: float) -> None:
        """Note that a turn ended."""
        self._ended.append((turn, at))
        self._due.extend((turn.chat_id, turn_id) for turn_id in self._excess.pop(turn.chat_id, ()))

    def unclaimed(self, turn: TurnRecord) -> None:
        """Note that a turn did not begin, and never will."""
        self._unclaimed.append(turn)

    async def lapsed(self, now: float, count: int) -> list[TurnRecord]:
        """See `Store.lapsed`."""
        subjects, last = await self._stream.subjects(f"{self._stream.name}.live.*.*")
        self._leases = {subject: self._leases.get(subject, float("-inf")) for subject in subjects}
        due = [subject for subject in subjects if self._leases[subject] < now]
        found: list[TurnRecord] = []
        for start in range(0, len(due), _AT_ONCE):
            some = due[start : start + _AT_ONCE]
            turns = [_turn(subject) for subject in some]
            idle: list[str] = []
            for subject, seen in zip(some, await self._log.load_all(turns), strict=True):
                record = None if seen is None else seen.record
                if record is None or record.state is TurnState.suspended:
                    idle.append(subject)
                elif record.state is TurnState.running:
                    self._leases[subject] = record.lease_until or 0.0
                    if self._leases[subject] < now:
                        found.append(record)
                elif all(ended.turn_id != record.turn_id for ended, _ in self._ended):
                    # Whoever sealed it was gone before it was noted.
                    self._ended.append((record, record.ended_at or 0.0))
            if idle:
                # Not a note that was made since: somebody is about to run the turn.
                await self._stream.purge([(subject, last + 1) for subject in idle])
        return sorted(found, key=lambda record: record.lease_until or 0.0)[:count]

    async def run(self) -> None:
        """Look after it every `trim_s`, until cancelled."""
        while True:
            await trio.sleep(self._limits.trim_s * random.uniform(0.5, 1.0))
            try:
                await self._note_ended()
                await self._trim()
            except StoreUnavailableError as exc:
                logger.warning("the journal's old turns could not be looked after: %s", exc)

    async def _note_ended(self) -> None:
        while self._ended:
            some = [self._ended[i] for i in range(min(len(self._ended), _AT_ONCE))]
            await self._stream.publish(
                [
                    Publication(self._stream.ended(turn.chat_id, turn.turn_id), repr(at).encode(), alone=True)
                    for turn, at in some
                ]
            )
            await self._stream.purge(
                [(self._stream.live(turn.chat_id, turn.turn_id), None) for turn, _ in some]
            )
            for _ in some:
                self._ended.popleft()
        while self._unclaimed:
            turn = self._unclaimed[0]
            await self._stream.purge(
                [
                    (self._stream.id(turn.turn_id), None),
                    (self._stream.live(turn.chat_id, turn.turn_id), None),
                ]
            )
            self._unclaimed.popleft()

    async def _trim(self) -> None:
        while self._due:
            await self._drop(*self._due[0])
            self._due.popleft()
        notes = f"{self._stream.name}.ended.*.*"
        await self._take(notes, self._take_old)
        if await self._stream.bytes() <= self._retention.bytes or await self._take(notes, self._take_any):
            self._looks_over = 0
        else:
            # Turns that ended just now may not have been noted yet, here or on another node.
            self._looks_over += 1
        await self._take(f"{self._stream.name}.chat.*", self._take_chat)

    async def _take(self, wildcard: str, take: Callable[[Message], Awaitable[bool]]) -> int:
        """Hand on what the stream has first, until it is not taken, and return how many were."""
        sequence, taken, more = 0, 0, True
        while more and taken < self._limits.trimmed_at_once:
            page, more = await self._stream.page(wildcard, sequence, _LOOKED_AT)
            for message in page:
                if not await take(message):
                    return taken
                taken += 1
                sequence = message.sequence + 1
        return taken

    async def _take_old(self, note: Message) -> bool:
        if float(note.payload) >= time.time() - self._retention.turn_age_s:
            return False
        await self._drop(*_turn(note.subject))
        return True

    async def _take_any(self, note: Message) -> bool:
        if await self._stream.bytes() <= self._retention.bytes:
            return False
        await self._drop(*_turn(note.subject))
        return True

    async def _take_chat(self, message: Message) -> bool:
        chat = read_chat_head(head_and_rest(message.payload)[0])
        if chat.more:
            return True  # a part, of which the last will come
        if chat.began_at >= time.time() - self._retention.chat_age_s and (
            self._looks_over < 3 or await self._stream.bytes() <= self._retention.bytes
        ):
            return False
        await self._drop_chat(read_token(message.subject.rpartition(".")[2]), message)
        return True

    async def _drop(self, chat_id: str, turn_id: str) -> None:
        """Remove an ended turn."""
        stream = self._stream
        for _ in range(self._limits.tries):
            seen = await self._log.load(chat_id, turn_id)
            if seen is not None and not seen.record.state.ended:
                return  # a note that is wrong
            chat = await self._log.chat(chat_id)
            if (
                chat.head is None
                or chat.head.newest is None
                or chat.head.newest.turn_id != turn_id
                or seen is None
            ):
                break
            record = await self._log.chat_record(chat_id)
            if record is None or record.turn is None or record.turn.turn_id != turn_id:
                continue
            head = ChatHead(
                began_at=chat.head.began_at,
                turns=tuple(id for id in chat.head.turns if id != turn_id),
            )
            if await self._log.set_chat(chat_id, chat, head, encode_messages(record.messages)):
                break
        await stream.purge([(stream.turn(chat_id, turn_id), None)])
        await stream.purge([(stream.id(turn_id), None), (stream.live(chat_id, turn_id), None)])
        # Last: what a crash leaves is found by it.
        await stream.purge([(stream.ended(chat_id, turn_id), None)])
        self._log.forget(turn_id)

    async def _drop_chat(self, chat_id: str, message: Message) -> None:
        """Remove a chat and its turns, unless one is running."""
        chat = await self._log.chat(chat_id)
        if chat.head is None or chat.committed != message.sequence:
            return
        if chat.head.newest is not None:
            newest = await self._log.load(chat_id, chat.head.newest.turn_id)
            if newest is not None and newest.record.state is TurnState.running:
                return
            if newest is not None and newest.record.state is TurnState.suspended:
                # Nobody may resume it now.
                change = Change(newest.record, _end_suspended)
                await self._log.change_all([change])
                if change.refusal is not None:
                    return
        # Should a turn begin now, the chat is another, and stays.
        await self._stream.purge([(self._stream.chat(chat_id), chat.sequence + 1)])
        for turn_id in chat.head.turns:
            await self._drop(chat_id, turn_id)


def _end_suspended(seen: Seen | None) -> Next | Exception:
    if seen is None or seen.record.state is not TurnState.suspended:
        return StoreUnavailableError("somebody goes on with it")
    record = msgspec.structs.replace(seen.record, state=TurnState.lost, ended_at=time.time())
    return Next(TurnEvent(kind="drop", record=record, first=record.entries, base=seen.base, said=seen.said))


def _turn(subject: str) -> tuple[str, str]:
    """Return the chat and the turn of a subject."""
    _, _, chat, turn = subject.split(".")
    return read_token(chat), read_token(turn)
