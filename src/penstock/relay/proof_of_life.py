"""Whether an upstream lives: tells the user so while it says nothing, and gives it up when it is silent for too long.

While no token comes, the turn is written `data-thinking` with `{"elapsedSeconds"}`, transient: the seconds since the
last chunk, or since the turn was begun. It comes every `thinking_s`, and sooner where the upstream's heartbeats come
sooner. One task for a turn looks at two times that the reader notes, some times a minute: a token costs no timer and no
switch of tasks.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from penstock.limits import RelayLimits
from penstock.turns.turn import Turn
from penstock.wire.chunks import AnyChunk, Data, MessageMetadata, StartStep

THINKING = "data-thinking"
_FRAME = frozenset((StartStep, MessageMetadata))


class ProofOfLife:
    """One turn's upstream, as far as it lives. Made by `open_proof_of_life`."""

    def __init__(self, turn: Turn, limits: RelayLimits) -> None:
        self._turn = turn
        self._limits = limits
        self._quiet_since = self._told_at = trio.current_time()
        self.spoken = False
        """Whether a chunk of the answer was written."""
        self._begun = False
        """Whether one of them was more than its frame."""
        self._muted = limits.thinking_s == math.inf
        self._waiting_since = math.inf
        self._patience_s = math.inf
        self._scope = trio.CancelScope()

    def listen(self, scope: trio.CancelScope, patience_s: float) -> None:
        """Note that the reader waits for the upstream from now on: after `patience_s` its scope is cancelled."""
        self._scope, self._patience_s = scope, patience_s
        self._waiting_since = trio.current_time()

    def heard(self) -> None:
        """Note that it does not wait any more."""
        self._waiting_since = math.inf

    def chunks_written(self, chunks: Sequence[AnyChunk]) -> None:
        """Note that the answer went on. What only frames it is not what the user waits for."""
        self.spoken = True
        if self._begun or not _FRAME.issuperset(map(type, chunks)):
            self._begun = True
            self._quiet_since = self._told_at = trio.current_time()

    def heartbeat(self) -> None:
        """Note that the upstream sent something that says nothing, and pass that on."""
        now = trio.current_time()
        if not self._muted and now >= self._told_at + self._gap_s(self._limits.heartbeat_s):
            self._tell(now)

    def mute(self) -> None:
        """Tell nothing any more: the answer is whole."""
        self._muted = True

    def _gap_s(self, gap_s: float) -> float:
        return max(
            min(gap_s, self._limits.thinking_s),
            self._limits.thinking_share * (self._told_at - self._quiet_since),
        )

    def _tell(self, now: float) -> None:
        self._told_at = now
        elapsed_s = round(now - self._quiet_since, 1)
        try:
            self._turn.write_nowait(Data(type=THINKING, data={"elapsedSeconds": elapsed_s}, transient=True))
        except trio.WouldBlock:
            pass  # the store is far behind: there is enough to read

    async def watch(self) -> None:
        """Tell and give up, until cancelled."""
        # The reader may begin to wait, or get less patience, while this sleeps.
        nap_s = min(self._limits.first_byte_s, self._limits.silence_s)
        while True:
            now = trio.current_time()
            due = math.inf
            if not self._muted:
                due = self._told_at + self._gap_s(self._limits.thinking_s)
                if now >= due:
                    self._tell(now)
                    due = now + self._gap_s(self._limits.thinking_s)
            if now >= self._waiting_since + self._patience_s:
                # In a process that was held up, what came meanwhile is read first.
                await trio.lowlevel.checkpoint()
                if now >= self._waiting_since + self._patience_s:
                    self._scope.cancel("the upstream is silent")
                    self._waiting_since = math.inf
            await trio.sleep_until(min(due, self._waiting_since + self._patience_s, now + nap_s))


@asynccontextmanager
async def open_proof_of_life(turn: Turn, limits: RelayLimits) -> AsyncIterator[ProofOfLife]:
    """Watch a turn's upstream for as long as the block runs."""
    life = ProofOfLife(turn, limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(life.watch)
        yield life
        nursery.cancel_scope.cancel()
