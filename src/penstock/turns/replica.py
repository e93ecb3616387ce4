"""A turn that runs elsewhere, or ran: its tail here is fed from the store.

Followers of a replica see exactly what the store has, when there is news of it, or a poll later. When the store shows the
turn's end, the replica ends.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from penstock.errors import LocalProtocolError
from penstock.journal.fan_out import FanOut
from penstock.journal.live import LiveTail
from penstock.journal.store import Look, Place, Store, TurnRecord, TurnState
from penstock.wire.chunks import Start
from penstock.wire.codec import decode_stored

logger = logging.getLogger("penstock.journal")

PAGE = 1_000
"""Entries read at once; decoding a page takes a millisecond or two, and others run between."""


async def read_all(store: Store, record: TurnRecord, offset: int = 0) -> list[bytes]:
    """Read all entries of a turn from an offset on."""
    entries: list[bytes] = []
    while True:
        page = await store.read(record.turn_id, offset + len(entries), PAGE)
        entries += page
        if len(page) < PAGE:
            return entries


async def take_end(store: Store, tail: LiveTail) -> None:
    """End the tail of a turn that somebody else has ended: with their end, or none if more was shown than they know of.

    Raises:
        StoreUnavailableError: if the store can't be asked.
    """
    record = await store.turn(tail.record.turn_id)
    if record is None:
        tail.break_off("the journal has lost the turn")
        return
    rest = await read_all(store, record, tail.stored)
    shown = [entry.json for entry in tail.entries[tail.stored :]]
    if record.state is TurnState.running or record.entries < len(tail.entries) or rest[: len(shown)] != shown:
        tail.break_off("the turn has had another owner")
        return
    tail.change_owner(record)
    tail.seal(record.state, [(decode_stored(json), json) for json in rest[len(shown) :]], record.ended_at)


async def load(store: Store, record: TurnRecord) -> LiveTail:
    """Return the tail of a turn that doesn't run, as its record is."""
    tail = LiveTail(record)
    while (missing := record.entries - len(tail.entries)) > 0:
        page = await store.read(record.turn_id, len(tail.entries), min(missing, PAGE))
        if not page:
            break
        _add(tail, page)
        await trio.lowlevel.checkpoint()
    tail.seal(record.state, (), record.ended_at)
    return tail


class Replica:
    """A tail that is fed from the store; see `replicas.py`."""

    def __init__(self, record: TurnRecord, fan_out: FanOut) -> None:
        self.tail = LiveTail(record, fan_out)
        self.record = record
        """As it was last looked at."""
        self.loaded = trio.Event()
        """Set once the tail has all that the store had when somebody last asked for it, or has ended."""
        self.followed_at = trio.current_time()
        """When it was last seen that it has followers, or could not be fed."""
        self.looked_after = False
        """Whether somebody finds out what became of its owner."""

    @property
    def place(self) -> Place:
        """What is to be looked at next."""
        return Place(self.record, len(self.tail.entries))

    def take(self, look: Look | None) -> bool:
        """Take what the store has, and end with the turn.

        Returns:
            Whether that was all.
        """
        tail = self.tail
        missing = -1 if look is None else look.record.entries - len(tail.entries)
        if look is None or (missing and not look.entries):
            self.break_off("the journal has lost what it had of the turn")
            return True
        self.record = record = look.record
        if record.epoch != tail.record.epoch:
            tail.change_owner(record)
        try:
            _add(tail, look.entries)
        except LocalProtocolError as exc:
            self.break_off(str(exc))
            return True
        if len(look.entries) < missing:
            return False
        if record.state is not TurnState.running:
            tail.seal(record.state, (), record.ended_at)
        self.loaded.set()
        return True

    def break_off(self, why: str) -> None:
        """End the tail without an end of the turn."""
        logger.info("a replica of turn %s ends: %s", self.record.turn_id, why)
        self.tail.break_off(why)
        self.loaded.set()


def _add(tail: LiveTail, entries: Sequence[bytes]) -> None:
    """Add what the store has.

    Raises:
        LocalProtocolError: if it is nothing that we wrote.
    """
    for json in entries:
        chunk = decode_stored(json)
        if isinstance(chunk, Start):
            tail.first_entry = len(tail.entries)
        tail.append(chunk, json)
    tail.mark_stored(len(tail.entries), tail.bytes)
