"""Each guarantee of `penstock.journal.store`, for every store; and histories of them against plain lists."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import LocalProtocolError, TurnSealedError
from penstock.journal.sqlite import SqliteStore
from penstock.journal.store import (
    Batch,
    Retention,
    RunningTurnError,
    Store,
    TurnRecord,
    TurnState,
    check_journal,
    open_store,
)
from penstock.limits import SqliteLimits
from penstock.testing import user_message
from penstock.wire.messages import UIMessage

T = TypeVar("T")

EAGER = SqliteLimits(log_rows=3, trim_s=0.002, trim_entries=3)
"""Packs and trims all the time, in the smallest slices."""
FOREVER = Retention(turn_age_s=1e12, turns_per_chat=1_000_000, bytes=1 << 40, chat_age_s=1e12)
LEASE = 2e9


@pytest.fixture(params=["memory", "sqlite", "sqlite-normal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A journal's URL."""
    urls = {
        "memory": "memory:",
        "sqlite": f"sqlite:{tmp_path}/chat.db",
        "sqlite-normal": f"sqlite:{tmp_path}/chat.db?durability=normal",
    }
    return urls[request.param]


async def begin(
    store: Store, turn_id: str = "t1", chat_id: str = "c1", *, at: float | None = None
) -> TurnRecord:
    """Begin a turn that answers one message."""
    messages = [user_message("Hello", id=f"u-{turn_id}")]
    now = time.time() if at is None else at
    return await store.begin(chat_id, turn_id, messages[0].id, messages, at=now, lease_until=LEASE)


def answer(turn_id: str) -> UIMessage:
    """The message that a turn makes."""
    return UIMessage(id=turn_id, role="assistant", parts=[{"type": "text", "text": f"I am {turn_id}."}])


async def end(
    store: Store, turn: TurnRecord, offset: int = 0, *, state: TurnState = TurnState.finished, at: float = 0.0
) -> bool:
    """Seal a turn with one more entry."""
    return await store.seal(Batch(turn, offset, [b"end"]), state, answer(turn.turn_id), at=at or time.time())


