"""The `nats:` store: turns in a JetStream that all nodes share.

FORMAT. One stream; `nats_stream.py` has its subjects, `nats_text.py` what a message looks like.

A TURN is the list of what happened to it: that it began, entries, that its lease was renewed, that it was adopted, sealed,
resumed. Each of these is one message that has the turn's whole record as it is from then on, so the last one is the record, and
each is published on condition that the last one is the one its author knew. So a change happens whole or not at all, an owner
who was given up is fenced by whatever its successor wrote, and a seal, which has the last entries and the message, too, is
seen with all of them. An author who is refused, or hears nothing, reads the last one, and finds there whether it was his own.

A CHAT is one message: the chat's messages as of when its newest turn began, that turn, and the ids of those before it. That a
turn begins is a compare-and-set on it. What was said since is in the newest turn's seals.

WHAT A CRASH LEAVES. Of a beginning, in this order: the id, which is not used again; a note that the turn may be running, which
a look at lapsed turns removes; the chat, from which on the turn is there and running, and is found by its lapsed lease; the
first message of the turn, without which its record is the chat's. Of a seal: the note that the turn may be running, by which
the note that it ended is made up for. Of something large, parts that are void because something else follows them.

WHAT IS KEPT is a matter of the NATS: see docs/delivery.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import msgspec
import trio

from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal.nats_address import NatsAddress
from penstock.journal.nats_link import NatsLink
from penstock.journal.nats_log import NatsLog
from penstock.journal.nats_reader import At, NatsReader
from penstock.journal.nats_seen import Change, Next, Seen, SeenChat, appended, owned
from penstock.journal.nats_stream import NatsStream, Publication
from penstock.journal.nats_text import (
    ChatHead,
    TurnEvent,
    encode_messages,
    lines,
    read_token,
    token,
    write_head,
)
from penstock.journal.nats_upkeep import NatsUpkeep
from penstock.journal.news import News
from penstock.journal.notes import HeardNotes
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
from penstock.limits import NatsLimits
from penstock.wire.messages import UIMessage

_NOTED_S = 30.0
"""How old a note may be that a turn may be running."""


@asynccontextmanager
async def open_nats(
    address: NatsAddress, *, retention: Retention = Retention(), limits: NatsLimits = NatsLimits()
) -> AsyncIterator[NatsStore]:
    """Open a store on a NATS with JetStream. Its stream is made if it isn't there.

    Leaving the block ends the connection. What was acknowledged is with NATS; what wasn't may be, too.

    Raises:
        ValueError: if there is a stream of this name that is something else.
        StoreUnavailableError: if it can't be reached now, doesn't let us in, or has no JetStream.
    """
    link = NatsLink(address, limits)
    stream = NatsStream(link, limits)
    refusal: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            nursery.start_soon(link.run)
            error = await link.wait_tried()
            if error is not None:
                refusal = StoreUnavailableError(f"the journal at {address} can't be reached: {error}")
            else:
                try:
                    await stream.make()
                except (ValueError, StoreUnavailableError) as exc:
                    refusal = exc
            if refusal is None:
                store = NatsStore(stream, retention, limits)
                nursery.start_soon(store._upkeep.run)
                yield store
        finally:
            link.close()
            nursery.cancel_scope.cancel("the store is closed")
    if refusal is not None:
        raise refusal


class NatsStore:
    """A store on a NATS. Made by `open_nats`."""

    shared = True
    private = False

    def __init__(self, stream: NatsStream, retention: Retention, limits: NatsLimits) -> None:
        self._stream = stream
        self._log = NatsLog(stream, limits)
        self._reader = NatsReader(self._log, limits)
        self._retention = retention
        self._limits = limits
        self._upkeep = NatsUpkeep(self._log, retention, limits)
        self._chats: OrderedDict[str, str] = OrderedDict()
        """The chats of turns, those asked for last at the end."""
        self._noted_at: OrderedDict[str, float] = OrderedDict()
        """When it was last noted that a turn may be running."""

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
        data = encode_messages(messages)
        claimed = False
        try:
            for _ in range(self._limits.tries):
                chat = await self._log.chat(chat_id)
                await self._check_ended(chat_id, chat)
                if not claimed:
                    await self._claim(record, chat)
                    claimed = True
                turns = () if chat.head is None else chat.head.turns
                kept = turns[-self._retention.turns_per_chat :]
                head = ChatHead(began_at=at, turns=(*kept, turn_id), newest=record)
                if await self._log.set_chat(chat_id, chat, head, data):
                    break
            else:
                raise StoreUnavailableError("others changed the chat again and again")
        except RunningTurnError:
            if claimed:
                self._upkeep.unclaimed(record)
            raise
        self._upkeep.crowded(chat_id, turns[: -self._retention.turns_per_chat], (*kept, turn_id))
        event = TurnEvent(kind="begin", record=record)
        subject = self._stream.turn(chat_id, turn_id)
        (sequence,) = await self._stream.publish([Publication(subject, write_head(event) + b"\n", 0)])
        if sequence:
            self._log.remember(Seen(record, sequence, 0, ()))
        return record

    async def _check_ended(self, chat_id: str, chat: SeenChat) -> None:
        if chat.head is None or chat.head.newest is None:
            return
        newest = await self._log.load(chat_id, chat.head.newest.turn_id)
        if newest is not None and not newest.record.state.ended:
            raise RunningTurnError(newest.record)

    async def _claim(self, record: TurnRecord, chat: SeenChat) -> None:
        """Make sure that no other turn has this id, and that the turn is found when its lease has lapsed."""
        subject = self._stream.id(record.turn_id)
        owner = token(record.chat_id).encode()
        claim, _ = await self._stream.publish([Publication(subject, owner, 0), self._note(record)])
        if not claim:
            (claimed,) = await self._stream.last([subject])
            # Of a beginning that came to nothing, if the turn isn't there.
            taken = chat.head is not None and record.turn_id in chat.head.turns
            if claimed is None or claimed.payload != owner or taken:
                raise LocalProtocolError("two turns can't have the same id")
        self._remember_chat(record.turn_id, record.chat_id)

    async def resume(
        self, turn: TurnRecord, request_key: str, messages: Sequence[UIMessage], *, lease_until: float
    ) -> TurnRecord:
        """See `Store.resume`."""
        data = encode_messages(messages)
        resumed = msgspec.structs.replace(
            turn, state=TurnState.running, request_key=request_key, lease_until=lease_until
        )

        def decide(seen: Seen | None) -> Next | Exception:
            record = None if seen is None else seen.record
            if (
                record is None
                or record.state is not TurnState.suspended
                or (record.epoch, record.entries) != (turn.epoch, turn.entries)
            ):
                return TurnSealedError("the turn is not waiting to go on")
            return Next(
                TurnEvent(kind="resume", record=resumed, first=turn.entries, messages=len(messages)), data
            )

        await self._stream.publish([self._note(turn)])
        await self._log.change(Change(turn, decide))
        return resumed

    async def append(self, batches: Sequence[Batch]) -> None:
        """See `Store.append`."""
        refusals: list[Exception] = []
        left = list(batches)
        while left:
            # Of each turn the first; in order, where a turn has several.
            now = {batch.turn.turn_id: batch for batch in reversed(left)}
            changes = [Change(batch.turn, partial(appended, batch)) for batch in now.values()]
            await self._log.change_all(changes)
            refusals += [change.refusal for change in changes if change.refusal is not None]
            left = [batch for batch in left if now[batch.turn.turn_id] is not batch]
        for kind in (LocalProtocolError, TurnSealedError):
            for refusal in refusals:
                if isinstance(refusal, kind):
                    raise refusal

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, *, at: float) -> bool:
        """See `Store.seal`."""
        if not batch.entries:
            raise LocalProtocolError("a seal without an entry would not show in the turn")
        said = b"" if message is None else encode_messages([message])
        ended_at = at if state.ended else None

        def decide(seen: Seen | None) -> Next | Exception:
            if seen is None or not owned(seen, batch.turn):
                return _NotSealedError(seen)
            record = seen.record
            if batch.offset > record.entries:
                return LocalProtocolError("entries past the end of a turn would leave a hole")
            new = batch.entries[record.entries - batch.offset :]
            if not new:
                return _NotSealedError(seen)
            after = msgspec.structs.replace(
                record,
                state=state,
                entries=record.entries + len(new),
                ended_at=ended_at,
                lease_until=None,
            )
            event = TurnEvent(
                kind="seal",
                record=after,
                first=record.entries,
                count=len(new),
                messages=1 if said else 0,
                base=seen.base,
                said=seen.said,
            )
            return Next(event, lines(new) + said)

        lines(batch.entries)
        try:
            await self._log.change(Change(batch.turn, decide))
        except _NotSealedError as exc:
            return await self._is_this(exc.seen, batch, state)
        if state.ended:
            self._upkeep.ended(batch.turn, at)
        return True

    async def _is_this(self, seen: Seen | None, batch: Batch, state: TurnState) -> bool:
        """Say whether a turn was sealed just so."""
        if seen is None:
            return False
        record = seen.record
        return (
            (record.state, record.epoch) == (state, batch.turn.epoch)
            and record.state is not TurnState.running
            and record.entries == batch.offset + len(batch.entries)
            and await self._reader.read(
                [At(record.chat_id, record.turn_id, batch.offset)], len(batch.entries)
            )
            == [list(batch.entries)]
        )

    async def adopt(self, turn: TurnRecord, *, lease_until: float) -> TurnRecord | None:
        """See `Store.adopt`."""
        if turn.state.ended:
            return None
        adopted = msgspec.structs.replace(
            turn, state=TurnState.running, epoch=turn.epoch + 1, lease_until=lease_until
        )

        def decide(seen: Seen | None) -> Next | Exception:
            if seen is None or seen.record != turn:
                return TurnSealedError("the turn has changed")
            return Next(
                TurnEvent(kind="adopt", record=adopted, first=turn.entries, base=seen.base, said=seen.said)
            )

        await self._stream.publish([self._note(turn)])
        try:
            await self._log.change(Change(turn, decide))
        except TurnSealedError:
            return None
        return adopted

    async def renew(self, turns: Sequence[TurnRecord], lease_until: float) -> frozenset[str]:
        """See `Store.renew`."""

        def renewed(turn: TurnRecord, seen: Seen | None) -> Next | Exception:
            if seen is None or not owned(seen, turn):
                return TurnSealedError("a turn is not running, or not this owner's")
            record = msgspec.structs.replace(seen.record, lease_until=lease_until)
            return Next(
                TurnEvent(kind="renew", record=record, first=record.entries, base=seen.base, said=seen.said)
            )

        unique = {turn.turn_id: turn for turn in turns}
        changes = [Change(turn, partial(renewed, turn)) for turn in unique.values()]
        await self._log.change_all(changes)
        kept = frozenset(change.turn_id for change in changes if change.refusal is None)
        # Now and then again, should a look at lapsed turns have taken it for one of the past.
        now = trio.current_time()
        old = [
            turn
            for turn in unique.values()
            if turn.turn_id in kept and now - self._noted_at.get(turn.turn_id, 0.0) > _NOTED_S
        ]
        await self._stream.publish([self._note(turn) for turn in old])
        return kept

    async def lapsed(self, now: float, count: int) -> Sequence[TurnRecord]:
        """See `Store.lapsed`."""
        return await self._upkeep.lapsed(now, count)

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """See `Store.chat`."""
        return await self._log.chat_record(chat_id)

    async def turn(self, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""
        chat_id = await self._chat_of(turn_id)
        if chat_id is None:
            return None
        seen = await self._log.load(chat_id, turn_id)
        return None if seen is None else seen.record

    async def read(self, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """See `Store.read`."""
        if (chat_id := await self._chat_of(turn_id)) is None:
            return []
        (found,) = await self._reader.read([At(chat_id, turn_id, offset)], count)
        return found

    async def look(self, places: Sequence[Place], count: int) -> list[Look | None]:
        """See `Store.look`."""
        return await self._reader.look(places, count)

    def news(self, *turns: TurnRecord) -> News:
        """See `Store.news`."""
        return News(turns, self._stream.listen_to_turn, lambda: self._stream.trusted_s)

    async def tell(self, notes: Sequence[bytes]) -> None:
        """See `Store.tell`."""
        await self._stream.tell(notes)

    @contextmanager
    def notes(self) -> Iterator[HeardNotes]:
        """See `Store.notes`."""
        notes = HeardNotes()
        with self._stream.listen_to_notes(notes):
            yield notes

    async def _chat_of(self, turn_id: str) -> str | None:
        chat_id = self._chats.get(turn_id)
        if chat_id is None:
            (found,) = await self._stream.last([self._stream.id(turn_id)])
            if found is None:
                return None
            chat_id = read_token(found.payload.decode())
        self._remember_chat(turn_id, chat_id)
        return chat_id

    def _remember_chat(self, turn_id: str, chat_id: str) -> None:
        keep(self._chats, turn_id, chat_id, self._limits.remembered_turns)

    def _note(self, turn: TurnRecord) -> Publication:
        """Have a turn found that is about to run."""
        keep(self._noted_at, turn.turn_id, trio.current_time(), self._limits.remembered_turns)
        return Publication(self._stream.live(turn.chat_id, turn.turn_id), b"", alone=True)


class _NotSealedError(Exception):
    def __init__(self, seen: Seen | None) -> None:
        self.seen = seen
