"""One timer for many: each in its own time, and none kept from its own by another."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from penstock import CloseReason
from penstock.connections.connection import KEEPALIVE, Connection, open_connection
from penstock.connections.keepalive import GRAIN_S, Keepalive
from penstock.limits import ConnectionLimits
from penstock.testing import MemoryTransport


@pytest.fixture(params=["fast lane", "fallback"])
def direct(request: pytest.FixtureRequest) -> bool:
    """Whether the connections' transports are direct."""
    return bool(request.param == "fast lane")


class Clocked(MemoryTransport):
    """Notes when it was written to."""

    def __init__(self, *, direct: bool) -> None:
        super().__init__(direct=direct)
        self.keepalives_at: list[float] = []

    def note(self, data: bytes) -> None:
        if data == KEEPALIVE:
            self.keepalives_at.append(trio.current_time())

    async def write(self, data: bytes) -> None:
        await super().write(data)
        self.note(data)

    def write_nowait(self, data: bytes) -> bool:
        written = super().write_nowait(data)
        if written:
            self.note(data)
        return written


async def wait_to_be_cancelled() -> None:
    """Sleep forever, in words that leave a type checker in doubt: the block round it may be cancelled."""
    await trio.sleep_forever()


@asynccontextmanager
async def ticking() -> AsyncIterator[Keepalive]:
    """Run a shared timer."""
    keepalive = Keepalive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keepalive.run)
        yield keepalive
        nursery.cancel_scope.cancel()


class Timed:
    """Is looked at again after so long, and notes when it was."""

    def __init__(self, every_s: float, act: Callable[[], None] = lambda: None) -> None:
        self.every_s = every_s
        self.act = act
        self.looks: list[float] = []

    def look(self, now: float) -> float:
        assert now == pytest.approx(trio.current_time())
        self.looks.append(now)
        self.act()
        return now + self.every_s


async def test_each_connection_has_its_own_time(direct: bool, autojump_clock: trio.testing.MockClock) -> None:
    """They began at different moments, and some have something to say."""
    transports = [Clocked(direct=direct) for _ in range(20)]
    async with ticking() as keepalive, trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            await trio.sleep(number * 0.37)
            limits = ConnectionLimits(keepalive_s=3 + number % 5)
            async with open_connection(transports[number], limits=limits, keepalive=keepalive) as connection:
                if number % 2:
                    await trio.sleep(1.1)
                    await connection.send_frame(b"x")
                await trio.sleep_until(60 - 0.01)

        for number in range(20):
            nursery.start_soon(one, number)
    for number, transport in enumerate(transports):
        interval = 3 + number % 5
        quiet_from = number * 0.37 + (1.1 if number % 2 else 0)
        due = [quiet_from + interval * (count + 1) for count in range(100)]
        assert len(transport.keepalives_at) >= (59 - quiet_from) // (interval + GRAIN_S)
        last = quiet_from
        for at in transport.keepalives_at:
            assert interval - 1e-6 <= at - last <= interval + GRAIN_S + 1e-6
            last = at
        assert transport.keepalives_at[0] <= due[0] + GRAIN_S + 1e-6


async def test_a_stalled_write_is_cut_on_time_whatever_the_others_do(
    direct: bool, autojump_clock: trio.testing.MockClock
) -> None:
    cut_after: list[float] = []
    async with ticking() as keepalive, trio.open_nursery() as nursery:

        async def stalled(number: int) -> None:
            transport = MemoryTransport(direct=direct)
            limits = ConnectionLimits(keepalive_s=60, write_stall_s=2.0)
            await trio.sleep(number * 0.31)
            async with open_connection(transport, limits=limits, keepalive=keepalive) as connection:
                await trio.sleep(0.7 + number * 0.13)
                transport.reading = trio.Event()
                began = trio.current_time()
                await connection.send_frame(b"x")
                await wait_to_be_cancelled()
            assert connection.close_reason is CloseReason.write_stalled
            cut_after.append(trio.current_time() - began)

        async def busy() -> None:
            async with open_connection(MemoryTransport(direct=direct), keepalive=keepalive) as connection:
                for _ in range(500):
                    await connection.send_frame(b"x")
                    await trio.sleep(0.01)

        for number in range(10):
            nursery.start_soon(stalled, number)
            nursery.start_soon(busy)
    assert len(cut_after) == 10
    assert all(2.0 - 1e-6 <= after <= 2.0 + GRAIN_S + 1e-6 for after in cut_after)