async def gather(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | Exception]:
    """Make the calls at once, and return what each returned or raised."""
    results: list[T | Exception] = []

    async def run(call: Callable[[], Awaitable[T]]) -> None:
        try:
            results.append(await call())
        except Exception as exc:
            results.append(exc)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
    return results


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that a store does in passing."""
    with trio.fail_after(5):
        while True:
            if await condition():
                return
            await trio.sleep(0.002)


async def test_one_running_turn(url: str) -> None:
    async with open_store(url) as store:
        results = await gather([partial(begin, store, f"t{i}") for i in range(20)])
        (turn,) = [result for result in results if isinstance(result, TurnRecord)]
        refusals = [result for result in results if isinstance(result, RunningTurnError)]
        assert len(refusals) == 19
        assert {refusal.turn for refusal in refusals} == {turn}
        await begin(store, "other", "c2")
        assert await end(store, turn, state=TurnState.suspended)
        with pytest.raises(RunningTurnError) as caught:
            await begin(store, "t99")
        assert caught.value.turn.state is TurnState.suspended
        await store.resume(caught.value.turn, "u2", [user_message("Go on")], lease_until=LEASE)
        with pytest.raises(RunningTurnError):
            await begin(store, "t99")
        assert await end(store, turn, 1)
        assert (await begin(store, "t99")).epoch == 1
        with pytest.raises(LocalProtocolError):
            await begin(store, "other", "c3")
        assert await store.chat("c3") is None


async def test_idempotent_append(url: str) -> None:
    async with open_store(url) as store:
        turn = await begin(store)
        await store.append([Batch(turn, 0, [b"a", b"b"])])
        await store.append([Batch(turn, 0, [b"a", b"b"])])
        await store.append(
            [Batch(turn, 1, [b"other", b"c"]), Batch(turn, 3, [b"d"]), Batch(turn, 0, [b"other"])]
        )
        await store.append([Batch(turn, 4, [])])
        assert await store.read("t1", 0, 100) == [b"a", b"b", b"c", b"d"]
        assert await store.read("t1", 1, 2) == [b"b", b"c"]
        assert list(await store.read("t1", 4, 5)) == []
        assert list(await store.read("nobody", 0, 5)) == []
        assert await store.turn("t1") == msgspec.structs.replace(turn, entries=4)


async def test_no_holes(url: str) -> None:
    async with open_store(url) as store:
        turn, other = await begin(store), await begin(store, "t2", "c2")
        await store.append([Batch(turn, 0, [b"a"])])
        with pytest.raises(LocalProtocolError):
            await store.append([Batch(turn, 2, [b"c"]), Batch(other, 0, [b"x"])])
        with pytest.raises(LocalProtocolError):
            await end(store, turn, 2)
        with pytest.raises(LocalProtocolError):
            await store.seal(Batch(turn, 1, []), TurnState.finished, None, at=1.0)
        assert await store.read("t1", 0, 9) == [b"a"]
        assert await store.read("t2", 0, 9) == [b"x"]
        record = await store.turn("t1")
        assert record is not None
        assert record.state is TurnState.running


async def test_fenced(url: str) -> None:
    async with open_store(url) as store:
        old, other = await begin(store), await begin(store, "t2", "c2")
        await store.append([Batch(old, 0, [b"a"])])
        now = await store.turn("t1")
        assert now is not None
        new = await store.adopt(now, lease_until=LEASE + 1)
        assert new == msgspec.structs.replace(now, epoch=2, lease_until=LEASE + 1)
        assert new is not None
        with pytest.raises(TurnSealedError):
            await store.append([Batch(old, 1, [b"late"]), Batch(other, 0, [b"x"])])
        assert not await end(store, old, 1)
        assert await store.renew([old, other], LEASE + 2) == {"t2"}
        assert await store.turn("t1") == new
        assert await store.read("t1", 0, 9) == [b"a"]
        assert await store.read("t2", 0, 9) == [b"x"]
        await store.append([Batch(new, 1, [b"b"])])
        assert await end(store, new, 2)
        assert await store.read("t1", 0, 9) == [b"a", b"b", b"end"]


async def test_sealed_once(url: str) -> None:
    async with open_store(url) as store:
        turn = await begin(store)
        await store.append([Batch(turn, 0, [b"a"])])

        async def seal(i: int) -> int | None:
            batch = Batch(turn, i % 2, [*[b"a"][i % 2 :], f"end-{i}".encode()])
            return i if await store.seal(batch, TurnState.stopped, answer("t1"), at=5.0) else None

        results = await gather([partial(seal, i) for i in range(20)])
        (winner,) = [result for result in results if result is not None]
        assert await store.read("t1", 0, 9) == [b"a", f"end-{winner}".encode()]
        assert await seal(cast("int", winner)) == winner, "the same again"
        assert not await store.seal(Batch(turn, 1, [b"a"]), TurnState.stopped, None, at=5.0)
        assert not await end(store, turn, 2)
        with pytest.raises(TurnSealedError):
            await store.append([Batch(turn, 2, [b"late"])])
        assert await store.turn("t1") == msgspec.structs.replace(
            turn, state=TurnState.stopped, entries=2, ended_at=5.0, lease_until=None
        )
        assert await store.renew([turn], LEASE) == frozenset()
        assert not await end(store, msgspec.structs.replace(turn, turn_id="nobody"))


async def test_a_repeated_suspension_does_not_end_the_run_of_who_resumed(url: str) -> None:
    async with open_store(url) as store:
        turn = await begin(store)
        assert await end(store, turn, state=TurnState.suspended)
        assert await end(store, turn, state=TurnState.suspended)
        suspended = await store.turn("t1")
        assert suspended is not None
        assert (suspended.ended_at, suspended.lease_until) == (None, None)
        with pytest.raises(TurnSealedError):
            await store.append([Batch(turn, 1, [b"late"])])
        for wrong in ({"entries": 0}, {"epoch": 2}, {"turn_id": "nobody"}):
            with pytest.raises(TurnSealedError):
                await store.resume(msgspec.structs.replace(suspended, **wrong), "u", [], lease_until=LEASE)
        messages = [user_message("Hello", id="u-t1"), answer("t1")]
        results = await gather(
            [partial(store.resume, suspended, "t1", messages, lease_until=LEASE) for _ in range(5)]
        )
        (resumed,) = [result for result in results if isinstance(result, TurnRecord)]
        assert resumed == msgspec.structs.replace(
            suspended, state=TurnState.running, request_key="t1", lease_until=LEASE
        )
        assert not await end(store, turn, state=TurnState.suspended)
        assert await store.turn("t1") == resumed
        await store.append([Batch(resumed, 1, [b"b"])])
        assert await end(store, resumed, 2)
        assert await store.read("t1", 0, 9) == [b"end", b"b", b"end"]


async def test_adopted_once(url: str) -> None:
    async with open_store(url) as store:
        turn = await begin(store)
        results = await gather([partial(store.adopt, turn, lease_until=LEASE + i) for i in range(10)])
        (adopted,) = [result for result in results if result is not None]
        assert isinstance(adopted, TurnRecord)
        assert await store.turn("t1") == adopted
        renewed = await store.renew([adopted], LEASE + 99)
        assert renewed == {"t1"}
        assert await store.adopt(adopted, lease_until=LEASE) is None, "its owner has renewed"
        now = msgspec.structs.replace(adopted, lease_until=LEASE + 99)
        await store.append([Batch(now, 0, [b"a"])])
        assert await store.adopt(now, lease_until=LEASE) is None, "its owner has written"
        assert await end(store, now, 1, state=TurnState.suspended)
        suspended = await store.turn("t1")
        assert suspended is not None
        third = await store.adopt(suspended, lease_until=LEASE)
        assert third is not None
        assert (third.state, third.epoch, third.entries) == (TurnState.running, 3, 2)
        assert await end(store, third, 2, state=TurnState.lost)
        sealed = await store.turn("t1")
        assert sealed is not None
        assert await store.adopt(sealed, lease_until=LEASE) is None
        assert await store.turn("t1") == sealed


async def test_whole_seal(url: str) -> None:
    """Somebody who looks all the time sees nothing of a seal, or all."""
    async with open_store(url) as store:
        for i in range(20):
            turn = await begin(store, f"t{i}")
            await store.append([Batch(turn, 0, [b"a"])])

            async def watch(turn: TurnRecord = turn) -> None:
                while True:
                    chat = await store.chat("c1")
                    assert chat is not None
                    assert chat.turn is not None
                    has_message = chat.messages[-1].id == turn.turn_id
                    assert chat.turn.state.ended == has_message == (chat.turn.entries == 3)
                    record = await store.turn(turn.turn_id)
                    assert record is not None
                    if record.state.ended:
                        assert await store.read(turn.turn_id, 0, 9) == [b"a", b"b", b"c"]
                        return
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                nursery.start_soon(watch)
                await trio.lowlevel.checkpoint()
                assert await store.seal(
                    Batch(turn, 1, [b"b", b"c"]), TurnState.finished, answer(turn.turn_id), at=1.0
                )


async def test_acknowledged_is_kept(url: str) -> None:
    messages = [
        user_message("Zürich 🏔\u2028\x00", id="u1"),
        UIMessage(
            id="a1", role="assistant", metadata={"n": 1.5}, parts=[{"type": "x", "deep": [None, {"": -0.0}]}]
        ),
        user_message("And now?", id="u2"),
    ]
    lines = [b"", b'{"a":1}', "ü".encode(), b"\x00\xff", b"x" * 10_000]
    async with open_store(url) as store:
        turn = await store.begin("c1", "t1", "u2", messages, at=1.25, lease_until=2.5)
        await store.append([Batch(turn, 0, lines)])
        sealed = await begin(store, "t2", "c2")
        assert await end(store, sealed)
        kept = (await store.chat("c1"), await store.chat("c2"), await store.read("t1", 0, 99))
        assert kept[0] is not None
        assert list(kept[0].messages) == messages
        assert kept[2] == lines
    if url == "memory:":
        return
    async with open_store(url) as store:
        assert kept == (await store.chat("c1"), await store.chat("c2"), await store.read("t1", 0, 99))
        assert await store.lapsed(3.0, 10) == [msgspec.structs.replace(turn, entries=5)]


async def test_the_chats_messages_are_those_of_the_last_begin_and_what_its_turn_made(url: str) -> None:
    def user(name: str) -> UIMessage:
        return user_message(name, id=name)

    async with open_store(url, retention=FOREVER) as store:
        histories = [
            [user("u1")],
            [user("u1"), answer("t0"), user("u2")],
            [user("u1"), answer("t0"), user("u2"), answer("t1"), user("u3")],
            [user("u1"), answer("edited"), user("u3")],
            [user("u3")],
            [],
            [user("u4"), user("u5")],
        ]
        for i, history in enumerate(histories):
            turn = await store.begin("c1", f"t{i}", "key", history, at=1.0, lease_until=LEASE)
            chat = await store.chat("c1")
            assert chat is not None
            assert list(chat.messages) == history
            assert await end(store, turn)
            chat = await store.chat("c1")
            assert chat is not None
            assert list(chat.messages) == [*history, answer(f"t{i}")]
        turn = await store.begin(
            "c1", "again", "key", [answer("again"), user("u6")], at=1.0, lease_until=LEASE
        )
        assert await end(store, turn)
        chat = await store.chat("c1")
        assert chat is not None
        assert list(chat.messages) == [user("u6"), answer("again")]
        assert await store.seal(
            Batch(await begin(store, "silent"), 0, [b"end"]), TurnState.finished, None, at=1.0
        )
        chat = await store.chat("c1")
        assert chat is not None
        assert [message.id for message in chat.messages] == ["u-silent"]


async def test_lapsed_turns_are_found_longest_ago_first(url: str) -> None:
    async with open_store(url) as store:
        turns = {}
        for name, lease_until in (("a", 30.0), ("b", 10.0), ("c", 20.0), ("d", 99.0), ("e", 5.0), ("f", 6.0)):
            turns[name] = await store.begin(name, name, "u", [], at=1.0, lease_until=lease_until)
        assert await end(store, turns["e"])
        assert await end(store, turns["f"], state=TurnState.suspended)
        assert [turn.turn_id for turn in await store.lapsed(50.0, 10)] == ["b", "c", "a"]
        assert await store.lapsed(50.0, 1) == [turns["b"]]
        assert await store.renew([turns["b"], turns["e"], turns["f"]], 60.0) == {"b"}
        assert [turn.turn_id for turn in await store.lapsed(30.0, 10)] == ["c"]


@pytest.mark.parametrize("limits", [SqliteLimits(trim_s=0.002), EAGER], ids=["at once", "in slices"])
@pytest.mark.parametrize("rule", ["age", "turns", "bytes", "chat"])
async def test_trimmed_whole(url: str, rule: str, limits: SqliteLimits) -> None:
    """What is due goes, oldest first and with all of it; what isn't stays whole."""
    now = time.time()
    entries = [b"x" * 1000] * 200
    retention = {
        "age": msgspec.structs.replace(FOREVER, turn_age_s=100.0),
        "turns": msgspec.structs.replace(FOREVER, turns_per_chat=2),
        "bytes": msgspec.structs.replace(FOREVER, bytes=750_000),
        "chat": msgspec.structs.replace(FOREVER, chat_age_s=100.0),
    }[rule]
    async with open_store(url, retention=retention, limits=limits) as store:
        running = await begin(store, "running", "busy", at=now - 1000)
        await store.append([Batch(running, 0, [b"kept"])])
        waiting = await begin(store, "waiting", "waiting", at=now - 1000)
        assert await end(store, waiting, state=TurnState.suspended)
        for i, age_s in enumerate((50, 40, 30, 20, 0) if rule == "chat" else (500, 400, 300, 50, 0)):
            turn = await begin(store, f"t{i}", "c1", at=now - age_s)
            await store.append([Batch(turn, 0, entries)])
            assert await end(store, turn, 200, at=now - age_s)

        gone = {"age": 3, "turns": 3, "bytes": 2, "chat": 0}[rule]

        async def is_trimmed() -> bool:
            first = await store.turn(f"t{gone - 1}") if gone else await store.turn("waiting")
            return first is None

        await until(is_trimmed)
        await trio.sleep(0.01)
        for i in range(5):
            record, kept = await store.turn(f"t{i}"), await store.read(f"t{i}", 0, 999)
            if i < gone:
                assert record is None
                assert list(kept) == []
            else:
                assert record is not None
                assert kept == [*entries, b"end"]
        chat = await store.chat("c1")
        assert chat is not None
        assert chat.messages[-1] == answer("t4")
        assert chat.turn is not None
        assert (await store.chat("waiting") is None) == (rule == "chat")
        assert await store.read("running", 0, 9) == [b"kept"]
        await store.append([Batch(running, 1, [b"and goes on"])])


