"""Where turns live: a private nursery that outlasts the connections which start and follow them.

    async with open_hub() as hub:
        turn = await hub.start_turn("chat-1", answer, [user_message("Hello")])
        with turn.follow() as subscription:
            ...

A turn that runs here is in `_running`. One that is over, or runs in another process on the same journal, is read from the
store into a tail of its own, so that followers see no difference; see `replica.py`. One whose owner has died is ended by
whoever looks; see `leases.py`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import msgspec
import trio

from penstock.errors import StoreUnavailableError, TurnConflictError, TurnError, TurnNotFoundError
from penstock.journal.fan_out import FanOut
from penstock.journal.store import (
    ChatRecord,
    Retention,
    Store,
    TurnRecord,
    TurnState,
    open_store,
)
from penstock.limits import Limits
from penstock.metrics import Metrics, NopMetrics
from penstock.turns.approvals import Verdict
from penstock.turns.claim import claim, lapsed
from penstock.turns.continuation import decisions
from penstock.turns.draining import Draining
from penstock.turns.feed import Begun, Feed, Watcher
from penstock.turns.flusher import Flusher
from penstock.turns.handle import TurnHandle
from penstock.turns.leases import keep_leases
from penstock.turns.recent import RecentTurns
from penstock.turns.replica import Replica, read_all
from penstock.turns.runner import ErrorText, NotRecoveredError, Runner, RunnerOptions
from penstock.turns.turn import Producer, Turn, TurnRequest
from penstock.wire.messages import UIMessage

Recover: TypeAlias = Callable[[Turn], Awaitable[bool]]
"""Asked once for the rest of an answer whose process died: writes it and returns True, or returns False."""


class HubFullError(TurnError):
    """As many turns are running as `running_turns` allows, or the hub is closing."""


class HubStatistics(msgspec.Struct, frozen=True):
    """What a hub is doing now."""

    turns_running: int
    followers: int
    entries: int
    """Of the running turns."""
    entries_not_stored: int


class Hub:
    """The turns of this process. Made by `open_hub`."""

    def __init__(
        self,
        store: Store,
        nursery: trio.Nursery,
        limits: Limits,
        metrics: Metrics,
        error_text: ErrorText | None,
        recover: Recover | None,
    ) -> None:
        self._store = store
        self._turn_nursery = nursery
        self._limits = limits
        self._recover = recover
        self._flusher = Flusher(store, limits.hub, metrics)
        self._fan_out = FanOut(limits.hub.coalesce_s)
        self._options = RunnerOptions(store, self._flusher, self._fan_out, limits.turn, metrics, error_text)
        self._running: dict[str, Runner] = {}
        """By chat."""
        self._recent = RecentTurns(limits.hub)
        self._feeds: dict[str, Feed] = {}
        """Of the chats that somebody watches."""
        self._beginning: dict[str, trio.Event] = {}
        """Chats for which the store is being asked, so that this process asks once at a time."""
        self._quiet = trio.lowlevel.ParkingLot()
        self.draining = Draining()
        """Set when the hub begins to close: watchers do well to go elsewhere."""

    async def start_turn(
        self,
        chat_id: str,
        producer: Producer,
        messages: Sequence[UIMessage],
        *,
        body: Mapping[str, Any] | None = None,
        request: TurnRequest | None = None,
        orphan_grace_s: float | None = None,
    ) -> TurnHandle:
        """Begin a turn that answers the last of `messages`, go on with the one that it continues, or join.

        A last message by the user begins a turn, and one by the assistant, with decisions about its tool calls,
        continues the suspended turn of that id. The turn that answers this message already is joined.

        Args:
            chat_id: the chat's id; see `penstock.wire.messages.check_chat_id`.
            producer: `async def answer(turn)`; it runs in the hub, not in the caller's task.
            messages: the whole conversation, oldest first; it becomes the chat's.
            body: what the producer finds as `turn.body`.
            request: what it finds as `turn.request`.
            orphan_grace_s: seconds from the last follower's leaving to the producer's cancellation; None for the
                hub's own limit. Nothing is cancelled before somebody followed.

        Raises:
            TurnConflictError: if another message of this chat is being answered.
            TurnNotFoundError: if the turn to be continued isn't in the journal, or has ended.
            HubFullError: if too many turns run, or the hub is closing.
            StoreUnavailableError: if the store can't begin a turn.

        Cancellation: before the turn has begun. A turn that has begun runs on.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        key = messages[-1].id
        while (beginning := self._beginning.get(chat_id)) is not None:
            await beginning.wait()
        if (runner := self._running.get(chat_id)) is not None:
            _check_joins(runner.record, key)
            return self._handle(runner)
        if (
            self.draining.is_set()
            or len(self._running) + len(self._beginning) >= self._limits.hub.running_turns
        ):
            raise HubFullError("too many answers are being written")
        beginning = self._beginning[chat_id] = trio.Event()
        try:
            # Not cancelled halfway: the store might have begun a turn that nobody would run.
            with trio.move_on_after(self._limits.hub.begin_s, shield=True):
                record, history = await claim(
                    self._store, chat_id, messages, self._lease_until, self._end_abandoned
                )
                if history is None:
                    return self._replica(record)
                # From here to the end nothing awaits, so a turn that is in the store has its runner.
                runner = Runner(
                    record,
                    self._options,
                    orphan_grace_s=self._limits.turn.orphan_grace_s
                    if orphan_grace_s is None
                    else orphan_grace_s,
                    history=history,
                )
                runner.begin(lambda grammar: decisions(messages[-1], grammar))
                turn = Turn(runner, chat_id, record.turn_id, tuple(messages), dict(body or {}), request)
                handle = self._start(runner, producer, turn)
                self._tell_watchers(Begun(handle, messages[-1]))
                return handle
        finally:
            del self._beginning[chat_id]
            beginning.set()
        raise StoreUnavailableError("the journal did not answer in time")

    def _start(self, runner: Runner, producer: Producer | None, turn: Turn) -> TurnHandle:
        self._running[runner.record.chat_id] = runner
        self._turn_nursery.start_soon(self._run, runner, producer, turn, name=f"turn {turn.id}")
        return self._handle(runner)

    async def _run(self, runner: Runner, producer: Producer | None, turn: Turn) -> None:
        try:
            await runner.run(producer, turn)
        finally:
            del self._running[runner.record.chat_id]
            self._recent.keep(self._handle(runner))
            self._quiet.unpark_all()

    def _handle(self, runner: Runner) -> TurnHandle:
        return TurnHandle(
            runner.tail, runner=runner, stop=partial(self._stop_elsewhere, runner.record.turn_id)
        )

    def _lease_until(self) -> float:
        return time.time() + self._limits.hub.lease_s

    async def _end_abandoned(self, found: TurnRecord, reason: str | None) -> None:
        """End a turn that isn't ours: as stopped for a reason, or as lost unless it can be recovered."""
        # Not cancelled halfway: the turn would have an owner that does nothing.
        with trio.move_on_after(self._limits.hub.begin_s, shield=True):
            await self._adopt_and_end(found, reason)

    async def _adopt_and_end(self, found: TurnRecord, reason: str | None) -> None:
        record = await self._store.adopt(found, lease_until=self._lease_until())
        if record is None:
            return  # somebody else does it
        runner = Runner(
            record, self._options, orphan_grace_s=float("inf"), history=await read_all(self._store, record)
        )
        messages = await self._store.chat(record.chat_id)
        turn = Turn(
            runner, record.chat_id, record.turn_id, () if messages is None else tuple(messages.messages), {}
        )
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

    async def look_after(self, found: TurnRecord) -> None:
        """End a turn as lost, or recover it, if its lease has run out and it isn't this process's own."""
        runner = self._running.get(found.chat_id)
        if (runner is None or runner.record.turn_id != found.turn_id) and lapsed(found):
            await self._end_abandoned(found, None)

    async def turn(self, turn_id: str) -> TurnHandle | None:
        """Return a turn, wherever it runs or ended; None if the journal doesn't have it.

        Raises:
            StoreUnavailableError: if the store can't be asked.
        """
        record = await self._store.turn(turn_id)
        if record is None:
            return None
        if lapsed(record):
            await self.look_after(record)
            record = await self._store.turn(turn_id) or record
        if (runner := self._running.get(record.chat_id)) is not None and runner.record.turn_id == turn_id:
            return self._handle(runner)
        if record.state is TurnState.running:
            return self._replica(record)
        if (handle := self._recent.get(record)) is not None:
            return handle
        tail = await Replica(self._store, record).load()
        return self._recent.keep(TurnHandle(tail, stop=partial(self._stop_elsewhere, turn_id)))

    async def newest_turn(self, chat_id: str) -> TurnHandle | None:
        """Return a chat's newest turn; None if there is no such chat or it has none."""
        if (runner := self._running.get(chat_id)) is not None:
            await trio.lowlevel.checkpoint()
            return self._handle(runner)
        chat = await self._store.chat(chat_id)
        return None if chat is None or chat.turn is None else await self.turn(chat.turn.turn_id)

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """Return the chat's messages and its newest turn as the store has them, a lost one as lost."""
        chat = await self._store.chat(chat_id)
        if chat is not None and chat.turn is not None and lapsed(chat.turn):
            await self.look_after(chat.turn)
            chat = await self._store.chat(chat_id)
        return chat

    def watch(self, chat_id: str) -> Watcher:
        """Watch which turns of a chat begin: `with` it, until the block ends. It starts and stops nothing."""
        feed = self._feeds.get(chat_id)
        if feed is None:
            feed = self._feeds[chat_id] = Feed(partial(self._feeds.pop, chat_id, None))
        return feed.watch()

    def _tell_watchers(self, begun: Begun) -> None:
        feed = self._feeds.get(begun.turn.chat_id)
        if feed is not None:
            feed.add(begun)

    async def stop(self, chat_id: str, reason: str = "stopped") -> TurnState | None:
        """Stop a chat's newest turn, running or suspended. Idempotent.

        Returns:
            The turn's outcome, or None if the chat has no turn.

        Raises:
            StoreUnavailableError: if the end could not be stored.
        """
        turn = await self.newest_turn(chat_id)
        return None if turn is None else await turn.stop(reason)

    async def decide(self, chat_id: str, approval_id: str, verdict: Verdict) -> Verdict | None:
        """Decide an approval that the chat's running turn waits for, unless it has ended.

        Returns:
            How it ended: `verdict`, or what was there first. None if there is no such approval.
        """
        turn = await self.newest_turn(chat_id)
        return None if turn is None else turn.decide(approval_id, verdict)

    async def _stop_elsewhere(self, turn_id: str, reason: str) -> TurnState:
        """End a turn that is suspended, or that another process runs: by adopting it."""
        record = await self._store.turn(turn_id)
        if record is None:
            raise TurnNotFoundError("there is no such turn")
        with trio.move_on_after(self._limits.turn.stop_grace_s):
            # Adopting is a compare-and-set on a record that its owner may be changing: it takes a few tries.
            while not record.state.ended:
                await self._end_abandoned(record, reason)
                record = await self._store.turn(turn_id) or record
        return record.state

    def _replica(self, record: TurnRecord) -> TurnHandle:
        handle = self._recent.get(record)
        if handle is None:
            replica = Replica(self._store, record, self._fan_out)
            handle = self._recent.keep(
                TurnHandle(replica.tail, stop=partial(self._stop_elsewhere, record.turn_id))
            )
            self._turn_nursery.start_soon(
                replica.run, self.look_after, self._limits.hub.replica_poll_s, name=f"replica of {handle.id}"
            )
        return handle

    @property
    def closing(self) -> bool:
        """Whether no new turn is taken."""
        return self.draining.is_set()

    def statistics(self) -> HubStatistics:
        """Count what is going on."""
        tails = [runner.tail for runner in self._running.values()]
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
        self.draining.begin()
        with trio.move_on_after(grace_s):
            while self._running or self._beginning:
                await self._quiet.park()
        self._turn_nursery.cancel_scope.cancel("the hub is closing")
        with trio.move_on_after(self._limits.turn.seal_s):
            while self._running:
                await self._quiet.park()


