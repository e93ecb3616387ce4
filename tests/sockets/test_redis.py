"""The `redis:` store on a real Redis: every guarantee, histories, and what becomes of it when Redis does not."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from coredis.connection import TCPConnection, TCPLocation
from coredis.pool import ConnectionPool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy import Fault, open_proxy

from parts import require
from penstock import Hub, Limits, Turn, TurnState, open_hub
from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal import store as journal
from penstock.journal.redis import RedisStore
from penstock.journal.store import Batch, Retention, RunningTurnError, Store
from penstock.limits import HubLimits, RedisLimits, TurnLimits
from penstock.testing import user_message
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, begin, end
from penstock.testing.store_suite import StoreSuite
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import decode_stored
from redis_server import RedisServer, free_port, running_redis
from store_histories import STEPS, Step, run_program

EAGER = Limits(redis=RedisLimits(trim_s=0.02))
IMPATIENT = Limits(redis=RedisLimits(call_s=0.25, connect_s=0.25))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One for all who don't stop it."""
    with running_redis() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    """A place of the test's own."""
    return f"{secrets.token_hex(4)}:"


@pytest.fixture
def url(server: RedisServer, prefix: str) -> str:
    """A journal's URL."""
    return server.url(prefix)


class TestRedis(StoreSuite):
    @pytest.fixture
    def open_store(self, url: str) -> OpenStore:
        """`redis:`."""
        return partial(journal.open_store, url, limits=EAGER)


def test_histories_are_those_of_plain_lists(server: RedisServer) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, min_size=10, max_size=25))
    def run(program: list[Step]) -> None:
        url = server.url(f"{secrets.token_hex(4)}:")
        trio.run(partial(run_program, partial(journal.open_store, url, limits=EAGER), program))

    run()


async def append_all(store: Store, turn: journal.TurnRecord, entries: list[bytes], *, first: int = 0) -> None:
    """Append one by one, again and again until each is known to be there."""
    for offset, entry in enumerate(entries[first:], first):
        while True:
            try:
                await store.append([Batch(turn, offset, [entry])])
                break
            except StoreUnavailableError:
                await trio.sleep(0.002)


async def test_a_redis_that_is_killed_and_restarted_lost_nothing_and_has_nothing_twice() -> None:
    entries = [b"%d" % i for i in range(200)]
    with running_redis() as server:
        async with journal.open_store(server.url(), limits=IMPATIENT) as store:
            turns = [await begin(store, f"t{i}", f"c{i}") for i in range(4)]
            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    for turn in turns:
                        nursery.start_soon(append_all, store, turn, entries)
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


@pytest.mark.parametrize("late", [False, True], ids=["while it runs", "before its end"])
async def test_a_redis_that_was_set_back_is_given_again_what_the_owner_has(late: bool) -> None:
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

    with running_redis() as server:
        async with open_hub(journal=server.url()) as hub:
            with trio.fail_after(15):
                turn = await hub.start_turn("chat", answer, [user_message("Hello")])
                while (await newest(hub)).entries < 10:
                    await trio.sleep(0.005)
                await trio.to_thread.run_sync(server.keep)
                kept = await newest(hub)
                while (await newest(hub)).entries < 33:
                    await trio.sleep(0.005)
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


async def test_a_redis_that_is_paused_fails_calls_in_time_and_is_used_again(
    server: RedisServer, url: str
) -> None:
    async with journal.open_store(url, limits=IMPATIENT) as store:
        turn = await begin(store)
        server.signal(signal.SIGSTOP)
        try:
            before = trio.current_time()
            for _ in range(3):
                with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
                    await store.append([Batch(turn, 0, [b"a"])])
            assert 0.7 < trio.current_time() - before < 1.5
        finally:
            server.signal(signal.SIGCONT)
        with trio.fail_after(3):
            await append_all(store, turn, [b"a", b"b"])
        # What was written to the paused server was executed late, and did no harm.
        assert await store.read("t1", 0, 9) == [b"a", b"b"]


