"""The SQLite store on its file: killed, locked, full, cancelled, and given files that are not its own."""

from __future__ import annotations

import gc
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from sqlite_child import EAGER, KEPT_TURNS, LEASE, RETENTION, TURN_ENTRIES, entry

from penstock import Turn, open_hub
from penstock.errors import LocalProtocolError, StoreUnavailableError
from penstock.journal.sqlite import SqliteStore, open_sqlite
from penstock.journal.sqlite_file import APPLICATION_ID, close_file, open_file
from penstock.journal.sqlite_writer import transact
from penstock.journal.store import Batch, Retention, TurnRecord, TurnState
from penstock.limits import SqliteLimits
from penstock.testing import run_cancelled_at, user_message

CHILD = str(Path(__file__).with_name("sqlite_child.py"))
SOON = SqliteLimits(lock_s=0.3, lock_try_s=0.03)


async def begin(store: SqliteStore, turn_id: str = "t1", chat_id: str = "c1") -> TurnRecord:
    """Begin a turn that answers one message."""
    return await store.begin(
        chat_id, turn_id, "u", [user_message("Hello")], at=time.time(), lease_until=LEASE
    )


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    """Ask the file itself."""
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def check_file(path: Path) -> None:
    """Check all that is always true of the file, whatever happened."""
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert rows(path, "SELECT * FROM log WHERE turn NOT IN (SELECT id FROM turns)") == []
    assert rows(path, "SELECT * FROM segments WHERE turn NOT IN (SELECT id FROM turns)") == []
    assert rows(path, "SELECT * FROM turns WHERE chat NOT IN (SELECT id FROM chats)") == []
    assert rows(path, "SELECT * FROM messages WHERE chat NOT IN (SELECT id FROM chats)") == []


class Killed:
    """What a writer had acknowledged when it was killed."""

    def __init__(self) -> None:
        self.stored: dict[str, int] = {}
        self.sealed: set[str] = set()


def kill_a_writer(child: subprocess.Popen[str], command: str, delay_s: float) -> Killed:
    """Start a writer, kill it some time after its first acknowledgement, and return what it has said."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(command + "\n")
    child.stdin.flush()
    killed = Killed()
    _, pid = child.stdout.readline().split()
    line = child.stdout.readline()
    time.sleep(delay_s)
    os.kill(int(pid), signal.SIGKILL)
    while line != "dead\n":
        what, turn_id, count = line.split()
        killed.stored[turn_id] = int(count)
        if what == "sealed":
            killed.sealed.add(turn_id)
        line = child.stdout.readline()
    return killed


async def check_life(path: Path, killed: Killed) -> None:
    """Check that the file has what was acknowledged, and of every turn a prefix without a hole."""
    ended: dict[str, int] = {}
    for turn_id in killed.sealed:
        chat_id, _, serial = turn_id.rpartition(".")
        ended[chat_id] = max(ended.get(chat_id, 0), int(serial))
    async with open_sqlite(str(path), retention=RETENTION, limits=EAGER) as store:
        for turn_id, count in killed.stored.items():
            chat_id, _, serial = turn_id.rpartition(".")
            record = await store.turn(turn_id)
            chat = await store.chat(chat_id)
            if record is None:
                assert int(serial) <= ended[chat_id] + 1 - KEPT_TURNS, "trimmed too early"
                continue
            read = await store.read(turn_id, 0, 10 * TURN_ENTRIES)
            assert read == [entry(turn_id, i) for i in range(record.entries)]
            assert record.entries >= count
            assert chat is not None
            if turn_id in killed.sealed:
                assert record.state is TurnState.finished
                assert record.entries == count
            if chat.turn is not None:
                made = [chat.turn.turn_id] if chat.turn.state.ended else []
                assert [message.id for message in chat.messages] == made


@pytest.mark.parametrize(("durability", "kills"), [("full", 25), ("normal", 25)])
def test_killed_at_any_point_it_keeps_what_it_acknowledged(
    tmp_path: Path, durability: str, kills: int
) -> None:
    path = tmp_path / "chat.db"
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    turns = 0
    with subprocess.Popen(
        [sys.executable, CHILD, "crash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            for run in range(kills):
                killed = kill_a_writer(child, f"{path} {run} {durability}", chance.uniform(0.0, 0.12))
                turns += len(killed.stored)
                check_file(path)
                trio.run(check_life, path, killed)
        finally:
            child.kill()
    assert turns >= kills, f"seed {seed}"


def test_a_full_disk_is_told_and_forgotten(tmp_path: Path) -> None:
    """In a process that may not let its files grow: refused is not stored, reads work, room heals."""
    path = tmp_path / "chat.db"
    done = subprocess.run(
        [sys.executable, CHILD, "full", str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "well\n", done.stderr
    check_file(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's write lock in another process."""
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        " db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        yield


