"""A real Redis and a real NATS: what two nodes on either see of each other, and of an engine that fails."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from engine_server import EngineServer
from nats_server import running_nats
from penstock import Hub, Limits, Turn, TurnState, open_hub
from penstock.cli import main
from penstock.errors import StoreUnavailableError, TurnSealedError
from penstock.journal import store as journal
from penstock.journal.store import Batch, Store, TurnRecord
from penstock.limits import HubLimits, NatsLimits, RedisLimits, TurnLimits
from penstock.testing import user_message
from penstock.testing.store_calls import begin, end
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import decode_stored
from redis_server import running_redis

IMPATIENT = Limits(
    redis=RedisLimits(call_s=0.25, connect_s=0.25),
    nats=NatsLimits(call_s=0.25, connect_s=0.25, backoff_max_s=0.1),
)
QUICK = Limits(hub=HubLimits(lease_s=0.6, replica_poll_s=5.0), turn=TurnLimits(stop_grace_s=0.3))

Running = Callable[[], AbstractContextManager[EngineServer]]


@pytest.fixture(scope="module", params=[running_redis, running_nats], ids=["redis", "nats"])
def running(request: pytest.FixtureRequest) -> Running:
    """Runs an engine."""
    run: Running = request.param
    return run


@pytest.fixture(scope="module")
def server(running: Running) -> Iterator[EngineServer]:
    """One for all who don't stop it for good."""
    with running() as found:
        yield found


@pytest.fixture
def url(server: EngineServer) -> str:
    """A journal's URL, in a place of the test's own."""
    return server.url(secrets.token_hex(4))


