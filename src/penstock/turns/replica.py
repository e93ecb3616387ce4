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
from penstock.limits import HubLimits
from penstock.wire.chunks import Start
from penstock.wire.codec import decode_stored

logger = logging.getLogger("penstock.journal")

PAGE = 1_000
"""Entries read at once; decoding a page takes a millisecond or two, and others run between."""


async def read_all(store: Store, record: TurnRecord, offset: int = 0) -> list[bytes]:
    """Read all entries of a turn from an offset on."""
    entries: list[bytes] = []
    while page := await store.read(record.turn_id, offset + len(entries), PAGE):
        entries += page
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


class Replica:
    """A tail that is fed from the store."""

    def __init__(self, store: Store, record: TurnRecord, fan_out: FanOut | None = None) -> None:
        self._store = store
        self._record = record
        self.tail = LiveTail(record, fan_out)
        self.loaded = trio.Event()
        """Set once the tail has all that the store had when somebody first asked for it, or has ended."""

    async def load(self) -> LiveTail:
        """Fill the tail with a turn that doesn't run, end it, and return it."""
        await self._catch_up(self._record)
        self.tail.seal(self._record.state, (), self._record.ended_at)
        return self.tail

    async def run(self, look_after: Callable[[TurnRecord], Awaitable[None]], limits: HubLimits) -> None:
        """Feed the tail until the turn ends, nobody has followed it for two polls, or the store is away for too long."""
        poll_s = limits.replica_poll_s
        followed_at = heard_at = trio.current_time()
        why = "nobody has followed the turn here"
        try:
            with self._store.news(self._record) as news:
                while trio.current_time() < followed_at + 2 * poll_s:
                    try:
                        record = await self._store.turn(self._record.turn_id)
                        if record is None or not await self._catch_up(record):
                            why = "the journal has lost what it had of the turn"
                            break
                        self.loaded.set()
                        heard_at = trio.current_time()
                        if record.state is not TurnState.running:
                            self.tail.seal(record.state, (), record.ended_at)
                            return
                        await look_after(record)
                    except StoreUnavailableError as exc:
                        followed_at = trio.current_time()
                        if trio.current_time() - heard_at > limits.journal_grace_s:
                            why = str(exc)
                            break
                        await trio.sleep(limits.flush_retry_s)
                        continue
                    await news.wait(poll_s)
                    if self.tail.followers:
                        followed_at = trio.current_time()
        except LocalProtocolError as exc:
            why = str(exc)
        finally:
            if not self.tail.ended:
                logger.info("a replica of turn %s ends: %s", self._record.turn_id, why)
                self.tail.break_off(why)
            self.loaded.set()

    async def _catch_up(self, record: TurnRecord) -> bool:
        """Take what the record counts, and no more: what another owner may have added since is under another epoch.

        Returns:
            Whether the tail is what the store has: not so if that was set back.
        """
        tail = self.tail
        if record.epoch != tail.record.epoch:
            tail.change_owner(record)
        while (missing := record.entries - len(tail.entries)) > 0:
            page = await self._store.read(record.turn_id, len(tail.entries), min(missing, PAGE))
            if not page:
                return False
            for json in page:
                chunk = decode_stored(json)
                if isinstance(chunk, Start):
                    tail.first_entry = len(tail.entries)
                tail.append(chunk, json)
            tail.mark_stored(len(tail.entries), tail.bytes)
            await trio.lowlevel.checkpoint()
        return missing == 0
