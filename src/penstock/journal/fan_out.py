"""Delivers what was appended to the followers who keep up: one task for all turns, one pass for each.

    producer ─ append ─> tail ─ mark ─> FanOut.run: every pass of the scheduler in which something was appended
                                          each tail with news: join its new entries once,
                                          offer these bytes to every rider of the tail

A follower that has taken all there is *rides*: its own task sleeps, and what comes is handed to it here, as bytes that all
riders at the same place share. So a chunk costs each viewer one write and no task switch, and many chunks of one pass
are one write. A rider that refuses (its client takes no more for now) is woken, and goes on by itself from its cursor
until it has caught up again; see `subscription.py`. Nobody waits for a rider.

`coalesce_s` lets each pass wait for so long after the first of its chunks: fewer writes, and text that much later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import trio

from penstock.journal.entry import Entry

if TYPE_CHECKING:
    from penstock.journal.live import LiveTail
    from penstock.journal.subscription import Subscription

Render: TypeAlias = Callable[[Sequence[Entry]], bytes]
"""Turns entries into what a follower is sent; empty if none of them is for it. Followers that have the same one share
what it makes, so it is to depend on the entries alone."""

_RIDERS_PER_CHECKPOINT = 128
"""Riders that are served without a scheduler pass: 2 ms, in which nobody else gets a word in."""


class FanOut:
    """The way from tails to the followers who keep up. `run` is its task; `mark` is called with every chunk."""

    def __init__(self, coalesce_s: float = 0.0) -> None:
        self._coalesce_s = coalesce_s
        self._marked: list[LiveTail] = []
        self._wake = trio.lowlevel.ParkingLot()

    def mark(self, tail: LiveTail) -> None:
        """Have what the tail has new delivered. Not to be repeated before `LiveTail.marked` is False again."""
        self._marked.append(tail)
        if self._wake:
            self._wake.unpark_all()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            if not self._marked:
                await self._wake.park()
            else:
                # A producer that never waits must not make this task the only other one.
                await trio.lowlevel.checkpoint()
            if self._coalesce_s:
                await trio.sleep(self._coalesce_s)
            marked, self._marked = self._marked, []
            served = 0
            for tail in marked:
                tail.marked = False
                riders = list(tail.riders)
                for begin in range(0, len(riders), _RIDERS_PER_CHECKPOINT):
                    some = riders[begin : begin + _RIDERS_PER_CHECKPOINT]
                    _offer(tail, some)
                    served += len(some)
                    if served >= _RIDERS_PER_CHECKPOINT:
                        served = 0
                        await trio.lowlevel.checkpoint()


def _offer(tail: LiveTail, riders: list[Subscription]) -> None:
    """Offer some riders what they have not."""
    entries, present = tail.entries, tail.riders
    end, size = len(entries), tail.bytes
    made: dict[tuple[Render, int], bytes] = {}
    for rider in riders:
        if rider not in present:
            continue  # It was woken, or has left, since the pass began.
        place = rider.render, rider.next_offset
        data = made.get(place)
        if data is None:
            data = made[place] = rider.render(entries[rider.next_offset : end])
        if not data or rider.offer(data):
            rider.next_offset, rider.taken_bytes = end, size
        elif rider in present:  # A client found gone by this very write has ended the ride already.
            rider.wake()
