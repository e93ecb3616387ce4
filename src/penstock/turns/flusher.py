"""Carries what the live tails hold to the store: one task for all turns of a hub.

One `append` is under way at a time, with everything that came meanwhile, and the next one is `flush_s` later: followers
don't wait for the store, so a commit may as well carry a few tokens of every turn. A producer that is `store_lag_*` ahead
of the store, or asks for a flush, is the only one to wait, and hurries it. Where the store is what other nodes follow, the
time is shorter, and a turn with many entries doesn't wait for its end.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

import trio

from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal.live import LiveTail
from penstock.journal.store import Batch, Store, TurnState
from penstock.limits import HubLimits
from penstock.metrics import Metrics
from penstock.turns.outage import Outage
from penstock.wire.messages import UIMessage

logger = logging.getLogger("penstock.journal")


class Flusher:
    """The way from tails to the store. `run` is its task; `mark` is called for what a flush then takes."""

    def __init__(self, store: Store, limits: HubLimits, metrics: Metrics, outage: Outage) -> None:
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._flush_s = limits.shared_flush_s if store.shared else limits.flush_s
        self.hurry_entries = limits.shared_flush_entries if store.shared else sys.maxsize
        """So many entries of a tail that the store lacks are to be marked again."""
        self._dirty: list[LiveTail] = []
        self._wake = trio.lowlevel.ParkingLot()
        self._pause = trio.lowlevel.ParkingLot()
        self._hurried = False
        self.retry_s = limits.flush_retry_s
        """From a try to store something to the next."""
        self.outage = outage
        self.refused: Callable[[], object] = lambda: None
        """Called when a turn was another's, or over."""
        self.gave_up: Callable[[LiveTail], object] = lambda tail: None
        """Called with a tail whose entries could not be stored for `journal_grace_s`; and again, while that is so."""

    def hurry(self) -> None:
        """Have the next flush begin at once: somebody waits for it."""
        self._hurried = True
        self._pause.unpark_all()

    def mark(self, tail: LiveTail) -> None:
        """Note that a tail has entries which the store lacks. Repeated before they are on their way, it hurries them."""
        if tail.flush_marked:
            self.hurry()
            return
        tail.flush_marked = True
        self._dirty.append(tail)
        if self._wake:
            self._wake.unpark_all()

    async def seal(
        self,
        tail: LiveTail,
        last: Sequence[bytes],
        state: TurnState,
        message: UIMessage,
        *,
        at: float,
    ) -> bool:
        """Store a tail's end, with everything that the store lacks. See `Store.seal`."""
        for stored in (tail.stored, 0):
            rest = [*(entry.json for entry in tail.entries[stored:]), *last]
            try:
                return await self._store.seal(Batch(tail.record, stored, rest), state, message, at=at)
            except LocalProtocolError:
                if not stored:
                    raise
        raise AssertionError

    async def _append(self, tails: Sequence[LiveTail]) -> None:
        """Store what the store lacks, and note that it has it."""
        ends = [(len(tail.entries), tail.bytes) for tail in tails]
        batches = [
            Batch(tail.record, tail.stored, [entry.json for entry in tail.entries[tail.stored :]])
            for tail in tails
        ]
        try:
            await self._store.append(batches)
        except TurnSealedError:
            if len(tails) > 1:
                for tail in tails:
                    await self._append([tail])
                return
            # It has ended, or has another owner. Its runner is to find out, before it takes for stored what isn't.
            self.refused()
            return
        for tail, end in zip(tails, ends, strict=True):
            tail.mark_stored(*end)

    async def run(self) -> None:
        """Flush until cancelled. Entries of an append that was cancelled halfway may or may not be stored."""
        while True:
            if not self._dirty:
                await self._wake.park()
            self._hurried = False
            tails = [tail for tail in self._dirty if not tail.ended]
            self._dirty.clear()
            for tail in tails:
                tail.flush_marked = False
            try:
                await self._append(tails)
            except LocalProtocolError:
                # A hole: the store was set back to an earlier time. Here is everything, and what it has is left as it is.
                logger.warning("the journal's store has lost what it had acknowledged; it is given it again")
                self._metrics.count("journal_set_back")
                for tail in tails:
                    tail.forget_stored()
                    if not tail.flush_marked:
                        self.mark(tail)
                continue
            except StoreUnavailableError as exc:
                self._metrics.count("journal_flush_failed")
                self.outage.failed(exc)
                for tail in tails:
                    if self.outage.spent:
                        self.gave_up(tail)
                    if not tail.flush_marked:
                        self.mark(tail)
                await trio.sleep(self._limits.flush_retry_s)
                continue
            self.outage.worked()
            with trio.move_on_after(self._flush_s):
                if not self._hurried:
                    await self._pause.park()
            # A store that answers at once must not keep this task from letting the others run.
            await trio.lowlevel.checkpoint()
