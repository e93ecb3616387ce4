"""Slow viewers: exact text in fewer frames, nothing critical lost, nobody else kept waiting, and an end to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import trio

from penstock import CloseReason, Turn, open_hub
from penstock.connections.connection import Connection, open_connection
from penstock.connections.pump import merge, pump
from penstock.journal.entry import Entry
from penstock.limits import ConnectionLimits, Limits, TurnLimits, ViewerLimits
from penstock.metrics import Counters
from penstock.testing import MemoryTransport, user_message
from penstock.turns.handle import TurnHandle
from penstock.wire.assembly import assemble
from penstock.wire.chunks import AnyChunk, Data, ReasoningDelta, TextDelta, TextEnd, TextStart, ToolInputDelta
from penstock.wire.codec import decode_chunk, encode
from penstock.wire.sse_parser import SseParser


def frames(entries: Sequence[Entry]) -> bytes:
    """Everything, as a plain stream."""
    return b"".join(entry.frame for entry in entries)


def chunks_of(transport: MemoryTransport) -> list[AnyChunk]:
    """What a client has been sent."""
    events = SseParser().feed(transport.data)
    return [decode_chunk(event.data.encode()) for event in events if event.data != "[DONE]"]


@pytest.fixture(params=["fast lane", "fallback"])
def direct(request: pytest.FixtureRequest) -> bool:
    """Whether the viewers' transports are direct: what they see is the same."""
    return bool(request.param == "fast lane")


class SlowTransport(MemoryTransport):
    """Takes so many bytes a second. Written to directly it takes one piece, and no other before that is through."""

    def __init__(self, rate: float, *, direct: bool) -> None:
        super().__init__(direct=direct)
        self.rate = rate
        self.busy_until = 0.0

    async def write(self, data: bytes) -> None:
        await trio.sleep_until(self.busy_until)
        await trio.sleep(len(data) / self.rate)
        await super().write(data)

    def write_nowait(self, data: bytes) -> bool:
        if trio.current_time() < self.busy_until or not super().write_nowait(data):
            return False
        self.busy_until = trio.current_time() + len(data) / self.rate
        return True


async def view(
    turn: TurnHandle,
    transport: MemoryTransport,
    metrics: Counters,
    *,
    exact: bool = False,
    limits: ViewerLimits = ViewerLimits(),
    connection_limits: ConnectionLimits = ConnectionLimits(),
) -> Connection:
    """Follow a turn to its end, or to the connection's."""
    with turn.follow() as subscription:
        async with open_connection(transport, limits=connection_limits, metrics=metrics) as connection:
            await pump(subscription, connection, frames, limits=limits, metrics=metrics, exact=exact)
    return connection


async def talk(turn: Turn) -> None:
    """100 words a second for 100 s, and notes that nobody keeps."""
    async with turn.text() as text:
        for number in range(10_000):
            await text.write(f"{number} ")
            if number % 100 == 0:
                await turn.data("progress", number, transient=True)
                await turn.data("kept", number, id="k")
            await trio.sleep(0.01)


TEXT = "".join(f"{number} " for number in range(10_000))


