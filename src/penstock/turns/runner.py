"""Owns one turn: runs its producer, gives its chunks their order, and is the only one to write how it ends.

How a turn ends is read from how its producer ended, never from a flag:

| the producer | outcome | last chunks, after those that close what is open |
|---|---|---|
| returned | finished | `finish` |
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
from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

import trio
from penstock.errors import (
    AnswerError,
    StoreUnavailableError,
    TurnSealedError,
    UpstreamError,
)
from penstock.journal.live import LiveTail
from penstock.journal.store import Batch, Store, TurnRecord, TurnState
from penstock.limits import TurnLimits
from penstock.metrics import Metrics
from penstock.turns.flusher import Flusher
from penstock.turns.turn import Producer, Turn
from penstock.wire.assembly import Assembly
from penstock.wire.chunks import Abort, AnyChunk, Error, Finish, Start
from penstock.wire.codec import decode_chunk, encode
from penstock.wire.grammar import Grammar
from penstock.wire.messages import UIMessage

logger = logging.getLogger("penstock.turns")

ErrorText = Callable[[Exception], str | None]
"""An app's own wording of a failure: the text for the user, or None for the usual one."""

FAILED = "The answer failed. Please try again."
LOST = "The server stopped before the answer was complete."
INTERRUPTED = "The tool call was interrupted."


class _End(NamedTuple):
    state: TurnState
    text: str = ""
    """The error's text, or the reason of a stop."""


