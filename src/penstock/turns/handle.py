"""A turn as seen from outside it: follow it, stop it, wait for its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.entry import Entry
from penstock.journal.live import LiveTail
from penstock.journal.position import Position
from penstock.journal.store import TurnRecord, TurnState
from penstock.journal.subscription import Subscription
from penstock.turns.approvals import Verdict
from penstock.wire.assembly import assemble
from penstock.wire.chunks import AnyChunk
from penstock.wire.messages import UIMessage
from penstock.wire.versions import SdkVersion

if TYPE_CHECKING:
    from penstock.turns.runner import Runner


class TurnHandle:
    """A turn: one that runs here, one that runs in another process, or one that is over."""

    def __init__(
        self,
        tail: LiveTail,
        *,
        runner: Runner | None = None,
        stop: Callable[[str], Awaitable[TurnState]] | None = None,
        loaded: trio.Event | None = None,
    ) -> None:
        self._tail = tail
        self._runner = runner
        self._stop = stop
        self._loaded = loaded
        """Of a replica: set once the tail has what the store has."""

    def __repr__(self) -> str:
        return f"<TurnHandle {self._tail!r}>"

    @property
    def id(self) -> str:
        """The assistant message's id."""
        return self._tail.record.turn_id

    @property
    def chat_id(self) -> str:
        """The chat's id."""
        return self._tail.record.chat_id

    @property
    def record(self) -> TurnRecord:
        """What the store knew of the turn when this handle was made."""
        return self._tail.record

    @property
    def state(self) -> TurnState:
        """Where the turn is."""
        return self._tail.state

    @property
    def ended_at(self) -> float | None:
        """When the turn ended, in seconds since 1970."""
        return self._tail.ended_at

    @property
    def position(self) -> Position | None:
        """The newest entry's position."""
        return self._tail.position

    @property
    def entries(self) -> int:
        """How many entries the turn has so far."""
        return len(self._tail.entries)

    @property
    def first_entry(self) -> int:
        """The offset at which the newest request's part of the turn begins; 0 but for a turn that was continued."""
        return self._tail.first_entry

    @property
    def bytes(self) -> int:
        """Size of the turn's entries in memory."""
        return self._tail.bytes

    @property
    def runs_elsewhere(self) -> bool:
        """Whether the turn runs in another process."""
        return self._runner is None and self.state is TurnState.running

    async def wait_loaded(self) -> None:
        """Sleep until the tail has what the store had when the turn was first looked at from here.

        Raises:
            StoreUnavailableError: if that is not to be had.
        """
        if self._loaded is not None and not self._loaded.is_set():
            await self._loaded.wait()
            if self._tail.ended and self._tail.state is TurnState.running:
                raise StoreUnavailableError("the turn can't be read now")

    def shows(self, record: TurnRecord) -> bool:
        """Say whether this handle is as good as a new one of the turn that has this record now."""
        tail = self._tail
        if tail.record.epoch != record.epoch or tail.state is not record.state:
            return False
        # A running turn's tail grows by itself, unless it was broken off; the others must have it all.
        return not tail.ended if record.state is TurnState.running else len(tail.entries) == record.entries

    def message(self) -> UIMessage:
        """Assemble the message so far."""
        if self._runner is not None:
            return self._runner.message()
        chunks = [entry.chunk for entry in self._tail.entries]
        return msgspec.convert(assemble(chunks, self.id), UIMessage)

    def count(self, first: int, version: SdkVersion) -> int:
        """Count the entries so far, from an offset on, that a client of this version is sent."""
        return sum(entry.spoken_from <= version for entry in self._tail.entries[first:])

    def compact(self) -> list[AnyChunk]:
        """Return a short form of all entries so far, one delta for each part."""
        return self._tail.compact()

    def follow(self, after: int = -1) -> Subscription:
        """Return a cursor on the turn's entries after an offset; `with` it, and you are a follower."""
        return self._tail.subscribe(after)

    async def entries_after(self, offset: int) -> Sequence[Entry]:
        """Sleep until there are entries after an offset, and return them; none at the end. Who asks is no follower.

        Raises:
            StoreUnavailableError: if it is not known how the turn goes on.
        """
        tail = self._tail
        await trio.lowlevel.checkpoint()
        while offset + 1 >= len(tail.entries):
            if tail.state is not TurnState.running:
                return ()
            await tail.wait_news()
        return tail.entries[offset + 1 :]

    async def stop(self, reason: str = "stopped") -> TurnState:
        """Stop the turn and wait until it is sealed, at most `stop_grace_s` and the time of a seal. Idempotent.

        Returns:
            The outcome: `stopped`, or whatever the turn had ended as before.

        Raises:
            StoreUnavailableError: if the end could not be stored.
        """
        if self._runner is not None and self.state is TurnState.running:
            return await self._runner.stop(reason)
        if self._stop is not None and not self.state.ended:
            return await self._stop(reason)
        return self.state

    def holder_came(self) -> None:
        """Note that a connection of a request which this turn answers has opened: it may hold approvals."""
        if self._runner is not None:
            self._runner.approvals.holder_came()

    def holder_gone(self) -> None:
        """Note that such a connection has closed."""
        if self._runner is not None:
            self._runner.approvals.holder_gone()

    def decide(self, approval_id: str, verdict: Verdict) -> Verdict | None:
        """Decide an approval that the turn's producer waits for, unless it has ended.

        Returns:
            How it ended: this verdict, or what was there first. None if there is no such approval here.
        """
        return None if self._runner is None else self._runner.approvals.decide(approval_id, verdict)

    async def wait_ended(self) -> TurnState:
        """Sleep until the turn has ended, or is suspended, and return which.

        Raises:
            StoreUnavailableError: if it is not known how the turn goes on.
        """
        if self._runner is not None:
            return await self._tail.wait_ended()
        # The tail of a turn that runs elsewhere is fed for as long as somebody follows it.
        with self.follow(self.entries - 1):
            return await self._tail.wait_ended()