@pytest.mark.parametrize("scheme", ["redis", "nats"])
def test_serve_does_not_start_without_its_engine(scheme: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--port", "0", "--journal", f"{scheme}://:hunter2@127.0.0.1:1"])
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.output
    assert "can't be reached" in done.output
    assert "Connection refused" in done.output
    assert "hunter2" not in done.output


async def talk(turn: Turn) -> None:
    """Say when it was said, until stopped."""
    async with turn.text() as text:
        while True:
            await text.write(f"{time.perf_counter()} ")
            await trio.sleep(0.02)


async def newest(hub: Hub) -> TurnRecord:
    """The chat's turn as it is now."""
    chat = await hub.chat("chat")
    assert chat is not None
    assert chat.turn is not None
    return chat.turn


async def until_written(hub: Hub, entries: int) -> TurnRecord:
    """Wait until so much of the chat's turn is stored."""
    while await hub.chat("chat") is None or (turn := await newest(hub)).entries < entries:
        await trio.sleep(0.005)
    return turn


async def append_all(store: Store, turn: TurnRecord, entries: list[bytes]) -> int:
    """Append one by one, again and again until each is known to be there. Returns how often it was not known."""
    unknown = 0
    for offset, entry in enumerate(entries):
        while True:
            try:
                await store.append([Batch(turn, offset, [entry])])
                break
            except StoreUnavailableError:
                unknown += 1
                await trio.sleep(0.002)
    return unknown


async def follow(store: Store, turn: TurnRecord, entries: list[bytes]) -> None:
    """Read them as they come."""
    seen: list[bytes] = []
    with store.news(turn) as news:
        while True:
            try:
                seen += await store.read(turn.turn_id, len(seen), 99)
            except StoreUnavailableError:
                await trio.sleep(0.02)
                continue
            if len(seen) >= len(entries):
                break
            await news.wait(0.05)
    assert seen == entries


async def test_one_that_is_killed_and_restarted_lost_nothing_and_has_nothing_twice(running: Running) -> None:
    entries = [b"%d" % i for i in range(200)]
    unknown = 0
    with running() as server:
        async with journal.open_store(server.url(), limits=IMPATIENT) as store:
            turns = [await begin(store, f"t{i}", f"c{i}") for i in range(4)]

            async def write(turn: TurnRecord) -> None:
                nonlocal unknown
                unknown += await append_all(store, turn, entries)

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for turn in turns:
                        nursery.start_soon(follow, store, turn, entries)
                        nursery.start_soon(write, turn)
                    for kill in range(3):
                        while (record := await store.turn("t0")) is None or record.entries < 50 * kill + 20:
                            await trio.lowlevel.checkpoint()
                        assert record.entries < len(entries)
                        server.kill()
                        await trio.to_thread.run_sync(server.start)
                        await append_all(store, turns[0], entries[:1])
                for turn in turns:
                    assert await end(store, turn, len(entries))
                    assert await store.read(turn.turn_id, 0, 999) == [*entries, b"end"]
    assert unknown


async def test_one_that_is_paused_fails_calls_in_time_and_is_used_again(
    server: EngineServer, url: str
) -> None:
    async with journal.open_store(url, limits=IMPATIENT) as store:
        turn = await begin(store)
        server.signal(signal.SIGSTOP)
        try:
            before = trio.current_time()
            for _ in range(4):
                with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
                    await store.append([Batch(turn, 0, [b"a"])])
            assert 0.9 < trio.current_time() - before < 2.0
        finally:
            server.signal(signal.SIGCONT)
        with trio.fail_after(3):
            await append_all(store, turn, [b"a", b"b"])
        # What was written to the paused server was executed late, and did no harm.
        assert await store.read("t1", 0, 9) == [b"a", b"b"]


@pytest.mark.parametrize("late", [False, True], ids=["while it runs", "before its end"])
async def test_one_that_was_set_back_is_given_again_what_the_owner_has(running: Running, late: bool) -> None:
    going_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(60):
                await text.write(f"{number} ")
                await trio.sleep(0.002)
                if number == 30:
                    await turn.flush()
                    await going_on.wait()
                    if late:
                        return
                if number == 45:
                    await turn.flush()

    with running() as server:
        async with open_hub(journal=server.url()) as hub:
            with trio.fail_after(15):
                turn = await hub.start_turn("chat", answer, [user_message("Hello")])
                await until_written(hub, 10)
                await trio.to_thread.run_sync(server.keep)
                kept = await newest(hub)
                await until_written(hub, 33)
                await trio.to_thread.run_sync(server.set_back)
                while True:
                    try:
                        assert (await newest(hub)).entries <= kept.entries
                        break
                    except StoreUnavailableError:
                        await trio.sleep(0.01)
                going_on.set()
                assert await turn.wait_ended() is TurnState.finished
        async with journal.open_store(server.url()) as store:
            record = await store.turn(turn.id)
            assert record is not None
            assert (record.state, record.entries) == (TurnState.finished, turn.entries)
            texts = [decode_stored(json) for json in await store.read(turn.id, 0, 999)]
    assert [text.delta for text in texts if isinstance(text, TextDelta)] == [
        f"{number} " for number in range(31 if late else 60)
    ]


async def test_another_node_is_told_of_each_chunk_and_does_not_poll(url: str) -> None:
    delays: list[float] = []
    async with open_hub(journal=url, limits=QUICK) as owner, open_hub(journal=url, limits=QUICK) as other:
        await owner.start_turn("chat", talk, [user_message("Hello")])
        turn = await other.newest_turn("chat")
        assert turn is not None
        with trio.fail_after(5), turn.follow() as subscription:
            while len(delays) < 40:
                for entry in await subscription.next_batch(100):
                    delta = getattr(entry.chunk, "delta", None)
                    if delta is not None:
                        delays.append(time.perf_counter() - float(delta))
        assert max(delays) < 0.25
        assert sorted(delays)[20] < 0.05


async def test_many_entries_of_a_turn_do_not_wait_for_the_next_flush(url: str) -> None:
    rarely = Limits(hub=HubLimits(shared_flush_s=60.0, shared_flush_entries=32))

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(100):
                await text.write("word ")
                await trio.sleep(0.002)
            await trio.sleep_forever()

    async with open_hub(journal=url, limits=rarely) as hub:
        await hub.start_turn("chat", answer, [user_message("Hello")])
        with trio.fail_after(5):
            await until_written(hub, 70)


async def test_a_stop_on_another_node_ends_the_turn_and_fences_its_owner(url: str) -> None:
    refused: list[BaseException] = []

    async def answer(turn: Turn) -> None:
        try:
            await talk(turn)
        except (TurnSealedError, trio.Cancelled) as exc:
            refused.append(exc)
            raise

    async with open_hub(journal=url, limits=QUICK) as owner, open_hub(journal=url, limits=QUICK) as other:
        mine = await owner.start_turn("chat", answer, [user_message("Hello")])
        with trio.fail_after(5):
            await until_written(other, 5)
            assert await other.stop("chat", "enough") is TurnState.stopped
            sealed = await newest(other)
            while owner.statistics().turns_running:
                await trio.sleep(0.01)
        assert refused
        assert mine.state is TurnState.stopped
        assert await newest(other) == sealed


@pytest.fixture
def node(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another node, in a process of its own, whose turn runs on and on."""
    with subprocess.Popen([sys.executable, str(Path(__file__).with_name("talking_node.py")), url]) as process:
        yield process
        process.kill()


async def test_a_node_that_is_killed_leaves_its_turn_lost(url: str, node: subprocess.Popen[bytes]) -> None:
    async with open_hub(journal=url, limits=QUICK) as hub:
        with trio.fail_after(15):
            await until_written(hub, 5)
            turn = await hub.newest_turn("chat")
            assert turn is not None
            node.kill()
            killed_at = trio.current_time()
            assert await turn.wait_ended() is TurnState.lost
        # Its lease, and the time until the other node looks for such turns.
        assert trio.current_time() - killed_at < 2.0
        assert (await newest(hub)).epoch == 2
