"""A turn ends once, with one terminal chunk, whoever ends it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from penstock import AnswerError, Hub, LocalProtocolError, Turn, TurnConflictError, TurnState, open_hub
from penstock.errors import TurnSealedError
from penstock.limits import HubLimits, Limits, TurnLimits
from penstock.metrics import Counters
from penstock.testing import run_cancelled_at, user_message
from penstock.turns.error_text import FAILED
from penstock.turns.handle import TurnHandle
from penstock.turns.hub import HubFullError
from penstock.turns.parts import TOOL_FAILED
from penstock.turns.runner import INTERRUPTED, LOST
from penstock.wire.assembly import assemble
from penstock.wire.chunks import (
    Abort,
    AnyChunk,
    Custom,
    Data,
    Error,
    Finish,
    FinishStep,
    MessageMetadata,
    Start,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputAvailable,
    ToolOutputError,
)

Answer = Callable[[Turn], Awaitable[None]]


async def read(turn: TurnHandle) -> list[AnyChunk]:
    """Follow a turn to its end."""
    chunks: list[AnyChunk] = []
    with turn.follow() as subscription:
        while True:
            try:
                chunks += [entry.chunk for entry in await subscription.next_batch(100)]
            except trio.EndOfChannel:
                return chunks


async def run_turn(answer: Answer, **options: Any) -> tuple[list[AnyChunk], TurnState]:
    """Run one turn in a hub of its own."""
    async with open_hub(**options) as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        return await read(turn), await turn.wait_ended()


def terminals(chunks: list[AnyChunk]) -> list[AnyChunk]:
    """The chunks that say how a turn ended."""
    return [chunk for chunk in chunks if isinstance(chunk, Finish | Error)]


async def test_a_producer_that_returns_finishes() -> None:
    async def answer(turn: Turn) -> None:
        assert turn.prompt == "Hello"
        async with turn.text() as text:
            await text.write("Hi")
            await text.write("")
            await text.write(" there.")

    chunks, state = await run_turn(answer)
    assert state is TurnState.finished
    assert isinstance(chunks[0], Start)
    assert chunks[1:] == [
        TextStart(id="text-1"),
        TextDelta(id="text-1", delta="Hi"),
        TextDelta(id="text-1", delta=" there."),
        TextEnd(id="text-1"),
        Finish(finish_reason="stop"),
    ]


async def test_the_producers_finish_reason_is_used() -> None:
    async def answer(turn: Turn) -> None:
        turn.finish_reason = "length"

    chunks, _ = await run_turn(answer)
    assert chunks[-1] == Finish(finish_reason="length")


async def test_a_producer_that_raises_fails_and_its_words_stay_here(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.step(), turn.text() as text:
            await text.write("Half of")
            raise RuntimeError("password: hunter2")

    chunks, state = await run_turn(answer)
    assert state is TurnState.failed
    assert chunks[-3:] == [TextEnd(id="text-1"), FinishStep(), Error(error_text=FAILED)]
    assert "hunter2" not in str(chunks)
    assert "hunter2" in caplog.text


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_answer_error_is_shown(grouped: bool) -> None:
    async def fail() -> None:
        raise AnswerError("The library is closed.")

    async def answer(turn: Turn) -> None:
        if grouped:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(trio.sleep_forever)
        await fail()

    chunks, state = await run_turn(answer)
    assert state is TurnState.failed
    assert terminals(chunks) == [Error(error_text="The library is closed.")]


async def test_the_app_may_word_an_error() -> None:
    def words(exc: Exception) -> str | None:
        return "Division is hard." if isinstance(exc, ZeroDivisionError) else None

    async def divide(turn: Turn) -> None:
        raise ZeroDivisionError

    async def other(turn: Turn) -> None:
        raise KeyError("secret")

    assert (await run_turn(divide, error_text=words))[0][-1] == Error(error_text="Division is hard.")
    assert (await run_turn(other, error_text=words))[0][-1] == Error(error_text=FAILED)


async def test_a_stop_closes_what_is_open_and_keeps_the_partial_message() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.step(), turn.tool_call("search", {"q": "x"}, id="call-1"), turn.text() as text:
            await text.write("Half")
            await trio.sleep_forever()

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        await trio.testing.wait_all_tasks_blocked()
        assert await turn.stop("the user pressed Stop") is TurnState.stopped
        assert await turn.stop("once more") is TurnState.stopped
        chunks = await read(turn)
        chat = await hub.chat("chat")
    assert chunks[-5:] == [
        TextEnd(id="text-1"),
        ToolOutputError(tool_call_id="call-1", error_text=INTERRUPTED),
        FinishStep(),
        Abort(reason="the user pressed Stop"),
        Finish(finish_reason="other"),
    ]
    assert chat is not None
    assert chat.messages[-1].text == "Half"
    assert chat.turn is not None
    assert chat.turn.state is TurnState.stopped


async def test_a_stop_of_a_producer_that_will_not_end_is_forced(autojump_clock: trio.abc.Clock) -> None:
    refused: list[BaseException] = []

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            with trio.CancelScope(shield=True):
                await text.write("I do not")
                await trio.sleep(60)
                try:
                    await text.write(" stop")
                except TurnSealedError as exc:
                    refused.append(exc)

    metrics = Counters()
    async with open_hub(metrics=metrics) as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        await trio.sleep(1)
        start = trio.current_time()
        assert await turn.stop() is TurnState.stopped
        assert trio.current_time() - start == pytest.approx(5)
        before = await read(turn)
        await trio.sleep(120)
        assert await read(turn) == before
        assert hub.statistics().turns_running == 0
    assert len(refused) == 1
    assert terminals(before) == [Finish(finish_reason="other")]
    assert metrics.get("turns_forced") == 1
    assert metrics.get("turns_ended", outcome="stopped") == 1


async def test_a_producer_that_returns_although_stopped_has_finished() -> None:
    async def answer(turn: Turn) -> None:
        await turn.metadata({"done": True})
        try:
            await trio.sleep_forever()
        finally:
            # It had its whole answer; the stop came too late to matter, and the outcome says so.
            return  # noqa: B012

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        await trio.testing.wait_all_tasks_blocked()
        assert await turn.stop() is TurnState.finished


async def test_a_hub_that_closes_ends_its_turns_as_lost() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Half")
            await trio.sleep_forever()

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        await trio.testing.wait_all_tasks_blocked()
    chunks = await read(turn)
    assert turn.state is TurnState.lost
    assert terminals(chunks) == [Error(error_text=LOST)]
    assert chunks[-2] == TextEnd(id="text-1")


async def test_drain_lets_turns_end_and_takes_no_new_ones(autojump_clock: trio.abc.Clock) -> None:
    async def quick(turn: Turn) -> None:
        await trio.sleep(3)

    async def endless(turn: Turn) -> None:
        await trio.sleep_forever()

    async with open_hub() as hub, trio.open_nursery() as nursery:
        first = await hub.start_turn("a", quick, [user_message("Hello")])
        second = await hub.start_turn("b", endless, [user_message("Hello")])
        nursery.start_soon(hub.drain, 5)
        await trio.sleep(1)
        with pytest.raises(HubFullError):
            await hub.start_turn("c", quick, [user_message("Hello")])
        assert await first.wait_ended() is TurnState.finished
        assert await second.wait_ended() is TurnState.lost
        assert trio.current_time() == pytest.approx(5)


@pytest.mark.parametrize("grace_s", [0.0, 30.0])
async def test_a_turn_without_followers_is_cancelled_after_its_grace(
    grace_s: float, autojump_clock: trio.abc.Clock
) -> None:
    async def answer(turn: Turn) -> None:
        await trio.sleep_forever()

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")], orphan_grace_s=grace_s)
        await trio.sleep(100)  # nobody has followed yet: it is not an orphan
        with turn.follow():
            await trio.sleep(100)
        if grace_s:
            await trio.sleep(grace_s - 1)
            with turn.follow():  # back within the grace: the clock stops
                await trio.sleep(100)
        left = trio.current_time()
        assert await turn.wait_ended() is TurnState.stopped
        assert trio.current_time() - left == pytest.approx(grace_s)


async def test_a_turn_runs_on_without_followers_by_default(autojump_clock: trio.abc.Clock) -> None:
    async def answer(turn: Turn) -> None:
        await trio.sleep(3600)

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        with turn.follow():
            await trio.sleep(1)
        assert await turn.wait_ended() is TurnState.finished


async def test_the_same_message_joins_and_another_conflicts() -> None:
    runs = 0

    async def answer(turn: Turn) -> None:
        nonlocal runs
        runs += 1
        await trio.sleep_forever()

    async with open_hub() as hub:
        message = user_message("Hello")
        turn = await hub.start_turn("chat", answer, [message])
        assert (await hub.start_turn("chat", answer, [message])).id == turn.id
        with pytest.raises(TurnConflictError):
            await hub.start_turn("chat", answer, [user_message("Hello")])
        await hub.start_turn("another chat", answer, [message])
        await trio.testing.wait_all_tasks_blocked()
    assert runs == 2


async def test_running_turns_are_bounded() -> None:
    async def answer(turn: Turn) -> None:
        await trio.sleep_forever()

    async with open_hub(limits=Limits(hub=HubLimits(running_turns=2))) as hub:
        await hub.start_turn("a", answer, [user_message("Hello")])
        turn = await hub.start_turn("b", answer, [user_message("Hello")])
        with pytest.raises(HubFullError):
            await hub.start_turn("c", answer, [user_message("Hello")])
        await turn.stop()
        await trio.testing.wait_all_tasks_blocked()
        await hub.start_turn("c", answer, [user_message("Hello")])


async def test_a_turn_that_is_too_long_fails_with_a_reason() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            while True:
                await text.write("x" * 100)

    chunks, state = await run_turn(answer, limits=Limits(turn=TurnLimits(turn_bytes=5000)))
    assert state is TurnState.failed
    assert terminals(chunks) == [Error(error_text="The answer is too long.")]


async def test_an_illegal_chunk_is_refused_and_changes_nothing() -> None:
    async def answer(turn: Turn) -> None:
        with pytest.raises(LocalProtocolError):
            await turn.write(TextDelta(id="nowhere", delta="x"))
        with pytest.raises(LocalProtocolError):
            await turn.data("x", {1, 2})
        await turn.data("x", None)

    chunks, state = await run_turn(answer)
    assert state is TurnState.finished
    assert chunks[1:-1] == [Data(type="data-x", data=None)]


async def test_all_writers(autojump_clock: trio.abc.Clock) -> None:
    async def answer(turn: Turn) -> None:
        await turn.metadata({"model": "m"})
        async with turn.step():
            async with turn.reasoning() as thought:
                await thought.write("Hm.")
            async with turn.tool_call("add", title="Addition") as call:
                await call.write_input('{"a": 1,')
                await call.write_input(' "b": 2}')
                await call.output({"so far": 1}, preliminary=True)
                await call.output(3)
            async with turn.tool_call("fail", {"x": 1}, dynamic=True) as call:
                await call.error("It can't be done.")
            async with turn.tool_call("garbled") as call:
                await call.write_input("{")
            async with turn.tool_call("client side", {}, id="mine"):
                pass
            await turn.source("https://example.org", title="Example")
            await turn.source_document("A book", "application/pdf", filename="book.pdf")
            await turn.file("data:text/plain,hi", "text/plain")
            await turn.data("weather", {"t": 20}, id="w")
            await turn.data("weather", {"t": 21}, id="w")
            await turn.data("note", "passing", transient=True)
            await turn.write(Custom(kind_="acme.thing"))

    chunks, state = await run_turn(answer)
    assert state is TurnState.suspended  # the last call is the client's to execute
    message = assemble(chunks, "")
    assert message["metadata"] == {"model": "m"}
    tools = [part for part in message["parts"] if "toolCallId" in part]
    assert [(part["type"], part["state"]) for part in tools] == [
        ("tool-add", "output-available"),
        ("dynamic-tool", "output-error"),
        ("tool-garbled", "output-error"),
        ("tool-client side", "input-available"),
    ]
    assert tools[0]["input"] == {"a": 1, "b": 2}
    assert tools[0]["output"] == 3
    assert tools[3]["toolCallId"] == "mine"
    assert [part["data"] for part in message["parts"] if part["type"] == "data-weather"] == [{"t": 21}]


async def test_a_tools_error_that_the_producer_catches_does_not_end_the_turn() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.step():
            with pytest.raises(ZeroDivisionError):
                async with turn.tool_call("divide", {"by": 0}, id="c"):
                    raise ZeroDivisionError("secret")
            async with turn.text() as text:
                await text.write("It did not work.")

    chunks, state = await run_turn(answer)
    assert state is TurnState.finished
    assert ToolOutputError(tool_call_id="c", error_text=TOOL_FAILED) in chunks
    assert "secret" not in str(chunks)


async def test_write_from_understands_a_whole_stream() -> None:
    closed = False

    async def stream() -> AsyncIterator[AnyChunk]:
        nonlocal closed
        try:
            yield Start(message_id="theirs", message_metadata={"a": 1})
            yield StartStep()
            yield ToolInputAvailable(tool_call_id="c", tool_name="t", input=1)
            yield FinishStep()
            yield Finish(finish_reason="tool-calls", message_metadata={"b": 2})
        finally:
            closed = True

    async def answer(turn: Turn) -> None:
        await turn.write_from(stream())

    chunks, _ = await run_turn(answer)
    assert closed
    assert isinstance(chunks[0], Start)
    assert chunks[0].message_id != "theirs"
    assert chunks[1:] == [
        MessageMetadata(message_metadata={"a": 1}),
        StartStep(),
        ToolInputAvailable(tool_call_id="c", tool_name="t", input=1),
        FinishStep(),
        MessageMetadata(message_metadata={"b": 2}),
        Finish(finish_reason="tool-calls"),
    ]


@pytest.mark.parametrize(
    ("last", "state", "terminal"),
    [
        (Abort(reason="upstream"), TurnState.stopped, Finish(finish_reason="other")),
        (Error(error_text="They broke."), TurnState.failed, Error(error_text="They broke.")),
    ],
)
async def test_a_relayed_end_becomes_the_turns(last: AnyChunk, state: TurnState, terminal: AnyChunk) -> None:
    async def stream() -> AsyncIterator[AnyChunk]:
        yield last

    async def answer(turn: Turn) -> None:
        await turn.write_from(stream())

    chunks, outcome = await run_turn(answer)
    assert outcome is state
    assert terminals(chunks) == [terminal]


async def cancel_a_turn_at(step: int) -> bool:
    """Run a short turn, cancel everything at a step, and check that it ended once. False when nothing is left."""

    async def answer(turn: Turn) -> None:
        async with turn.step(), turn.text() as text:
            for word in ("a", "b", "c"):
                await text.write(word)
                await trio.lowlevel.checkpoint()

    metrics = Counters()
    hubs: list[Hub] = []
    turns: list[TurnHandle] = []

    async def body() -> None:
        async with open_hub(metrics=metrics) as hub:
            hubs.append(hub)
            turns.append(await hub.start_turn("chat", answer, [user_message("Hello")]))
            await turns[0].wait_ended()

    cancelled = await run_cancelled_at(step, body)
    assert metrics.get("turns_running") == 0
    if turns:
        assert sum(n for (name, _), n in metrics.values.items() if name == "turns_ended") == 1
        chunks = await read(turns[0])
        assert terminals(chunks) == [chunks[-1]]
        assert turns[0].state in (
            (TurnState.lost, TurnState.finished) if cancelled else (TurnState.finished,)
        )
        record = await hubs[0].chat("chat")
        assert record is not None
        assert record.turn is not None
        assert record.turn.state is turns[0].state
    return cancelled


async def test_cancelled_at_every_step_a_turn_is_sealed_once_with_one_terminal_chunk() -> None:
    step = 1
    while await cancel_a_turn_at(step):
        step += 1
        assert step < 500
    assert step > 10


async def test_two_hundred_races_of_finish_and_stop_have_one_winner(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def answer(turn: Turn) -> None:
        await trio.sleep(0.5)

    async with open_hub() as hub:
        for race in range(200):
            turn = await hub.start_turn("chat", answer, [user_message("Hello")])
            async with trio.open_nursery() as nursery:
                await trio.sleep(0.5 if race % 2 else 0.499)
                for _ in range(3):
                    nursery.start_soon(turn.stop)
            chunks = await read(turn)
            assert len(terminals(chunks)) == 1


async def test_statistics() -> None:
    async def answer(turn: Turn) -> None:
        await turn.metadata({"a": 1})
        await turn.flush()
        await trio.sleep_forever()

    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        with turn.follow():
            await trio.testing.wait_all_tasks_blocked()
            statistics = hub.statistics()
    assert (statistics.turns_running, statistics.followers) == (1, 1)
    assert (statistics.entries, statistics.entries_not_stored) == (2, 0)


async def test_a_burst_lets_others_run() -> None:
    passes = 0

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(1000):
                await text.write("x")

    async def count() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async with open_hub() as hub, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        await turn.wait_ended()
        nursery.cancel_scope.cancel()
    assert passes >= 1000 // TurnLimits().yield_entries
    assert passes < math.inf
