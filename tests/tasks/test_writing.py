"""Writing in one go is writing one by one, only quicker: the same journal, the same refusals, the same message."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from penstock import Limits, LocalProtocolError, Turn, TurnState, open_hub
from penstock.limits import WIRE, HubLimits, TurnLimits
from penstock.testing import user_message
from penstock.turns.parts import PIECES, TextPart
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Data,
    Error,
    Finish,
    FinishStep,
    ReasoningDelta,
    ReasoningEnd,
    ReasoningStart,
    Start,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputDelta,
    ToolInputStart,
)
from penstock.wire.codec import encode, encode_deltas
from penstock.wire.messages import UIMessage
from random_turns import random_turn

Answer = Callable[[Turn], Awaitable[None]]


class Written:
    """What became of a turn."""

    def __init__(self, jsons: list[bytes], message: UIMessage, state: TurnState) -> None:
        self.jsons = jsons
        self.message = message
        self.state = state

    @property
    def kinds(self) -> list[str]:
        return [json.partition(b'":"')[2].partition(b'"')[0].decode() for json in self.jsons]


async def write(answer: Answer, limits: TurnLimits = TurnLimits()) -> Written:
    """Run a turn of the same id every time, and return what it left."""
    async with open_hub(limits=Limits(turn=limits)) as hub:
        turn = await hub.start_turn("c", answer, [user_message("x", id="u")])
        state = await turn.wait_ended()
        stored = await hub.turn(turn.id)
        assert stored is not None
        jsons = [entry.json.replace(turn.id.encode(), b"m") for entry in turn._tail.entries]
        return Written(jsons, replace(stored.message(), id="m"), state)


async def one_by_one(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    for chunk in chunks:
        await turn.write(chunk)


async def from_list(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    await turn.write_from(chunks)


async def from_generator(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    await turn.write_from(chunk for chunk in chunks)


async def from_async_generator(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    async def generate() -> AsyncIterator[AnyChunk]:
        for chunk in chunks:
            await trio.lowlevel.checkpoint()
            yield chunk

    await turn.write_from(generate())


async def from_channel(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    send, receive = trio.open_memory_channel[AnyChunk](20)

    async def feed() -> None:
        with send:
            for chunk in chunks:
                await send.send(chunk)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        with receive:
            await turn.write_from(receive)
        nursery.cancel_scope.cancel()


async def nowait(turn: Turn, chunks: Sequence[AnyChunk]) -> None:
    for chunk in chunks:
        turn.write_nowait(chunk)


WAYS = [one_by_one, from_list, from_generator, from_async_generator, from_channel, nowait]


def deltas(count: int, text: str = "x") -> list[AnyChunk]:
    """A part of so many deltas."""
    return [
        TextStart(id="t"),
        *[TextDelta(id="t", delta=f"{text}{n} ") for n in range(count)],
        TextEnd(id="t"),
    ]


@given(seed=st.integers(0, 1 << 32), burst=st.integers(0, 600))
@settings(max_examples=25, deadline=None)
async def test_any_turn_is_the_same_however_it_is_written(seed: int, burst: int) -> None:
    chunks = [*deltas(burst), *random_turn(seed)[1:]]
    dice = random.Random(seed)
    for _ in range(3):  # runs of deltas within it, too
        place = dice.randrange(len(chunks) + 1)
        part = f"p{place}"
        chunks[place:place] = [
            ReasoningStart(id=part), *[ReasoningDelta(id=part, delta="r")] * dice.randrange(40), ReasoningEnd(id=part),
        ]  # fmt: skip
    whole = [await write(lambda turn, way=way: way(turn, chunks)) for way in WAYS]  # type: ignore[misc]
    for written in whole[1:]:
        assert written.jsons == whole[0].jsons
        assert written.message == whole[0].message
        assert written.state is whole[0].state


BAD: dict[str, list[AnyChunk]] = {
    "illegal": [TextEnd(id="other")],
    "a surrogate": [TextDelta(id="t", delta="\ud800")],
    "a delta of another part": [TextDelta(id="other", delta="x")],
    "a delta of no part": [TextDelta(id=1, delta="x")],  # type: ignore[arg-type]
    "not even hashable": [TextDelta(id=["t"], delta="x")],  # type: ignore[arg-type]
    "no text": [TextDelta(id="t", delta=b"x")],  # type: ignore[arg-type]
    "too long": [TextDelta(id="t", delta="x" * WIRE.chunk_bytes)],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD)
async def test_what_came_before_a_refused_chunk_stays_and_nothing_after(
    way: Callable[[Turn, Sequence[AnyChunk]], Awaitable[None]], bad: str
) -> None:
    good = deltas(300)
    chunks = [*good[:150], *BAD[bad], *good[150:]]

    async def answer(turn: Turn) -> None:
        refusal = (
            pytest.RaisesGroup(LocalProtocolError)
            if way is from_channel
            else pytest.raises(LocalProtocolError)
        )
        with refusal:
            await way(turn, chunks)
        await turn.data("after", 1)

    written = await write(answer)
    assert written.kinds == ["start", "text-start", *["text-delta"] * 149, "data-after", "text-end", "finish"]
    assert written.message.parts[0]["text"] == "".join(f"x{n} " for n in range(149))


@pytest.mark.parametrize("way", WAYS)
async def test_over_turn_bytes_what_fitted_stays(
    way: Callable[[Turn, Sequence[AnyChunk]], Awaitable[None]],
) -> None:
    written = await write(lambda turn: way(turn, deltas(300, "x" * 50)), TurnLimits(turn_bytes=5_000))
    assert written.state is TurnState.failed
    assert b"The answer is too long." in written.jsons[-1]
    assert sum(map(len, written.jsons[:-2])) <= 5_000
    assert sum(map(len, written.jsons[:-2])) > 4_800
    same = await write(lambda turn: one_by_one(turn, deltas(300, "x" * 50)), TurnLimits(turn_bytes=5_000))
    assert written.jsons == same.jsons


@pytest.mark.parametrize("way", WAYS)
async def test_ends_inside_a_batch_are_understood_and_not_written(
    way: Callable[[Turn, Sequence[AnyChunk]], Awaitable[None]],
) -> None:
    chunks: list[AnyChunk] = [
        Start(message_id="theirs", message_metadata={"a": 1}),
        *deltas(10),
        Finish(finish_reason="length", message_metadata={"b": 2}),
    ]
    written = await write(lambda turn: way(turn, chunks))
    assert written.kinds == [
        "start", "message-metadata", "text-start", *["text-delta"] * 10, "text-end", "message-metadata", "finish",
    ]  # fmt: skip
    assert b'"length"' in written.jsons[-1]
    assert written.message.id == "m"
    assert written.message.metadata == {"a": 1, "b": 2}
    stopped = await write(lambda turn: way(turn, [*deltas(5), Abort(reason="no more")]))
    assert stopped.state is TurnState.stopped
    failed = await write(lambda turn: way(turn, [*deltas(5), Error(error_text="Too bad."), *deltas(5)]))
    assert (failed.state, failed.jsons[-1]) == (TurnState.failed, b'{"type":"error","errorText":"Too bad."}')
    assert failed.kinds.count("text-delta") == 5


async def test_write_all_is_many_writes() -> None:
    words = ["a", "", "b", *[f"{n} " for n in range(1000)], "", "\n"]

    async def all_at_once(turn: Turn) -> None:
        async with turn.step(), turn.text() as text:
            await text.write_all(words)
        async with turn.reasoning() as thought:
            await thought.write_all(iter(words))
            await thought.write_all([])
            await thought.write_all(["", ""])
        async with turn.lane("worker") as lane, lane.text() as text:
            await text.write_all(words)

    async def singly(turn: Turn) -> None:
        async with turn.step(), turn.text() as text:
            for word in words:
                await text.write(word)
        async with turn.reasoning() as thought:
            for word in words:
                await thought.write(word)
        async with turn.lane("worker") as lane, lane.text() as text:
            for word in words:
                await text.write(word)

    first, second = await write(all_at_once), await write(singly)
    assert first.jsons == second.jsons
    assert first.message == second.message


def write_until_refused(text: TextPart) -> None:
    """Write without end, nearly."""
    for _ in range(100):
        text.write_nowait("x")


async def test_write_nowait_refuses_while_the_store_is_behind(autojump_clock: trio.testing.MockClock) -> None:
    limits = TurnLimits(store_lag_entries=10, yield_entries=1_000)
    refused: list[int] = []

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(3):
                before = len(turn._runner.tail.entries)
                with pytest.raises(trio.WouldBlock):
                    write_until_refused(text)
                for _ in range(3):
                    with pytest.raises(trio.WouldBlock):
                        turn.write_nowait(Data(type="data-x", data=1))
                    with pytest.raises(trio.WouldBlock):
                        text.write_nowait("x")
                    text.write_nowait("")
                refused.append(len(turn._runner.tail.entries) - before)
                await turn.flush()
                text.write_nowait("y")

    written = await write(answer, limits)
    assert all(8 <= count <= 11 for count in refused)
    assert written.kinds.count("text-delta") == sum(refused) + 3
    assert written.state is TurnState.finished


async def test_a_burst_yields_and_waits_for_the_store_within_its_bounds() -> None:
    limits = TurnLimits(yield_entries=100, store_lag_entries=200)
    ticks: list[int] = []
    most_behind = 0

    async def tick(turn: Turn) -> None:
        nonlocal most_behind
        tail = turn._runner.tail
        while True:
            ticks.append(len(tail.entries))
            most_behind = max(most_behind, len(tail.entries) - tail.stored)
            await trio.lowlevel.checkpoint()

    def answer(way: str) -> Answer:
        async def write_much(turn: Turn) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick, turn)
                await trio.lowlevel.checkpoint()
                async with turn.text() as text:
                    if way == "write":
                        for _ in range(3_000):
                            await text.write("x")
                    elif way == "write_all":
                        await text.write_all(itertools.repeat("x", 3_000))
                    else:
                        await turn.write_from(TextDelta(id="text-1", delta="x") for _ in range(3_000))
                nursery.cancel_scope.cancel()

        return write_much

    for way in ("write", "write_all", "write_from"):
        ticks.clear()
        most_behind = 0
        assert (await write(answer(way), limits)).kinds.count("text-delta") == 3_000
        longest = max(after - before for before, after in itertools.pairwise(ticks))
        # Twice: the one may be the first in a pass and the last in the next.
        assert longest <= 2 * (100 if way == "write" else PIECES) + 2
        assert most_behind <= 200 + 2 * PIECES


async def test_long_chunks_yield_by_their_bytes() -> None:
    passes = 0

    async def answer(turn: Turn) -> None:
        async def tick() -> None:
            nonlocal passes
            while True:
                await trio.lowlevel.checkpoint()
                passes += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            async with turn.text() as text:
                for _ in range(100):
                    await text.write("x" * 10_000)
            nursery.cancel_scope.cancel()

    await write(answer)
    assert passes >= 100 * 10_000 // TurnLimits().yield_bytes // 2


@pytest.mark.parametrize("way", ["write", "write_all", "write_from", "a generator"])
async def test_a_loop_that_only_writes_hears_that_it_is_cancelled(way: str) -> None:
    """And what it wrote by then is journalled whole; it does not run on for ever."""
    written = 0

    async def answer(turn: Turn) -> None:
        def words() -> Any:
            nonlocal written
            while True:
                written += 1
                assert written < 100_000
                yield "x"

        async with turn.text(id="t") as text:
            if way == "write":
                for word in words():
                    await text.write(word)
            elif way == "write_all":
                await text.write_all(words())
            elif way == "write_from":
                await turn.write_from(TextDelta(id="t", delta=word) for word in words())
            else:

                async def generate() -> AsyncIterator[AnyChunk]:
                    for word in words():
                        yield TextDelta(id="t", delta=word)

                await turn.write_from(generate())

    async with open_hub(limits=Limits(hub=HubLimits(flush_s=0.001))) as hub:
        turn = await hub.start_turn("c", answer, [user_message("x")])
        while turn.entries < 1_000:
            await trio.lowlevel.checkpoint()
        with trio.fail_after(5):
            assert await turn.stop() is TurnState.stopped
        texts = [entry.chunk for entry in turn._tail.entries if isinstance(entry.chunk, TextDelta)]
        assert len(texts) <= written


async def test_an_async_generator_is_closed_when_it_is_cancelled() -> None:
    closed: list[str] = []

    async def answer(turn: Turn) -> None:
        async def generate() -> AsyncIterator[AnyChunk]:
            try:
                yield TextStart(id="t")
                while True:
                    yield TextDelta(id="t", delta="x")
                    await trio.lowlevel.checkpoint()
            finally:
                closed.append("closed")

        try:
            await turn.write_from(generate())
        finally:
            assert closed == ["closed"]

    async with open_hub() as hub:
        turn = await hub.start_turn("c", answer, [user_message("x")])
        while turn.entries < 10:
            await trio.lowlevel.checkpoint()
        await turn.stop()
    assert closed == ["closed"]


async def test_a_channel_is_written_as_it_is_filled_and_what_waits_at_once() -> None:
    """The first chunk is not kept waiting for a second one, and many that wait are one burst."""
    send, receive = trio.open_memory_channel[AnyChunk](1_000)
    passes: list[int] = []

    async def answer(turn: Turn) -> None:
        with receive:
            await turn.write_from(receive)

    async with open_hub() as hub:
        turn = await hub.start_turn("c", answer, [user_message("x")])
        with send:
            for count in (1, 1, 500):
                before = turn.entries
                for _ in range(count):
                    send.send_nowait(Data(type="data-n", data=1))
                passes.append(0)
                with trio.fail_after(2):
                    while turn.entries < before + count:
                        await trio.lowlevel.checkpoint()
                        passes[-1] += 1
        assert await turn.wait_ended() is TurnState.finished
    assert max(passes) < 20
    assert receive.statistics().open_receive_channels == 0


texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\n", "\r\n", "\u2028", "\\", '"', "\ud800", "x\udfff", "\x00", "é", ""]),
)
wrong: st.SearchStrategy[Any] = st.one_of(
    texts, st.sampled_from([None, 1, True, 1.0, b"x", [], {}, UNSET, ["t"], ("t",), float("nan")])
)
ids: st.SearchStrategy[Any] = st.one_of(st.just("t"), st.just("t"), st.just("t"), wrong)
metadata: st.SearchStrategy[Any] = st.sampled_from([UNSET, UNSET, UNSET, UNSET, {}, {"p": {"k": 1}}, None, 1])
delta_chunks: st.SearchStrategy[Any] = st.one_of(
    st.builds(TextDelta, id=ids, delta=wrong, provider_metadata=metadata),
    st.builds(ReasoningDelta, id=ids, delta=wrong, provider_metadata=metadata),
    st.builds(ToolInputDelta, tool_call_id=ids, input_text_delta=wrong),
)
of_one_part: st.SearchStrategy[list[Any]] = st.one_of(
    st.lists(st.builds(TextDelta, id=st.just("t"), delta=texts), min_size=1),
    st.lists(st.builds(ReasoningDelta, id=st.just("t"), delta=texts), min_size=1),
    st.lists(st.builds(ToolInputDelta, tool_call_id=st.just("t"), input_text_delta=texts), min_size=1),
)
anything: st.SearchStrategy[list[Any]] = st.one_of(
    of_one_part,
    st.tuples(of_one_part, delta_chunks, of_one_part).map(lambda three: [*three[0], three[1], *three[2]]),
    st.lists(
        st.one_of(delta_chunks, st.sampled_from([StartStep(), FinishStep(), TextStart(id="t"), 1, None]))
    ),
)


@given(chunks=anything)
@settings(max_examples=600, deadline=None)
def test_deltas_in_one_go_are_encoded_as_each_is_or_not_at_all(chunks: list[Any]) -> None:
    together = encode_deltas(chunks)
    try:
        each = [encode(chunk) for chunk in chunks]
    except (LocalProtocolError, AttributeError):
        assert together is None
        return
    assert together is None or together == each


def test_deltas_of_one_part_are_encoded_in_one_go() -> None:
    """Else all of this would be for nothing."""
    for chunks in (
        [TextDelta(id="t", delta=f"{n}\n") for n in range(300)],
        [ReasoningDelta(id="t", delta="é")],
        [ToolInputDelta(tool_call_id="t", input_text_delta='{"')] * 3,
    ):
        assert encode_deltas(chunks) == [encode(chunk) for chunk in chunks]
    assert encode_deltas([TextDelta(id="t", delta="x" * WIRE.chunk_bytes)]) is None
    assert encode_deltas([]) is None
    for wrong_id in (1, None, ["t"], b"t"):
        assert encode_deltas([TextDelta(id=wrong_id, delta="x")] * 2) is None  # type: ignore[arg-type]
        assert encode_deltas([ToolInputDelta(tool_call_id=wrong_id, input_text_delta="x")] * 2) is None  # type: ignore[arg-type]
    assert encode_deltas([ToolInputStart(tool_call_id="t", tool_name="n")]) is None
