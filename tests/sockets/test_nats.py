"""The `nats:` store on a real NATS: every guarantee, histories, and what becomes of it when NATS does not."""

from __future__ import annotations

import json
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nats_server import NatsServer, running_nats
from penstock import Hub, Limits, Turn, TurnState, open_hub
from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal import store as journal
from penstock.journal.nats import NatsStore
from penstock.journal.nats_link import Answer, NatsLink, Request
from penstock.journal.nats_stream import NatsStream
from penstock.journal.nats_text import read_token, token
from penstock.journal.store import Batch, Store
from penstock.limits import HubLimits, NatsLimits, TurnLimits
from penstock.testing import user_message
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, answer, begin, end
from penstock.testing.store_suite import StoreSuite
from penstock.wire.chunks import TextDelta
from penstock.wire.codec import decode_stored
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


async def append_all(store: Store, turn: journal.TurnRecord, entries: list[bytes], *, first: int = 0) -> int:
    """Append one by one, again and again until each is known to be there. Returns how often it was not known."""
    unknown = 0
    for offset, entry in enumerate(entries[first:], first):
        while True:
            try:
                await store.append([Batch(turn, offset, [entry])])
                break
            except StoreUnavailableError:
                unknown += 1
                await trio.sleep(0.002)
    return unknown


async def test_a_nats_that_is_killed_and_restarted_lost_nothing_and_has_nothing_twice() -> None:
    entries = [b"%d" % i for i in range(400)]
    unknown = 0
    with running_nats() as server:
        async with journal.open_store(server.url(), limits=IMPATIENT) as store:
            turn = await begin(store)

            async def write() -> None:
                nonlocal unknown
                unknown = await append_all(store, turn, entries)

            async def follow() -> None:
                seen: list[bytes] = []
                with store.news(turn) as news:
                    while True:
                        try:
                            seen += await store.read("t1", len(seen), 99)
                        except StoreUnavailableError:
                            await trio.sleep(0.02)
                            continue
                        if len(seen) == len(entries):
                            break
                        await news.wait(0.05)
                assert seen == entries

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(follow)
                    nursery.start_soon(write)
                    for _ in range(3):
                        await trio.sleep(0.08)
                        server.kill()
                        await trio.to_thread.run_sync(server.start)
                assert await end(store, turn, len(entries))
            assert await store.read("t1", 0, 999) == [*entries, b"end"]
    assert unknown


async def test_a_nats_that_is_paused_fails_calls_in_time_and_is_used_again() -> None:
    with running_nats() as server:
        async with journal.open_store(server.url(), limits=IMPATIENT) as store:
            turn = await begin(store)
            server.signal(signal.SIGSTOP)
            try:
                before = trio.current_time()
                for _ in range(8):
                    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1"):
                        await store.append([Batch(turn, 0, [b"a"])])
                assert 1.8 < trio.current_time() - before < 4
            finally:
                server.signal(signal.SIGCONT)
            with trio.fail_after(5):
                await append_all(store, turn, [b"a", b"b"])
            # What was written to the paused server was stored late, and did no harm.
            assert await store.read("t1", 0, 9) == [b"a", b"b"]


async def test_a_nats_that_was_set_back_is_given_again_what_the_owner_has() -> None:
    going_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(60):
                await text.write(f"{number} ")
                await trio.sleep(0.002)
                if number == 30:
                    await turn.flush()
                    await going_on.wait()

    with running_nats() as server:
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
        f"{number} " for number in range(60)
    ]


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
            while len(delays) < 30:
                for entry in await subscription.next_batch(100):
                    delta = getattr(entry.chunk, "delta", None)
                    if delta is not None:
                        delays.append(time.perf_counter() - float(delta))
        assert max(delays) < 0.25
        assert sorted(delays)[15] < 0.05


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


async def test_a_node_that_is_killed_leaves_its_turn_lost(url: str) -> None:
    child = Path(__file__).with_name("redis_child.py")
    process = subprocess.Popen([sys.executable, str(child), url])  # noqa: ASYNC220
    try:
        async with open_hub(journal=url, limits=QUICK) as hub:
            with trio.fail_after(15):
                while await hub.chat("chat") is None or (await newest(hub)).entries < 5:
                    await trio.sleep(0.02)
                turn = await hub.newest_turn("chat")
                assert turn is not None
                process.kill()
                assert await turn.wait_ended() is TurnState.lost
            assert (await newest(hub)).epoch == 2
    finally:
        process.kill()
        process.wait()


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
