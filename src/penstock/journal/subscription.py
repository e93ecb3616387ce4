"""A cursor over a live tail: batches of entries, from any offset to the end of the turn.

A subscription holds no entries of its own, so a viewer that is behind costs nothing but its place; the entries are the
tail's, shared by all. Nothing here can make the producer wait.

Who is behind reads batches; who has everything may `ride`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from penstock.journal.store import TurnState

if TYPE_CHECKING:
    from penstock.journal.entry import Entry
    from penstock.journal.fan_out import Render
    from penstock.journal.live import LiveTail


class Subscription:
    """One follower's place in a turn. A context manager: leaving it is what makes a follower gone."""

    __slots__ = ("_open", "_tail", "_task", "next_offset", "offer", "render", "taken_bytes")

    render: Render
    """How it is sent entries while it rides."""
    offer: Callable[[bytes], bool]
    """Takes them at once, or refuses."""

    def __init__(self, tail: LiveTail, after: int) -> None:
        self._tail = tail
        self._task: trio.lowlevel.Task | None = None
        self.next_offset = after + 1
        """The first entry that was not taken."""
        # Who comes back has nearly everything: what it lacks is sooner counted.
        self.taken_bytes = tail.bytes - sum(len(entry.json) for entry in tail.entries[self.next_offset :])
        """Bytes of JSON of the others."""
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
        return f"<Subscription next={self.next_offset} of {self._tail!r}>"

    @property
    def lag(self) -> int:
        """Entries of the tail that were not taken yet."""
        return len(self._tail.entries) - self.next_offset

    @property
    def lag_bytes(self) -> int:
        """The same in bytes of JSON."""
        return self._tail.bytes - self.taken_bytes

    @property
    def over(self) -> bool:
        """Whether everything was taken of a turn that has ended or is suspended."""
        return not self.lag and self._tail.state is not TurnState.running

    def next_batch_nowait(self, max_entries: int) -> list[Entry]:
        """Return what is there, possibly nothing, and move past it."""
        tail = self._tail
        batch = tail.entries[self.next_offset : self.next_offset + max_entries]
        self.next_offset += len(batch)
        if self.lag:
            self.taken_bytes += sum(len(entry.json) for entry in batch)
        else:
            self.taken_bytes = tail.bytes
        return batch

    async def next_batch(self, max_entries: int) -> list[Entry]:
        """Return the entries after the cursor, at least one and at most `max_entries`, and move past them.

        A checkpoint, but for the scheduler only when there is more than that. Cancelled, it has moved nothing.

        Raises:
            trio.EndOfChannel: after the last entry of a turn that has ended or is suspended.
            StoreUnavailableError: if it is not known how the turn goes on.
        """
        if not self._open:
            raise trio.ClosedResourceError("the subscription is closed")
        tail = self._tail
        if self.lag > max_entries:
            await trio.lowlevel.checkpoint()
        elif self.lag:
            await trio.lowlevel.checkpoint_if_cancelled()
        while self.next_offset >= len(tail.entries):
            if tail.state is not TurnState.running:
                raise trio.EndOfChannel
            await tail.wait_news()
        return self.next_batch_nowait(max_entries)

    async def ride(self, render: Render, offer: Callable[[bytes], bool]) -> None:
        """Sleep while the tail's fan-out hands on what comes; return when that has an end.

        It ends when `offer` refuses, and with the turn; what was not taken is the next batch. A follower that is behind,
        or of a tail without a fan-out, can't ride: for it this returns at once, without a checkpoint.

        Args:
            render: turns entries into bytes; it may be called with several at once.
            offer: takes the bytes at once and whole, or refuses. It must not raise.

        Cancelled, it has moved past what was taken, and no further.
        """
        tail = self._tail
        if self.lag or tail.ended or tail.fan_out is None:
            return
        self.render, self.offer = render, offer
        self._task = trio.lowlevel.current_task()
        tail.riders[self] = None

        def abort(_: object) -> trio.lowlevel.Abort:
            del tail.riders[self]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """End the ride. For the fan-out and the tail."""
        del self._tail.riders[self]
        assert self._task is not None
        trio.lowlevel.reschedule(self._task)
