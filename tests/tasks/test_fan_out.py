"""Riders and laggards: whoever serves a follower, it sees every entry once, in order, and the end."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing

from penstock import Limits, Turn, open_hub
from penstock.errors import StoreUnavailableError
from penstock.journal.entry import Entry
from penstock.journal.fan_out import FanOut, Render
from penstock.journal.live import LiveTail
from penstock.journal.store import TurnRecord, TurnState
from penstock.journal.subscription import Subscription
from penstock.limits import HubLimits
from penstock.testing import run_cancelled_at, user_message
from penstock.web.resume import renderer
from penstock.wire.chunks import AnyChunk, Custom, Error, Finish, Start, TextDelta
from penstock.wire.codec import encode
from penstock.wire.versions import SdkVersion


def plain(entries: Sequence[Entry]) -> bytes:
    """A follower's frames: its offsets."""
    return b"".join([b"%d," % entry.offset for entry in entries])


def append(tail: LiveTail, count: int = 1) -> None:
    """Add some entries."""
    for _ in range(count):
        chunk = TextDelta(id="t", delta="x")
        tail.append(chunk, encode(chunk))


def offsets(count: int) -> bytes:
    """What `plain` makes of so many entries from the first."""
    return b"".join([b"%d," % offset for offset in range(count)])


@asynccontextmanager
async def fanning_out(coalesce_s: float = 0.0) -> AsyncIterator[LiveTail]:
    """Run a fan-out and yield a tail that it serves."""
    fan_out = FanOut(coalesce_s)
    record = TurnRecord(chat_id="c", turn_id="m", epoch=1, request_key="k", started_at=0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out.run)
        yield LiveTail(record, fan_out)
        nursery.cancel_scope.cancel()


class Follower:
    """Follows a tail to its end, and writes down what it got, how."""

    def __init__(
        self, tail: LiveTail, takes: Callable[[], bool] = lambda: True, render: Render = plain
    ) -> None:
        self.tail = tail
        self.takes = takes
        self.render = render
        self.got: list[bytes] = []
        self.offered: list[bytes] = []
        self.rides = 0
        self.subscription: Subscription | None = None
        self.ended = False

    @property
    def data(self) -> bytes:
        return b"".join(self.got)

    def offer(self, data: bytes) -> bool:
        if not self.takes():
            return False
        self.offered.append(data)
        self.got.append(data)
        return True

    async def run(self, after: int = -1) -> None:
        with self.tail.subscribe(after) as self.subscription:
            try:
                while True:
                    self.got.append(self.render(await self.subscription.next_batch(512)))
                    assert self.subscription.lag_bytes == sum(
                        len(entry.json) for entry in self.tail.entries[self.subscription.next_offset :]
                    )
                    self.rides += 1
                    await self.subscription.ride(self.render, self.offer)
            except trio.EndOfChannel:
                self.ended = True


