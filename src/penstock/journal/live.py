"""The live tail: one turn's entries in this process, the only thing that its followers read.

The owner's tail is written by the turn's runner, chunk by chunk; the tail of a turn that ended earlier is filled from
the store and sealed at once. Followers can't tell the difference: replay and live are one read path.

`append` and `seal` are plain functions. A follower that keeps up is served by `fan_out.py`; the others are woken through
the parking lot, and read on their own turn of the scheduler all that was appended by then: that is where batches come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from penstock.errors import StoreUnavailableError, TurnSealedError
from penstock.journal.compaction import Compaction
from penstock.journal.entry import Entry
from penstock.journal.fan_out import FanOut
from penstock.journal.position import Position
from penstock.journal.store import TurnRecord, TurnState
from penstock.journal.subscription import Subscription
from penstock.wire.chunks import AnyChunk
from penstock.wire.versions import spoken_from


class LiveTail:
    """A turn's entries here. Offsets are list indexes.

    Args:
        record: the turn.
        fan_out: who serves the followers that keep up; without one, each serves itself.
    """

    def __init__(self, record: TurnRecord, fan_out: FanOut | None = None) -> None:
        self.record = record
        self.fan_out = fan_out
        self.riders: dict[Subscription, None] = {}
        """The followers that have everything and are served by the fan-out."""
        self.marked = False
        """Whether the fan-out knows that there is something new."""
        self.flush_marked = False
        """Whether the flusher knows that there is something to store."""
        self.entries: list[Entry] = []
        self.bytes = 0
        self.stored = 0
        """How many of the entries the store has."""
        self.stored_bytes = 0
        self.state = TurnState.running
        self.ended = False
        """Whether no entry will be added any more to this tail; a suspended turn goes on in another."""
        self.ended_at = record.ended_at
        """When the turn ended, in seconds since 1970."""
        self.first_entry = 0
        """The offset at which the newest request's part of the turn begins."""
        self.followers = 0
        self.followers_changed: Callable[[], None] | None = None
        """Called when a follower comes or goes; the runner's orphan clock hangs on it."""
        self._broken: str | None = None
        self._id_prefix = f"{record.turn_id}.{record.epoch}-".encode("ascii")
        self._compaction = Compaction()
        self._news = trio.lowlevel.ParkingLot()
        self._stored_news = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<LiveTail {self.record.turn_id} {self.state.value} entries={len(self.entries)} followers={self.followers}>"

    def change_owner(self, record: TurnRecord) -> None:
        """Note that the turn has been adopted: what is appended from now on is in the epoch of its new record."""
        self.record = record
        self._id_prefix = f"{record.turn_id}.{record.epoch}-".encode("ascii")

    @property
    def position(self) -> Position | None:
        """The last entry's position, None while there is none."""
        if not self.entries:
            return None
        return Position(self.record.turn_id, self.record.epoch, len(self.entries) - 1)

    def append(self, chunk: AnyChunk, json: bytes) -> None:
        """Add a chunk and wake the followers.

        Raises:
            TurnSealedError: if the turn has ended.
        """
        if self.ended:
            raise TurnSealedError("the turn has ended")
        self.entries.append(Entry(len(self.entries), chunk, json, self._id_prefix, spoken_from(chunk)))
        self.bytes += len(json)
        self._tell()

    def extend(self, chunks: Sequence[AnyChunk], jsons: Sequence[bytes]) -> None:
        """Add chunks that are deltas, as `append` does; they are spoken by all clients.

        Raises:
            TurnSealedError: if the turn has ended.
        """
        if self.ended:
            raise TurnSealedError("the turn has ended")
        prefix = self._id_prefix
        offsets = range(len(self.entries), len(self.entries) + len(jsons))
        self.entries += [
            Entry(offset, chunk, json, prefix)
            for offset, chunk, json in zip(offsets, chunks, jsons, strict=True)
        ]
        self.bytes += sum(map(len, jsons))
        self._tell()

    def _tell(self) -> None:
        if self.riders and not self.marked and self.fan_out is not None:
            self.marked = True
            self.fan_out.mark(self)
        if self._news:
            self._news.unpark_all()

    def seal(self, state: TurnState, last: Sequence[tuple[AnyChunk, bytes]], at: float | None = None) -> None:
        """Add the last entries and end the tail, in one step for all followers.

        Args:
            state: the outcome, or `suspended`.
            last: the last chunks with their JSON.
            at: when, in seconds since 1970.
        """
        for chunk, json in last:
            self.append(chunk, json)
        self.state = state
        self.ended_at = at
        self._end()

    def break_off(self, why: str) -> None:
        """End the tail without an outcome: the store can't say how the turn ended. Followers are cut."""
        self._broken = why
        self._end()

    def _end(self) -> None:
        self.ended = True
        for rider in list(self.riders):
            rider.wake()
        if self._news:
            self._news.unpark_all()
        if self._stored_news:
            self._stored_news.unpark_all()

    def compact(self) -> list[AnyChunk]:
        """Return a short form of all entries so far; see `compaction.py`."""
        self._compaction.feed(self.entries[self._compaction.fed :])
        return self._compaction.chunks()

    def subscribe(self, after: int = -1) -> Subscription:
        """Return a cursor on what follows offset `after`. Use it as a context manager."""
        return Subscription(self, after)

    async def wait_news(self) -> None:
        """Sleep until something is appended or the tail ends. May wake without news.

        Raises:
            StoreUnavailableError: if the tail was broken off.
        """
        if self._broken is not None:
            raise StoreUnavailableError(self._broken)
        await self._news.park()

    def mark_stored(self, entries: int, bytes: int) -> None:
        """Note that the store has the first `entries`, which are so many bytes, and wake who waits for that."""
        if entries > self.stored:
            self.stored, self.stored_bytes = entries, bytes
        if self._stored_news:
            self._stored_news.unpark_all()

    def forget_stored(self) -> None:
        """Note that the store has lost some of what it had acknowledged, and is to be given all of it again."""
        self.stored = self.stored_bytes = 0

    async def wait_stored(self) -> None:
        """Sleep until the store has more, or the tail ends. May wake without news."""
        if not self.ended:
            await self._stored_news.park()

    async def wait_ended(self) -> TurnState:
        """Sleep until the tail has ended, and return the turn's state.

        Raises:
            StoreUnavailableError: if the tail was broken off.
        """
        while self.state is TurnState.running:
            await self.wait_news()
        return self.state
