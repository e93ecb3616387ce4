"""The keepalive timer: one task for any number of connections, each with a deadline of its own.

A timer task for each connection costs 3 kB, and two task switches a keepalive. Who serves many connections runs one
`Keepalive` for all of them; a connection that is given none runs its own, in its own nursery. What is done at a
deadline is the connection's to say.
"""

from __future__ import annotations

import math
from typing import Protocol

import trio

GRAIN_S = 0.25
"""From one look to the next at least, so that 10,000 deadlines are four wake-ups a second. Nobody's proxy is so exact."""
_LOOKS_PER_CHECKPOINT = 128
"""Keepalives that are written without a scheduler pass: 2 ms, as in a fan-out."""


class Timed(Protocol):
    """What has deadlines."""

    def look(self, now: float) -> float:
        """Do what is due at `now`, and return when to look again; both by Trio's clock."""


class Keepalive:
    """The timer. `run` is its task."""

    def __init__(self) -> None:
        self._due: dict[Timed, float] = {}
        self._sleep = trio.CancelScope()
        self._until = math.inf
        """Its deadline; to ask the scope, or to move it, costs more."""

    def add(self, timed: Timed, at: float) -> None:
        """Look at `timed` at `at` for the first time."""
        self._due[timed] = at
        if at < self._until:
            self._until = self._sleep.deadline = at

    def discard(self, timed: Timed) -> None:
        """Look at it no more."""
        self._due.pop(timed, None)

    async def run(self) -> None:
        """Look until cancelled."""
        soonest = 0.0
        while True:
            self._until = max(min(self._due.values(), default=math.inf), soonest)
            with trio.CancelScope(deadline=self._until) as self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            soonest = now + GRAIN_S
            late = [timed for timed, at in self._due.items() if at <= now]
            for number, timed in enumerate(late, 1):
                if timed in self._due:  # It may have been discarded meanwhile, or discard itself.
                    again = timed.look(now)
                    if timed in self._due:
                        self._due[timed] = again
                if number % _LOOKS_PER_CHECKPOINT == 0:
                    # After one chunk for all, the keepalives of all are due at once.
                    await trio.lowlevel.checkpoint()
                    now = trio.current_time()
