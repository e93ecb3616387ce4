"""The `redis:` store on a real Redis: every guarantee, histories, and what becomes of it when Redis does not."""

from __future__ import annotations

import secrets
import sys
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

from certificate import make_certificate
from parts import free_port
from penstock import Limits, TurnState
from penstock.errors import LocalProtocolError, StoreUnavailableError
from penstock.journal import store as journal
from penstock.journal.redis import RedisStore
from penstock.journal.store import Batch, Retention, RunningTurnError, Store
from penstock.limits import RedisLimits
from penstock.testing import user_message
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, begin, end
from penstock.testing.store_suite import StoreSuite
from redis_server import RedisServer, running_redis
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
    """Of the keys of the test's own."""
    return f"{secrets.token_hex(4)}:"


@pytest.fixture
def url(server: RedisServer, prefix: str) -> str:
    """A journal's URL."""
    return server.url(prefix.removesuffix(":"))


class TestRedis(StoreSuite):
    @pytest.fixture
    def open_store(self, url: str) -> OpenStore:
        """`redis:`."""
        return partial(journal.open_store, url, limits=EAGER)


def test_histories_are_those_of_plain_lists(server: RedisServer) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, min_size=10, max_size=25))
    def run(program: list[Step]) -> None:
        url = server.url(secrets.token_hex(4))
        trio.run(partial(run_program, partial(journal.open_store, url, limits=EAGER), program))

    run()


async def append_one(store: Store, turn: journal.TurnRecord, offset: int) -> None:
    """Append an entry, again and again until it is known to be there."""
    while True:
        try:
            return await store.append([Batch(turn, offset, [b"x"])])
        except StoreUnavailableError:
            await trio.sleep(0.002)


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
                    await append_one(store, turn, i)
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
    made = make_certificate(tmp_path)
    port = str(free_port())
    options = ("--tls-port", port, "--tls-cert-file", made.cert, "--tls-key-file", made.key)
    with running_redis(*options, "--tls-auth-clients", "no", "--requirepass", "s3 cr:t") as server:
        assert server.port != int(port)

        async def refused(url: str, why: str) -> None:
            with pytest.raises(StoreUnavailableError, match=why) as caught:
                async with journal.open_store(url, limits=IMPATIENT):
                    pass
            assert "s3" not in str(caught.value)

        await refused(f"rediss://:s3%20cr%3At@127.0.0.1:{port}", "certificate verify failed")
        monkeypatch.setenv("SSL_CERT_FILE", made.cert)
        await refused(f"rediss://:s3%20cr%3At@localhost:{port}", "certificate is not valid for 'localhost'")
        await refused(f"rediss://:s3%20cr%3At@127.0.0.1:{server.port}", "can't be reached")
        await refused(f"rediss://127.0.0.1:{port}", "(?i)auth")
        async with journal.open_store(f"rediss://:s3%20cr%3At@127.0.0.1:{port}") as store:
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