@pytest.mark.parametrize("exact", [False, True])
async def test_a_slow_viewer_gets_the_exact_text_and_delays_nobody(
    exact: bool, direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    slow, quick = SlowTransport(20_000, direct=direct), MemoryTransport(direct=direct)
    metrics = Counters()
    began = trio.current_time()
    async with open_hub() as hub, trio.open_nursery() as nursery:
        turn = await hub.start_turn("c", talk, [user_message("x")])

        async def view_slowly() -> None:
            await trio.sleep(30)  # so it begins far behind
            await view(turn, slow, metrics, exact=exact)

        nursery.start_soon(view_slowly)
        await view(turn, quick, Counters())
        assert trio.current_time() - began == pytest.approx(100, abs=1)
        nursery_done = await turn.wait_ended()
        assert nursery_done.ended
    message = assemble(chunks_of(quick), "")
    assert message["parts"][0]["text"] == TEXT
    assert assemble(chunks_of(slow), "") == message
    kinds = [chunk.kind for chunk in chunks_of(slow)]
    if exact:
        assert [encode(chunk) for chunk in chunks_of(slow)] == [encode(chunk) for chunk in chunks_of(quick)]
        assert metrics.get("viewer_dropped") == 0
    else:
        assert kinds.count("text-delta") < 10_000
        assert metrics.get("viewer_dropped") > 0
        # One of each hundred was dropped or sent; the kept ones were all sent.
        assert kinds.count("data-progress") + metrics.get("viewer_dropped") == 100
        assert kinds.count("data-kept") == 100


async def test_a_viewer_that_stays_behind_is_cut_as_a_slow_consumer(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    async def flood(turn: Turn) -> None:
        async with turn.text() as text:
            while True:
                await text.write("x" * 1000)
                await trio.sleep(0.01)

    metrics = Counters()
    async with open_hub() as hub:
        turn = await hub.start_turn("c", flood, [user_message("x")], orphan_grace_s=0.0)
        # It takes bytes all the time, so it isn't stalled; but ten times too slowly.
        connection = await view(
            turn,
            SlowTransport(10_000, direct=direct),
            metrics,
            connection_limits=ConnectionLimits(write_stall_s=math.inf, queue_bytes=32 << 10),
        )
        assert connection.close_reason is CloseReason.slow_consumer
        # It is asked between two writes, and one of all that it lacks may take it minutes.
        assert 60 < trio.current_time() < 600
        await turn.wait_ended()
    assert metrics.get("connections_closed", reason="slow_consumer") == 1


async def test_a_viewer_that_was_behind_once_and_kept_up_since_is_not_cut(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    """Two bad moments are no minute without a break."""

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(2):
                await text.write_all(["x"] * 5000)
                for _ in range(300):
                    await trio.sleep(1)
                    await text.write("y")

    transport, metrics = MemoryTransport(direct=direct), Counters()
    async with open_hub() as hub, trio.open_nursery() as nursery:
        turn = await hub.start_turn("c", answer, [user_message("x")])

        async def stop_reading_for_a_while(begin_s: float) -> None:
            await trio.sleep_until(begin_s)
            transport.reading = trio.Event()
            await trio.sleep(5)
            transport.reading.set()

        nursery.start_soon(stop_reading_for_a_while, 0.0)
        nursery.start_soon(stop_reading_for_a_while, 299.5)
        connection = await view(turn, transport, metrics, connection_limits=ConnectionLimits(queue_bytes=100))
    assert connection.close_reason is CloseReason.finished
    assert metrics.get("viewer_merges") > 1
    assert assemble(chunks_of(transport), "")["parts"][0]["text"] == ("x" * 5000 + "y" * 300) * 2


async def test_twenty_stalled_of_two_hundred_viewers_change_nothing_for_the_others(
    direct: bool, autojump_clock: trio.abc.Clock
) -> None:
    async def burst(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(10_000):
                await text.write(f"{number} ")

    transports = [MemoryTransport(direct=direct) for _ in range(200)]
    for transport in transports[:20]:
        transport.reading = trio.Event()
    metrics = Counters()
    reasons: dict[CloseReason | None, int] = {}
    async with open_hub(limits=Limits(turn=TurnLimits())) as hub, trio.open_nursery() as nursery:
        turn = await hub.start_turn("c", burst, [user_message("x")])

        async def one(transport: MemoryTransport) -> None:
            connection = await view(turn, transport, metrics)
            reasons[connection.close_reason] = reasons.get(connection.close_reason, 0) + 1

        for transport in transports:
            nursery.start_soon(one, transport)
        ended = await turn.wait_ended()
        assert ended.ended
        assert trio.current_time() == 0  # not one second was waited for anybody
    assert reasons == {CloseReason.finished: 180, CloseReason.write_stalled: 20}
    datas = {transport.data for transport in transports[20:]}
    texts = {assemble(chunks_of_data(data), "")["parts"][0]["text"] for data in datas}
    assert texts == {TEXT}


def chunks_of_data(data: bytes) -> list[AnyChunk]:
    """The chunks of a recorded stream."""
    events = SseParser().feed(data)
    return [decode_chunk(event.data.encode()) for event in events if event.data != "[DONE]"]


def test_merge_joins_only_what_is_adjacent_and_of_one_part() -> None:
    chunks: list[AnyChunk] = [
        TextStart(id="a"),
        TextDelta(id="a", delta="1"),
        TextDelta(id="a", delta="2"),
        TextDelta(id="b", delta="3"),
        ReasoningDelta(id="b", delta="4"),
        ReasoningDelta(id="b", delta="5"),
        TextDelta(id="a", delta="6"),
        Data(type="data-note", data=1, transient=True),
        TextDelta(id="a", delta="7"),
        TextDelta(id="a", delta="8", provider_metadata={"p": {}}),
        TextDelta(id="a", delta="9"),
        ToolInputDelta(tool_call_id="t", input_text_delta="{"),
        ToolInputDelta(tool_call_id="t", input_text_delta="}"),
        TextEnd(id="a"),
    ]
    entries = [Entry(offset, chunk, encode(chunk), b"m.1-") for offset, chunk in enumerate(chunks)]
    merged, dropped = merge(entries)
    assert dropped == 1
    assert [(entry.offset, entry.chunk) for entry in merged] == [
        (0, TextStart(id="a")),
        (2, TextDelta(id="a", delta="12")),
        (3, TextDelta(id="b", delta="3")),
        (5, ReasoningDelta(id="b", delta="45")),
        (6, TextDelta(id="a", delta="6")),
        (8, TextDelta(id="a", delta="7")),
        (9, TextDelta(id="a", delta="8", provider_metadata={"p": {}})),
        (10, TextDelta(id="a", delta="9")),
        (12, ToolInputDelta(tool_call_id="t", input_text_delta="{}")),
        (13, TextEnd(id="a")),
    ]
    assert [decode_chunk(entry.json) for entry in merged] == [entry.chunk for entry in merged]
