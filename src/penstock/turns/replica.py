"""A turn that runs elsewhere, or ran: its tail here is fed from the store.

Followers of a replica see exactly what the store has, when there is news of it, or a poll later. When the store shows the
turn's end, the replica ends; when it shows that the owner's lease has run out, the replica has the turn looked after, which
ends it too.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from penstock.errors import LocalProtocolError, StoreUnavailableError
from penstock.journal.fan_out import FanOut
from penstock.journal.live import LiveTail
from penstock.journal.store import Store, TurnRecord, TurnState
from penstock.wire.chunks import Start
from penstock.wire.codec import decode_stored

logger = logging.getLogger("penstock.journal")

PAGE = 1_000
"""Entries read at once; decoding a page takes a millisecond or two, and others run between."""


async def read_all(store: Store, record: TurnRecord) -> list[bytes]:
    """Read all entries of a turn."""
    entries: list[bytes] = []
    while page := await store.read(record.turn_id, len(entries), PAGE):
        entries += page
    return entries


class Replica:
    """A tail that is fed from the store."""

    def __init__(self, store: Store, record: TurnRecord, fan_out: FanOut | None = None) -> None:
        self._store = store
        self._record = record
        self.tail = LiveTail(record, fan_out)

    async def load(self) -> LiveTail:
        """Fill the tail with a turn that doesn't run, end it, and return it."""
        await self._catch_up(self._record.entries)
        self.tail.seal(self._record.state, (), self._record.ended_at)
        return self.tail

    async def run(self, look_after: Callable[[TurnRecord], Awaitable[None]], poll_s: float) -> None:
        """Feed the tail until the turn ends, or nobody has followed it for a poll's time twice over."""
        followed_at = trio.current_time()
        try:
            with self._store.news(self._record) as news:
                while trio.current_time() < followed_at + 2 * poll_s:
                    # The record first: entries that it counts are there when they are read.
                    record = await self._store.turn(self._record.turn_id)
                    if record is None:
                        break
                    await self._catch_up(record.entries)
                    if record.state is not TurnState.running:
                        self.tail.seal(record.state, (), record.ended_at)
                        return
                    await look_after(record)
                    await news.wait(poll_s)
                    if self.tail.followers:
                        followed_at = trio.current_time()
        except (StoreUnavailableError, LocalProtocolError) as exc:
            logger.warning("a replica of turn %s ends: %s", self._record.turn_id, exc)
        finally:
            if not self.tail.ended:
                self.tail.break_off("the turn can't be followed here any more")

    async def _catch_up(self, entries: int) -> None:
        """Read on until there are so many."""
        tail = self.tail
        while len(tail.entries) < entries:
            page = await self._store.read(self._record.turn_id, len(tail.entries), PAGE)
            if not page:
                break
            for json in page:
                chunk = decode_stored(json)
                if isinstance(chunk, Start):
                    tail.first_entry = len(tail.entries)
                tail.append(chunk, json)
            tail.mark_stored(len(tail.entries), tail.bytes)
            await trio.lowlevel.checkpoint()