async def test_a_dead_link_is_given_up_and_replaced(server: RedisServer, prefix: str) -> None:
    stall = Fault("stall", after_bytes=40_000)
    async with open_proxy(f"http://127.0.0.1:{server.port}", stall, None) as proxy:
        url = f"redis://{proxy.url.removeprefix('http://')}/0?prefix={prefix}"
        async with journal.open_store(url, limits=IMPATIENT) as store:
            turn = await begin(store)
            await store.append([Batch(turn, 0, [b"x" * 10_000])])

            async def read_until_it_stalls() -> None:
                while True:
                    assert len(await store.read("t1", 0, 1)) == 1

            with trio.fail_after(5):
                with pytest.raises(StoreUnavailableError, match="does not answer"):
                    await read_until_it_stalls()
                while True:
                    try:
                        assert len(await store.read("t1", 0, 1)) == 1
                        break
                    except StoreUnavailableError:
                        await trio.sleep(0.01)
            assert proxy.connections == 2


async def test_a_cancelled_call_leaves_the_connection_as_it_was(server: RedisServer, url: str) -> None:
    async with journal.open_store(url) as store:
        assert isinstance(store, RedisStore)
        connection = store._link._connection
        turn = await begin(store)
        for i in range(100):
            with trio.move_on_after(0.0005 * (i % 5)):
                await store.append([Batch(turn, 0, [b"a"])])
        for i in range(20):
            assert await store.read("t1", 0, 9) == [b"a"]
            assert (await begin(store, f"other-{i}", f"c-{i}")).turn_id == f"other-{i}"
        assert store._link._connection is connection


async def test_connections_that_die_cost_no_slots(server: RedisServer, url: str) -> None:
    """With coredis's own pool, as many of them as it has slots are the end: see the next test."""
    hasty = Limits(redis=RedisLimits(first_backoff_s=0.001, recheck_s=60.0))
    async with journal.open_store(url, limits=hasty) as store:
        turn = await begin(store)
        with store.news(turn) as news:
            for i in range(0, 140, 2):
                await trio.to_thread.run_sync(server.command, "CLIENT", "KILL", "TYPE", "pubsub")
                with trio.fail_after(5):
                    await append_all(store, turn, [b"x"] * (i + 1), first=i)
                    await trio.sleep(0.002)
                    await news.wait(60)  # of the new connection, and of what was published since
                    await store.append([Batch(turn, i + 1, [b"x"])])
                    await news.wait(60)


async def test_what_happened_while_there_was_no_connection_is_news(server: RedisServer, url: str) -> None:
    slow = Limits(redis=RedisLimits(first_backoff_s=0.2, recheck_s=60.0))
    async with journal.open_store(url, limits=slow) as store, journal.open_store(url) as other:
        turn = await begin(store)
        with store.news(turn) as news:
            assert await store.turn("t1") == turn
            await trio.to_thread.run_sync(server.command, "CLIENT", "KILL", "TYPE", "pubsub")
            await other.append([Batch(turn, 0, [b"a"])])
            with trio.fail_after(5):
                await news.wait(60)
                assert await store.read("t1", 0, 9) == [b"a"]


async def test_the_pool_of_coredis_loses_a_slot_with_each_connection_that_dies(server: RedisServer) -> None:
    """When this fails, coredis has changed, and `redis_link.py` may have its reasons no more."""
    pool: ConnectionPool[TCPConnection] = ConnectionPool(
        connection_class=TCPConnection,
        location=TCPLocation("127.0.0.1", server.port),
        max_connections=3,
        timeout=0.2,
    )
    async with pool:
        for _ in range(3):
            async with pool.acquire() as connection:
                connection.invalidate("as if the server had closed it")
                while connection.usable:
                    await trio.lowlevel.checkpoint()
                await trio.sleep(0.01)
        with pytest.raises(TimeoutError):
            async with pool.acquire():
                pass


async def test_a_redis_that_forgot_the_scripts_is_told_again(server: RedisServer, url: str) -> None:
    async with journal.open_store(url) as store:
        turn = await begin(store)
        await store.append([Batch(turn, 0, [b"a"])])
        await trio.to_thread.run_sync(server.command, "SCRIPT", "FLUSH")
        await store.append([Batch(turn, 1, [b"b"]), Batch(turn, 2, [b"c"])])
        assert await store.read("t1", 0, 9) == [b"a", b"b", b"c"]


