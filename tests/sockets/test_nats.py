"""The `nats:` store on a real NATS: every guarantee, histories, and what becomes of it when NATS does not."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certificate import make_certificate
from nats_server import NatsServer, running_nats
from penstock import Limits, TurnState
from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal import store as journal
from penstock.journal.nats import NatsStore
from penstock.journal.nats_link import Answer, NatsLink, Request
from penstock.journal.nats_stream import NatsStream
from penstock.journal.nats_text import read_token, token
from penstock.journal.store import Batch, Store
from penstock.limits import NatsLimits
from penstock.testing import user_message
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, answer, begin, end
from penstock.testing.store_suite import StoreSuite
from store_histories import STEPS, Step, run_program

T = TypeVar("T")

EAGER = Limits(nats=NatsLimits(trim_s=0.02))
IMPATIENT = Limits(nats=NatsLimits(call_s=0.25, connect_s=0.25, backoff_max_s=0.1))


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """One for all who don't stop it."""
    with running_nats() as running:
        yield running


@pytest.fixture
def url(server: NatsServer) -> str:
    """A journal's URL, in a place of the test's own."""
    return server.url(secrets.token_hex(4))


def link_of(store: Store) -> NatsLink:
    return cast("NatsStore", store)._stream._link


class TestNats(StoreSuite):
    @pytest.fixture
    def open_store(self, url: str) -> OpenStore:
        """`nats:`."""
        return partial(journal.open_store, url, limits=EAGER)


class TestNatsInParts(StoreSuite):
    """Where nearly everything is too large for one message."""

    @pytest.fixture
    def open_store(self, url: str) -> OpenStore:
        """`nats:`."""
        limits = Limits(nats=NatsLimits(trim_s=0.02, part_bytes=8_000, page_messages=3))
        return partial(journal.open_store, url, limits=limits)


class TestNatsByLeader(StoreSuite):
    """As it asks a stream that has replicas, any of which may be behind."""

    @pytest.fixture
    def open_store(self, url: str, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
        """`nats:`."""
        make = NatsStream.make

        async def made(stream: NatsStream) -> None:
            await make(stream)
            stream._by_leader = True

        monkeypatch.setattr(NatsStream, "make", made)
        return partial(journal.open_store, url, limits=EAGER)


@pytest.mark.parametrize("part_bytes", [512 << 10, 20])
def test_histories_are_those_of_plain_lists(server: NatsServer, part_bytes: int) -> None:
    limits = Limits(nats=NatsLimits(trim_s=0.02, part_bytes=part_bytes, page_messages=5))

    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, min_size=10, max_size=25))
    def run(program: list[Step]) -> None:
        url = server.url(secrets.token_hex(4))
        trio.run(partial(run_program, partial(journal.open_store, url, limits=limits), program))

    run()