async def test_a_chat_outlives_its_turns(url: str) -> None:
    retention = msgspec.structs.replace(FOREVER, turn_age_s=100.0)
    async with open_store(url, retention=retention, limits=EAGER) as store:
        old = await begin(store, at=1.0)
        assert await end(store, old, at=2.0)
        other = await begin(store, "t2", "c2")
        assert await end(store, other)

        async def is_trimmed() -> bool:
            return await store.turn("t1") is None

        await until(is_trimmed)
        chat = await store.chat("c1")
        assert chat is not None
        assert chat.turn is None
        assert chat.messages[-1] == answer("t1")
        assert (await begin(store, "t3")).epoch == 1


@pytest.mark.parametrize(
    "url",
    [
        "", "memory", "memory:x", "sqlite:", "sqlite", "chat.db", "sqlite::memory:", "sqlite:///chat.db", "redis://x",
        "sqlite:chat.db?durability=none", "sqlite:chat.db?", "sqlite:?durability=full", "sqlite:chat.db?x=1",
    ],
)  # fmt: skip
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="journal"):
        check_journal(url)


# Histories. A program is drawn as data and run on a store and on plain lists in one run of Trio; what the store
# answers must be what the lists say, and so must all that it holds in between and at the end.

CHATS = 3
KEPT_TURNS = 2
Step = tuple[str, int, int, int]
STEPS = st.tuples(
    st.sampled_from(
        ["begin", "begin", "append", "append", "append", "seal", "seal", "suspend", "seal-again", "resume", "adopt",
         "adopt-stale", "renew", "old-owner", "reopen", "crash"]
    ),
    st.integers(0, CHATS - 1),
    st.integers(0, 3),
    st.integers(0, 4),
)  # fmt: skip


