"""How turns are read from a journal's stream."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from penstock.journal.nats_log import NatsLog
from penstock.journal.nats_stream import Message, Page
from penstock.journal.nats_text import head_and_rest, read_turn_event, split_lines
from penstock.journal.remembered import keep
from penstock.journal.store import Look, Place
from penstock.limits import NatsLimits


class At(NamedTuple):
    """A place in a turn."""

    chat_id: str
    turn_id: str
    offset: int


class NatsReader:
    """What reads turns, and remembers where it was.

    Who follows a turn mostly lacks what its last message has, so this is asked for first.
    """

    def __init__(self, log: NatsLog, limits: NatsLimits) -> None:
        self._log = log
        self._stream = log.stream
        self._limits = limits
        self._connections = self._stream.connections
        self._places: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Of turns that are read: an offset, and the sequence from which on the entries from there are found."""

    async def look(self, places: Sequence[Place], count: int) -> list[Look | None]:
        """See `Store.look`."""
        self._forget_earlier()
        wanted = [At(turn.chat_id, turn.turn_id, offset) for turn, offset in places]
        last = await self._stream.last([self._subject(at) for at in wanted])
        looks: list[Look | None] = []
        behind: list[tuple[int, Look]] = []
        for i, (at, message) in enumerate(zip(wanted, last, strict=True)):
            if message is not None:
                look = self._look_at_last(at, message, count)
            elif (seen := await self._log.load(at.chat_id, at.turn_id)) is not None:
                look = Look(seen.record, ())
            else:
                looks.append(None)
                continue
            looks.append(look)
            if not look.entries and at.offset < look.record.entries:
                behind.append((i, look))
        found = await self.read([wanted[i] for i, _ in behind], count)
        for (i, look), entries in zip(behind, found, strict=True):
            # What came since is of a later record.
            looks[i] = Look(look.record, entries[: look.record.entries - wanted[i].offset])
        return looks

    def _look_at_last(self, at: At, message: Message, count: int) -> Look:
        """Return what a turn's last message shows, without entries if that has not all of them, or is a part of many."""
        head, rest = head_and_rest(message.payload)
        event = read_turn_event(head)
        offset, end = at.offset, event.record.entries
        if event.more or event.begins or not event.first <= offset < end:
            return Look(event.record, ())
        whole = offset + count >= end
        here = (end, message.sequence + 1) if whole else (event.first, message.sequence)
        keep(self._places, at.turn_id, here, self._limits.remembered_turns)
        entries = split_lines(rest)[offset - event.first : event.count]
        return Look(event.record, entries[:count])

    async def read(self, places: Sequence[At], count: int) -> list[list[bytes]]:
        """Return `count` entries from each of these places on, fewer only at the end."""
        self._forget_earlier()
        readings = []
        for at in places:
            offset, sequence = self._places.get(at.turn_id, (0, 1))
            readings.append(_Reading(at, count, 1 if offset > at.offset else sequence))
        left = readings if count > 0 else []
        while left:
            pages = await self._stream.pages(
                [(self._subject(reading.at), reading.sequence) for reading in left], count
            )
            for reading, page in zip(left, pages, strict=True):
                reading.take(page)
            left = [reading for reading in left if reading.goes_on]
        for reading in readings:
            if reading.place is not None:
                keep(self._places, reading.at.turn_id, reading.place, self._limits.remembered_turns)
        return [reading.found[:count] for reading in readings]

    def _subject(self, at: At) -> str:
        return self._stream.turn(at.chat_id, at.turn_id)

    def _forget_earlier(self) -> None:
        """Forget what was seen over another connection; see `NatsLog`."""
        if self._connections != self._stream.connections:
            self._connections = self._stream.connections
            self._places.clear()


class _Reading:
    """Entries of a turn that are being read."""

    def __init__(self, at: At, count: int, sequence: int) -> None:
        self.at = at
        self._count = count
        self.sequence = sequence
        """Of the next message."""
        self.found: list[bytes] = []
        self.goes_on = True
        self.place: tuple[int, int] | None = None
        """Where to go on later."""
        self._parts: list[bytes] = []
        self._begins = sequence

    def take(self, page: Page) -> None:
        """Take the next messages."""
        for message in page.messages:
            self.sequence = message.sequence + 1
            head, rest = head_and_rest(message.payload)
            event = read_turn_event(head)
            if event.part == 0:
                self._parts.clear()
                self._begins = message.sequence
            self._parts.append(rest)
            if event.more:
                continue
            end = event.record.entries
            wanted = self.at.offset + len(self.found)
            if event.count and wanted < end:
                self.found += split_lines(b"".join(self._parts))[wanted - event.first : event.count]
            inside = self.at.offset + self._count < end
            self.place = (event.first, self._begins) if inside else (end, self.sequence)
            if len(self.found) >= self._count:
                break
        self.goes_on = page.more and len(self.found) < self._count