async def test_who_comes_with_an_earlier_time_is_not_kept_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ticking() as keepalive:
        late, soon = Timed(100), Timed(1)
        keepalive.add(late, trio.current_time() + 100)
        await trio.sleep(5)
        keepalive.add(soon, trio.current_time() + 1)
        await trio.sleep(3.6)
        assert soon.looks == pytest.approx([6, 7, 8])
        assert not late.looks
        keepalive.discard(soon)
        keepalive.discard(soon)
        await trio.sleep_until(150)
        assert len(soon.looks) == 3
        assert late.looks == pytest.approx([100])


async def test_deadlines_close_together_are_one_wake_up(autojump_clock: trio.testing.MockClock) -> None:
    async with ticking() as keepalive:
        many = [Timed(10) for _ in range(100)]
        for number, timed in enumerate(many):
            keepalive.add(timed, 10 + number * 0.01)
        await trio.sleep_until(15)
        times = sorted({timed.looks[0] for timed in many})
        assert all(len(timed.looks) == 1 for timed in many)
        assert len(times) <= 1 + 1 / GRAIN_S + 1
        for number, timed in enumerate(many):
            assert 0 <= timed.looks[0] - (10 + number * 0.01) + 1e-6 <= GRAIN_S + 2e-6


async def test_one_that_leaves_or_sends_others_away_in_its_look_harms_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with ticking() as keepalive:
        timed: list[Timed] = []
        timed += [Timed(1, lambda: keepalive.discard(timed[0])), Timed(1)]
        timed += [Timed(1, lambda: keepalive.discard(timed[3])), Timed(1), Timed(1)]
        newcomer = Timed(1)
        timed.append(Timed(1, lambda: keepalive.add(newcomer, trio.current_time() + 1)))
        for one in timed:
            keepalive.add(one, 1)
        await trio.sleep(3.9)
        assert [len(one.looks) for one in timed] == [1, 3, 3, 0, 3, 3]
        # Added again at each look, one second later each time: it is looked at then.
        assert len(newcomer.looks) >= 1


async def test_ten_thousand_at_once_let_others_run(autojump_clock: trio.testing.MockClock) -> None:
    """After one chunk to all of them, all are quiet from the same moment on."""
    looked = 0
    most = 0

    def count() -> None:
        nonlocal looked
        looked += 1

    async with ticking() as keepalive, trio.open_nursery() as nursery:
        many = [Timed(1000, count) for _ in range(10_000)]
        for timed in many:
            keepalive.add(timed, 1)

        async def watch() -> None:
            nonlocal most
            await trio.sleep(1)
            before = looked
            while looked < 10_000:
                await trio.lowlevel.checkpoint()
                most = max(most, looked - before)
                before = looked

        nursery.start_soon(watch)
        leaver = many[-1]
        await trio.sleep(1)
        while looked < 5_000:
            await trio.lowlevel.checkpoint()
        keepalive.discard(leaver)
        looked += 1
    assert not leaver.looks
    assert all(len(timed.looks) == 1 for timed in many[:-1])
    assert most <= 1000


async def test_a_client_found_gone_by_its_keepalive_leaves_the_timer_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Gone(MemoryTransport):
        def write_nowait(self, data: bytes) -> bool:
            if data == KEEPALIVE:
                raise ConnectionResetError
            return super().write_nowait(data)

    closed: list[Connection] = []
    other = Clocked(direct=True)
    limits = ConnectionLimits(keepalive_s=5)
    async with ticking() as keepalive, trio.open_nursery() as nursery:

        async def gone() -> None:
            async with open_connection(Gone(direct=True), limits=limits, keepalive=keepalive) as connection:
                await wait_to_be_cancelled()
            closed.append(connection)

        async def stays() -> None:
            async with open_connection(other, limits=limits, keepalive=keepalive):
                await trio.sleep(21)

        for _ in range(3):
            nursery.start_soon(gone)
        nursery.start_soon(stays)
    assert [connection.close_reason for connection in closed] == [CloseReason.client_gone] * 3
    assert other.keepalives_at == pytest.approx([5, 10, 15, 20], abs=1)


async def test_connections_that_are_over_are_not_kept(
    direct: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with ticking() as keepalive:
        for how in range(3):
            transport = MemoryTransport(direct=direct)
            with trio.move_on_after(1):
                async with open_connection(
                    transport, limits=ConnectionLimits(keepalive_s=math.inf), keepalive=keepalive
                ) as connection:
                    if how == 1:
                        connection.close(CloseReason.failed)
                    if how == 2:
                        await trio.sleep_forever()
        assert not keepalive._due
