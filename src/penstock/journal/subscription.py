"""A cursor over a live tail: batches of entries, from any offset to the end of the turn.

A subscription holds no entries of its own, so a viewer that is behind costs nothing but its place; the entries are the
tail's, shared by all. Nothing here can make the producer wait.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from penstock.journal.store import TurnState

if TYPE_CHECKING:
    from penstock.journal.entry import Entry
    from penstock.journal.live import LiveTail


class Subscription:
    """One follower's place in a turn. A context manager: leaving it is what makes a follower gone.

    `async for batch in subscription` ends after the turn's last entry.
    """

    def __init__(self, tail: LiveTail, after: int) -> None:
        self._tail = tail
        self._next = after + 1
        self._taken_bytes = sum(len(entry.json) for entry in tail.entries[: self._next])
        self._open = False

    def __enter__(self) -> Self:
        self._open = True
        self._tail.followers += 1
        if self._tail.followers_changed is not None:
            self._tail.followers_changed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._tail.followers -= 1
        if self._tail.followers_changed is not None:
            self._tail.followers_changed()

    def __repr__(self) -> str:
        return f"<Subscription next={self._next} of {self._tail!r}>"

    @property
    def lag(self) -> int:
        """Entries of the tail that were not taken yet."""
        return len(self._tail.entries) - self._next

    @property
    def lag_bytes(self) -> int:
        """The same in bytes of JSON."""
        return self._tail.bytes - self._taken_bytes

    def next_batch_nowait(self, max_entries: int) -> list[Entry]:
        """Return what is there, possibly nothing, and move past it."""
        batch = self._tail.entries[self._next : self._next + max_entries]
        self._next += len(batch)
        self._taken_bytes += sum(len(entry.json) for entry in batch)
        return batch

    async def next_batch(self, max_entries: int) -> list[Entry]:
        """Return the entries after the cursor, at least one and at most `max_entries`, and move past them.

        Always a checkpoint. Cancelled, it has moved nothing.

        Raises:
            trio.EndOfChannel: after the last entry of a turn that has ended or is suspended.
            StoreUnavailableError: if it is not known how the turn goes on.
        """
        if not self._open:
            raise trio.ClosedResourceError("the subscription is closed")
        tail = self._tail
        if self._next < len(tail.entries):
            await trio.lowlevel.checkpoint()
        while self._next >= len(tail.entries):
            if tail.state is not TurnState.running:
                raise trio.EndOfChannel
            await tail.wait_news()
        return self.next_batch_nowait(max_entries)