class ModelTurn:
    """A turn as plain values."""

    def __init__(self, record: TurnRecord) -> None:
        self.record = record
        self.entries: list[bytes] = []
        self.sealed: tuple[Batch, TurnState] | None = None
        self.earlier: list[TurnRecord] = []
        """Records that were true once."""

    def now(self) -> TurnRecord:
        return msgspec.structs.replace(self.record, entries=len(self.entries))

    def become(self, **fields: Any) -> None:
        self.earlier.append(self.now())
        self.record = msgspec.structs.replace(self.record, **fields)


class Model:
    """A store as plain lists, and the steps that are made on both."""

    def __init__(self) -> None:
        self.turns: list[list[ModelTurn]] = [[] for _ in range(CHATS)]
        self.messages: list[list[UIMessage]] = [[] for _ in range(CHATS)]
        self.serial = 0

    def fresh(self, count: int) -> list[bytes]:
        """Entries that were never written before."""
        self.serial += 1
        return [f"{self.serial}.{i}".encode() for i in range(count)]

    def newest(self, chat: int) -> ModelTurn | None:
        return self.turns[chat][-1] if self.turns[chat] else None

    async def step(self, store: Store, name: str, chat: int, back: int, count: int) -> None:
        turn = self.newest(chat)
        running = turn is not None and turn.record.state is TurnState.running
        if name == "begin":
            await self.begin(store, chat, turn)
        elif turn is None:
            return
        elif name == "append":
            # From some entries back, with other content there; or past the end.
            offset = max(len(turn.entries) - back, 0) if back < 3 else len(turn.entries) + 1
            entries = self.fresh(count)
            error = LocalProtocolError if offset > len(turn.entries) else None
            await self.append(
                store, Batch(turn.record, offset, entries), error if running else TurnSealedError
            )
            if running and error is None:
                turn.entries += entries[len(turn.entries) - offset :]
        elif name in ("seal", "suspend"):
            state = TurnState.suspended if name == "suspend" else TurnState.finished
            batch = Batch(turn.record, max(len(turn.entries) - back, 0), self.fresh(count + 1))
            brings = batch.offset + len(batch.entries) > len(turn.entries)
            won = await store.seal(batch, state, answer(turn.record.turn_id), at=7.0)
            assert won == (running and brings)
            if won:
                self.seal(chat, turn, batch, state)
        elif name == "seal-again" and turn.sealed is not None:
            batch, state = turn.sealed
            won = await store.seal(batch, state, answer(turn.record.turn_id), at=8.0)
            same = turn.entries[batch.offset :] == batch.entries and turn.record.epoch == batch.turn.epoch
            assert won == (turn.record.state is state and same)
        elif name == "resume":
            await self.resume(store, chat, turn)
        elif name == "adopt":
            adopted = await store.adopt(turn.now(), lease_until=LEASE + self.serial)
            assert (adopted is None) == turn.record.state.ended
            if adopted is not None:
                turn.become(
                    state=TurnState.running, epoch=turn.record.epoch + 1, lease_until=LEASE + self.serial
                )
                assert adopted == turn.now()
        elif name == "adopt-stale":
            for record in turn.earlier:
                if record != turn.now():
                    assert await store.adopt(record, lease_until=LEASE) is None
        elif name == "renew":
            self.serial += 1
            renewed = await store.renew([turn.record], LEASE + self.serial)
            assert renewed == ({turn.record.turn_id} if running else frozenset())
            if running:
                turn.become(lease_until=LEASE + self.serial)
        elif name == "old-owner":
            for record in turn.earlier:
                if record.epoch < turn.record.epoch:
                    batch = Batch(record, len(turn.entries), self.fresh(1))
                    await self.append(store, batch, TurnSealedError)
                    assert not await store.seal(batch, TurnState.lost, None, at=9.0)
                    assert await store.renew([record], 1.0) == frozenset()

    async def begin(self, store: Store, chat: int, newest: ModelTurn | None) -> None:
        self.serial += 1
        key = f"u{self.serial}"
        history = [*self.messages[chat], user_message("Hello", id=key)][-5:]
        turn_id = f"t{self.serial}"
        call = partial(
            store.begin, f"c{chat}", turn_id, key, history, at=float(self.serial), lease_until=LEASE
        )
        if newest is not None and not newest.record.state.ended:
            with pytest.raises(RunningTurnError) as caught:
                await call()
            assert caught.value.turn == newest.now()
            return
        turn = ModelTurn(await call())
        assert turn.record == TurnRecord(
            chat_id=f"c{chat}",
            turn_id=turn_id,
            epoch=1,
            request_key=key,
            started_at=float(self.serial),
            lease_until=LEASE,
        )
        self.turns[chat].append(turn)
        self.messages[chat] = history

    async def append(self, store: Store, batch: Batch, error: type[Exception] | None) -> None:
        if error is None:
            await store.append([batch])
        else:
            with pytest.raises(error):
                await store.append([batch])

    def seal(self, chat: int, turn: ModelTurn, batch: Batch, state: TurnState) -> None:
        turn.entries += batch.entries[len(turn.entries) - batch.offset :]
        turn.become(state=state, ended_at=7.0 if state.ended else None, lease_until=None)
        turn.sealed = (Batch(batch.turn, batch.offset, turn.entries[batch.offset :]), state)
        made = answer(turn.record.turn_id)
        self.messages[chat] = [old for old in self.messages[chat] if old.id != made.id] + [made]

    async def resume(self, store: Store, chat: int, turn: ModelTurn) -> None:
        self.serial += 1
        history = self.messages[chat][-3:]
        call = partial(store.resume, turn.now(), f"k{self.serial}", history, lease_until=LEASE)
        if turn.record.state is not TurnState.suspended:
            with pytest.raises(TurnSealedError):
                await call()
            return
        resumed = await call()
        turn.become(state=TurnState.running, request_key=f"k{self.serial}", lease_until=LEASE)
        assert resumed == turn.now()
        self.messages[chat] = history

    async def check(self, store: Store, chat: int) -> None:
        """Compare all that the store has of a chat. What retention may have taken is whole or gone."""
        record = await store.chat(f"c{chat}")
        if not self.turns[chat]:
            assert record is None
            return
        assert record is not None
        assert list(record.messages) == self.messages[chat]
        assert record.turn == self.turns[chat][-1].now()
        ended = [turn for turn in self.turns[chat] if turn.record.state.ended]
        for turn in list(self.turns[chat]):
            held = await store.turn(turn.record.turn_id)
            if held is None:
                assert turn in ended[:-KEPT_TURNS]
                assert list(await store.read(turn.record.turn_id, 0, 999)) == []
                self.turns[chat].remove(turn)
                continue
            assert held == turn.now()
            read = await store.read(turn.record.turn_id, 0, 999)
            if not read:
                assert not turn.entries or await store.turn(turn.record.turn_id) is None
                continue
            assert list(read) == turn.entries
            for offset in range(len(turn.entries) + 1):
                part = await store.read(turn.record.turn_id, offset, 2)
                assert list(part) in (turn.entries[offset : offset + 2], [])