class Runner:
    """One turn's owner."""

    def __init__(
        self,
        record: TurnRecord,
        store: Store,
        flusher: Flusher,
        *,
        limits: TurnLimits,
        metrics: Metrics,
        error_text: ErrorText | None,
        orphan_grace_s: float,
    ) -> None:
        self.record = record
        self.tail = LiveTail(record)
        self._store = store
        self._flusher = flusher
        self._limits = limits
        self._metrics = metrics
        self._error_text = error_text
        self._orphan_grace_s = orphan_grace_s
        self._grammar = Grammar()
        self._assembly = Assembly(record.turn_id)
        self._producer_scope = trio.CancelScope()
        self._stop_reason: str | None = None
        self._aborted: str | None = None
        self._writes = 0
        self._seal_lock = trio.Lock()
        self._produced: _End | None = None
        """How the producer ended; None while it runs, and for good if it was cancelled from outside."""
        self._end: _End | None = None
        """The decision: set once, and from then on nothing else can be written."""
        self._last: list[tuple[AnyChunk, bytes]] = []
        if orphan_grace_s != math.inf:
            self.tail.followers_changed = self._restart_orphan_clock
        self.write_nowait(Start(message_id=record.turn_id))

    @property
    def sealed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._end is not None

    def message(self) -> UIMessage:
        """Assemble the message so far."""
        return msgspec.convert(self._assembly.message(), UIMessage)

    def open_text_ends(self) -> list[AnyChunk]:
        """Return the chunks that close the text and reasoning parts which are open now."""
        return self._grammar.text_ends()

    def aborted_by_producer(self, reason: str) -> None:
        """Note that a relayed stream ended with `abort`."""
        self._aborted = reason

    def write_nowait(self, chunk: AnyChunk) -> None:
        """Add a chunk to the turn, and show it to its followers.

        Raises:
            TurnSealedError: if the turn has ended.
            LocalProtocolError: if the chunk is not legal here, or has no JSON form; nothing changed.
            AnswerError: if the turn is longer than `turn_bytes`.
        """
        if self._end is not None:
            raise TurnSealedError("the turn has ended")
        json = encode(chunk)
        if self.tail.bytes + len(json) > self._limits.turn_bytes:
            raise AnswerError("The answer is too long.")
        self._grammar.apply(chunk)
        self._assembly.apply(chunk)
        self.tail.append(chunk, json)
        self._flusher.mark(self.tail)

    async def wait_turn_to_write(self) -> None:
        """What every write of a producer awaits: sees a cancellation, lets others run, waits for a slow store."""
        tail = self.tail
        limits = self._limits
        while (
            len(tail.entries) - tail.stored > limits.store_lag_entries
            or tail.bytes - tail.stored_bytes > limits.store_lag_bytes
        ) and not tail.ended:
            await tail.wait_stored()
        self._writes += 1
        if self._writes % limits.yield_entries == 0:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()

    async def run(self, producer: Producer, turn: Turn) -> None:
        """Run the producer to its end and seal the turn. The hub's nursery is its only caller."""
        self._metrics.gauge("turns_running", 1)
        try:
            await self._produce(producer, turn)
        finally:
            try:
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
        self._producer_scope.cancel(f"stopped: {reason}")
        with trio.move_on_after(self._limits.stop_grace_s):
            return await self.tail.wait_ended()
        with trio.move_on_after(self._limits.seal_s, shield=True):
            self._metrics.count("turns_forced")
            await self._seal(_End(TurnState.stopped, self._stop_reason))
        return await self.tail.wait_ended()

    async def _produce(self, producer: Producer, turn: Turn) -> None:
        """Run the producer and note how it ended. A cancellation from outside passes through."""
        try:
            with self._producer_scope:
                await producer(turn)
                if self._aborted is None:
                    self._produced = _End(TurnState.finished, turn.finish_reason or "stop")
                else:
                    self._produced = _End(TurnState.stopped, self._aborted)
            if self._produced is None:
                self._produced = _End(TurnState.stopped, self._stop_reason or "nobody is following")
        except* TurnSealedError:
            # It wrote on after a forced stop; the seal was written by then.
            self._produced = _End(TurnState.stopped, self._stop_reason or "")
        except* Exception as group:
            logger.error(
                "turn %s of chat %s failed", self.record.turn_id, self.record.chat_id, exc_info=group
            )
            self._produced = _End(TurnState.failed, self._public_text(group))

    def _public_text(self, group: BaseExceptionGroup[Exception]) -> str:
        for leaf in _leaves(group):
            text = None
            if self._error_text is not None:
                try:
                    text = self._error_text(leaf)
                except Exception:
                    logger.exception("the app's error_text failed")
            if text is None and isinstance(leaf, AnswerError | UpstreamError):
                text = leaf.error_text
            if text is not None:
                return text
        return FAILED

    async def _seal(self, end: _End) -> None:
        """Store the end, then show it. The first decision holds; whoever comes later finds it done or repeats it."""
        async with self._seal_lock:
            if self.tail.ended:
                return
            if self._end is None:
                self._last = [(chunk, encode(chunk)) for chunk in self._last_chunks(end)]
                self._end = end
            offset = self.tail.stored
            rest = [entry.json for entry in self.tail.entries[offset:]] + [json for _, json in self._last]
            try:
                won = await self._store.seal(
                    Batch(self.record, offset, rest), self._end.state, self.message(), time.time()
                )
                if won:
                    self.tail.seal(self._end.state, self._last)
                else:
                    await self._take_over()
            except StoreUnavailableError as exc:
                logger.error("the end of turn %s could not be stored: %s", self.record.turn_id, exc)

    def _last_chunks(self, end: _End) -> list[AnyChunk]:
        """Close what is open and say how it ended, through the grammar like all else."""
        good = end.state is TurnState.finished
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

    async def _take_over(self) -> None:
        """Someone else ended this turn: show their end instead of ours."""
        record = await self._store.turn(self.record.chat_id, self.record.turn_id)
        if record is None or not record.state.ended:
            raise StoreUnavailableError("the turn's record is gone")
        offset = len(self.tail.entries)
        rest = await self._store.read(
            self.record.chat_id, self.record.turn_id, offset, max(record.entries - offset, 0)
        )
        self.tail.seal(record.state, [(decode_chunk(json), json) for json in rest])

    def _restart_orphan_clock(self) -> None:
        grace_s = self._orphan_grace_s if self.tail.followers == 0 else math.inf
        self._producer_scope.deadline = trio.current_time() + grace_s


def _leaves(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for child in group.exceptions:
        if isinstance(child, BaseExceptionGroup):
            yield from _leaves(child)
        else:
            yield child
