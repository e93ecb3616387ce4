"""A connection closes once, for one reason, and its callbacks run exactly once, whatever happens."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from penstock import CloseReason, ConnectionClosedError, ConnectionFullError
from penstock.connections.connection import KEEPALIVE, OPENING, Connection, open_connection
from penstock.limits import ConnectionLimits
from penstock.metrics import Counters
from penstock.testing import MemoryTransport, run_cancelled_at
from penstock.wire.chunks import TextDelta
from penstock.wire.sse import DONE

HELLO = TextDelta(id="text-1", delta="Hello")
HELLO_FRAME = b'data: {"type":"text-delta","id":"text-1","delta":"Hello"}\n\n'


class CallingTransport(MemoryTransport):
    """Tells of the client's leaving as our own server does: by a call, wherever that comes from."""

    def __init__(self, *, direct: bool = False) -> None:
        super().__init__(direct=direct)
        self.callbacks: list[Callable[[], None]] = []

    def on_gone(self, gone: Callable[[], None]) -> bool:
        self.callbacks.append(gone)
        return True

    def leave(self) -> None:
        """Let the client leave."""
        while self.callbacks:
            self.callbacks.pop()()


@pytest.fixture(params=["fast lane", "fallback"])
def direct(request: pytest.FixtureRequest) -> bool:
    """Whether a transport is direct: the rules are the same."""
    return bool(request.param == "fast lane")


async def wait_and_set(event: trio.Event) -> None:
    """Set an event, once all others wait."""
    await trio.testing.wait_all_tasks_blocked()
    event.set()


async def wait_to_be_cancelled() -> None:
    """Sleep forever, in words that leave a type checker in doubt: the block round it may be cancelled."""
    await trio.sleep_forever()


async def test_opens_writes_drains_and_ends(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport) as connection:
        await connection.send(HELLO)
        connection.send_nowait(HELLO)
    assert transport.data == OPENING + HELLO_FRAME * 2 + DONE
    assert transport.finished
    assert not transport.aborted
    assert connection.close_reason is CloseReason.finished


async def test_opening_comment_goes_out_before_the_first_chunk(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport):
        await trio.testing.wait_all_tasks_blocked()
        assert transport.data == OPENING


async def test_writer_takes_all_that_waits_in_one_write(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport) as connection:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(100):
            connection.send_nowait(HELLO)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.data == OPENING + HELLO_FRAME * 100
        assert len(transport.writes) == (101 if direct else 2)
        assert connection.statistics().waiting_bytes == 0
        assert connection.statistics().frames == 100