async def test_a_locked_file_is_told_within_its_bound_and_blocks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.01)
            ticks += 1

    async def append(store: SqliteStore, batch: Batch) -> None:
        with pytest.raises(StoreUnavailableError, match="locked"):
            await store.append([batch])

    async with open_sqlite(str(path), limits=SOON) as store:
        turn = await begin(store)
        await store.append([Batch(turn, 0, [b"a"])])
        with locked(path):
            started = trio.current_time()
            async with trio.open_nursery() as ticking:
                ticking.start_soon(tick)
                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(append, store, Batch(turn, 1, [b"b"]))
                    assert await store.read("t1", 0, 9) == [b"a"], "readers don't wait for writers"
                ticking.cancel_scope.cancel()
            assert SOON.lock_s <= trio.current_time() - started < SOON.lock_s + 1
            assert ticks >= 10
            async with open_sqlite(str(path), limits=SOON) as other:
                with pytest.raises(StoreUnavailableError, match="locked"):
                    await begin(other, "t2", "c2")
        await store.append([Batch(turn, 1, [b"c"])])
        assert await store.read("t1", 0, 9) == [b"a", b"c"]
    check_file(path)


async def test_what_waits_for_a_lock_is_written_once_it_is_free_unless_it_was_given_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chat.db"
    async with open_sqlite(str(path)) as store:
        turn = await begin(store)
        async with trio.open_nursery() as nursery:
            with locked(path):
                nursery.start_soon(store.append, [Batch(turn, 0, [b"a"])])
                nursery.start_soon(store.append, [Batch(turn, 0, [b"a", b"b"])])
                with trio.move_on_after(0.15) as scope:
                    await begin(store, "given up", "c2")
                assert scope.cancelled_caught
        assert await store.read("t1", 0, 9) == [b"a", b"b"]
        assert await store.turn("given up") is None


async def test_operations_of_one_commit_do_not_harm_each_other(tmp_path: Path) -> None:
    """Also one that fails halfway, for a reason of its own, leaves nothing of itself and all of the others."""
    path = tmp_path / "chat.db"

    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO chats (chat_id, began_at) VALUES ('half', 1e12)")
        raise ZeroDivisionError

    async def fail(error: type[Exception], work: object) -> None:
        with pytest.raises(error):
            await store._writer.write(work)  # type: ignore[arg-type]

    async with open_sqlite(str(path)) as store:
        turn = await begin(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.append, [Batch(turn, 0, [b"a"])])
            nursery.start_soon(fail, ZeroDivisionError, half)
            nursery.start_soon(
                fail, sqlite3.IntegrityError, lambda db: db.execute("INSERT INTO chats (id) VALUES (9)")
            )
            nursery.start_soon(begin, store, "t2", "c2")
        with pytest.raises(LocalProtocolError, match="one line"):
            await store.append([Batch(turn, 1, [b"a\nb"])])
        assert await store.chat("half") is None
        assert await store.turn("t2") is not None
        assert await store.read("t1", 0, 9) == [b"a"]


def test_a_failed_transaction_is_not_left_open(tmp_path: Path) -> None:
    """Or it would lock every other process out."""

    def fail(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO chats (chat_id, began_at) VALUES ('half', 1e12)")
        raise sqlite3.OperationalError("disk I/O error")

    writer, reader = open_file(str(tmp_path / "chat.db"), "full", SqliteLimits())
    with pytest.raises(sqlite3.OperationalError):
        transact(writer, [fail])
    assert not writer.in_transaction
    assert reader.execute("SELECT * FROM chats").fetchall() == []
    close_file(writer, reader)


async def test_tasks_share_commits(tmp_path: Path) -> None:
    """Two hundred waiting tasks take a handful of commits, not two hundred."""
    path = tmp_path / "chat.db"
    async with open_sqlite(str(path)) as store:
        turns = [await begin(store, f"t{i}", f"c{i}") for i in range(200)]
        commits = 0

        def count(statement: str) -> None:
            nonlocal commits
            commits += statement == "COMMIT"

        await store._writer.write(lambda db: db.set_trace_callback(count))
        commits = 0
        async with trio.open_nursery() as nursery:
            for turn in turns:
                nursery.start_soon(store.append, [Batch(turn, 0, [b"a"])])
        await store._writer.write(lambda db: db.set_trace_callback(None))
        assert 1 <= commits <= 10


async def cancel_at(step: int, path: Path) -> bool:
    """Use a store, cancelled at a step; check that what it said is true and that the file is good for more."""
    done: list[str] = []

    async def use() -> None:
        async with open_sqlite(str(path), limits=EAGER) as store:
            turn = await begin(store)
            done.append("begun")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.append, [Batch(turn, 0, [b"a"])])
                nursery.start_soon(begin, store, "t2", "c2")
                nursery.start_soon(store.read, "t1", 0, 9)
            done.append("appended")
            assert await store.seal(Batch(turn, 1, [b"b"]), TurnState.finished, None, at=time.time())
            done.append("sealed")

    cancelled = await run_cancelled_at(step, use)
    async with open_sqlite(str(path), limits=EAGER) as store:
        record = await store.turn("t1")
        if record is None:
            assert done == []
            record = await begin(store)
        entries = await store.read("t1", 0, 9)
        assert list(entries) == [b"a", b"b"][: record.entries]
        assert record.entries >= ("appended" in done) + ("sealed" in done)
        assert record.state.ended == (record.entries == 2)
        if not record.state.ended:
            await store.append([Batch(record, 0, [b"a"])])
            assert await store.seal(Batch(record, 1, [b"b"]), TurnState.finished, None, at=time.time())
    return cancelled


