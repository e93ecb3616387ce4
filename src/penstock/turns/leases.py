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
from penstock.journal.store import Store, TurnRecord
from penstock.limits import HubLimits
from penstock.turns.runner import Runner

logger = logging.getLogger("penstock.journal")

SWEPT_AT_ONCE = 100
"""Lapsed turns that one pass takes on."""


async def keep_leases(
    store: Store,
    running: Mapping[str, Runner],
    look_after: Callable[[TurnRecord], Awaitable[None]],
    limits: HubLimits,
) -> None:
    """Renew this process's leases and sweep the others' lapsed ones, until cancelled."""
    while True:
        try:
            runners = list(running.values())
            if runners:
                kept = await store.renew([runner.record for runner in runners], time.time() + limits.lease_s)
                for runner in runners:
                    if runner.record.turn_id not in kept and not runner.sealed:
                        runner.fence()
            for record in await store.lapsed(time.time(), SWEPT_AT_ONCE):
                await look_after(record)
        except StoreUnavailableError as exc:
            logger.warning("leases could not be renewed: %s", exc)
        await trio.sleep(limits.lease_s / 3)
