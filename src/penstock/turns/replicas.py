"""The turns of other nodes that are followed here: one task reads all of them.

    store ─ news ─> Replicas.run: one look at all turns that have some ─> the tail of each ─> its followers

What comes while a look is under way is in the next one, so a store that is slow, or a node with much to do, makes for
fewer looks and not for more. When a look shows that an owner's lease has run out, that turn is looked after, which ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.fan_out import FanOut
from penstock.journal.store import Store, TurnRecord
from penstock.limits import HubLimits
from penstock.turns.leases import Leases
from penstock.turns.replica import PAGE, Replica

LOOKS = 100
"""Turns that are looked at together. All of them together get a page, so each has a share of ten entries at least."""


class Replicas:
    """The turns of others that are followed here. `run` is its task.

    Args:
        store: the journal's.
        fan_out: serves the followers.
        leases: says whose owner may be given up.
        look_after: ends a turn whose owner may be.
        limits: how long to wait.
    """

    def __init__(
        self,
        store: Store,
        fan_out: FanOut,
        leases: Leases,
        look_after: Callable[[TurnRecord], Awaitable[None]],
        limits: HubLimits,
    ) -> None:
        self._store = store
        self._fan_out = fan_out
        self._leases = leases
        self._look_after = look_after
        self._limits = limits
        self._news = store.news()
        self._replicas: dict[str, Replica] = {}
        """By turn."""
        self._failing_since: float | None = None
        self._closed = False

    def follow(self, record: TurnRecord) -> Replica:
        """Return a turn that runs elsewhere. It is read from now on, until it ends, or nobody has followed it for two polls."""
        turn_id = record.turn_id
        replica = self._replicas.get(turn_id)
        if replica is None:
            replica = Replica(record, self._fan_out)
            if self._closed:
                replica.break_off("the hub is closed")
                return replica
            self._replicas[turn_id] = replica
            self._news.listen(record)
            return replica
        if replica.loaded.is_set():
            replica.loaded = trio.Event()
        replica.followed_at = trio.current_time()
        self._news.hear(turn_id)
        return replica

    async def run(self) -> None:
        """Read what there is news of, until cancelled."""
        try:
            with self._news as news:
                async with trio.open_nursery() as nursery:
                    while True:
                        changed = list(await news.wait(self._limits.replica_poll_s))
                        for begin in range(0, len(changed), LOOKS):
                            await self._look(changed[begin : begin + LOOKS], nursery)
        finally:
            self._closed = True
            for replica in self._replicas.values():
                replica.break_off("the hub is closed")

    async def _look(self, turn_ids: Sequence[str], nursery: trio.Nursery) -> None:
        """Take what the store has of some turns."""
        replicas = [replica for turn_id in turn_ids if (replica := self._replicas.get(turn_id)) is not None]
        if not replicas:
            return
        try:
            looks = await self._store.look([replica.place for replica in replicas], PAGE // len(replicas))
        except StoreUnavailableError as exc:
            await self._put_off(replicas, str(exc))
            return
        self._failing_since = None
        now = trio.current_time()
        for replica, look in zip(replicas, looks, strict=True):
            if not replica.take(look):
                self._news.hear(replica.record.turn_id)
            if replica.tail.followers:
                replica.followed_at = now
            elif now >= replica.followed_at + 2 * self._limits.replica_poll_s and not replica.tail.ended:
                replica.break_off("nobody has followed the turn here")
            if replica.tail.ended:
                self._end(replica)
            elif not replica.looked_after and self._leases.lapsed(replica.record):
                replica.looked_after = True
                nursery.start_soon(self._have_looked_after, replica)

    async def _put_off(self, replicas: Sequence[Replica], why: str) -> None:
        """Look again later; give up all turns if that was so for too long."""
        now = trio.current_time()
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > self._limits.journal_grace_s:
            for replica in list(self._replicas.values()):
                replica.break_off(why)
                self._end(replica)
            return
        for replica in replicas:
            self._news.hear(replica.record.turn_id)
        for replica in self._replicas.values():
            replica.followed_at = now
        await trio.sleep(self._limits.flush_retry_s)

    def _end(self, replica: Replica) -> None:
        del self._replicas[replica.record.turn_id]
        self._news.ignore(replica.record.turn_id)

    async def _have_looked_after(self, replica: Replica) -> None:
        try:
            await self._look_after(replica.record)
        except StoreUnavailableError:
            pass  # The next look finds that out, too.
        replica.looked_after = False
        if not replica.tail.ended:
            self._news.hear(replica.record.turn_id)