async def test_nothing_that_runs_has_a_time_to_live(server: RedisServer, url: str, prefix: str) -> None:
    def lives() -> dict[str, int]:
        keys = server.command("KEYS", f"{prefix}{{c1}}*").split(b"\r\n")[2::2]
        return {
            key.decode().removeprefix(f"{prefix}{{c1}}"): int(server.command("PTTL", key.decode())[1:])
            for key in keys
            if key
        }

    names = {"", ":messages", ":turns", ":turn:t1", ":entries:t1"}
    retention = Retention(turn_age_s=100.0, chat_age_s=1000.0)
    async with journal.open_store(url, retention=retention) as store:
        turn = await begin(store)
        await store.append([Batch(turn, 0, [b"a"])])
        assert lives() == dict.fromkeys(names, -1)
        assert await end(store, turn, 1, state=TurnState.suspended)
        suspended = await store.turn("t1")
        assert suspended is not None
        assert set(lives()) == names
        assert all(990_000 < life <= 1_000_000 for life in lives().values())
        await store.resume(suspended, "u", [user_message("Go on")], lease_until=LEASE)
        assert lives() == dict.fromkeys(names, -1)
        assert await end(store, turn, 2)
        assert {name for name, life in lives().items() if 90_000 < life <= 100_000} == {
            ":turn:t1", ":entries:t1",
        }  # fmt: skip
        assert all(life > 90_000 for life in lives().values())
        await begin(store, "t2")
        assert {name for name, life in lives().items() if life == -1} == {
            "",
            ":messages",
            ":turns",
            ":turn:t2",
        }


async def test_what_a_crash_leaves_between_two_commands_does_no_harm(
    server: RedisServer, url: str, prefix: str
) -> None:
    async with journal.open_store(url) as store:
        # Of a beginning: the claim of the id, and the note of a lease.
        server.command("SET", f"{prefix}turn:t1", "c1")
        server.command("ZADD", f"{prefix}leases", "5.0", "t1 c1")
        assert await store.turn("t1") is None
        assert list(await store.read("t1", 0, 9)) == []
        assert await store.chat("c1") is None
        assert await store.lapsed(10.0, 1) == []
        assert server.command("ZCARD", f"{prefix}leases") == b":0\r\n"
        with pytest.raises(LocalProtocolError):
            await begin(store, "t1", "c2")
        turn = await begin(store, "t1", "c1")
        with pytest.raises(RunningTurnError):
            await begin(store, "t2", "c1")
        assert server.command("EXISTS", f"{prefix}turn:t2") == b":0\r\n", "a refusal leaves nothing"
        assert server.command("ZCARD", f"{prefix}leases") == b":1\r\n"
        # Of a renewal: the note is too early.
        server.command("ZADD", f"{prefix}leases", "5.0", "t1 c1")
        other = await store.begin("c3", "t3", "u", [], at=1.0, lease_until=7.0)
        assert await store.lapsed(10.0, 1) == [other]
        assert await store.lapsed(10.0, 9) == [other]
        # Of an adoption: there is no note.
        server.command("DEL", f"{prefix}leases")
        assert await store.renew([other], 8.0) == {"t3"}
        assert [record.turn_id for record in await store.lapsed(10.0, 9)] == ["t3"]
        assert await end(store, turn)


async def test_ids_that_look_like_keys_are_kept_apart(url: str) -> None:
    ids = ["a", "a}:turn:x", "{a}", "a b", "ä:%7B", "", "a}", "x}:messages"]
    async with journal.open_store(url, retention=FOREVER, limits=EAGER) as store:
        for chat in ids:
            turn = await begin(store, f"{chat}{{t", chat)
            await store.append([Batch(turn, 0, [chat.encode()])])
        for chat in ids:
            record = await store.turn(f"{chat}{{t")
            assert record is not None
            assert record.chat_id == chat
            assert await store.read(f"{chat}{{t", 0, 9) == [chat.encode()]
        assert {turn.chat_id for turn in await store.lapsed(LEASE + 1, 99)} == set(ids)
        for chat in ids:
            record = await store.turn(f"{chat}{{t")
            assert record is not None
            assert await end(store, record, 1)


async def test_it_says_why_it_can_not_be_opened(server: RedisServer) -> None:
    with pytest.raises(
        StoreUnavailableError, match=r"the journal at redis://127\.0\.0\.1:1/0 can't be reached"
    ):
        async with journal.open_store("redis://user:hunter2@127.0.0.1:1"):
            pass
    server.command("ACL", "SETUSER", "ann", "on", ">s3 cr:t@/", "~*", "&*", "+@all")
    where = f"127.0.0.1:{server.port}"
    with pytest.raises(StoreUnavailableError, match="invalid username-password") as caught:
        async with journal.open_store(f"redis://ann:hunter2@{where}"):
            pass
    assert "hunter2" not in str(caught.value)
    async with journal.open_store(f"redis://ann:s3%20cr%3At%40%2F@{where}/1") as store:
        assert await store.chat("c1") is None
        assert "s3" not in repr(store._link._address)  # type: ignore[attr-defined]