def _check_joins(record: TurnRecord, key: str) -> None:
    if record.request_key != key:
        raise TurnConflictError("another message of this chat is being answered")


@asynccontextmanager
async def open_hub(
    *,
    journal: str = "memory:",
    limits: Limits = Limits(),
    metrics: Metrics = NopMetrics(),
    error_text: ErrorText | None = None,
    recover: Recover | None = None,
    retention: Retention | None = None,
) -> AsyncIterator[Hub]:
    """Open a hub on a journal.

    Args:
        journal: the URL of its store; see `penstock.journal.store.open_store`.
        limits: the numbers that differ from the defaults.
        metrics: where to count.
        error_text: words a producer's exception for the user; None, or a None from it, hides it.
        recover: `async def recover(turn) -> bool`, asked once for a turn whose process died: it writes what is
            missing of the answer and returns True, or returns False, and the turn is lost.
        retention: what the journal keeps of what is over; None for the store's own measure.

    Leaving the block cancels what is still running; those turns end as `lost`. Call `drain` before to let them end.

    Raises:
        ValueError: if the journal's URL is not understood.
        StoreUnavailableError: if the store can't be opened now.
    """
    async with (
        open_store(journal, retention=retention, limits=limits) as store,
        trio.open_nursery() as flusher_nursery,
    ):
        async with trio.open_nursery() as turn_nursery:
            hub = Hub(store, turn_nursery, limits, metrics, error_text, recover)
            flusher_nursery.start_soon(hub._flusher.run)
            flusher_nursery.start_soon(hub._fan_out.run)
            flusher_nursery.start_soon(keep_leases, store, hub._running, hub.look_after, limits.hub)
            yield hub
            hub.draining.begin()
            turn_nursery.cancel_scope.cancel("the hub is closing")
        flusher_nursery.cancel_scope.cancel("the hub is closed")