@pytest.mark.parametrize("seed", range(12))
async def test_followers_that_come_and_go_and_refuse_see_all_once(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    dice = random.Random(seed)
    left: list[Follower] = []
    stayed: list[Follower] = []

    async def visit(tail: LiveTail) -> None:
        await trio.sleep(dice.uniform(0, 3))
        stubborn = dice.choice([0.0, 0.1, 0.9, 1.0])
        follower = Follower(tail, lambda: dice.random() >= stubborn)
        with trio.move_on_after(dice.choice([0.01, 0.5, 2, 1000])) as visiting:
            await follower.run()
        (left if visiting.cancelled_caught else stayed).append(follower)
        subscription = follower.subscription
        assert subscription is not None
        # Cancelled or not: its place is behind what it took, and nobody serves it any more.
        assert follower.data == offsets(subscription.next_offset)
        assert subscription not in tail.riders

    async with fanning_out(dice.choice([0.0, 0.0, 0.05])) as tail, trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(visit, tail)
        for _ in range(100):
            append(tail, dice.choice([1, 1, 2, 50, 300]))
            await trio.sleep(dice.choice([0, 0, 0.01, 0.1]))
        tail.seal(TurnState.finished, [(Finish(), encode(Finish()))])
    assert len(left) + len(stayed) == 40
    assert stayed
    whole = offsets(len(tail.entries))
    for follower in stayed:
        assert follower.ended
        assert follower.data == whole
    for follower in left:
        assert whole.startswith(follower.data)
    assert not tail.riders
    assert tail.followers == 0


async def test_riders_at_one_place_share_one_object(autojump_clock: trio.testing.MockClock) -> None:
    async with fanning_out() as tail, trio.open_nursery() as nursery:
        append(tail)
        followers = [Follower(tail) for _ in range(100)]
        other = Follower(tail, render=lambda entries: plain(entries).upper())
        for follower in [*followers, other]:
            nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        append(tail, 3)  # in one pass
        await trio.testing.wait_all_tasks_blocked()
        append(tail)
        await trio.testing.wait_all_tasks_blocked()
        assert [follower.offered for follower in followers] == [[b"1,2,3,", b"4,"]] * 100
        for place in range(2):
            assert len({id(follower.offered[place]) for follower in followers}) == 1
            assert other.offered[place] == followers[0].offered[place]
            assert other.offered[place] is not followers[0].offered[place]
        # Nobody's task ran for it.
        assert {follower.rides for follower in followers} == {1}
        tail.seal(TurnState.finished, ())


async def test_a_rider_that_refuses_catches_up_by_itself_and_rides_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    takes = True
    async with fanning_out() as tail, trio.open_nursery() as nursery:
        append(tail)
        moody, steady = Follower(tail, lambda: takes), Follower(tail)
        nursery.start_soon(moody.run)
        nursery.start_soon(steady.run)
        await trio.testing.wait_all_tasks_blocked()
        for mood in (True, False, True, False, False, True):
            takes = mood
            append(tail, 2)
            await trio.testing.wait_all_tasks_blocked()
            assert moody.data == steady.data == offsets(len(tail.entries))
            assert len(tail.riders) == 2
        assert moody.rides == 4
        assert steady.rides == 1
        tail.seal(TurnState.finished, ())
    assert moody.ended


async def test_what_is_not_for_a_rider_does_not_wake_it(autojump_clock: trio.testing.MockClock) -> None:
    async with fanning_out() as tail, trio.open_nursery() as nursery:
        append(tail)
        deaf = Follower(tail, lambda: False, lambda entries: b"")
        nursery.start_soon(deaf.run)
        await trio.testing.wait_all_tasks_blocked()
        append(tail, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert deaf.rides == 1
        assert deaf.subscription is not None
        assert (deaf.subscription.lag, deaf.subscription.lag_bytes) == (0, 0)
        tail.seal(TurnState.finished, ())


@pytest.mark.parametrize("how", ["seal", "break off"])
@pytest.mark.parametrize("news", [0, 1, 5])
async def test_the_end_wakes_riders_once_with_all_that_came_before(
    how: str, news: int, autojump_clock: trio.testing.MockClock
) -> None:
    followers: list[Follower] = []
    broken: list[Follower] = []

    async def follow(tail: LiveTail) -> None:
        followers.append(follower := Follower(tail))
        try:
            await follower.run()
        except StoreUnavailableError:
            broken.append(follower)

    async with fanning_out() as tail:
        async with trio.open_nursery() as nursery:
            append(tail)
            for _ in range(300):  # more than one slice of a pass
                nursery.start_soon(follow, tail)
            await trio.testing.wait_all_tasks_blocked()
            append(tail, news)
            if how == "seal":
                tail.seal(TurnState.finished, [(Finish(), encode(Finish()))])
            else:
                tail.break_off("no store")
            assert not tail.riders
        assert {follower.data for follower in followers} == {offsets(len(tail.entries))}
        assert len(broken) == (300 if how == "break off" else 0)


async def test_an_end_in_the_middle_of_a_pass_is_the_same_end_for_all(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first slice is served, then the turn ends, then the rest would be."""
    async with fanning_out() as tail:
        followers = [Follower(tail) for _ in range(1000)]
        async with trio.open_nursery() as nursery:
            append(tail)
            for follower in followers:
                nursery.start_soon(follower.run)
            await trio.testing.wait_all_tasks_blocked()
            append(tail)
            while not any(follower.offered for follower in followers):
                await trio.lowlevel.checkpoint()
            assert not all(follower.offered for follower in followers)
            append(tail)
            tail.seal(TurnState.finished, [(Finish(), encode(Finish()))])
        assert {follower.data for follower in followers} == {offsets(4)}


async def test_a_rider_that_is_cancelled_by_its_own_offer_or_by_anothers_harms_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A direct write finds the client gone, and that cancels the rider's task: within the offer."""
    async with fanning_out() as tail:
        scopes = [trio.CancelScope() for _ in range(4)]

        def give_up(*which: int) -> bool:
            for number in which:
                scopes[number].cancel()
            return False

        followers = [
            Follower(tail),
            Follower(tail, lambda: give_up(1)),
            Follower(tail, lambda: not give_up(2, 3)),  # it takes the bytes, and is cancelled all the same
            Follower(tail),
        ]

        async def follow(number: int) -> None:
            with scopes[number]:
                await followers[number].run()

        async with trio.open_nursery() as nursery:
            append(tail)
            for number in range(4):  # they ride in this order
                nursery.start_soon(follow, number)
                await trio.testing.wait_all_tasks_blocked()
            append(tail)
            await trio.testing.wait_all_tasks_blocked()
            assert len(tail.riders) == 1
            append(tail)
            await trio.testing.wait_all_tasks_blocked()
            tail.seal(TurnState.finished, ())
        assert followers[0].data == offsets(3)
        assert followers[1].data == offsets(1)
        assert followers[2].data == offsets(2)
        assert followers[3].data == offsets(1)


async def test_a_rider_that_leaves_between_two_slices_is_not_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with fanning_out() as tail, trio.open_nursery() as nursery:
        append(tail)
        staying = [Follower(tail) for _ in range(500)]
        for follower in staying:
            nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        leaving = [Follower(tail) for _ in range(20)]
        async with trio.open_nursery() as leavers:
            for follower in leaving:
                leavers.start_soon(follower.run)
            await trio.testing.wait_all_tasks_blocked()
            append(tail)
            while not any(follower.offered for follower in staying):
                await trio.lowlevel.checkpoint()
            leavers.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not any(follower.offered for follower in leaving)
        assert {follower.data for follower in staying} == {offsets(2)}
        tail.seal(TurnState.finished, ())


async def cancel_at(step: int, refuses: bool) -> bool:
    """Follow a turn with three riders, cancelled at a step; check what they have seen by then."""
    followers: list[Follower] = []

    async def body() -> None:
        async with fanning_out() as tail:
            coin = iter([True, False] * 50)
            followers.extend(
                [Follower(tail), Follower(tail, lambda: not refuses or next(coin)), Follower(tail)]
            )
            async with trio.open_nursery() as nursery:
                for follower in followers:
                    nursery.start_soon(follower.run)
                for _ in range(4):
                    append(tail, 2)
                    await trio.lowlevel.checkpoint()
                    await trio.lowlevel.checkpoint()
                tail.seal(TurnState.finished, [(Finish(), encode(Finish()))])

    cancelled = await run_cancelled_at(step, body)
    for follower in followers:
        if follower.subscription is not None:
            assert follower.data == offsets(follower.subscription.next_offset)
            assert not follower.tail.riders
            assert follower.tail.followers == 0
        assert cancelled or follower.data == offsets(9)
    return cancelled


@pytest.mark.parametrize("refuses", [False, True])
async def test_cancelled_at_every_step_nobody_is_left_behind(refuses: bool) -> None:
    step = 1
    while await cancel_at(step, refuses):
        step += 1
        assert step < 500
    assert step > 20


async def test_a_pass_over_ten_thousand_riders_lets_others_run() -> None:
    between: list[int] = []
    async with fanning_out() as tail, trio.open_nursery() as nursery:
        append(tail)
        followers = [Follower(tail) for _ in range(10_000)]
        for follower in followers:
            nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        append(tail)
        while not all(follower.offered for follower in followers):
            between.append(sum(1 for follower in followers if follower.offered))
            await trio.lowlevel.checkpoint()
        steps = [after - before for before, after in pairwise(between)]
        assert max(steps) <= 256
        nursery.cancel_scope.cancel()


async def test_many_tails_of_one_rider_each_let_others_run() -> None:
    """It is the riders of all tails that count."""
    fan_out = FanOut()
    tails = [
        LiveTail(TurnRecord(chat_id="c", turn_id="m", epoch=1, request_key="k", started_at=0.0), fan_out)
        for _ in range(1000)
    ]
    followers = [Follower(tail) for tail in tails]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fan_out.run)
        for follower in followers:
            append(follower.tail)
            nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        for tail in tails:
            append(tail)
        passes = 0
        while not followers[-1].offered:
            passes += 1
            await trio.lowlevel.checkpoint()
        assert passes >= 5
        nursery.cancel_scope.cancel()


async def test_a_producer_that_never_pauses_is_followed_while_it_writes() -> None:
    seen: list[int] = []

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(5_000):
                await text.write("x")
                if number % 1000 == 999:
                    seen.append(len(follower.data))

    async with open_hub() as hub:
        turn = await hub.start_turn("c", answer, [user_message("x")])
        follower = Follower(turn._tail)
        await follower.run()
    assert follower.ended
    assert follower.data == offsets(5_004)
    assert seen == sorted(set(seen))
    assert seen[0] > 0
    assert follower.rides < 5, "it was woken for what it was handed"


async def test_coalescing_waits_for_more_but_not_with_the_end(autojump_clock: trio.testing.MockClock) -> None:
    async with fanning_out(coalesce_s=0.018) as tail, trio.open_nursery() as nursery:
        append(tail)
        follower = Follower(tail)
        nursery.start_soon(follower.run)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        for _ in range(10):
            append(tail)
            await trio.sleep(0.005)
        await trio.sleep(0.02)
        assert follower.offered == [b"1,2,3,4,", b"5,6,7,8,", b"9,10,"]
        assert trio.current_time() - began < 0.1
        append(tail)
        at = trio.current_time()
        tail.seal(TurnState.finished, ())
        while not follower.ended:
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == at
    assert follower.data == offsets(12)


async def test_a_hub_coalesces_as_it_is_told(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(100):
                await text.write("x")
                await trio.sleep(0.01)

    writes = []
    for coalesce_s in (0.0, 0.1):
        async with open_hub(limits=Limits(hub=HubLimits(coalesce_s=coalesce_s))) as hub:
            turn = await hub.start_turn("c", answer, [user_message("x")])
            follower = Follower(turn._tail)
            await follower.run()
        assert follower.data == offsets(104)
        writes.append(len(follower.got))
    assert writes[1] < writes[0] / 5


async def test_replicas_are_fanned_out_too(tmp_path: Path) -> None:
    journal = f"sqlite:{tmp_path / 'journal.db'}"

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(50):
                await text.write("x")
                await trio.sleep(0.005)

    limits = Limits(hub=HubLimits(replica_poll_s=0.02))
    async with (
        open_hub(journal=journal, limits=limits) as owner,
        open_hub(journal=journal, limits=limits) as other,
    ):
        mine = await owner.start_turn("c", answer, [user_message("x")])
        theirs = await other.newest_turn("c")
        assert theirs is not None
        followers = [Follower(theirs._tail) for _ in range(20)]
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for follower in followers:
                    nursery.start_soon(follower.run)
        assert {follower.data for follower in followers} == {offsets(mine.entries)}
        assert all(follower.offered for follower in followers)
        assert all(follower.ended for follower in followers)


def counted() -> list[Entry]:
    """A turn in which two chunks are not for every client, and the last is an error."""
    chunks: list[AnyChunk] = [
        Start(message_id="m"),
        *[TextDelta(id="t", delta=str(number)) for number in range(4)],
        Custom(kind_="penstock.only-for-7"),
        *[TextDelta(id="t", delta=str(number)) for number in range(4)],
        Error(error_text="Lost."),
    ]
    return [
        Entry(offset, chunk, encode(chunk), b"m.1-", 7 if isinstance(chunk, Custom) else 5)
        for offset, chunk in enumerate(chunks)
    ]


@pytest.mark.parametrize("seed", range(50))
async def test_what_is_rendered_twice_is_counted_once(seed: int) -> None:
    """A rider's entries are rendered, refused, and rendered again, perhaps with more: the skipped stay the same."""
    dice = random.Random(seed)
    entries = counted()
    version: SdkVersion = dice.choice((5, 7))
    skip = dice.randrange(14)
    spoken = [entry for entry in entries if entry.spoken_from <= version]
    expected = [entry.frame for entry in spoken[skip:]]
    if skip >= len(spoken):
        expected = [spoken[-1].frame]  # how the turn ended is told in any case
    render = renderer(version, skip)
    got = b""
    place = 0
    while place < len(entries):
        end = place
        for _ in range(dice.randrange(1, 4)):
            end = max(end, min(place + dice.randrange(1, 5), len(entries)))
            data = render(entries[place:end])
        got += data
        place = end
    assert got == b"".join(expected)


async def test_who_is_behind_or_without_a_fan_out_does_not_ride() -> None:
    record = TurnRecord(chat_id="c", turn_id="m", epoch=1, request_key="k", started_at=0.0)
    alone = LiveTail(record)
    with alone.subscribe() as subscription:
        await subscription.ride(plain, lambda data: True)
    async with fanning_out() as tail:
        append(tail, 2)
        with tail.subscribe(0) as subscription:
            await subscription.ride(plain, lambda data: True)
            assert subscription.lag == 1
            await subscription.next_batch(10)
            tail.seal(TurnState.finished, ())
            await subscription.ride(plain, lambda data: True)
        assert not tail.riders