async def test_over_tls_it_knows_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("openssl", "install it with the system's package manager", shutil.which("openssl") is not None)
    certificate, key = f"{tmp_path}/cert.pem", f"{tmp_path}/key.pem"
    await trio.run_process(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        capture_stderr=True,
    )  # fmt: skip
    port = str(free_port())
    options = ("--tls-port", port, "--tls-cert-file", certificate, "--tls-key-file", key)
    with running_redis(*options, "--tls-auth-clients", "no") as server:
        assert server.port != int(port)
        with pytest.raises(StoreUnavailableError, match="can't be reached"):
            async with journal.open_store(f"rediss://127.0.0.1:{port}"):
                pass
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        async with journal.open_store(f"rediss://127.0.0.1:{port}") as store:
            turn = await begin(store)
            assert await end(store, turn)


async def test_a_redis_that_evicts_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis() as server:
        async with journal.open_store(server.url()):
            assert "evicts" not in caplog.text
        server.command("CONFIG", "SET", "maxmemory", "100mb")
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        async with journal.open_store(server.url()):
            assert "evicts" in caplog.text


QUICK = Limits(
    hub=HubLimits(lease_s=0.6, replica_poll_s=5.0),
    turn=TurnLimits(stop_grace_s=0.3),
)


async def talk(turn: Turn) -> None:
    """Say when it was said, until stopped."""
    async with turn.text() as text:
        while True:
            await text.write(f"{time.perf_counter()} ")
            await trio.sleep(0.03)


async def newest(hub: Hub) -> journal.TurnRecord:
    """The chat's turn as it is now."""
    chat = await hub.chat("chat")
    assert chat is not None
    assert chat.turn is not None
    return chat.turn


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
            while await hub.chat("chat") is None or (await newest(hub)).entries < 70:
                await trio.sleep(0.01)


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
            while (await newest(other)).entries < 5:
                await trio.sleep(0.01)
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
    with subprocess.Popen([sys.executable, str(Path(__file__).with_name("redis_child.py")), url]) as process:
        yield process
        process.kill()


async def test_a_node_that_is_killed_leaves_its_turn_lost(url: str, node: subprocess.Popen[bytes]) -> None:
    async with open_hub(journal=url, limits=QUICK) as hub:
        with trio.fail_after(15):
            while await hub.chat("chat") is None or (await newest(hub)).entries < 5:
                await trio.sleep(0.02)
            turn = await hub.newest_turn("chat")
            assert turn is not None
            node.kill()
            killed_at = trio.current_time()
            assert await turn.wait_ended() is TurnState.lost
        # Its lease, and the time until the other node looks for such turns.
        assert trio.current_time() - killed_at < 2.0
        assert (await newest(hub)).epoch == 2


def test_a_bad_address_is_refused_in_words_without_its_password() -> None:
    for url in (
        "redis:", "redis://", "redis:/x", "redis:///0", "redis://h:x", "redis://u:hunter2/x@h", "redis://h:99999",
        "redis://h/x", "redis://h/0/1", "redis://h/-1", "redis://h?db=1", "redis://h?prefix={a}", "redis://h?prefix",
        "redis://h?prefix=a&prefix=b", "redis://u:hunter2@h#1", "redis://u:hunter2@:1", "rediss://",
        "redis://[::1", "redis://u:hunter2@[::1/0",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="journal") as caught:
            journal.check_journal(url)
        assert "hunter2" not in str(caught.value)
    for url in ("redis://h", "rediss://u:p@h:1/15?prefix=a.b:", "redis://[::1]:6379/0", "redis://h/?prefix="):
        journal.check_journal(url)


def test_without_coredis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("redis", "redis_link", "redis_upkeep"):
        monkeypatch.delitem(sys.modules, f"penstock.journal.{name}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "coredis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "coredis", None)
    with pytest.raises(ValueError, match=r"pip install 'penstock\[redis\]'"):
        journal.check_journal("redis://h")
