"""A turn outlives connections, owners and processes: it ends once, and no turn runs for ever."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from penstock import Hub, Limits, Turn, TurnConflictError, TurnState, open_hub
from penstock.errors import TurnSealedError
from penstock.journal.store import Batch, TurnRecord, open_store
from penstock.limits import HubLimits, TurnLimits
from penstock.testing import run_cancelled_at, user_message
from penstock.turns.handle import TurnHandle
from penstock.turns.runner import INTERRUPTED, LOST
from penstock.wire.assembly import assemble
from penstock.wire.chunks import (
    AnyChunk,
    Error,
    Finish,
    FinishStep,
    Start,
    StartStep,
    TextDelta,
    TextEnd,
    TextStart,
    ToolInputAvailable,
    ToolOutputError,
)
from penstock.wire.codec import decode_stored, encode

QUICK = Limits(hub=HubLimits(lease_s=0.3, replica_poll_s=0.02), turn=TurnLimits(stop_grace_s=0.3))


async def read(turn: TurnHandle) -> list[AnyChunk]:
    """Follow a turn to its end."""
    chunks: list[AnyChunk] = []
    with turn.follow() as subscription:
        while True:
            try:
                chunks += [entry.chunk for entry in await subscription.next_batch(100)]
            except trio.EndOfChannel:
                return chunks


async def talk(turn: Turn) -> None:
    """Speaks until it is stopped."""
    async with turn.text() as text:
        for number in itertools.count():
            await text.write(f"{number} ")
            await trio.sleep(0.005)


async def leave_a_dead_turn(journal: str, chunks: Sequence[AnyChunk], *, lease_s: float = -1.0) -> TurnRecord:
    """Leave in a journal what a process leaves that is killed in mid-turn."""
    async with open_store(journal) as store:
        record = await store.begin(
            "chat", "msg_dead", "u", [user_message("Hello", id="u")],
            at=time.time(), lease_until=time.time() + lease_s,
        )  # fmt: skip
        await store.append([Batch(record, 0, [encode(chunk) for chunk in chunks])])
    return record


HALF: list[AnyChunk] = [
    Start(message_id="msg_dead"),
    StartStep(),
    ToolInputAvailable(tool_call_id="c", tool_name="t", input={}),
    TextStart(id="text-1"),
    TextDelta(id="text-1", delta="Half"),
]


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """A journal that outlives a hub."""
    return f"sqlite:{tmp_path}/chat.db"


async def test_a_turn_whose_process_died_is_lost_with_its_partial_message(journal: str) -> None:
    await leave_a_dead_turn(journal, HALF)
    async with open_hub(journal=journal, limits=QUICK) as hub:
        turn = await hub.newest_turn("chat")
        assert turn is not None
        chunks = await read(turn)
        chat = await hub.chat("chat")
    assert turn.state is TurnState.lost
    assert chunks == [
        *HALF,
        TextEnd(id="text-1"),
        ToolOutputError(tool_call_id="c", error_text=INTERRUPTED),
        FinishStep(),
        Error(error_text=LOST),
    ]
    assert turn.record.epoch == 2
    assert chat is not None
    assert chat.messages[-1].text == "Half"


@pytest.mark.parametrize("chunks", [[], HALF[:1], HALF[:4], [Start(), Finish(finish_reason="tool-calls")]])
async def test_wherever_it_died_the_turn_gets_one_legal_end(journal: str, chunks: list[AnyChunk]) -> None:
    await leave_a_dead_turn(journal, chunks)
    async with open_hub(journal=journal, limits=QUICK) as hub:
        turn = await hub.turn("msg_dead")
        assert turn is not None
        assert (await read(turn))[-1] == Error(error_text=LOST)
        assert turn.state is TurnState.lost


async def test_the_sweeper_ends_it_though_nobody_looks(journal: str) -> None:
    await leave_a_dead_turn(journal, HALF, lease_s=0.1)
    async with open_hub(journal=journal, limits=QUICK) as hub, open_store(journal) as store:
        with trio.fail_after(5):
            while True:
                record = await store.turn("msg_dead")
                assert record is not None
                if record.state.ended:
                    break
                await trio.sleep(0.02)
        assert hub.statistics().turns_running == 0
    assert record.state is TurnState.lost


async def test_a_follower_that_comes_before_the_lease_is_over_waits_and_is_told(journal: str) -> None:
    await leave_a_dead_turn(journal, HALF, lease_s=0.3)
    async with open_hub(journal=journal, limits=QUICK) as hub:
        turn = await hub.newest_turn("chat")
        assert turn is not None
        assert turn.state is TurnState.running
        with trio.fail_after(5):
            chunks = await read(turn)
    assert chunks[: len(HALF)] == HALF
    assert chunks[-1] == Error(error_text=LOST)


async def test_a_new_message_is_answered_once_the_dead_turn_is_given_up(journal: str) -> None:
    await leave_a_dead_turn(journal, HALF, lease_s=0.2)

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Hi.")

    async with open_hub(journal=journal, limits=QUICK) as hub:
        with pytest.raises(TurnConflictError):
            await hub.start_turn("chat", answer, [user_message("Hello again")])
        await trio.sleep(0.25)
        turn = await hub.start_turn("chat", answer, [user_message("Hello again")])
        assert await turn.wait_ended() is TurnState.finished


@pytest.mark.parametrize("found", [True, False])
async def test_recover_is_asked_once_and_its_answer_is_the_turns(journal: str, found: bool) -> None:
    await leave_a_dead_turn(journal, HALF)
    asked = 0

    async def recover(turn: Turn) -> bool:
        nonlocal asked
        asked += 1
        if found:
            async with turn.text() as text:
                await text.write(" and half")
        return found

    async with open_hub(journal=journal, limits=QUICK, recover=recover) as hub:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hub.newest_turn, "chat")
        turn = await hub.newest_turn("chat")
        assert turn is not None
        with trio.fail_after(5):
            await turn.wait_ended()
        again = await hub.turn("msg_dead")
        assert again is not None
        chunks = await read(again)
    assert asked == 1
    assert again.state is (TurnState.finished if found else TurnState.lost)
    assert chunks[-1] == (Finish(finish_reason="stop") if found else Error(error_text=LOST))
    assert (
        "".join(chunk.delta for chunk in chunks if isinstance(chunk, TextDelta)) == "Half and half"
    ) is found


async def test_a_hub_follows_and_stops_what_another_runs(journal: str) -> None:
    message = user_message("Hello")
    async with (
        open_hub(journal=journal, limits=QUICK) as owner,
        open_hub(journal=journal, limits=QUICK) as other,
    ):
        mine = await owner.start_turn("chat", talk, [message])
        theirs = await other.newest_turn("chat")
        assert theirs is not None
        joined = await other.start_turn("chat", talk, [message])
        assert joined.id == mine.id
        with trio.fail_after(5):
            with theirs.follow() as subscription:
                while theirs.entries < 10:
                    await subscription.next_batch(100)
            assert await other.stop("chat", "enough") is TurnState.stopped
            chunks = await read(await found(other, mine.id))
            # The owner finds that it was fenced, and gives up.
            while owner.statistics().turns_running:
                await trio.sleep(0.02)
    assert chunks[-1] == Finish(finish_reason="other")
    texts = [chunk.delta for chunk in chunks if isinstance(chunk, TextDelta)]
    assert texts == [f"{number} " for number in range(len(texts))]


async def test_the_end_of_what_another_runs_is_waited_for_without_following_it(journal: str) -> None:
    async def brief(turn: Turn) -> None:
        await trio.sleep(10 * QUICK.hub.replica_poll_s)

    async with (
        open_hub(journal=journal, limits=QUICK) as owner,
        open_hub(journal=journal, limits=QUICK) as other,
    ):
        await owner.start_turn("chat", brief, [user_message("Hello")])
        theirs = await other.newest_turn("chat")
        assert theirs is not None
        with trio.fail_after(5):
            assert await theirs.wait_ended() is TurnState.finished


async def found(hub: Hub, turn_id: str) -> TurnHandle:
    """A turn that is there."""
    turn = await hub.turn(turn_id)
    assert turn is not None
    return turn


async def test_what_was_seen_is_there_after_a_restart(journal: str) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(500):
                await text.write(f"{number} ")
        await turn.flush()

    async with open_hub(journal=journal) as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        before = await read(turn)
    async with open_hub(journal=journal) as hub:
        again = await hub.newest_turn("chat")
        assert again is not None
        assert await read(again) == before
        assert again.state is TurnState.finished
        assert again.message() == turn.message()


async def cancel_a_stored_turn_at(step: int, path: Path) -> bool:
    """Run a short turn on a file, cancel everything at a step, and check what the file says."""

    async def answer(turn: Turn) -> None:
        async with turn.step(), turn.text() as text:
            for word in ("a", "b"):
                await text.write(word)
                await turn.flush()

    journal = f"sqlite:{path}"
    turns: list[TurnHandle] = []

    async def body() -> None:
        async with open_hub(journal=journal, limits=QUICK) as hub:
            turns.append(await hub.start_turn("chat", answer, [user_message("Hello")]))
            await turns[0].wait_ended()

    cancelled = await run_cancelled_at(step, body)
    async with open_store(journal) as store:
        chat = await store.chat("chat")
        if turns:
            assert chat is not None
            assert chat.turn is not None
        if chat is not None and chat.turn is not None:
            chunks = [decode_stored(json) for json in await store.read(chat.turn.turn_id, 0, 1000)]
            assert chat.turn.state.ended, step
            assert [chunk for chunk in chunks if isinstance(chunk, Finish | Error)] == chunks[-1:]
            assert chat.messages[-1].parts == assemble(chunks, "")["parts"]
    return cancelled


async def test_cancelled_at_every_step_the_file_has_one_whole_end(tmp_path: Path) -> None:
    for step in itertools.count(1):
        if not await cancel_a_stored_turn_at(step, tmp_path / f"{step}.db"):
            break
    assert step > 10


async def test_an_owner_that_was_fenced_can_not_write(journal: str) -> None:
    sealed: list[BaseException] = []

    async def answer(turn: Turn) -> None:
        try:
            await talk(turn)
        except TurnSealedError as exc:
            sealed.append(exc)
            raise

    async with open_hub(journal=journal, limits=QUICK) as hub, open_store(journal) as store:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        await trio.sleep(0.05)
        record = await store.turn(turn.id)
        assert record is not None
        adopted = None
        while adopted is None:
            record = await store.turn(turn.id)
            assert record is not None
            adopted = await store.adopt(record, lease_until=time.time() + 60)
        with trio.fail_after(5):
            while hub.statistics().turns_running:
                await trio.sleep(0.02)
        after = await store.turn(turn.id)
        assert after is not None
        assert after.state is TurnState.running
        assert after.entries == adopted.entries
