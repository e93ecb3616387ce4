"""Turns of other nodes that are followed here, on a store that says when there is news and takes its time to answer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import msgspec
import pytest
import trio
from trio.testing import MockClock

from penstock.errors import StoreUnavailableError
from penstock.journal.fan_out import FanOut
from penstock.journal.live import LiveTail
from penstock.journal.memory import MemoryStore
from penstock.journal.news import News
from penstock.journal.store import Batch, Look, Place, TurnRecord, TurnState
from penstock.limits import HubLimits
from penstock.metrics import NopMetrics
from penstock.testing.store_calls import begin
from penstock.turns.leases import Leases
from penstock.turns.outage import Outage
from penstock.turns.replica import PAGE
from penstock.turns.replicas import LOOKS, Replicas
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import encode

LIMITS = HubLimits()
CHUNK = encode(TextDelta(id="t", delta="word "))
TRUSTED_S = 5.0


class SlowStore(MemoryStore):
    """Tells of news, unless it is mute, and answers after a while, unless it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_s = 0.05
        self.away = self.mute = False
        self.looks: list[int] = []
        """How many turns each looked at."""
        self.listeners: dict[str, list[Callable[[], object]]] = {}

    def news(self, *turns: TurnRecord) -> News:
        return News(turns, self._listen, lambda: TRUSTED_S)

    @contextmanager
    def _listen(self, turn: TurnRecord, heard: Callable[[], object]) -> Iterator[None]:
        self.listeners.setdefault(turn.turn_id, []).append(heard)
        yield
        self.listeners[turn.turn_id].remove(heard)

    async def append(self, batches: Sequence[Batch]) -> None:
        await super().append(batches)
        for batch in batches:
            self.tell_of(batch.turn.turn_id)

    def tell_of(self, turn_id: str) -> None:
        for heard in [] if self.mute else self.listeners.get(turn_id, []):
            heard()

    async def look(self, places: Sequence[Place], count: int) -> list[Look | None]:
        self.looks.append(len(places))
        found = await super().look(places, count)
        assert sum(len(look.entries) for look in found if look is not None) <= PAGE
        await trio.sleep(self.delay_s)
        if self.away:
            raise StoreUnavailableError("the store is away")
        return found


class Node(NamedTuple):
    """One that follows turns of others."""

    store: SlowStore
    replicas: Replicas
    looked_after: list[str]


