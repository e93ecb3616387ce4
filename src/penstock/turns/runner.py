"""Owns one turn: runs its producer, gives its chunks their order, and is the only one to write how it ends.

How a turn ends is read from how its producer ended, never from a flag:

| the producer | outcome | last chunks, after those that close what is open |
|---|---|---|
| returned | finished | `finish` |
| returned, and a tool call waits for the client's approval or output | suspended, which is no end | `finish` |
| returned, and a relayed stream said `abort` | stopped | `abort`, `finish` |
| raised | failed | `error`, with a text that hides the exception's |
| was cancelled by a stop, or for want of followers | stopped | `abort`, `finish` |
| was cancelled from outside: the hub is closing | lost | `error` |
| did not end within the grace of a stop | stopped, by force | `abort`, `finish`; its later writes are refused |

The end is sealed in the store first and shown to followers then. The seal is a compare-and-set: should someone else
have ended the turn, their end is taken over.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
import trio

from penstock.errors import (
    AnswerError,
    StoreUnavailableError,
    TurnSealedError,
)
from penstock.journal.fan_out import FanOut
from penstock.journal.live import LiveTail
from penstock.journal.store import Store, TurnRecord, TurnState
from penstock.limits import TurnLimits
from penstock.metrics import Metrics
from penstock.turns.approvals import Approvals
from penstock.turns.error_text import ErrorText, public_text
from penstock.turns.flusher import Flusher
from penstock.turns.replica import take_end
from penstock.turns.turn import Producer, Turn
from penstock.wire.assembly import Assembly
from penstock.wire.chunks import Abort, AnyChunk, Data, Error, Finish, Start
from penstock.wire.codec import decode_stored, encode, encode_deltas
from penstock.wire.grammar import Grammar
from penstock.wire.messages import UIMessage

logger = logging.getLogger("penstock.turns")

NOT_STORED = "The answer could not be stored."
LOST = "The server stopped before the answer was complete."
INTERRUPTED = "The tool call was interrupted."


class _End(NamedTuple):
    state: TurnState
    text: str = ""
    """The error's text, the reason of a stop, or the finish reason."""


class RunnerOptions(NamedTuple):
    """What all runners of a hub share."""

    store: Store
    flusher: Flusher
    fan_out: FanOut
    limits: TurnLimits
    metrics: Metrics
    error_text: ErrorText | None


class NotRecoveredError(Exception):
    """A `recover` hook found no answer: the turn is lost."""


