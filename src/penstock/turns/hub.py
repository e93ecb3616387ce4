"""Where turns live: a private nursery that outlasts the connections which start and follow them.

async with open_hub() as hub:
    turn = await hub.start_turn("chat-1", answer, [user_message("Hello")])
    with turn.follow() as subscription:
        ...
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

import trio
from penstock.errors import StoreUnavailableError, TurnConflictError, TurnError
from penstock.journal.position import Position
from penstock.journal.store import ChatRecord, RunningTurnError, Store, TurnRecord, TurnState, open_store
from penstock.journal.subscription import Subscription
from penstock.limits import Limits
from penstock.metrics import Metrics, NopMetrics
from penstock.turns.flusher import Flusher
from penstock.turns.runner import ErrorText, Runner
from penstock.turns.turn import Producer, Turn
from penstock.wire.messages import UIMessage


class HubFullError(TurnError):
    """As many turns are running as `running_turns` allows, or the hub is closing."""


class HubStatistics(msgspec.Struct, frozen=True):
    """What a hub is doing now."""

    turns_running: int
    followers: int
    entries: int
    """Of the running turns."""
    entries_not_stored: int


class TurnHandle:
    """A turn of this process, as seen from outside it: follow it, stop it, wait for its end."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __repr__(self) -> str:
        return f"<TurnHandle {self._runner.tail!r}>"

    @property
    def id(self) -> str:
        """The assistant message's id."""
        return self._runner.record.turn_id

    @property
    def chat_id(self) -> str:
        """The chat's id."""
        return self._runner.record.chat_id

    @property
    def request_key(self) -> str:
        """The id of the message that the turn answers."""
        return self._runner.record.request_key

    @property
    def started_at(self) -> float:
        """Seconds since 1970."""
        return self._runner.record.started_at

    @property
    def state(self) -> TurnState:
        """Where the turn is."""
        return self._runner.tail.state

    @property
    def position(self) -> Position | None:
        """The newest entry's position."""
        return self._runner.tail.position

    def message(self) -> UIMessage:
        """Assemble the message so far."""
        return self._runner.message()

    def follow(self, after: int = -1) -> Subscription:
        """Return a cursor on the turn's entries after an offset; `with` it, and you are a follower."""
        return self._runner.tail.subscribe(after)

    async def stop(self, reason: str = "stopped") -> TurnState:
        """Stop the turn and wait until it is sealed, at most `stop_grace_s` and the time of a seal. Idempotent.

        Raises:
            StoreUnavailableError: if the end could not be stored.
        """
        return await self._runner.stop(reason)

    async def wait_ended(self) -> TurnState:
        """Sleep until the turn has ended and return its outcome."""
        return await self._runner.tail.wait_ended()