async def test_cancelled_at_every_step_it_leaves_nothing_half_and_a_file_that_works(tmp_path: Path) -> None:
    step = 1
    while await cancel_at(step, tmp_path / f"{step}.db"):
        check_file(tmp_path / f"{step}.db")
        assert os.listdir(tmp_path) == [f"{step}.db"], "closed: no WAL is left"
        os.unlink(tmp_path / f"{step}.db")
        step += 1
        assert step < 500
    assert step > 10
    gc.collect()


async def test_closing_writes_what_waits_and_then_refuses(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"

    async def append(batch: Batch) -> None:
        await store.append([batch])

    async with trio.open_nursery() as nursery:
        async with open_sqlite(str(path)) as store:
            turn = await begin(store)
            for i in range(10):
                nursery.start_soon(append, Batch(turn, 0, [b"a"] * i))
            await trio.testing.wait_all_tasks_blocked()
    for call in (store.append([Batch(turn, 0, [b"a"])]), store.turn("t1"), store.read("t1", 0, 1)):
        with pytest.raises(StoreUnavailableError):
            await call
    async with open_sqlite(str(path)) as store:
        assert await store.read("t1", 0, 99) == [b"a"] * 9


async def test_what_is_written_under_a_shield_while_all_is_cancelled_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with trio.CancelScope() as scope:
        async with open_sqlite(str(path)) as store:
            turn = await begin(store)
            scope.cancel()
            with trio.move_on_after(5, shield=True):
                await trio.sleep(0.01)
                assert await store.seal(Batch(turn, 0, [b"end"]), TurnState.lost, None, at=time.time())
                assert await store.read("t1", 0, 9) == [b"end"]
    async with open_sqlite(str(path)) as store:
        assert await store.read("t1", 0, 9) == [b"end"]


async def test_closing_under_a_lock_ends_within_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    limits = SqliteLimits(lock_s=60.0, lock_try_s=0.03, close_s=0.2)
    refused = 0

    async def append(batch: Batch) -> None:
        nonlocal refused
        with pytest.raises(StoreUnavailableError):
            await store.append([batch])
        refused += 1

    async with trio.open_nursery() as nursery:
        async with open_sqlite(str(path), limits=limits) as store:
            turn = await begin(store)
            lock = locked(path)
            lock.__enter__()
            nursery.start_soon(append, Batch(turn, 0, [b"a"]))
            await trio.sleep(0.05)
            started = trio.current_time()
        assert trio.current_time() - started < 2
        lock.__exit__(None, None, None)
    assert refused == 1
    check_file(path)


async def test_two_processes_may_share_the_file(tmp_path: Path) -> None:
    """Two stores, as two processes would have them: each sees what the other was acknowledged."""
    path = str(tmp_path / "chat.db")
    async with open_sqlite(path, limits=EAGER) as one, open_sqlite(path, limits=EAGER) as two:
        for i in range(30):
            turn = await begin(one if i % 2 else two, f"t{i}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.append, [Batch(turn, 0, [b"a", b"b"])])
                nursery.start_soon(two.append, [Batch(turn, 0, [b"a", b"b"])])
            assert await one.read(f"t{i}", 0, 9) == await two.read(f"t{i}", 0, 9) == [b"a", b"b"]
            sealer = two if i % 2 else one
            assert await sealer.seal(Batch(turn, 2, [b"c"]), TurnState.finished, None, at=time.time())
            assert await one.turn(f"t{i}") == await two.turn(f"t{i}")
    check_file(Path(path))


async def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    async def refused(path: Path, match: str) -> None:
        file = trio.Path(path)
        before = await file.read_bytes() if await file.is_file() else None
        with pytest.raises(ValueError, match=match) as caught:
            async with open_sqlite(str(path)):
                pass
        assert "\n" not in str(caught.value)
        assert before is None or await file.read_bytes() == before

    text = tmp_path / "notes.txt"
    text.write_text("Not a database, but longer than the header of one." * 100)
    await refused(text, "not a database")
    foreign = tmp_path / "foreign.db"
    rows(foreign, "CREATE TABLE things (id)")
    await refused(foreign, "is not a journal")
    later = tmp_path / "later.db"
    rows(later, "PRAGMA user_version = 99")
    rows(later, f"PRAGMA application_id = {APPLICATION_ID}")
    await refused(later, "later version")
    await refused(tmp_path / "no" / "such" / "folder.db", "No such file")
    await refused(tmp_path, "directory|open")
    torn = tmp_path / "torn.db"
    async with open_sqlite(str(torn)) as store:
        await begin(store)
    torn.write_bytes(torn.read_bytes()[:5000])
    await refused(torn, "malformed")
    empty = tmp_path / "empty.db"
    empty.touch()
    async with open_sqlite(str(empty)) as store:
        await begin(store)


async def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    async with open_sqlite(str(path)) as store:
        await begin(store)
        files = [tmp_path / f"chat.db{suffix}" for suffix in ("", "-wal", "-shm")]
        assert {file.name: file.stat().st_mode & 0o777 for file in files} == {
            "chat.db": 0o600,
            "chat.db-wal": 0o600,
            "chat.db-shm": 0o600,
        }


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
async def test_durability_is_what_sqlite_is_told(tmp_path: Path, durability: str, synchronous: int) -> None:
    async with open_sqlite(str(tmp_path / "chat.db"), durability=durability) as store:  # type: ignore[arg-type]
        found = await store._writer.write(lambda db: db.execute("PRAGMA synchronous").fetchone())
        assert found == (synchronous,)


async def test_the_log_is_packed_and_reads_are_exact_at_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    entries = [entry("t1", i) for i in range(200)]
    async with open_sqlite(str(path), limits=SqliteLimits(log_rows=16)) as store:
        turn, other = await begin(store), await begin(store, "t2", "c2")
        for i in range(200):
            await store.append([Batch(turn, i, [entries[i]]), Batch(other, i, [b""])])
        for offset in range(0, 201, 7):
            for count in (0, 1, 13, 999):
                assert await store.read("t1", offset, count) == entries[offset : offset + count]
        assert list(await store.read("t1", 300, 5)) == []
    assert len(rows(path, "SELECT id FROM log")) <= 40
    assert 10 <= len(rows(path, "SELECT first FROM segments")) <= 60


async def test_what_retention_frees_is_used_again(tmp_path: Path) -> None:
    """The file stays below its bound and some, however much goes through it."""
    path = tmp_path / "chat.db"
    retention = Retention(bytes=1 << 20, turns_per_chat=1_000)
    limits = SqliteLimits(log_rows=64, trim_s=0.001)
    data = [b"x" * 1000] * 100
    async with open_sqlite(str(path), durability="normal", retention=retention, limits=limits) as store:
        for i in range(60):
            turn = await begin(store, f"t{i}")
            await store.append([Batch(turn, 0, data)])
            assert await store.seal(Batch(turn, 100, [b"end"]), TurnState.finished, None, at=time.time())
            await trio.sleep(0.002)
        with trio.fail_after(5):
            while True:
                if await store.turn("t40") is None:
                    break
                await trio.sleep(0.002)
        assert await store.read("t59", 0, 999) == [*data, b"end"]
    assert path.stat().st_size < 3 << 20
    check_file(path)


async def test_a_hub_finds_its_chats_again(tmp_path: Path) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for word in ("Hi", " ", "there."):
                await text.write(word)

    journal = f"sqlite:{tmp_path}/chat.db"
    async with open_hub(journal=journal) as hub:
        turn = await hub.start_turn("chat", answer, [user_message("Hello")])
        assert await turn.wait_ended() is TurnState.finished
        before = await hub.chat("chat")
    async with open_hub(journal=journal) as hub:
        chat = await hub.chat("chat")
    assert chat is not None
    assert chat == before
    assert [message.text for message in chat.messages] == ["Hello", "Hi there."]


async def test_a_crowd_makes_a_new_file_once(tmp_path: Path) -> None:
    """Whoever finds it empty and gets the lock second finds it made."""
    path = str(tmp_path / "chat.db")
    opened = 0

    async def open_and_close() -> None:
        nonlocal opened
        close_file(*await trio.to_thread.run_sync(open_file, path, "full", SqliteLimits()))
        opened += 1

    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(open_and_close)
        await trio.sleep(0.1)
        assert opened == 0
        db.execute("ROLLBACK")
    db.close()
    assert opened == 4
    check_file(Path(path))
