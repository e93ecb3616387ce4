"""The `redis:` store: turns on a Redis that all nodes share, entries in its streams.

FORMAT. Everything of a chat has a name that begins with PREFIX{CHAT}, so that it is in one slot and one script sees all of
it; `redis_lua/common.lua` lists the keys. Every operation is one script, so it happens whole or not at all, and so do its
expiry times: a turn's record and its entries go in the same millisecond. Beside the chats there are

    PREFIX turn:TURN     string      the chat of a turn
    PREFIX leases        sorted set  "TURN CHAT" of running turns, by the end of their lease
    PREFIX {ended}       sorted set  see `redis_upkeep.py`

in slots of their own, and never in one script with a chat. They are hints, and the turn's record is the truth:

- The chat of a turn is written before the turn begins, with a time to live that outlasts the turn; a turn that runs on
  and on has it renewed. `SET NX` makes turn ids unique. A process that dies in between has claimed an id for nothing.
- A lease is noted before the turn runs, and again after each renewal. So a note may be of a turn that doesn't run, or too
  early, which whoever looks finds out and puts right. It may be missing or too late for some seconds if a process died
  between two commands; then the turn isn't swept, but is found by the next who looks at its chat, or renewed.

A TIME TO LIVE is never on what is running: `begin`, `resume` and `adopt` take it off, a seal puts it on.

WHAT IS KEPT is a matter of the Redis: see docs/delivery.md. It must not evict: `maxmemory-policy noeviction`.

A CLUSTER would take the scripts as they are; the link here speaks to one server.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import unquote

import msgspec
import trio

from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal.news import News
from penstock.journal.notes import HeardNotes
from penstock.journal.redis_address import RedisAddress
from penstock.journal.redis_link import Call, RedisLink, RedisListener, reason
from penstock.journal.redis_text import (
    decode_message,
    encode_messages,
    lease_member,
    message_head,
    milliseconds,
    quoted,
    read_record,
    record_fields,
    seconds,
)
from penstock.journal.redis_upkeep import RedisUpkeep
from penstock.journal.remembered import keep
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
from penstock.limits import RedisLimits
from penstock.wire.messages import UIMessage

logger = logging.getLogger("penstock.journal")


@asynccontextmanager
async def open_redis(
    address: RedisAddress, *, retention: Retention = Retention(), limits: RedisLimits = RedisLimits()
) -> AsyncIterator[RedisStore]:
    """Open a store on a Redis.

    Leaving the block ends the connection. What was acknowledged is with Redis; what wasn't may be, too.

    Raises:
        StoreUnavailableError: if it can't be reached now, or doesn't let us in.
    """
    link = RedisLink(address, limits)
    async with trio.open_nursery() as nursery:
        error = await nursery.start(link.run)
        if error is None:
            await _check(link)
            store = RedisStore(link, address.prefix, retention, limits)
            nursery.start_soon(store._upkeep.run)
            yield store
        nursery.cancel_scope.cancel("the store is closed")
    if error is not None:
        raise StoreUnavailableError(f"the journal at {address} can't be reached: {reason(error)}") from error


async def _check(link: RedisLink) -> None:
    """Warn of a Redis that throws away what it was given when its memory is full."""
    try:
        (info,) = await link.send([(b"INFO", b"memory")])
    except StoreUnavailableError:
        return  # who calls next learns it
    if (
        isinstance(info, bytes)
        and b"maxmemory:0\r" not in info
        and b"maxmemory_policy:noeviction" not in info
    ):
        logger.warning(
            "the journal's Redis evicts keys when its memory is full; set maxmemory-policy noeviction"
        )


class RedisStore:
    """A store on a Redis. Made by `open_redis`."""

    shared = True
    private = False

    def __init__(self, link: RedisLink, prefix: str, retention: Retention, limits: RedisLimits) -> None:
        self._link = link
        self._prefix = prefix
        self._leases = f"{prefix}leases"
        self._retention = retention
        self._limits = limits
        self._upkeep = RedisUpkeep(link, prefix, self._quoted_chat_key, retention, limits)
        self._chats: OrderedDict[str, str] = OrderedDict()
        """The chats of turns, those asked for last at the end."""

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
        record = TurnRecord.begun(chat_id, turn_id, request_key, at, lease_until)
        encoded = encode_messages(messages)
        index = self._index_key(turn_id)
        claimed, owner, _ = await self._send(
            (b"SET", index, chat_id, b"NX", b"PX", self._index_ms),
            (b"GET", index),
            (b"ZADD", self._leases, b"NX", seconds(lease_until), lease_member(record)),
        )
        if owner != chat_id.encode():
            await self._send((b"ZREM", self._leases, lease_member(record)))
            raise LocalProtocolError("two turns can't have the same id")
        begun = await self._call(
            "begin", record, request_key, seconds(at), milliseconds(at), seconds(lease_until), *encoded
        )
        if begun == 1:
            self._remember(turn_id, chat_id)
            return record
        if claimed is not None:
            await self._send((b"DEL", index), (b"ZREM", self._leases, lease_member(record)))
        if begun == 0:
            raise LocalProtocolError("two turns can't have the same id")
        raise RunningTurnError(read_record(chat_id, begun))

    async def resume(
        self, turn: TurnRecord, request_key: str, messages: Sequence[UIMessage], *, lease_until: float
    ) -> TurnRecord:
        """See `Store.resume`."""
        encoded = encode_messages(messages)
        await self._note_lease(turn, lease_until)
        resumed = await self._call(
            "resume", turn, turn.epoch, turn.entries, request_key, seconds(lease_until), *encoded
        )
        if not resumed:
            raise TurnSealedError("the turn is not waiting to go on")
        return msgspec.structs.replace(
            turn, state=TurnState.running, request_key=request_key, lease_until=lease_until
        )

    async def append(self, batches: Sequence[Batch]) -> None:
        """See `Store.append`."""
        if not batches:
            return
        answers = await self._link.call_all(
            [
                Call(
                    "append",
                    (self._chat_key(batch.turn.chat_id),),
                    (quoted(batch.turn.turn_id), batch.turn.epoch, batch.offset, *batch.entries),
                )
                for batch in batches
            ]
        )
        if -1 in answers:
            raise LocalProtocolError("entries past the end of a turn would leave a hole")
        if 0 in answers:
            raise TurnSealedError("a turn is not running, or not this owner's")

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, *, at: float) -> bool:
        """See `Store.seal`."""
        if not batch.entries:
            raise LocalProtocolError("a seal without an entry would not show in the turn")
        head = json = b""
        if message is not None:
            head, json = (
                message_head(message),
                encode_messages([message])[0].removeprefix(message_head(message)),
            )
        ended = state.ended
        won, *size = await self._call(
            "seal",
            batch.turn,
            batch.turn.epoch,
            batch.offset,
            state.value,
            seconds(at) if ended else "",
            milliseconds(at + self._retention.turn_age_s) if ended else "",
            milliseconds(self._retention.chat_age_s),
            self._retention.turns_per_chat,
            head,
            json,
            *batch.entries,
        )
        if won < 0:
            raise LocalProtocolError("entries past the end of a turn would leave a hole")
        if won and ended:
            self._upkeep.ended(batch.turn, at, size[0])
        return bool(won)

    async def adopt(self, turn: TurnRecord, *, lease_until: float) -> TurnRecord | None:
        """See `Store.adopt`."""
        if turn.state.ended:
            return None
        await self._note_lease(turn, lease_until)
        adopted = await self._call("adopt", turn, *record_fields(turn), seconds(lease_until))
        if not adopted:
            return None
        await self._correct_leases([turn], lease_until)
        return msgspec.structs.replace(
            turn, state=TurnState.running, epoch=turn.epoch + 1, lease_until=lease_until
        )

    async def renew(self, turns: Sequence[TurnRecord], lease_until: float) -> frozenset[str]:
        """See `Store.renew`."""
        if not turns:
            return frozenset()
        until = seconds(lease_until)
        answers = await self._link.call_all(
            [
                Call("renew", (self._chat_key(turn.chat_id),), (quoted(turn.turn_id), turn.epoch, until))
                for turn in turns
            ]
        )
        renewed = [turn for turn, answer in zip(turns, answers, strict=True) if answer]
        if renewed:
            await self._correct_leases(renewed, lease_until)
        return frozenset(turn.turn_id for turn in renewed)

    async def lapsed(self, now: float, count: int) -> Sequence[TurnRecord]:
        """See `Store.lapsed`."""
        found: list[TurnRecord] = []
        while len(found) < count:
            # Those which are no such turns are removed from the range on the way.
            (members,) = await self._send(
                (b"ZRANGEBYSCORE", self._leases, b"-inf", f"({float(now)!r}", b"LIMIT", len(found), count)
            )
            if not members:
                break
            found += await self._lapsed(members, now)
        return sorted(found, key=lambda record: record.lease_until or 0.0)[:count]

    async def _lapsed(self, members: Sequence[bytes], now: float) -> list[TurnRecord]:
        """Return those of the turns whose lease has ended, and put right what is noted of the others."""
        ids = [member.decode().split(" ") for member in members]
        answers = await self._link.call_all(
            [Call("turn", (self._quoted_chat_key(chat),), (turn,)) for turn, chat in ids]
        )
        lapsed: list[TurnRecord] = []
        for member, (_, chat), answer in zip(members, ids, answers, strict=True):
            record = None if answer is None else read_record(unquote(chat), answer)
            if record is None or record.state is not TurnState.running or record.lease_until is None:
                await self._send((b"ZREM", self._leases, member))
            elif record.lease_until < now:
                lapsed.append(record)
            else:
                await self._correct_leases([record], record.lease_until)
        return lapsed

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """See `Store.chat`."""
        found = await self._link.call("chat", self._chat_key(chat_id), "")
        if found is None:
            return None
        messages, newest = found
        return ChatRecord(
            chat_id=chat_id,
            messages=tuple(decode_message(message) for message in messages),
            turn=None if newest is None else read_record(chat_id, newest),
        )

    async def turn(self, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""
        chat_id = await self._chat_of(turn_id)
        if chat_id is None:
            return None
        found = await self._link.call("turn", self._chat_key(chat_id), quoted(turn_id))
        if found is None:
            self._chats.pop(turn_id, None)
            return None
        return read_record(chat_id, found)

    async def read(self, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """See `Store.read`."""
        chat_id = await self._chat_of(turn_id)
        if chat_id is None or count <= 0:
            return []
        found = await self._link.call("look", self._chat_key(chat_id), quoted(turn_id), offset, count)
        return [] if found is None else list(found[1])

    async def look(self, places: Sequence[Place], count: int) -> list[Look | None]:
        """See `Store.look`."""
        answers = await self._link.call_all(
            [
                Call("look", (self._chat_key(turn.chat_id),), (quoted(turn.turn_id), offset, count))
                for turn, offset in places
            ]
        )
        return [
            None if answer is None else Look(read_record(turn.chat_id, answer[0]), answer[1])
            for (turn, _), answer in zip(places, answers, strict=True)
        ]

    def news(self, *turns: TurnRecord) -> News:
        """See `Store.news`."""
        return News(turns, self._listen, lambda: self._link.trusted_s)

    def _listen(self, turn: TurnRecord, heard: Callable[[], object]) -> RedisListener:
        channel = f"{self._chat_key(turn.chat_id)}:news:{quoted(turn.turn_id)}"
        return self._link.listen(channel, lambda said: heard(), missed=heard)

    async def tell(self, notes: Sequence[bytes]) -> None:
        """See `Store.tell`."""
        await self._send(*[(b"PUBLISH", f"{self._prefix}notes", note) for note in notes])

    @contextmanager
    def notes(self) -> Iterator[HeardNotes]:
        """See `Store.notes`."""
        notes = HeardNotes()
        with self._link.listen(f"{self._prefix}notes", notes.hear, missed=notes.miss):
            yield notes

    async def _chat_of(self, turn_id: str) -> str | None:
        chat_id = self._chats.get(turn_id)
        if chat_id is None:
            (found,) = await self._send((b"GET", self._index_key(turn_id)))
            if found is None:
                return None
            chat_id = found.decode()
        self._remember(turn_id, chat_id)
        return chat_id

    def _remember(self, turn_id: str, chat_id: str) -> None:
        keep(self._chats, turn_id, chat_id, self._limits.remembered_turns)

    async def _call(self, name: str, turn: TurnRecord, *args: str | bytes | int) -> Any:
        return await self._link.call(name, self._chat_key(turn.chat_id), quoted(turn.turn_id), *args)

    async def _send(self, *commands: tuple[str | bytes | int, ...]) -> list[Any]:
        answers = await self._link.send(commands)
        for answer in answers:
            if isinstance(answer, Exception):
                raise StoreUnavailableError(f"the journal's Redis refused: {answer}") from answer
        return answers

    async def _note_lease(self, turn: TurnRecord, lease_until: float) -> None:
        """Have a turn found that is about to run, unless it would be already."""
        await self._send(
            (b"ZADD", self._leases, b"NX", seconds(lease_until), lease_member(turn)), self._keep_index(turn)
        )

    async def _correct_leases(self, turns: Sequence[TurnRecord], lease_until: float) -> None:
        scores: list[str | bytes | int] = []
        for turn in turns:
            scores += [seconds(lease_until), lease_member(turn)]
        old = [turn for turn in turns if lease_until - turn.started_at > self._retention.chat_age_s]
        await self._send((b"ZADD", self._leases, *scores), *(self._keep_index(turn) for turn in old))

    def _keep_index(self, turn: TurnRecord) -> tuple[str | bytes | int, ...]:
        return (b"SET", self._index_key(turn.turn_id), turn.chat_id, b"PX", self._index_ms)

    @property
    def _index_ms(self) -> str:
        # A turn ends within its chat's age, or is renewed, and is kept for its own age then.
        return milliseconds(self._retention.chat_age_s + self._retention.turn_age_s)

    def _index_key(self, turn_id: str) -> str:
        return f"{self._prefix}turn:{quoted(turn_id)}"

    def _chat_key(self, chat_id: str) -> str:
        return self._quoted_chat_key(quoted(chat_id))

    def _quoted_chat_key(self, quoted: str) -> str:
        return f"{self._prefix}{{{quoted}}}"