class Runner:
    """One turn's owner. `history` are the entries that an earlier request or owner of the turn has stored."""

    def __init__(
        self,
        record: TurnRecord,
        options: RunnerOptions,
        *,
        orphan_grace_s: float,
        history: Sequence[bytes] = (),
    ) -> None:
        self.record = record
        self.tail = LiveTail(record, options.fan_out)
        self._store, self._flusher, _, self._limits, self._metrics, self._error_text = options
        self._orphan_grace_s = orphan_grace_s
        self._retry_s = options.flusher.retry_s
        self.approvals = Approvals()
        self._grammar = Grammar()
        self._assembly = Assembly(record.turn_id)
        self._producer_scope = trio.CancelScope()
        self._stop_reason: str | None = None
        self._aborted: str | None = None
        self._given_up = False
        self._entries_at_pause = self._bytes_at_pause = 0
        """What the tail had when the producer last let others run."""
        self._seal_lock = trio.Lock()
        self._produced: _End | None = None
        """How the producer ended; None while it runs, and for good if it was cancelled from outside."""
        self._end: _End | None = None
        """The decision: set once, and from then on nothing else can be written."""
        self._last: list[tuple[AnyChunk, bytes]] = []
        if orphan_grace_s != math.inf:
            self.tail.followers_changed = self._restart_orphan_clock
        for json in history:
            chunk = decode_stored(json)
            if type(chunk) is Start and self._grammar.ended:
                self._grammar.resume()  # where an earlier request's part ended
            self._grammar.apply(chunk)
            self._assembly.apply(chunk)
            self.tail.append(chunk, json)
        self.tail.mark_stored(len(history), self.tail.bytes)

    def begin(self, decisions: Callable[[Grammar], Iterable[AnyChunk]] | None = None) -> None:
        """Write the first chunk of a request's part of the turn, and what the user decided since the last."""
        if self._grammar.ended:
            self._grammar.resume()
        self.tail.first_entry = len(self.tail.entries)
        self.write_nowait(Start(message_id=self.record.turn_id))
        if decisions is not None:
            for chunk in decisions(self._grammar):
                self.write_nowait(chunk)

    @property
    def sealed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._end is not None

    @property
    def open(self) -> bool:
        """Whether the message has begun, and not finished."""
        return self._grammar.started and not self._grammar.ended

    @property
    def in_step(self) -> bool:
        """Whether a step is open."""
        return self._grammar.in_step

    def message(self) -> UIMessage:
        """Assemble the message so far."""
        return msgspec.convert(self._assembly.message(), UIMessage)

    def open_text_ends(self) -> list[AnyChunk]:
        """Return the chunks that close the text and reasoning parts which are open now."""
        return self._grammar.text_ends()

    def aborted_by_producer(self, reason: str) -> None:
        """Note that a relayed stream ended with `abort`."""
        self._aborted = reason

    def write_nowait(self, chunk: AnyChunk) -> bool:
        """Add a chunk to the turn, and show it to its followers.

        Returns:
            Whether the producer has written so much in a row that it is to `pause` now.

        Raises:
            TurnSealedError: if the turn has ended.
            LocalProtocolError: if the chunk is not legal here, or has no JSON form; nothing changed.
            AnswerError: if the turn is longer than `turn_bytes`.
        """
        if self._end is not None:
            raise TurnSealedError("the turn has ended")
        json = encode(chunk)
        tail = self.tail
        if tail.bytes + len(json) > self._limits.turn_bytes:
            raise AnswerError("The answer is too long.")
        self._grammar.apply(chunk)
        self._assembly.apply(chunk)
        tail.append(chunk, json)
        return self._flushed_or_due()

    def write_all_nowait(self, chunks: Sequence[AnyChunk], *, uniform: bool = False) -> bool:
        """Like `write_nowait` for each, and as that up to the first that is refused. Deltas are quicker so; see `encode_deltas`."""
        if not chunks:
            return False
        if self._end is not None:
            raise TurnSealedError("the turn has ended")
        tail = self.tail
        jsons = encode_deltas(chunks, uniform=uniform)
        if jsons is None or tail.bytes + sum(map(len, jsons)) > self._limits.turn_bytes:
            due = False
            for chunk in chunks:
                due = self.write_nowait(chunk) or due
            return due
        self._grammar.apply(chunks[0])
        self._assembly.apply_deltas(chunks)
        tail.extend(chunks, jsons)
        return self._flushed_or_due()

    def _flushed_or_due(self) -> bool:
        """Have what is new stored, and say whether the producer is to pause."""
        tail = self.tail
        if not tail.flush_marked or len(tail.entries) - tail.stored >= self._flusher.hurry_entries:
            self._flusher.mark(tail)
        return (
            len(tail.entries) - self._entries_at_pause >= self._limits.yield_entries
            or tail.bytes - self._bytes_at_pause >= self._limits.yield_bytes
        )

    async def pause(self) -> None:
        """Let others run, after so many writes that it is due, and wait for a store that is far behind."""
        tail = self.tail
        self._entries_at_pause, self._bytes_at_pause = len(tail.entries), tail.bytes
        while self.behind and not tail.ended:
            self._flusher.hurry()
            await tail.wait_stored()
        await trio.lowlevel.checkpoint()

    @property
    def behind(self) -> bool:
        """Whether the store is so far behind that a producer is to wait."""
        tail, limits = self.tail, self._limits
        return not self._flusher.outage.away and (
            len(tail.entries) - tail.stored > limits.store_lag_entries
            or tail.bytes - tail.stored_bytes > limits.store_lag_bytes
        )

    async def write(self, chunk: AnyChunk) -> None:
        """Write for a producer. Every so often it is a checkpoint, and waits for a store that is far behind.

        Cancelled, the chunk is written all the same.
        """
        if self.write_nowait(chunk):
            await self.pause()

    async def flush(self) -> None:
        """Wait until the store has all entries that the turn has now.

        Raises:
            StoreUnavailableError: if the tail ended without that being known.
        """
        entries = len(self.tail.entries)
        while self.tail.stored < entries and not self.tail.ended:
            self._flusher.hurry()
            await self.tail.wait_stored()
        if self.tail.stored < entries and not self.tail.state.ended:
            raise StoreUnavailableError("it is not known what was stored")
        await trio.lowlevel.checkpoint()

    async def run(self, producer: Producer | None, turn: Turn) -> None:
        """Run the producer to its end and seal the turn, as lost where there is none. For the hub's nursery only."""
        self._metrics.gauge("turns_running", 1)
        try:
            if producer is not None:
                await self._produce(producer, turn)
            await self._seal_patiently()
        finally:
            try:
                if not self.tail.ended:
                    with trio.move_on_after(self._limits.seal_s, shield=True):
                        await self._seal(self._produced or _End(TurnState.lost, LOST))
            finally:
                if not self.tail.ended:
                    self.tail.break_off("the end of the turn could not be stored")
                self._metrics.gauge("turns_running", -1)
                self._metrics.count("turns_ended", outcome=self.tail.state.value)

    async def stop(self, reason: str) -> TurnState:
        """Stop the turn, and return its outcome once it is sealed; by force after `stop_grace_s`.

        Cancelled while it waits, the turn still ends: the producer's cancellation is under way.

        Raises:
            StoreUnavailableError: if the end could not be stored.
        """
        if self._stop_reason is None:
            self._stop_reason = reason
        self.approvals.supersede()
        self._producer_scope.cancel(f"stopped: {reason}")
        with trio.move_on_after(self._limits.stop_grace_s):
            return await self.tail.wait_ended()
        with trio.move_on_after(self._limits.seal_s, shield=True):
            self._metrics.count("turns_forced")
            await self._seal(_End(TurnState.stopped, self._stop_reason))
        if not self.tail.ended:
            raise StoreUnavailableError("the end of the turn could not be stored")
        return await self.tail.wait_ended()

    def reopen(self) -> None:
        """Close what the old owner left open, so that a `recover` hook can write on."""
        if not self.open:
            self.begin()
        for chunk in self._grammar.closing_chunks(INTERRUPTED):
            self.write_nowait(chunk)

    async def end_as_stopped(self, reason: str) -> None:
        """Seal a turn that has no producer.

        Raises:
            StoreUnavailableError: if that could not be stored.
        """
        await self._seal(_End(TurnState.stopped, reason))
        if not self.tail.ended:
            raise StoreUnavailableError("the end of the turn could not be stored")

    def fence(self) -> None:
        """Give the turn up: another process has adopted it."""
        self._producer_scope.cancel("another process took the turn over")

    def give_up(self) -> None:
        """End the turn as failed: it could not be stored for too long. Only the first call counts."""
        if not self._given_up and self._produced is None:
            self._given_up = True
            self._metrics.count("turns_given_up")
            self._producer_scope.cancel("the journal is away")

    def degraded(self, away: bool) -> None:
        """Tell followers that the turn goes on from memory, or that it is stored again."""
        if self._end is None and self.open:
            with suppress(AnswerError):  # It is too long by this very chunk, and the next says so.
                self.write_nowait(
                    Data(type="data-degraded", data={"journal": "away" if away else "back"}, transient=True)
                )

    async def _produce(self, producer: Producer, turn: Turn) -> None:
        """Run the producer and note how it ended. A cancellation from outside passes through."""
        try:
            with self._producer_scope:
                await producer(turn)
                if self._aborted is not None:
                    self._produced = _End(TurnState.stopped, self._aborted)
                elif self._grammar.awaits_client:
                    self._produced = _End(TurnState.suspended, turn.finish_reason or "tool-calls")
                else:
                    self._produced = _End(TurnState.finished, turn.finish_reason or "stop")
            if self._produced is None and self._given_up:
                self._produced = _End(TurnState.failed, NOT_STORED)
            elif self._produced is None:
                self._produced = _End(TurnState.stopped, self._stop_reason or "nobody is following")
        except* NotRecoveredError:
            self._produced = _End(TurnState.lost, LOST)
        except* TurnSealedError:
            # It wrote on after a forced stop; the seal was written by then.
            self._produced = _End(TurnState.stopped, self._stop_reason or "")
        except* Exception as group:
            logger.error(
                "turn %s of chat %s failed", self.record.turn_id, self.record.chat_id, exc_info=group
            )
            self._produced = _End(TurnState.failed, public_text(group, self._error_text))

    async def _seal_patiently(self) -> None:
        """Seal the turn, when the store is there again if it isn't now. Followers wait; the producer is done."""
        while not self.tail.ended:
            await self._seal(self._produced or _End(TurnState.lost, LOST))
            if not self.tail.ended:
                await trio.sleep(self._retry_s)

    async def _seal(self, end: _End) -> None:
        """Store the end, then show it. The first decision holds; whoever comes later finds it done or repeats it."""
        try:
            self._seal_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._seal_lock.acquire()
        try:
            if self.tail.ended:
                return
            if self._end is None:
                self._last = [(chunk, encode(chunk)) for chunk in self._last_chunks(end)]
                self._end = end
            at, last = time.time(), [json for _, json in self._last]
            if await self._flusher.seal(self.tail, last, self._end.state, self.message(), at=at):
                self.tail.seal(self._end.state, self._last, at)
            else:
                await take_end(self._store, self.tail)
        except StoreUnavailableError as exc:
            level = logging.DEBUG if self._flusher.outage.away else logging.ERROR
            logger.log(level, "the end of turn %s could not be stored: %s", self.record.turn_id, exc)
            self._flusher.outage.failed(exc)
        finally:
            self._seal_lock.release()

    def _last_chunks(self, end: _End) -> list[AnyChunk]:
        """Close what is open and say how it ended, through the grammar like all else."""
        good = end.state in (TurnState.finished, TurnState.suspended)
        if not self.open:
            self.begin()  # it ended in a seam, or before its first entry was stored
        chunks = self._grammar.closing_chunks(None if good else INTERRUPTED)
        if good:
            chunks.append(Finish(finish_reason=end.text))  # type: ignore[arg-type]
        elif end.state is TurnState.stopped:
            chunks += [Abort(reason=end.text), Finish(finish_reason="other")]
        else:
            chunks.append(Error(error_text=end.text))
        for chunk in chunks:
            self._grammar.apply(chunk)
            self._assembly.apply(chunk)
        return chunks

    def _restart_orphan_clock(self) -> None:
        grace_s = self._orphan_grace_s if self.tail.followers == 0 else math.inf
        self._producer_scope.deadline = trio.current_time() + grace_s
