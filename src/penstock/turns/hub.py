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

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import trio

from penstock.errors import StoreUnavailableError, TurnConflictError, TurnError
from penstock.journal.fan_out import FanOut
from penstock.journal.live import LiveTail
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
from penstock.turns.abandoned import Abandoned, Recover
from penstock.turns.approvals import Verdict
from penstock.turns.claim import claim
from penstock.turns.continuation import decisions
from penstock.turns.draining import Draining
from penstock.turns.error_text import ErrorText
from penstock.turns.feed import Begun, Watcher
from penstock.turns.flusher import Flusher
from penstock.turns.foreign import ForeignChats
from penstock.turns.handle import TurnHandle
from penstock.turns.leases import Leases
from penstock.turns.outage import Outage
from penstock.turns.peers import Peers
from penstock.turns.recent import RecentTurns
from penstock.turns.replica import load
from penstock.turns.replicas import Replicas
from penstock.turns.runner import Runner, RunnerOptions
from penstock.turns.tasks import Tasks
from penstock.turns.turn import Producer, Turn, TurnRequest
from penstock.turns.watched import WatchedChats
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


class Hub:
    """The turns of this process. Made by `open_hub`."""

    def __init__(
        self,
        store: Store,
        tasks: Tasks,
        limits: Limits,
        metrics: Metrics,
        error_text: ErrorText | None,
        recover: Recover | None,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._limits = limits
        self._outage = Outage(limits.hub, metrics)
        self._flusher = Flusher(store, limits.hub, metrics, self._outage)
        self._fan_out = FanOut(limits.hub.coalesce_s)
        self._options = RunnerOptions(store, self._flusher, self._fan_out, limits.turn, metrics, error_text)
        self._running: dict[str, Runner] = {}
        """By chat."""
        self._leases = Leases(store, self._running, self._outage, limits.hub)
        self._watched = WatchedChats(store, self.turn)
        self._peers = Peers(
            store,
            self._running,
            began=self._watched.began_elsewhere,
            missed=self._watched.look,
            limits=limits.hub,
            metrics=metrics,
        )
        self._abandoned = Abandoned(
            store,
            self._options,
            self._running,
            self._leases,
            self._peers,
            recover=recover,
            start=self._start,
            limits=limits,
        )
        self._replicas = Replicas(store, self._fan_out, self._leases, self._abandoned.look_after, limits.hub)
        self._flusher.refused = self._leases.hasten
        self._flusher.gave_up = self._give_up
        self._outage.changed = self._degraded
        self._recent = RecentTurns(limits.hub)
        self._beginning: dict[str, trio.Event] = {}
        """Chats for which the store is being asked, so that this process asks once at a time."""
        self.on_begun: Callable[[Begun], object] | None = None
        """Called with every turn that begins here, or goes on."""
        self.foreign: ForeignChats | None = None
        """Where those who watch hear others."""
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
                    self._store,
                    chat_id,
                    messages,
                    self._leases.until,
                    self._leases.lapsed,
                    self._abandoned.end,
                )
                if history is None:
                    return await self._replica(record)
                # From here to the end nothing awaits, so a turn that is in the store has its runner.
                grace_s = self._limits.turn.orphan_grace_s if orphan_grace_s is None else orphan_grace_s
                runner = Runner(record, self._options, orphan_grace_s=grace_s, history=history)
                runner.begin(lambda grammar: decisions(messages[-1], grammar))
                turn = Turn(runner, chat_id, record.turn_id, tuple(messages), dict(body or {}), request)
                handle = self._start(runner, producer, turn)
                begun = Begun(handle, messages[-1])
                self._watched.tell(begun)
                if self.on_begun is not None:
                    self.on_begun(begun)
                self._peers.began(record)
                return handle
        finally:
            del self._beginning[chat_id]
            beginning.set()
        raise StoreUnavailableError("the journal did not answer in time")

    def _start(self, runner: Runner, producer: Producer | None, turn: Turn) -> TurnHandle:
        self._running[runner.record.chat_id] = runner
        self._tasks.start_soon(self._run, runner, producer, turn, name=f"turn {turn.id}")
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
            runner.tail, runner=runner, stop=partial(self._abandoned.stop, runner.record.turn_id)
        )

    async def turn(self, turn_id: str) -> TurnHandle | None:
        """Return a turn, wherever it runs or ended; None if the journal doesn't have it.

        Raises:
            StoreUnavailableError: if the store can't be asked.
        """
        record = await self._store.turn(turn_id)
        if record is None:
            return None
        if self._leases.lapsed(record):
            await self._abandoned.look_after(record)
            record = await self._store.turn(turn_id) or record
        if (runner := self._running.get(record.chat_id)) is not None and runner.record.turn_id == turn_id:
            return self._handle(runner)
        if record.state is TurnState.running:
            return await self._replica(record)
        if (handle := self._recent.get(record)) is not None:
            return handle
        tail = await load(self._store, record)
        return self._recent.keep(TurnHandle(tail, stop=partial(self._abandoned.stop, turn_id)))

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
        if chat is not None and chat.turn is not None and self._leases.lapsed(chat.turn):
            await self._abandoned.look_after(chat.turn)
            chat = await self._store.chat(chat_id)
        return chat

    def watch(self, chat_id: str) -> Watcher:
        """Watch which turns of a chat begin: `with` it, until the block ends. It starts and stops nothing."""
        return self._watched.watch(chat_id)

    def _degraded(self, away: bool) -> None:
        for runner in self._running.values():
            runner.degraded(away)

    def _give_up(self, tail: LiveTail) -> None:
        runner = self._running.get(tail.record.chat_id)
        if runner is not None and runner.tail is tail:
            runner.give_up()

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
        """Decide an approval that the chat's running turn waits for, wherever it runs, unless it has ended.

        Returns:
            How it ended: `verdict`, or what was there first. None if there is no such approval.

        Raises:
            StoreUnavailableError: if whoever runs the turn can't be asked, or does not answer.
        """
        turn = await self.newest_turn(chat_id)
        if turn is None:
            return None
        if turn.runs_elsewhere:
            return await self._peers.decide(turn.record, approval_id, verdict)
        return turn.decide(approval_id, verdict)

    async def _replica(self, record: TurnRecord) -> TurnHandle:
        """Follow a turn that another process runs. What the store has of it now is there when this returns."""
        handle = self._recent.get(record)
        if handle is None:
            replica = self._replicas.follow(record)
            handle = self._recent.keep(
                TurnHandle(
                    replica.tail, stop=partial(self._abandoned.stop, record.turn_id), loaded=replica.loaded
                )
            )
        await handle.wait_loaded()
        return handle

    @property
    def closing(self) -> bool:
        """Whether no new turn is taken."""
        return self.draining.is_set()

    @property
    def journal_away(self) -> bool:
        """Whether the journal's store can't be reached, as far as is known."""
        return self._outage.away

    def statistics(self) -> HubStatistics:
        """Count what is going on."""
        tails = [runner.tail for runner in self._running.values()]
        return HubStatistics(
            turns_running=len(tails),
            followers=sum(tail.followers for tail in tails),
            entries=sum(len(tail.entries) for tail in tails),
            entries_not_stored=sum(len(tail.entries) - tail.stored for tail in tails),
        )

    async def drain(self, grace_s: float, *, restart: bool = False) -> None:
        """Take no new turns, let the running ones end for `grace_s`, then end the rest as lost.

        Clients are told `CloseReason.drain`, or `restart`. Cancelled, it leaves the running turns running.
        """
        self.draining.begin(restart=restart)
        with trio.move_on_after(grace_s):
            while self._running or self._beginning:
                await self._quiet.park()
        self._tasks.cancel()
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
            tasks = Tasks(turn_nursery)
            await turn_nursery.start(tasks.run)
            hub = Hub(store, tasks, limits, metrics, error_text, recover)
            flusher_nursery.start_soon(hub._flusher.run)
            flusher_nursery.start_soon(hub._fan_out.run)
            flusher_nursery.start_soon(hub._leases.keep, hub._abandoned.look_after)
            flusher_nursery.start_soon(hub._peers.run)
            tasks.start_soon(hub._replicas.run, name="replicas")
            yield hub
            hub.draining.begin()
            tasks.cancel()
        flusher_nursery.cancel_scope.cancel("the hub is closed")
