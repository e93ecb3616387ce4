"""How a turn ends that isn't this process's own: by its owner, who is asked, or by being adopted."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import trio

from penstock.errors import TurnNotFoundError
from penstock.journal.store import Store, TurnRecord, TurnState
from penstock.limits import Limits
from penstock.turns.leases import Leases
from penstock.turns.peers import Peers
from penstock.turns.replica import read_all
from penstock.turns.runner import NotRecoveredError, Runner, RunnerOptions
from penstock.turns.turn import Producer, Turn

Recover: TypeAlias = Callable[[Turn], Awaitable[bool]]
"""Asked once for the rest of an answer whose process died: writes it and returns True, or returns False."""


class Abandoned:
    """The turns of others, as far as this process may end them.

    Args:
        store: the journal's.
        options: what its runners share.
        running: this process's own turns, by chat.
        leases: says whose owner may be given up.
        peers: the other nodes.
        recover: asked for the rest of a turn whose owner died.
        start: runs a turn in the hub.
        limits: how long to wait.
    """

    def __init__(
        self,
        store: Store,
        options: RunnerOptions,
        running: Mapping[str, Runner],
        leases: Leases,
        peers: Peers,
        *,
        recover: Recover | None,
        start: Callable[[Runner, Producer, Turn], object],
        limits: Limits,
    ) -> None:
        self._store = store
        self._options = options
        self._running = running
        self._leases = leases
        self._peers = peers
        self._recover = recover
        self._start = start
        self._limits = limits

    async def look_after(self, found: TurnRecord) -> None:
        """End a turn as lost, or recover it, if its lease has run out and it isn't this process's own."""
        runner = self._running.get(found.chat_id)
        if (runner is None or runner.record.turn_id != found.turn_id) and self._leases.lapsed(found):
            await self.end(found, None)

    async def end(self, found: TurnRecord, reason: str | None) -> None:
        """Adopt a turn and end it: as stopped for a reason, or as lost unless it can be recovered."""
        # Not cancelled halfway: the turn would have an owner that does nothing.
        with trio.move_on_after(self._limits.hub.begin_s, shield=True):
            await self._adopt_and_end(found, reason)

    async def _adopt_and_end(self, found: TurnRecord, reason: str | None) -> None:
        record = await self._store.adopt(found, lease_until=self._leases.until())
        if record is None:
            return  # somebody else does it
        runner = Runner(
            record, self._options, orphan_grace_s=math.inf, history=await read_all(self._store, record)
        )
        chat = await self._store.chat(record.chat_id)
        turn = Turn(runner, record.chat_id, record.turn_id, () if chat is None else tuple(chat.messages), {})
        if reason is not None:
            await runner.end_as_stopped(reason)
            return
        recover = self._recover
        if recover is None:
            await runner.run(None, turn)
            return

        async def producer(turn: Turn) -> None:
            if not await recover(turn):
                raise NotRecoveredError

        runner.reopen()
        self._start(runner, producer, turn)

    async def stop(self, turn_id: str, reason: str) -> TurnState:
        """End a turn that is suspended, or that another process runs: that is asked, and has `stop_grace_s` for it.

        Returns:
            The turn's outcome.

        Raises:
            TurnNotFoundError: if there is no such turn.
            StoreUnavailableError: if the store can't be asked.
        """
        record = await self._store.turn(turn_id)
        if record is None:
            raise TurnNotFoundError("there is no such turn")
        if record.state is TurnState.running and not self._leases.lapsed(record):
            self._peers.stop(record, reason)
            with trio.move_on_after(self._limits.turn.stop_grace_s), self._store.news(record) as news:
                while record.state is TurnState.running:
                    await news.wait(self._limits.hub.replica_poll_s)
                    record = await self._store.turn(turn_id) or record
        with trio.move_on_after(self._limits.turn.stop_grace_s):
            # Adopting is a compare-and-set on a record that its owner may be changing: it takes a few tries.
            while not record.state.ended:
                await self.end(record, reason)
                record = await self._store.turn(turn_id) or record
        return record.state