@given(st.text(st.characters(exclude_categories=[])), st.text(st.characters(exclude_categories=[])))
def test_an_id_is_one_token_whatever_is_in_it(one: str, other: str) -> None:
    assert set(token(one)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_~-=")
    assert token(one)
    assert read_token(token(one)) == one
    assert (token(one) == token(other)) == (one == other)


async def test_an_owner_from_before_a_set_back_is_not_taken_for_the_one_after() -> None:
    """The sequences that the server gives again fit what he knew."""
    with running_nats() as server:
        async with journal.open_store(server.url()) as store, journal.open_store(server.url()) as other:
            turn = await begin(store)
            await store.append([Batch(turn, 0, [b"a"])])
            await trio.to_thread.run_sync(server.keep)
            await store.append([Batch(turn, 1, [b"b"])])
            await store.append([Batch(turn, 2, [b"c"])])
            await trio.to_thread.run_sync(server.set_back)
            with trio.fail_after(5):
                while True:
                    try:
                        now = await other.turn("t1")
                        break
                    except StoreUnavailableError:
                        await trio.sleep(0.01)
            assert now is not None
            assert now.entries == 1
            # A note, and the adoption, which has the sequence that the last of the lost entries had.
            adopted = await other.adopt(now, lease_until=LEASE)
            assert adopted is not None
            with pytest.raises(TurnSealedError):
                await store.append([Batch(turn, 3, [b"d"])])
            assert await other.read("t1", 0, 9) == [b"a"]


async def test_nobody_is_refused_because_of_what_was_true_once(url: str) -> None:
    async with journal.open_store(url) as store, journal.open_store(url) as other:
        turn = await begin(store)
        await store.append([Batch(turn, 0, [b"a"])])
        await other.append([Batch(turn, 1, [b"b"])])
        await store.append([Batch(turn, 2, [b"c"])])
        assert await end(other, turn, 3, state=TurnState.suspended)
        suspended = await store.turn("t1")
        assert suspended is not None
        resumed = await store.resume(suspended, "u", [], lease_until=LEASE)
        await other.append([Batch(resumed, 4, [b"d"])])
        assert await store.renew([resumed], LEASE + 1) == {"t1"}
        assert await other.read("t1", 0, 9) == [b"a", b"b", b"c", b"end", b"d"]


async def test_an_entry_of_two_lines_is_refused_and_the_others_are_not(url: str) -> None:
    async with journal.open_store(url) as store:
        turn, other = await begin(store), await begin(store, "t2", "c2")
        with pytest.raises(LocalProtocolError, match="one line"):
            await store.append([Batch(turn, 0, [b"a\nb"]), Batch(other, 0, [b"x"])])
        with pytest.raises(LocalProtocolError, match="one line"):
            await store.seal(Batch(turn, 0, [b"a\nb"]), TurnState.finished, None, at=1.0)
        assert await store.read("t1", 0, 9) == []
        assert await store.read("t2", 0, 9) == [b"x"]


@pytest.mark.parametrize("part_bytes", [512 << 10, 100])
async def test_of_a_chat_only_what_counts_is_kept(url: str, part_bytes: int) -> None:
    limits = Limits(nats=NatsLimits(part_bytes=part_bytes))
    messages = [user_message("word " * 100, id=f"m{i}") for i in range(3)]
    async with journal.open_store(url, limits=limits) as store:
        stream = cast("NatsStore", store)._stream
        held = []
        for i in range(4):
            turn = await store.begin("c1", f"t{i}", "m2", messages, at=1.0, lease_until=LEASE)
            assert await end(store, turn)
            info = await stream._api("STREAM.INFO", {"subjects_filter": stream.chat("c1")})
            held.append(info["state"]["subjects"][stream.chat("c1")])
        assert held == [held[0]] * 4
        assert (held[0] == 1) == (part_bytes > 1000)


async def test_a_cancelled_call_costs_nobody_else_anything(url: str) -> None:
    async with journal.open_store(url) as store:
        turn = await begin(store)
        for i in range(100):
            with trio.move_on_after(0.0003 * (i % 5)):
                await store.append([Batch(turn, 0, [b"a"])])
        for i in range(10):
            assert await store.read("t1", 0, 9) == [b"a"]
            assert (await begin(store, f"other-{i}", f"c-{i}")).turn_id == f"other-{i}"
        assert not link_of(store)._pending


class Fault:
    """Has one call of a link fail: before it is sent, or when it was answered."""

    def __init__(self, link: NatsLink, call: int, sent: bool) -> None:
        self._link = link
        self._left = call
        self._sent = sent
        self.hit = False
        link.request = self.request  # type: ignore[method-assign]

    async def request(self, requests: Sequence[Request], connection: int | None = None) -> list[list[Answer]]:
        self._left -= 1
        if self._left == 0:
            self.hit = True
            if self._sent:
                await NatsLink.request(self._link, requests, connection)
            raise StoreUnavailableError("a fault")
        return await NatsLink.request(self._link, requests, connection)


@pytest.mark.parametrize("part_bytes", [512 << 10, 90])
async def test_each_call_may_fail_and_can_be_made_again(server: NatsServer, part_bytes: int) -> None:
    """Whatever is lost, a question or an answer: asked again, what was to happen has happened, once."""
    limits = Limits(nats=NatsLimits(part_bytes=part_bytes))
    message = user_message("Hello", id="u")
    for sent in (False, True):
        fault_at = 0
        while True:
            fault_at += 1
            url = server.url(secrets.token_hex(4))
            async with journal.open_store(url, limits=limits) as store:
                fault = Fault(link_of(store), fault_at, sent)

                async def again(call: Callable[[], Awaitable[T]]) -> T:
                    try:
                        return await call()
                    except StoreUnavailableError:
                        return await call()

                begun = partial(store.begin, "c1", "t1", "u", [message], at=1.0, lease_until=LEASE)
                try:
                    turn = await begun()
                except StoreUnavailableError:
                    there = (await store.chat("c1"), await store.turn("t1"))
                    if there[0] is None:
                        assert there[1] is None
                        turn = await begun()
                    else:
                        assert there[0].turn == there[1]
                        assert there[1] is not None
                        turn = there[1]
                await again(partial(store.append, [Batch(turn, 0, [b"a", b"b"])]))
                first = Batch(turn, 2, [b"c" * 100])
                assert await again(partial(store.seal, first, TurnState.suspended, answer("t1"), at=2.0))
                suspended = msgspec.structs.replace(
                    turn, state=TurnState.suspended, entries=3, lease_until=None
                )
                assert await again(partial(store.turn, "t1")) == suspended
                resumed = msgspec.structs.replace(suspended, state=TurnState.running, lease_until=LEASE)
                try:
                    assert (
                        await store.resume(suspended, "u", [message, answer("t1")], lease_until=LEASE)
                        == resumed
                    )
                except StoreUnavailableError:
                    if await store.turn("t1") == suspended:
                        await store.resume(suspended, "u", [message, answer("t1")], lease_until=LEASE)
                assert await again(partial(store.renew, [resumed], LEASE + 1)) == {"t1"}
                last = Batch(turn, 3, [b"d", b"e" * 100])
                assert await again(partial(store.seal, last, TurnState.finished, answer("t1"), at=3.0))
                chat = await again(partial(store.chat, "c1"))
                assert chat is not None
                assert list(chat.messages) == [message, answer("t1")]
                assert chat.turn == msgspec.structs.replace(
                    suspended, state=TurnState.finished, entries=5, ended_at=3.0
                )
                entries = await again(partial(store.read, "t1", 0, 9))
                assert entries == [b"a", b"b", b"c" * 100, b"d", b"e" * 100]
                if not fault.hit:
                    break
        assert fault_at > 12


async def test_what_a_crash_leaves_between_two_steps_does_no_harm(url: str) -> None:
    async with journal.open_store(url, limits=EAGER) as store:
        stream = cast("NatsStore", store)._stream

        async def crash_after(call: int, work: Callable[[], Awaitable[object]]) -> None:
            fault = Fault(stream._link, call, sent=True)
            with pytest.raises(StoreUnavailableError):
                await work()
            assert fault.hit

        async def notes() -> set[str]:
            found, _ = await stream.subjects(f"{stream.name}.live.*.*")
            return {subject.rpartition(".")[2] for subject in found}

        # Of a beginning, after the chat was asked for and the id was claimed.
        async with journal.open_store(url) as crashed:
            stream = cast("NatsStore", crashed)._stream
            await crash_after(2, partial(begin, crashed, "t1"))
            assert await notes() == {"t1"}
        assert await store.turn("t1") is None
        assert list(await store.read("t1", 0, 9)) == []
        assert await store.chat("c1") is None
        with pytest.raises(LocalProtocolError):
            await begin(store, "t1", "c2")
        assert [turn.turn_id for turn in await store.lapsed(LEASE + 1, 9)] == []
        # After the chat was set: the turn has begun, and is found.
        async with journal.open_store(url) as crashed:
            stream = cast("NatsStore", crashed)._stream
            await crash_after(4, partial(begin, crashed, "t1"))
        turn = await store.turn("t1")
        assert turn is not None
        assert await store.lapsed(LEASE + 1, 9) == [turn]
        chat = await store.chat("c1")
        assert chat is not None
        assert chat.turn == turn
        adopted = await store.adopt(turn, lease_until=LEASE)
        assert adopted is not None
        # Of a seal: what remains to be done is, by whoever looks.
        async with journal.open_store(url) as other:
            assert await end(other, adopted)
        stream = cast("NatsStore", store)._stream
        assert await notes() == {"t1"}
        assert await store.lapsed(LEASE + 1, 9) == []
        with trio.fail_after(3):
            while await notes() or not (await stream.subjects(f"{stream.name}.ended.*.*"))[0]:
                await trio.sleep(0.01)


async def test_ids_that_look_like_subjects_are_kept_apart(url: str) -> None:
    ids = ["a", "a.b", "*", ">", "a b", "ä=2E", "", "=", "a.*", "$JS", "a\r\nPUB x 0\r\n"]
    async with journal.open_store(url, retention=FOREVER, limits=EAGER) as store:
        for chat in ids:
            turn = await begin(store, f"{chat}.t", chat)
            await store.append([Batch(turn, 0, [chat.encode().replace(b"\n", b"")])])
        for chat in ids:
            record = await store.turn(f"{chat}.t")
            assert record is not None
            assert record.chat_id == chat
            assert await store.read(f"{chat}.t", 0, 9) == [chat.encode().replace(b"\n", b"")]
        assert {turn.chat_id for turn in await store.lapsed(LEASE + 1, 99)} == set(ids)
        for chat in ids:
            record = await store.turn(f"{chat}.t")
            assert record is not None
            assert await end(store, record, 1)


async def test_it_says_why_it_can_not_be_opened(server: NatsServer) -> None:
    with pytest.raises(
        StoreUnavailableError,
        match=r"the journal at nats://127\.0\.0\.1:1 can't be reached: Connection refused",
    ):
        async with journal.open_store("nats://user:hunter2@127.0.0.1:1"):
            pass
    with running_nats(
        'accounts { A { jetstream: enabled, users: [{user: ann, password: "s3 cr:t@/"}] } }'
    ) as other:
        where = f"127.0.0.1:{other.port}"
        for who in ("", "hunter2@", "ann:hunter2@"):
            with pytest.raises(StoreUnavailableError, match=r"(?i)authorization violation") as caught:
                async with journal.open_store(f"nats://{who}{where}"):
                    pass
            assert "hunter2" not in str(caught.value)
        # Any of the servers will do.
        async with journal.open_store(f"nats://ann:s3%20cr%3At%40%2F@127.0.0.1:1,{where}") as store:
            assert await store.chat("c1") is None
            assert "s3" not in repr(link_of(store).address)
    with running_nats("accounts { A { users: [{user: ann, password: ann}] } }") as other:
        with pytest.raises(StoreUnavailableError, match=r"no JetStream|not enabled"):
            async with journal.open_store(f"nats://ann:ann@127.0.0.1:{other.port}"):
                pass


async def test_over_tls_it_knows_the_server_and_says_nothing_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(url: str, why: str) -> None:
        with pytest.raises(StoreUnavailableError, match=why) as caught:
            async with journal.open_store(url, limits=IMPATIENT):
                pass
        assert "s3" not in str(caught.value)

    made = make_certificate(tmp_path)
    files = f'cert_file: "{made.cert}", key_file: "{made.key}"'
    for options, who, other in (
        ("", "ann:s3%20cr%3At@", "ann:wr0ng@"),
        ("allow_non_tls: true", "s3cr3t-t0ken@", ""),
    ):
        login = 'user: ann, password: "s3 cr:t"' if ":" in who else 'token: "s3cr3t-t0ken"'
        with running_nats(f"tls {{ {files} }}\nauthorization {{ {login} }}\n{options}") as server:
            where = f"127.0.0.1:{server.port}"
            monkeypatch.delenv("SSL_CERT_FILE", raising=False)
            await refused(f"tls://{who}{where}", "certificate verify failed")
            monkeypatch.setenv("SSL_CERT_FILE", made.cert)
            await refused(f"tls://{who}localhost:{server.port}", "certificate is not valid for 'localhost'")
            await refused(f"tls://{other}{where}", "(?i)authorization violation")
            async with journal.open_store(f"tls://{who}{where}", limits=IMPATIENT) as store:
                turn = await begin(store)
                assert await end(store, turn)


async def test_what_is_secret_is_told_to_no_server_that_speaks_in_clear() -> None:
    """Who sits between could say that there is no TLS, and nats-py would believe it."""
    heard = b""

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal heard
        async with stream:
            await stream.send_all(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576}\r\n')
            async for data in stream:
                heard += data

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        with pytest.raises(StoreUnavailableError, match="does not offer TLS"):
            async with journal.open_store(f"tls://ann:hunter2@127.0.0.1:{port}", limits=IMPATIENT):
                pass
        nursery.cancel_scope.cancel()
    assert heard == b""


async def test_a_stream_that_throws_away_what_is_old_is_named_in_the_log(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with journal.open_store(url) as store:
        stream = cast("NatsStore", store)._stream
        config = (await stream._api("STREAM.INFO", {}))["config"]
        for changed in ({"max_bytes": 1 << 20}, {"max_age": 10**12}):
            await stream._api("STREAM.UPDATE", {**config, **changed})
            async with journal.open_store(url):
                assert ("throws away" in caplog.text) == ("max_age" in changed)


async def test_it_needs_no_more_than_it_says(caplog: pytest.LogCaptureFixture) -> None:
    """The permissions that docs/delivery.md names."""
    text = (Path(__file__).parents[2] / "docs/delivery.md").read_text()
    needs = text[text.index("A user of penstock needs") : text.index("**Several replicas.**")]
    publish, subscribe = (
        json.dumps(re.findall(r"`(.+?)`", part)).replace("NAME", "penstock")
        for part in needs.split("to\n  subscribe")
    )
    who = f"user: ann, password: ann, permissions: {{ publish: {publish}, subscribe: {subscribe} }}"
    config = f"accounts {{ A {{ jetstream: enabled, users: [{{ {who} }}] }} }}"
    with running_nats(config) as server:
        url = f"nats://ann:ann@127.0.0.1:{server.port}"
        limits = Limits(nats=NatsLimits(trim_s=0.02, call_s=0.5))
        retention = msgspec.structs.replace(FOREVER, turns_per_chat=1)
        async with journal.open_store(url, limits=limits, retention=retention) as store:
            with store.notes() as notes:
                for i in range(3):
                    turn = await begin(store, f"t{i}")
                    with store.news(turn) as news:
                        await store.append([Batch(turn, 0, [b"a"])])
                        await news.wait(60)
                    assert [found.turn_id for found in await store.lapsed(LEASE + 1, 9)] == [f"t{i}"]
                    assert await end(store, turn, 1)
                await store.tell([b"x"])
                with trio.fail_after(3):
                    assert (await notes.wait()).notes == (b"x",)
                    while await store.turn("t0") is not None:
                        await trio.sleep(0.01)
            assert await store.read("t2", 0, 9) == [b"a", b"end"]
    assert "looked after" not in caplog.text


async def test_a_stream_that_is_something_else_is_left_alone(server: NatsServer, url: str) -> None:
    name = url.rpartition("=")[2]
    async with journal.open_store(server.url(secrets.token_hex(4))) as store:
        stream = cast("NatsStore", store)._stream
        stream.name = name
        await stream._api("STREAM.CREATE", {"name": name, "subjects": [f"{name}.x"], "storage": "file"})
    with pytest.raises(ValueError, match="no journal"):
        async with journal.open_store(url):
            pass


def test_a_bad_address_is_refused_in_words_without_its_password() -> None:
    for url in (
        "nats:", "nats://", "nats:/x", "nats:///0", "nats://h:x", "nats://u:hunter2/x@h", "nats://h:99999", "nats://h/x",
        "nats://h,", "nats://,h", "nats://h?db=1", "nats://h?stream=a.b", "nats://h?stream=*", "nats://h?stream",
        "nats://h?stream=a&stream=b", "nats://h?replicas=2", "nats://u:hunter2@h#1", "nats://u:hunter2@:1", "tls://",
        "nats://[::1", "nats://u:hunter2@[::1/0", "nats://u:hunter2@h,[::1",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="journal") as caught:
            journal.check_journal(url)
        assert "hunter2" not in str(caught.value)
    for url in (
        "nats://h", "tls://u:p@h:1,g?stream=a-b_C&replicas=3", "nats://[::1]:4222,[::1]:4223/", "nats://token@h?stream=x",
    ):  # fmt: skip
        journal.check_journal(url)