async def test_full_channel_refuses_and_send_waits(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    limits = ConnectionLimits(frames=2, write_stall_s=math.inf, keepalive_s=math.inf)
    async with open_connection(transport, limits=limits) as connection:
        await trio.testing.wait_all_tasks_blocked()
        transport.reading = trio.Event()
        await connection.send(HELLO)  # the writer takes it and is stuck with it
        await trio.testing.wait_all_tasks_blocked()
        connection.send_nowait(HELLO)
        connection.send_nowait(HELLO)
        with pytest.raises(ConnectionFullError):
            connection.send_nowait(HELLO)
        with trio.move_on_after(5) as waiting:
            await connection.send(HELLO)
        assert waiting.cancelled_caught
        assert connection.statistics().waiting_frames == 2
        transport.reading.set()
        await connection.send(HELLO)
    assert transport.data == OPENING + HELLO_FRAME * 4 + DONE


async def test_bytes_are_bounded_too(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    transport.reading = trio.Event()
    async with open_connection(transport, limits=ConnectionLimits(queue_bytes=100)) as connection:
        connection.send_frame_nowait(b"x" * 1000)  # larger than the allowance, alone: it passes
        with pytest.raises(ConnectionFullError):
            connection.send_frame_nowait(b"x")
        transport.reading.set()
        await connection.send_frame(b"y")


async def test_keepalive_only_when_nothing_was_written(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport, limits=ConnectionLimits(keepalive_s=15)) as connection:
        await trio.sleep(10)
        await connection.send(HELLO)
        await trio.sleep(14)
        assert transport.data == OPENING + HELLO_FRAME
        await trio.sleep(1.5)
        assert transport.data == OPENING + HELLO_FRAME + KEEPALIVE
        await trio.sleep(30)
        assert connection.statistics().keepalives == 3


async def test_a_quiet_stream_of_an_hour_is_not_cut(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport) as connection:
        await trio.sleep(3601)
        await connection.send(HELLO)
    assert connection.close_reason is CloseReason.finished
    assert transport.data.count(KEEPALIVE) == 240


@pytest.mark.parametrize(("keepalive_s", "stall_s"), [(15, 30), (60, 2), (1, 30)])
async def test_a_client_that_takes_nothing_is_cut_on_time(
    keepalive_s: float, stall_s: float, direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    transport = MemoryTransport(direct=direct)
    began = math.nan
    limits = ConnectionLimits(keepalive_s=keepalive_s, write_stall_s=stall_s)
    async with open_connection(transport, limits=limits) as connection:
        await trio.sleep(0.7)
        transport.reading = trio.Event()
        began = trio.current_time()
        await connection.send(HELLO)
        await wait_to_be_cancelled()
    assert connection.close_reason is CloseReason.write_stalled
    assert transport.aborted
    assert trio.current_time() - began == pytest.approx(stall_s)


async def test_disconnect_cancels_the_producer_and_is_the_reason_for_good(
    direct: bool,
    autojump_clock: trio.abc.Clock,
) -> None:
    transport = MemoryTransport(direct=direct)
    metrics = Counters()
    cancelled = False
    async with open_connection(transport, metrics=metrics) as connection:
        transport.gone.set()
        try:
            await wait_to_be_cancelled()
        except trio.Cancelled:
            cancelled = True
            raise
    assert cancelled
    assert connection.close_reason is CloseReason.client_gone
    assert DONE not in transport.data
    for _ in range(2):
        with pytest.raises(ConnectionClosedError) as info:
            connection.send_nowait(HELLO)
        assert info.value.reason is CloseReason.client_gone
    connection.close(CloseReason.failed)
    assert connection.close_reason is CloseReason.client_gone
    assert metrics.get("connections_closed", reason="client_gone") == 1
    assert metrics.get("connections_open") == 0


async def test_sender_in_another_task_learns_of_the_close(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    transport = MemoryTransport(direct=direct)
    limits = ConnectionLimits(frames=1)
    outcome: list[CloseReason] = []

    async def feed(connection: Connection) -> None:
        try:
            while True:
                await connection.send(HELLO)
        except ConnectionClosedError as exc:
            outcome.append(exc.reason)

    transport.reading = trio.Event()
    async with trio.open_nursery() as nursery, open_connection(transport, limits=limits) as connection:
        nursery.start_soon(feed, connection)  # noqa: ASYNC111
        await trio.testing.wait_all_tasks_blocked()
        transport.gone.set()
        await wait_to_be_cancelled()
    assert outcome == [CloseReason.client_gone]


async def test_broken_transport_is_a_client_that_left(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    class Broken(MemoryTransport):
        async def write(self, data: bytes) -> None:
            await trio.lowlevel.checkpoint()
            raise ConnectionResetError

        def write_nowait(self, data: bytes) -> bool:
            raise ConnectionResetError

    async with open_connection(Broken(direct=direct)) as connection:
        await wait_to_be_cancelled()
    assert connection.close_reason is CloseReason.client_gone


async def test_an_error_in_the_block_cuts_the_stream_and_comes_out_as_it_is(
    direct: bool,
    autojump_clock: trio.abc.Clock,
) -> None:
    transport = MemoryTransport(direct=direct)
    metrics = Counters()

    async def stream() -> None:
        async with open_connection(transport, metrics=metrics) as connection:
            await connection.send(HELLO)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stream()
    assert transport.aborted
    assert not transport.finished
    assert metrics.get("connections_closed", reason="failed") == 1


async def test_aclose_in_the_block_drains_and_lets_the_block_go_on(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport) as connection:
        await connection.send(HELLO)
        await connection.aclose()
        assert transport.data == OPENING + HELLO_FRAME + DONE
        with pytest.raises(ConnectionClosedError):
            await connection.send(HELLO)
        await connection.aclose()
        await trio.sleep(1)
    assert connection.close_reason is CloseReason.finished


async def test_the_reason_that_is_said_first_stays(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    """Also where the block ends by itself while what waits is still being written."""
    transport = MemoryTransport(direct=direct)
    transport.reading = trio.Event()
    async with trio.open_nursery() as nursery:
        async with open_connection(transport) as connection:
            nursery.start_soon(connection.aclose, CloseReason.drain)  # noqa: ASYNC111 (until after the block)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait_and_set, transport.reading)
    assert connection.close_reason is CloseReason.drain
    assert transport.finished


async def test_close_that_can_not_drain_is_bounded(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    transport = MemoryTransport(direct=direct)
    limits = ConnectionLimits(drain_s=3, write_stall_s=math.inf)
    transport.reading = trio.Event()
    start = trio.current_time()
    async with open_connection(transport, limits=limits) as connection:
        connection.send_nowait(HELLO)
    assert trio.current_time() - start == pytest.approx(3)
    assert transport.aborted
    assert connection.close_reason is CloseReason.write_stalled


async def test_callbacks_run_last_in_first_out_with_the_reason(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    ran: list[tuple[str, CloseReason]] = []

    async def slow(reason: CloseReason) -> None:
        await trio.sleep(1)
        ran.append(("second", reason))

    transport = MemoryTransport(direct=direct)
    async with open_connection(transport) as connection:
        connection.on_close(lambda reason: ran.append(("first", reason)))
        connection.on_close(slow)
        registration = connection.on_close(lambda reason: ran.append(("never", reason)))
        assert registration.unregister()
        assert not registration.unregister()
        transport.gone.set()
        await wait_to_be_cancelled()
    assert ran == [("second", CloseReason.client_gone), ("first", CloseReason.client_gone)]
    with pytest.raises(ConnectionClosedError):
        connection.on_close(lambda reason: None)


async def test_a_callback_that_fails_or_hangs_does_not_keep_the_others(
    direct: bool, autojump_clock: trio.abc.Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    async def hang(reason: CloseReason) -> None:
        ran.append("hang")
        await wait_to_be_cancelled()

    def fail(reason: CloseReason) -> None:
        ran.append("fail")
        raise ZeroDivisionError

    metrics = Counters()
    start = trio.current_time()
    async with open_connection(MemoryTransport(direct=direct), metrics=metrics) as connection:
        connection.on_close(lambda reason: ran.append("last"))
        connection.on_close(fail)
        connection.on_close(hang)
    assert ran == ["hang", "fail", "last"]
    assert [type(error) for error in connection._callbacks.errors] == [trio.TooSlowError, ZeroDivisionError]
    assert trio.current_time() - start == pytest.approx(2)
    assert metrics.get("callbacks_failed") == 2


async def test_callbacks_do_not_wait_for_a_stuck_writer(direct: bool, autojump_clock: trio.abc.Clock) -> None:
    class Shielding(MemoryTransport):
        """A server that shields its writes, as the stock one does."""

        async def write(self, data: bytes) -> None:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
                await wait_to_be_cancelled()

    ran: list[float] = []
    transport = Shielding(direct=direct)
    start = trio.current_time()
    async with open_connection(transport) as connection:
        connection.on_close(lambda reason: ran.append(trio.current_time() - start))
        await trio.sleep(1)
        transport.gone.set()
        await wait_to_be_cancelled()
    assert ran == [pytest.approx(1)]


class MoodyTransport(MemoryTransport):
    """Takes what is to be taken at once, or says that it would have to wait, as the dice fall."""

    def __init__(self, dice: random.Random, *, direct: bool) -> None:
        super().__init__(direct=direct)
        self.dice = dice
        self.writing = False

    async def write(self, data: bytes) -> None:
        assert not self.writing
        self.writing = True
        await trio.sleep(self.dice.choice([0, 0, 0.01, 1]))
        await super().write(data)
        self.writing = False

    def write_nowait(self, data: bytes) -> bool:
        assert not self.writing, "a frame overtook those that wait"
        return self.dice.random() < 0.7 and super().write_nowait(data)


@pytest.mark.parametrize("seed", range(40))
async def test_frames_keep_their_order_however_they_go(
    seed: int, direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    """Some are written where they are sent, some wait; none is lost, repeated or overtaken."""
    dice = random.Random(seed)
    transport = MoodyTransport(dice, direct=direct)
    limits = ConnectionLimits(frames=4, queue_bytes=200, keepalive_s=0.7)
    taken: list[bytes] = []
    async with open_connection(transport, limits=limits) as connection:
        for number in range(150):
            frame = b"<%d%b>" % (number, b"x" * dice.choice([0, 0, 50, 300]))
            match dice.randrange(4):
                case 0:
                    await connection.send_frame(frame)
                    taken.append(frame)
                case 1:
                    try:
                        connection.send_frame_nowait(frame)
                    except ConnectionFullError:
                        continue
                    taken.append(frame)
                case 2:
                    if connection.offer(frame):
                        taken.append(frame)
                case 3:
                    await trio.sleep(dice.choice([0, 0, 0.3, 2]))
        if dice.random() < 0.5:
            await connection.aclose()
            assert not connection.offer(b"late")
    assert transport.data.replace(KEEPALIVE, b"") == OPENING + b"".join(taken) + DONE
    statistics = connection.statistics()
    assert statistics.frames == len(taken) + statistics.keepalives
    assert statistics.bytes_written == len(transport.data)
    assert statistics.waiting_frames == statistics.waiting_bytes == 0


async def test_what_waits_for_a_client_that_is_back_is_one_write(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    transport = MemoryTransport(direct=direct)
    async with open_connection(transport) as connection:
        await trio.testing.wait_all_tasks_blocked()
        transport.reading = trio.Event()
        for _ in range(50):
            connection.send_nowait(HELLO)
        await trio.testing.wait_all_tasks_blocked()
        assert transport.writes == [OPENING]
        transport.reading.set()
        await trio.testing.wait_all_tasks_blocked()
        assert transport.writes == [OPENING, HELLO_FRAME * 50]
        assert connection.offer(HELLO_FRAME)  # it keeps up again
    assert transport.data == OPENING + HELLO_FRAME * 51 + DONE


@pytest.mark.parametrize("how", ["send", "send_nowait", "offer"])
async def test_a_client_found_gone_by_a_direct_write_has_left(
    how: str, autojump_clock: trio.abc.Clock
) -> None:
    """Also where the transport tells of it in the middle of that write, and then again by an error."""

    class Gone(CallingTransport):
        left = False

        def write_nowait(self, data: bytes) -> bool:
            if self.left:
                self.leave()
                raise ConnectionResetError
            return super().write_nowait(data)

    transport = Gone(direct=True)
    ran: list[CloseReason] = []
    metrics = Counters()
    async with open_connection(transport, metrics=metrics) as connection:
        connection.on_close(ran.append)
        await trio.testing.wait_all_tasks_blocked()
        transport.left = True
        if how == "offer":
            assert not connection.offer(HELLO_FRAME)
        elif how == "send":
            with pytest.raises(ConnectionClosedError):
                await connection.send(HELLO)
        else:
            with pytest.raises(ConnectionClosedError):
                connection.send_nowait(HELLO)
        assert not connection.offer(HELLO_FRAME)
        await wait_to_be_cancelled()
    assert ran == [CloseReason.client_gone]
    assert transport.data == OPENING
    assert metrics.get("connections_closed", reason="client_gone") == 1


async def test_a_client_that_leaves_after_the_end_is_no_news(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    """A server tells of the response's end as of a client's leaving."""

    class Ending(CallingTransport):
        async def finish(self, *reason: Any) -> None:
            await super().finish(*reason)
            self.leave()

    transport = Ending(direct=direct)
    async with open_connection(transport) as connection:
        await connection.send(HELLO)
    assert connection.close_reason is CloseReason.finished
    assert not transport.aborted
    assert transport.data == OPENING + HELLO_FRAME + DONE


async def test_a_client_that_is_gone_before_it_began_is_never_written_to(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    class GoneAlready(CallingTransport):
        def on_gone(self, gone: Callable[[], None]) -> bool:
            gone()
            return True

    transport = GoneAlready(direct=direct)
    async with open_connection(transport) as connection:
        with pytest.raises(ConnectionClosedError):
            connection.send_nowait(HELLO)
        await wait_to_be_cancelled()
    assert connection.close_reason is CloseReason.client_gone
    assert transport.writes == []


async def test_a_loop_that_sends_to_a_client_that_takes_all_lets_others_run(direct: bool) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with open_connection(MemoryTransport(direct=direct)) as connection:
            for _ in range(1000):
                await connection.send(HELLO)
            assert ticks > 20
            with trio.move_on_after(0) as cancelled:
                for _ in range(100):
                    await connection.send(HELLO)
            assert cancelled.cancelled_caught
        nursery.cancel_scope.cancel()


async def cancel_a_connection_at(step: int, *, leaves: bool, direct: bool, calls: bool) -> bool:
    """Run a short connection, cancel everything at a step, and check that it closed once."""
    ran: list[CloseReason] = []
    metrics = Counters()
    transport = (CallingTransport if calls else MemoryTransport)(direct=direct)

    async def clean_up(reason: CloseReason) -> None:
        await trio.lowlevel.checkpoint()
        ran.append(reason)

    async def stream() -> None:
        async with open_connection(transport, metrics=metrics) as connection:
            connection.on_close(ran.append)
            connection.on_close(clean_up)
            for _ in range(3):
                await connection.send(HELLO)
                await trio.lowlevel.checkpoint()
            if leaves:
                if isinstance(transport, CallingTransport):
                    transport.leave()
                transport.gone.set()
                await wait_to_be_cancelled()

    cancelled = await run_cancelled_at(step, stream)
    assert len(ran) == 2
    assert ran[0] is ran[1]
    assert sum(n for (name, _), n in metrics.values.items() if name == "connections_closed") == 1
    assert metrics.get("connections_open") == 0
    if not cancelled:
        assert ran[0] is (CloseReason.client_gone if leaves else CloseReason.finished)
    return cancelled


@pytest.mark.parametrize("leaves", [False, True])
@pytest.mark.parametrize("calls", [False, True])
async def test_cancelled_at_every_step_it_closes_once(leaves: bool, calls: bool, direct: bool) -> None:
    step = 1
    while await cancel_a_connection_at(step, leaves=leaves, direct=direct, calls=calls):
        step += 1
        assert step < 500
    assert step > 7  # a step more for each checkpoint of the block, and of a callback
