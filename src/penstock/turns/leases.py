"""Leases: how a turn is known to be alive, and who ends one that isn't.

The record of a running turn says until when its owner may be trusted to come back. The owner renews it three times in
that time. A process that dies renews nothing; after `lease_s` at most, whoever looks (a client that resumes, somebody
who asks for the state, this sweeper in any process) adopts the turn and ends it as lost, so that no turn runs for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.store import Store, TurnRecord, TurnState
from penstock.limits import HubLimits
from penstock.turns.outage import Outage
from penstock.turns.runner import Runner

logger = logging.getLogger("penstock.journal")

SWEPT_AT_ONCE = 100
"""Lapsed turns that one pass takes on."""


class Leases:
    """The leases of this process, and what it makes of the others'."""

    def __init__(
        self, store: Store, running: Mapping[str, Runner], outage: Outage, limits: HubLimits
    ) -> None:
        self._store = store
        self._running = running
        self._outage = outage
        self._limits = limits
        self._sleeping = trio.lowlevel.ParkingLot()
        self._hurried = False

    def until(self) -> float:
        """Return when a lease ends that is given now."""
        return time.time() + self._limits.lease_s

    def lapsed(self, record: TurnRecord) -> bool:
        """Say whether a turn's owner may be given up."""
        return (
            record.state is TurnState.running
            and record.lease_until is not None
            and record.lease_until < time.time()
            and self._outage.leases_count
        )

    def hasten(self) -> None:
        """Find out at once which turns are this process's own no more: the store has refused to take something."""
        self._hurried = True
        self._sleeping.unpark_all()

    async def keep(self, look_after: Callable[[TurnRecord], Awaitable[None]]) -> None:
        """Renew this process's leases and sweep the others' lapsed ones, until cancelled."""
        while True:
            pause_s = self._limits.lease_s / 3
            began = trio.current_time()
            try:
                self._hurried = False
                runners = list(self._running.values())
                if runners:
                    kept = await self._store.renew([runner.record for runner in runners], self.until())
                    for runner in runners:
                        if runner.record.turn_id not in kept and not runner.sealed:
                            runner.fence()
                lapsed = await self._store.lapsed(time.time(), SWEPT_AT_ONCE)
                self._outage.worked(trio.current_time() - began)
                for record in lapsed:
                    await look_after(record)
            except StoreUnavailableError as exc:
                self._outage.failed(exc)
                pause_s = min(pause_s, self._limits.flush_retry_s)
            with trio.move_on_after(pause_s):
                if not self._hurried:
                    await self._sleeping.park()
            # A store that refuses again and again must not make this task the only one.
            await trio.lowlevel.checkpoint()
