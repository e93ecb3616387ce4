"""What the nodes of one journal tell each other: that a turn began, that one is to be stopped, what a user decided.

Notes are words, not facts: a note may be lost, and none is kept for those who come later. Whoever needs the fact asks the
store; whoever needs to know that he was heard has to be answered. What a note means is not known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import trio

NOTES = 10_000
"""Notes that wait to be read, at some 200 bytes each. Who is so far behind is told that it has missed some."""


class Said(NamedTuple):
    """What was heard."""

    notes: Sequence[bytes]
    missed: bool
    """Whether there may have been others, before these."""


class Notes(Protocol):
    """A listener, from its block's beginning on."""

    async def wait(self) -> Said:
        """Sleep until there is something, and return all of it. Cancelled, nothing is lost.

        Raises:
            StoreUnavailableError: if the store can't be asked now.
        """


class HeardNotes:
    """The notes of a store that calls when it hears one."""

    def __init__(self) -> None:
        self._notes: deque[bytes] = deque()
        self._missed = False
        self._parked = trio.lowlevel.ParkingLot()

    def hear(self, note: bytes) -> None:
        """Take a note."""
        if len(self._notes) >= NOTES:
            self.miss()
            return
        self._notes.append(note)
        self._parked.unpark_all()

    def miss(self) -> None:
        """Take it that some were missed."""
        self._missed = True
        self._parked.unpark_all()

    async def wait(self) -> Said:
        """See `Notes.wait`."""
        await trio.lowlevel.checkpoint()
        while not self._notes and not self._missed:
            await self._parked.park()
        said = Said(tuple(self._notes), self._missed)
        self._notes.clear()
        self._missed = False
        return said
