"""The guarantees of `penstock.journal.store`, as tests that any store can be put to. Needs pytest and pytest-trio.

    from penstock.testing.store_calls import OpenStore
    from penstock.testing.store_suite import StoreSuite

    class TestMyStore(StoreSuite):
        @pytest.fixture
        def open_store(self, tmp_path: Path) -> OpenStore:
            return partial(open_my_store, tmp_path / "journal")

The fixture returns what opens the store: a function that takes `retention=`, a `Retention`, and returns an async context
manager of a `Store`. Each test has a store of its own, and opens it as often as it likes: in
the same place, so that what was there is there again. A store that removes what retention doesn't keep in the background
is to be opened so that it does so within moments: the tests wait for five seconds.

In a `conftest.py`, before any of this is imported, the following makes failures say what was compared:

    pytest.register_assert_rewrite("penstock.testing.store_suite", "penstock.testing.store_following")

Nothing else of penstock imports this module.
"""

from __future__ import annotations

import time
from functools import partial
from typing import cast

import msgspec
import pytest
import trio

from penstock.errors import LocalProtocolError, TurnSealedError
from penstock.journal.store import Batch, RunningTurnError, TurnRecord, TurnState
from penstock.testing import user_message
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, answer, begin, end, gather, until_gone
from penstock.testing.store_following import FollowingSuite
from penstock.wire.messages import UIMessage


class StoreSuite(FollowingSuite):
    """One test for each guarantee. Inherit from it, and give the fixture `open_store`."""

    outlives_its_process = True
    """Whether what was written is there when the store is opened again. False for one in memory."""

    async def test_one_running_turn(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
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

    async def test_idempotent_append(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
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
            assert list(await store.read("t1", 0, 0)) == []
            assert list(await store.read("nobody", 0, 5)) == []
            assert await store.turn("t1") == msgspec.structs.replace(turn, entries=4)

    async def test_no_holes(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
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

    async def test_fenced(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
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

    async def test_sealed_once(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
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

    async def test_a_repeated_suspension_does_not_end_the_run_of_who_resumed(
        self, open_store: OpenStore
    ) -> None:
        async with open_store(retention=FOREVER) as store:
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
                    await store.resume(
                        msgspec.structs.replace(suspended, **wrong), "u", [], lease_until=LEASE
                    )
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

    async def test_adopted_once(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
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

    async def test_whole_seal(self, open_store: OpenStore) -> None:
        """Somebody who looks all the time sees nothing of a seal, or all."""
        async with open_store(retention=FOREVER) as store:
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

    async def test_acknowledged_is_kept(self, open_store: OpenStore) -> None:
        messages = [
            user_message("Zürich 🏔\u2028\x00", id="u1"),
            UIMessage(
                id="a1",
                role="assistant",
                metadata={"n": 1.5},
                parts=[{"type": "x", "deep": [None, {"": -0.0}]}],
            ),
            user_message("And now?", id="u2"),
        ]
        lines = [b"", b'{"a":1}', "ü".encode(), b"\x00\xff", b"x" * 10_000]
        async with open_store(retention=FOREVER) as store:
            turn = await store.begin("c1", "t1", "u2", messages, at=1.25, lease_until=2.5)
            await store.append([Batch(turn, 0, lines)])
            sealed = await begin(store, "t2", "c2")
            assert await end(store, sealed)
            kept = (await store.chat("c1"), await store.chat("c2"), await store.read("t1", 0, 99))
            assert kept[0] is not None
            assert list(kept[0].messages) == messages
            assert kept[2] == lines
        if not self.outlives_its_process:
            return
        async with open_store(retention=FOREVER) as store:
            assert kept == (await store.chat("c1"), await store.chat("c2"), await store.read("t1", 0, 99))
            assert await store.lapsed(3.0, 10) == [msgspec.structs.replace(turn, entries=5)]

    async def test_the_chats_messages_are_those_of_the_last_begin_and_what_its_turn_made(
        self, open_store: OpenStore
    ) -> None:
        def user(name: str) -> UIMessage:
            return user_message(name, id=name)

        async with open_store(retention=FOREVER) as store:
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

    async def test_lapsed_turns_are_found_longest_ago_first(self, open_store: OpenStore) -> None:
        async with open_store(retention=FOREVER) as store:
            turns = {}
            leases = {"a": 30.0, "b": 10.0, "c": 20.0, "d": 99.0, "e": 5.0, "f": 6.0}
            for name, lease_until in leases.items():
                turns[name] = await store.begin(name, name, "u", [], at=1.0, lease_until=lease_until)
            assert await end(store, turns["e"])
            assert await end(store, turns["f"], state=TurnState.suspended)
            assert [turn.turn_id for turn in await store.lapsed(50.0, 10)] == ["b", "c", "a"]
            assert await store.lapsed(50.0, 1) == [turns["b"]]
            assert await store.renew([turns["b"], turns["e"], turns["f"]], 60.0) == {"b"}
            assert [turn.turn_id for turn in await store.lapsed(30.0, 10)] == ["c"]

    @pytest.mark.parametrize("rule", ["age", "turns", "bytes", "chat"])
    async def test_trimmed_whole(self, open_store: OpenStore, rule: str) -> None:
        """What is due goes, oldest first and with all of it; what isn't stays whole."""
        now = time.time()
        entries = [b"x" * 1000] * 200
        retention = {
            "age": msgspec.structs.replace(FOREVER, turn_age_s=100.0),
            "turns": msgspec.structs.replace(FOREVER, turns_per_chat=2),
            "bytes": msgspec.structs.replace(FOREVER, bytes=750_000),
            "chat": msgspec.structs.replace(FOREVER, chat_age_s=100.0),
        }[rule]
        async with open_store(retention=retention) as store:
            running = await begin(store, "running", "busy", at=now - 1000)
            await store.append([Batch(running, 0, [b"kept"])])
            waiting = await begin(store, "waiting", "waiting", at=now - 1000)
            assert await end(store, waiting, state=TurnState.suspended)
            for i, age_s in enumerate((50, 40, 30, 20, 0) if rule == "chat" else (500, 400, 300, 50, 0)):
                turn = await begin(store, f"t{i}", "c1", at=now - age_s)
                await store.append([Batch(turn, 0, entries)])
                assert await end(store, turn, 200, at=now - age_s)

            gone = {"age": 3, "turns": 3, "bytes": 2, "chat": 0}[rule]

            await until_gone(store, f"t{gone - 1}" if gone else "waiting")
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

    async def test_a_chat_outlives_its_turns(self, open_store: OpenStore) -> None:
        retention = msgspec.structs.replace(FOREVER, turn_age_s=100.0)
        async with open_store(retention=retention) as store:
            old = await begin(store, at=1.0)
            assert await end(store, old, at=2.0)
            other = await begin(store, "t2", "c2")
            assert await end(store, other)
            await until_gone(store, "t1")
            chat = await store.chat("c1")
            assert chat is not None
            assert chat.turn is None
            assert chat.messages[-1] == answer("t1")
            assert (await begin(store, "t3")).epoch == 1