@asynccontextmanager
async def open_node() -> AsyncIterator[Node]:
    """Open one. Looking after a turn takes a minute."""
    store, running, looked_after = SlowStore(), dict[str, object](), list[str]()
    leases = Leases(store, running, Outage(LIMITS, NopMetrics()), LIMITS)  # type: ignore[arg-type]

    async def look_after(record: TurnRecord) -> None:
        looked_after.append(record.turn_id)
        await trio.sleep(60)
        raise StoreUnavailableError("of no use")

    replicas = Replicas(store, FanOut(), leases, look_after, LIMITS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(replicas.run)
        yield Node(store, replicas, looked_after)
        nursery.cancel_scope.cancel()


async def until(tail: LiveTail, entries: int) -> None:
    """Wait until a tail has so many entries."""
    while len(tail.entries) < entries:
        await tail.wait_news()


async def test_what_comes_during_a_look_is_in_the_next(autojump_clock: MockClock) -> None:
    async with open_node() as node, trio.open_nursery() as nursery:
        turns = [await begin(node.store, f"t{i}", f"c{i}") for i in range(20)]
        tails = [node.replicas.follow(turn).tail for turn in turns]

        async def write(turn: TurnRecord) -> None:
            for offset in range(100):
                await node.store.append([Batch(turn, offset, [CHUNK])])
                await trio.sleep(0.01)

        for tail, turn in zip(tails, turns, strict=True):
            tail.followers = 1
            nursery.start_soon(write, turn)
        for tail in tails:
            await until(tail, 100)
        # A second of 2,000 chunks: so many looks fit in, and not one for each chunk.
        assert 18 <= len(node.store.looks) <= 24
        assert max(node.store.looks) == 20


async def test_a_long_turn_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        long, short = await begin(node.store, "long", "c1"), await begin(node.store, "short", "c2")
        await node.store.append([Batch(long, 0, [CHUNK] * (20 * PAGE))])
        tails = [node.replicas.follow(turn).tail for turn in (long, short)]
        for tail in tails:
            tail.followers = 1
        for offset in range(5):
            began = trio.current_time()
            await node.store.append([Batch(short, offset, [CHUNK])])
            await until(tails[1], offset + 1)
            assert trio.current_time() - began <= 3 * node.store.delay_s
        assert len(tails[0].entries) < 20 * PAGE
        await until(tails[0], 20 * PAGE)


async def test_more_turns_than_one_look_takes_are_all_read(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        turns = [await begin(node.store, f"t{i}", f"c{i}") for i in range(3 * LOOKS)]
        await node.store.append([Batch(turn, 0, [CHUNK] * 25) for turn in turns])
        replicas = [node.replicas.follow(turn) for turn in turns]
        for replica in replicas:
            replica.tail.followers = 1
            await replica.loaded.wait()
            assert len(replica.tail.entries) == 25
        assert max(node.store.looks) == LOOKS


async def test_lost_news_is_made_up_for_while_there_is_other_news_all_the_time(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as node:
        turns = [await begin(node.store, f"t{i}", f"c{i}") for i in range(2)]
        replicas = [node.replicas.follow(turn) for turn in turns]
        for replica in replicas:
            replica.tail.followers = 1
            await replica.loaded.wait()
        node.store.mute = True
        await node.store.append([Batch(turns[1], 0, [CHUNK])])
        node.store.mute = False
        with trio.fail_after(2 * TRUSTED_S):
            while not replicas[1].tail.entries:
                node.store.tell_of("t0")
                await trio.sleep(0.1)


async def test_a_store_that_is_away_for_long_ends_them_and_for_a_moment_does_not(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as node:
        turn = await begin(node.store)
        tail = node.replicas.follow(turn).tail
        tail.followers = 1
        grace_s = LIMITS.journal_grace_s
        for entries, away_s in enumerate([grace_s - 2, grace_s - 2, grace_s + 2], 1):
            node.store.away = True
            await node.store.append([Batch(turn, len(tail.entries), [CHUNK])])
            await trio.sleep(away_s)
            node.store.away = False
            if away_s < grace_s:
                with trio.fail_after(2 * LIMITS.flush_retry_s):
                    await until(tail, entries)
        with pytest.raises(StoreUnavailableError, match="the store is away"):
            await until(tail, 3)
        assert node.store.listeners == {"t1": []}
        assert len(node.store.looks) < 300
        again = node.replicas.follow(turn)
        await again.loaded.wait()
        assert len(again.tail.entries) == 3


async def test_a_turn_whose_owner_is_gone_is_looked_after_once_and_holds_up_nobody(
    autojump_clock: MockClock,
) -> None:
    async with open_node() as node:
        gone = await node.store.begin("c1", "gone", "u", [], at=time.time(), lease_until=2.0)
        alive = await begin(node.store, "alive", "c2")
        tails = [node.replicas.follow(turn).tail for turn in (gone, alive)]
        for tail in tails:
            tail.followers = 1
        for offset in range(3):
            await node.store.append([Batch(turn, offset, [CHUNK]) for turn in (gone, alive)])
            with trio.fail_after(1):
                await until(tails[1], offset + 1)
        assert node.looked_after == ["gone"]
        node.store.mute = True
        assert await node.store.seal(Batch(gone, 3, [CHUNK]), TurnState.lost, None, at=time.time())
        assert await tails[0].wait_ended() is TurnState.lost
        assert len(tails[0].entries) == 4
        assert not tails[1].ended


async def test_nobody_follows_it(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        replica = node.replicas.follow(await begin(node.store))
        await replica.loaded.wait()
        await trio.sleep(3 * LIMITS.replica_poll_s)
        assert len(node.store.listeners["t1"]) == 1, "the store is not asked for that"
        await trio.sleep(TRUSTED_S)
        assert replica.tail.ended
        assert node.store.listeners == {"t1": []}


async def test_a_journal_that_was_set_back_is_not_gone_on_with(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        turns = [await begin(node.store, f"t{i}", f"c{i}") for i in range(2)]
        await node.store.append([Batch(turn, 0, [CHUNK] * 2) for turn in turns])
        replicas = [node.replicas.follow(turn) for turn in turns]
        for replica in replicas:
            await replica.loaded.wait()
        del node.store._turns["t0"].entries[1]
        del node.store._turns["t1"]
        for replica in replicas:
            node.store.tell_of(replica.record.turn_id)
            with pytest.raises(StoreUnavailableError, match="lost"):
                await until(replica.tail, 3)


async def test_who_asks_again_waits_for_what_is_there_by_then(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        turn = await begin(node.store)
        first = node.replicas.follow(turn)
        await first.loaded.wait()
        node.store.mute = True
        await node.store.append([Batch(turn, 0, [CHUNK])])
        again = node.replicas.follow(turn)
        assert again is first
        await again.loaded.wait()
        assert len(again.tail.entries) == 1
        assert node.store.looks == [1, 1]


async def test_after_the_hub_is_closed_none_is_left_to_wait_for(autojump_clock: MockClock) -> None:
    async with open_node() as node:
        turn = await begin(node.store)
        replica = node.replicas.follow(turn)
        await trio.testing.wait_all_tasks_blocked()
    late = node.replicas.follow(msgspec.structs.replace(turn, turn_id="other"))
    for each in (replica, late):
        assert each.loaded.is_set()
        with pytest.raises(StoreUnavailableError, match="closed"):
            await each.tail.wait_news()


async def test_a_wait_that_is_cancelled_has_missed_nothing(autojump_clock: MockClock) -> None:
    store = SlowStore()
    turns = [await begin(store, f"t{i}", f"c{i}") for i in range(2)]
    with store.news(*turns) as news:
        with trio.move_on_after(1):
            await news.wait(0.1)
            raise AssertionError("nothing happened")
        for turn in turns:
            with trio.CancelScope() as scope:
                scope.cancel()
                store.tell_of(turn.turn_id)
                await news.wait(0.1)
        assert await news.wait(0.1) == {"t0", "t1"}
        news.ignore("t0")
        began = trio.current_time()
        assert await news.wait(0.1) == {"t1"}, "all that are left, after some time"
        assert 0 < trio.current_time() - began <= TRUSTED_S