async def run_program(url: str, program: Sequence[Step], folder: Path) -> None:
    """Run a program to its end, over as many stores as it has reopenings and crashes."""
    model = Model()
    steps = list(program)
    retention = msgspec.structs.replace(FOREVER, turns_per_chat=KEPT_TURNS)
    lives = 0
    while True:
        lives += 1
        async with open_store(url, retention=retention, limits=EAGER) as store:
            for chat in range(CHATS):
                await model.check(store, chat)
            while steps:
                name, chat, back, count = steps.pop(0)
                if name == "reopen" and url != "memory:":
                    break
                if name == "crash" and isinstance(store, SqliteStore):
                    url = await crash(store, url, folder / f"life-{lives}.db")
                    break
                await model.step(store, name, chat, back, count)
                await model.check(store, chat)
            else:
                for chat in range(CHATS):
                    await model.check(store, chat)
                return


async def crash(store: SqliteStore, url: str, path: Path) -> str:
    """Copy the files as they are now, which is what a killed process leaves, and return the copy's URL."""

    def copy(db: sqlite3.Connection) -> None:
        # The writer does it, as a checkpoint between the two copies would tear them.
        source = url.removeprefix("sqlite:")
        shutil.copy(source, path)
        shutil.copy(source + "-wal", f"{path}-wal")

    await store._writer.write(copy)
    return f"sqlite:{path}"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_histories_are_those_of_plain_lists(kind: str) -> None:
    @settings(
        max_examples=150 if kind == "memory" else 25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(STEPS, min_size=10, max_size=40))
    def run(program: list[Step]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            url = "memory:" if kind == "memory" else f"sqlite:{folder}/chat.db"
            trio.run(run_program, url, program, Path(folder))

    run()