class Hub:
    """The turns of this process. Made by `open_hub`."""

    def __init__(
        self,
        store: Store,
        nursery: trio.Nursery,
        limits: Limits,
        metrics: Metrics,
        error_text: ErrorText | None,
    ) -> None:
        self._store = store
        self._turn_nursery = nursery
        self._limits = limits
        self._metrics = metrics
        self._error_text = error_text
        self._flusher = Flusher(store, limits.hub, metrics)
        self._running: dict[str, TurnHandle] = {}
        self._beginning = 0
        self._quiet = trio.lowlevel.ParkingLot()
        self._closing = False

    async def start_turn(
        self,
        chat_id: str,
        producer: Producer,
        messages: Sequence[UIMessage],
        *,
        body: Mapping[str, Any] | None = None,
        orphan_grace_s: float | None = None,
    ) -> TurnHandle:
        """Begin a turn that answers the last of `messages`, or join the one that answers it already.

        Args:
            chat_id: the chat's id; see `penstock.wire.messages.check_chat_id`.
            producer: `async def answer(turn)`; it runs in the hub, not in the caller's task.
            messages: the whole conversation, oldest first; it becomes the chat's.
            body: what the producer finds as `turn.body`.
            orphan_grace_s: seconds from the last follower's leaving to the producer's cancellation; None for the
                hub's own limit. Nothing is cancelled before somebody followed.

        Raises:
            TurnConflictError: if another message of this chat is being answered.
            HubFullError: if too many turns run, or the hub is closing.
            StoreUnavailableError: if the store can't begin a turn.

        Cancellation: before the turn has begun. A turn that has begun runs on.
        """
        await trio.lowlevel.checkpoint()
        key = messages[-1].id
        if (running := self._running.get(chat_id)) is not None:
            return _join(running, key)
        if self._closing or len(self._running) + self._beginning >= self._limits.hub.running_turns:
            raise HubFullError("too many answers are being written")
        self._beginning += 1
        try:
            record = await self._begin(chat_id, key, messages)
        except RunningTurnError:
            # It began here while the store was being asked, or it runs in another process.
            if (running := self._running.get(chat_id)) is not None:
                return _join(running, key)
            raise
        finally:
            self._beginning -= 1
        # From here to the end of this function nothing awaits, so a turn that is in the store has its runner.
        runner = Runner(
            record,
            self._store,
            self._flusher,
            limits=self._limits.turn,
            metrics=self._metrics,
            error_text=self._error_text,
            orphan_grace_s=self._limits.turn.orphan_grace_s if orphan_grace_s is None else orphan_grace_s,
        )
        handle = self._running[chat_id] = TurnHandle(runner)
        turn = Turn(runner, chat_id, record.turn_id, tuple(messages), dict(body or {}))
        self._turn_nursery.start_soon(self._run, runner, producer, turn, name=f"turn {record.turn_id}")
        return handle

    async def _begin(self, chat_id: str, key: str, messages: Sequence[UIMessage]) -> TurnRecord:
        turn_id = f"msg_{secrets.token_hex(12)}"
        # Not cancelled halfway: the store might have begun a turn that nobody would run.
        with trio.move_on_after(self._limits.hub.begin_s, shield=True):
            return await self._store.begin(chat_id, turn_id, key, messages, time.time())
        raise StoreUnavailableError("the journal did not answer in time")

    async def _run(self, runner: Runner, producer: Producer, turn: Turn) -> None:
        try:
            await runner.run(producer, turn)
        finally:
            del self._running[runner.record.chat_id]
            self._quiet.unpark_all()

    def running(self, chat_id: str) -> TurnHandle | None:
        """Return the chat's running turn, if this process runs it."""
        return self._running.get(chat_id)

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """Return the chat's messages and its newest turn as the store has them."""
        return await self._store.chat(chat_id)

    @property
    def closing(self) -> bool:
        """Whether no new turn is taken."""
        return self._closing

    def statistics(self) -> HubStatistics:
        """Count what is going on."""
        tails = [handle._runner.tail for handle in self._running.values()]
        return HubStatistics(
            turns_running=len(tails),
            followers=sum(tail.followers for tail in tails),
            entries=sum(len(tail.entries) for tail in tails),
            entries_not_stored=sum(len(tail.entries) - tail.stored for tail in tails),
        )

    async def drain(self, grace_s: float) -> None:
        """Take no new turns, let the running ones end for `grace_s`, then end the rest as lost.

        Cancelled, it leaves the running turns running.
        """
        self._closing = True
        with trio.move_on_after(grace_s):
            while self._running or self._beginning:
                await self._quiet.park()
        self._turn_nursery.cancel_scope.cancel("the hub is closing")
        with trio.move_on_after(self._limits.turn.seal_s):
            while self._running:
                await self._quiet.park()


def _join(running: TurnHandle, key: str) -> TurnHandle:
    if running.request_key != key:
        raise TurnConflictError("another message of this chat is being answered")
    return running


@asynccontextmanager
async def open_hub(
    *,
    journal: str = "memory:",
    limits: Limits = Limits(),
    metrics: Metrics = NopMetrics(),
    error_text: ErrorText | None = None,
) -> AsyncIterator[Hub]:
    """Open a hub on a journal.

    Args:
        journal: the URL of its store: `memory:`.
        limits: the numbers that differ from the defaults.
        metrics: where to count.
        error_text: words a producer's exception for the user; None, or a None from it, hides it.

    Leaving the block cancels what is still running; those turns end as `lost`. Call `drain` before to let them end.

    Raises:
        ValueError: if the journal's URL is not understood.
    """
    store = await open_store(journal)
    try:
        async with trio.open_nursery() as flusher_nursery:
            async with trio.open_nursery() as turn_nursery:
                hub = Hub(store, turn_nursery, limits, metrics, error_text)
                flusher_nursery.start_soon(hub._flusher.run)
                yield hub
                hub._closing = True
                turn_nursery.cancel_scope.cancel("the hub is closing")
            flusher_nursery.cancel_scope.cancel("the hub is closed")
    finally:
        with trio.move_on_after(limits.turn.seal_s, shield=True):
            await store.aclose()
