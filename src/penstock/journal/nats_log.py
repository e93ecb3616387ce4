"""Turns and chats in a journal's stream: how they are read, and changed against others who change them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from penstock.errors import StoreUnavailableError
from penstock.journal.nats_link import OtherConnectionError
from penstock.journal.nats_seen import Change, Next, Seen, SeenChat, seen_after, seen_in
from penstock.journal.nats_stream import Message, NatsStream, Publication
from penstock.journal.nats_text import (
    ChatHead,
    Split,
    TurnEvent,
    cut,
    decode_messages,
    head_and_rest,
    read_chat_head,
    read_turn_event,
    split_lines,
    token,
    write_head,
)
from penstock.journal.remembered import keep
from penstock.journal.store import ChatRecord
from penstock.limits import NatsLimits
from penstock.wire.messages import UIMessage


class NatsLog:
    """The turns and chats of a stream, and what was last seen of some."""

    def __init__(self, stream: NatsStream, limits: NatsLimits) -> None:
        self.stream = stream
        self._limits = limits
        self._connections = stream.connections
        self._seen: OrderedDict[str, Seen] = OrderedDict()

    async def load(self, chat_id: str, turn_id: str) -> Seen | None:
        """Return a turn as it is now; None if there is none."""
        (seen,) = await self.load_all([(chat_id, turn_id)])
        return seen

    async def load_all(self, turns: Sequence[tuple[str, str]]) -> list[Seen | None]:
        """Return turns, named by their chats and themselves, as they are now."""
        found = await self.stream.last([self.stream.turn(*turn) for turn in turns])
        result: list[Seen | None] = []
        for (chat_id, turn_id), message in zip(turns, found, strict=True):
            if message is not None:
                seen = seen_in(message)
                keep(self._seen, turn_id, seen, self._limits.remembered_turns)
                result.append(seen)
            else:
                result.append(await self._begun(chat_id, turn_id))
        return result

    async def _begun(self, chat_id: str, turn_id: str) -> Seen | None:
        """Return a turn that began, and to which nothing has happened yet."""
        self._seen.pop(turn_id, None)
        chat = await self.chat(chat_id)
        if chat.head is None or chat.head.newest is None or chat.head.newest.turn_id != turn_id:
            return None
        # It was not there, and may be by now.
        (message,) = await self.stream.last([self.stream.turn(chat_id, turn_id)])
        return Seen(chat.head.newest, 0, 0, ()) if message is None else seen_in(message)

    async def change(self, change: Change) -> None:
        """Make a change. Like `change_all`, and raises what it was refused with."""
        await self.change_all([change])
        if change.refusal is not None:
            raise change.refusal

    async def change_all(self, changes: Sequence[Change]) -> None:
        """Make changes of turns, no two of the same.

        Raises:
            StoreUnavailableError: if it is not known which of them happened.
        """
        self._forget_earlier()
        for change in changes:
            change.seen = self._seen.get(change.turn_id)
        left = list(changes)
        connection = self._connections
        for _ in range(self._limits.tries):
            if not left:
                return
            self._forget_earlier()
            if self._connections != connection:
                connection = self._connections
                for change in left:
                    change.seen, change.fresh = None, False
            stale = [change for change in left if change.seen is None]
            if stale:
                found = await self.load_all([(change.chat_id, change.turn_id) for change in stale])
                for change, seen in zip(stale, found, strict=True):
                    change.seen, change.fresh = seen, True
            due: list[tuple[Change, Next]] = []
            unsure: list[Change] = []
            for change in left:
                next_ = change.decide(change.seen)
                if isinstance(next_, Next):
                    due.append((change, next_))
                elif change.fresh:
                    change.refusal = next_
                else:
                    # Nobody is told no because of something that may be over.
                    change.seen = None
                    unsure.append(change)
            left = unsure + await self._publish(due, connection)
        raise StoreUnavailableError("others changed the turn again and again")

    async def _publish(self, due: Sequence[tuple[Change, Next]], connection: int) -> list[Change]:
        """Publish what is to be next. Returns those that something else got ahead of."""
        try:
            return await self._publish_over(due, connection)
        except OtherConnectionError:
            for change, _ in due:
                change.seen, change.fresh = None, False
            return [change for change, _ in due]

    async def _publish_over(self, due: Sequence[tuple[Change, Next]], connection: int) -> list[Change]:
        size = self.stream.part_bytes
        whole = [(change, next_) for change, next_ in due if len(next_.data) <= size]
        sequences = await self.stream.publish(
            [self._publication(change, next_) for change, next_ in whole], connection
        )
        done = list(zip(whole, sequences, strict=True))
        for change, next_ in due:
            if len(next_.data) > size:
                done.append(((change, next_), await self._publish_parts(change, next_, connection)))
        behind = []
        for (change, next_), sequence in done:
            if sequence:
                keep(
                    self._seen,
                    change.turn_id,
                    seen_after(next_.event, sequence),
                    self._limits.remembered_turns,
                )
            else:
                self._seen.pop(change.turn_id, None)
                change.seen, change.fresh = None, False
                behind.append(change)
        return behind

    def _publication(self, change: Change, next_: Next, after: int | None = None) -> Publication:
        assert change.seen is not None
        after = change.seen.sequence if after is None else after
        event = next_.event
        return Publication(
            self.stream.turn(change.chat_id, change.turn_id),
            write_head(event) + b"\n" + next_.data,
            after,
            # With what it comes after, for something else may be tried in its place.
            f"{token(change.turn_id)}:{event.record.epoch}:{event.first}:{after}",
        )

    async def _publish_parts(self, change: Change, next_: Next, connection: int) -> int:
        seen = change.seen
        assert seen is not None
        *parts, last = cut(next_.data, self.stream.part_bytes)
        # As it was before.
        still = TurnEvent(
            kind="part",
            record=seen.record,
            first=next_.event.first,
            base=seen.base,
            said=seen.said,
            more=True,
        )
        sequence, begins = seen.sequence, 0
        for part, data in enumerate(parts):
            event = msgspec.structs.replace(still, part=part)
            publication = self._publication(change, Next(event, data), sequence)
            (sequence,) = await self.stream.publish([publication], connection)
            if not sequence:
                return 0
            begins = begins or sequence
        event = msgspec.structs.replace(next_.event, part=len(parts), begins=begins)
        publication = self._publication(change, Next(event, last), sequence)
        (sequence,) = await self.stream.publish([publication], connection)
        return sequence

    async def event(self, subject: str, sequence: int) -> tuple[TurnEvent, list[bytes]] | None:
        """Return what happened to a turn, whole; None if it is gone."""
        message = await self.stream.at(sequence)
        if message is None or message.subject != subject:
            return None
        head, rest = head_and_rest(message.payload)
        event = read_turn_event(head)
        data = await self._whole(message, event, rest)
        return None if data is None else (event, split_lines(data))

    async def _whole(self, message: Message, split: Split, rest: bytes) -> bytes | None:
        """Return the lines of a message and of the parts before it; None if they are gone."""
        if not split.begins:
            return rest
        parts = [rest]
        at = split.begins
        found: list[bytes] = []
        while at < message.sequence:
            page, _ = await self.stream.page(message.subject, at)
            found += [head_and_rest(each.payload)[1] for each in page if each.sequence < message.sequence]
            if not page:
                return None
            at = page[-1].sequence + 1
        return b"".join(found + parts) if len(found) == split.part else None

    async def chat(self, chat_id: str) -> SeenChat:
        """Return a chat as it is now."""
        subject = self.stream.chat(chat_id)
        connection = self.stream.connections
        for _ in range(self._limits.tries):
            (last,) = await self.stream.last([subject])
            message = last
            if message is None:
                return SeenChat(None, [], 0, 0, connection)
            head, rest = head_and_rest(message.payload)
            chat = read_chat_head(head)
            if chat.more:
                if not chat.before:
                    return SeenChat(None, [], message.sequence, 0, connection)
                message = await self.stream.at(chat.before)
                if message is None:
                    continue  # another came in its place
                head, rest = head_and_rest(message.payload)
                chat = read_chat_head(head)
            data = await self._whole(message, chat, rest)
            if data is not None and last is not None:
                return SeenChat(chat, split_lines(data), last.sequence, message.sequence, connection)
        raise StoreUnavailableError("others changed the chat again and again")

    async def chat_record(self, chat_id: str) -> ChatRecord | None:
        """Return a chat with what was said since its newest turn began."""
        for _ in range(self._limits.tries):
            chat = await self.chat(chat_id)
            if chat.head is None:
                return None
            if chat.head.newest is None:
                return ChatRecord(chat_id=chat_id, messages=tuple(decode_messages(chat.lines)), turn=None)
            turn_id = chat.head.newest.turn_id
            seen = await self.load(chat_id, turn_id)
            if seen is not None and (found := await self._said(chat, seen)) is not None:
                return ChatRecord(chat_id=chat_id, messages=tuple(found), turn=seen.record)
        raise StoreUnavailableError("others changed the chat again and again")

    async def _said(self, chat: SeenChat, seen: Seen) -> list[UIMessage] | None:
        """Return the messages of a chat whose newest turn this is; None if they are gone."""
        subject = self.stream.turn(seen.record.chat_id, seen.record.turn_id)
        messages = chat.lines
        if seen.base:
            event = await self.event(subject, seen.base)
            if event is None:
                return None
            messages = event[1]
        result = decode_messages(messages)
        for sequence in seen.said:
            event = await self.event(subject, sequence)
            if event is None:
                return None
            (said,) = decode_messages(event[1][event[0].count :])
            result = [old for old in result if old.id != said.id] + [said]
        return result

    async def set_chat(self, chat_id: str, seen: SeenChat, head: ChatHead, data: bytes) -> bool:
        """Put a chat in the place of what was seen of it: a compare-and-set."""
        try:
            return await self._set_chat(chat_id, seen, head, data)
        except OtherConnectionError:
            return False

    async def _set_chat(self, chat_id: str, seen: SeenChat, head: ChatHead, data: bytes) -> bool:
        subject = self.stream.chat(chat_id)
        *parts, last = cut(data, self.stream.part_bytes)
        sequence, begins = seen.sequence, 0
        for part, each in enumerate(parts):
            void = ChatHead(began_at=0.0, part=part, more=True, before=seen.committed)
            (sequence,) = await self.stream.publish(
                [Publication(subject, write_head(void) + b"\n" + each, sequence)], seen.connection
            )
            if not sequence:
                return False
            begins = begins or sequence
        head = msgspec.structs.replace(head, part=len(parts), begins=begins)
        (sequence,) = await self.stream.publish(
            [Publication(subject, write_head(head) + b"\n" + last, sequence, alone=not parts)],
            seen.connection,
        )
        if sequence and parts:
            await self.stream.purge([(subject, begins)])
        return bool(sequence)

    def _forget_earlier(self) -> None:
        """Forget what was seen over another connection.

        A server that lost its last messages gives their sequences again, to others.
        """
        if self._connections != self.stream.connections:
            self._connections = self.stream.connections
            self._seen.clear()

    def remember(self, seen: Seen) -> None:
        """Note a turn as it is."""
        keep(self._seen, seen.record.turn_id, seen, self._limits.remembered_turns)

    def forget(self, turn_id: str) -> None:
        """Note that a turn is gone."""
        self._seen.pop(turn_id, None)
