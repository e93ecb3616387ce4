"""Processes that `test_sqlite.py` starts: one that is killed while it writes, and one whose disk is full."""

from __future__ import annotations

import os
import resource
import sys

import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.sqlite import SqliteStore, open_sqlite
from penstock.journal.sqlite_file import Durability
from penstock.journal.store import Batch, Retention, Store, TurnState
from penstock.limits import SqliteLimits
from penstock.wire.messages import UIMessage

TASKS = 20
KEPT_TURNS = 3
TURN_ENTRIES = 30
EAGER = SqliteLimits(log_rows=40, trim_s=0.005, trim_entries=200)
RETENTION = Retention(turn_age_s=1e12, turns_per_chat=KEPT_TURNS, chat_age_s=1e12)
LEASE = 2e9


def entry(turn_id: str, offset: int) -> bytes:
    """What is at an offset of a turn, as everybody can tell."""
    return f'{{"turn":"{turn_id}","offset":{offset},"text":"{"x" * (offset % 97)}"}}'.encode()


def say(text: str) -> None:
    """Write a line at once and whole, as a pipe does for short ones."""
    os.write(1, text.encode() + b"\n")


async def answer_for_ever(store: Store, chat_id: str) -> None:
    """Answer turn after turn, and say what was acknowledged."""
    serial = 0
    while True:
        serial += 1
        turn_id = f"{chat_id}.{serial}"
        turn = await store.begin(chat_id, turn_id, "u", [], at=float(serial), lease_until=LEASE)
        say(f"stored {turn_id} 0")
        offset = 0
        while offset < TURN_ENTRIES:
            end = offset + 1 + offset % 3
            await store.append([Batch(turn, offset, [entry(turn_id, i) for i in range(offset, end)])])
            say(f"stored {turn_id} {end}")
            offset = end
        message = UIMessage(id=turn_id, role="assistant", parts=[])
        last = Batch(turn, offset, [entry(turn_id, offset)])
        assert await store.seal(last, TurnState.finished, message, at=float(serial))
        say(f"sealed {turn_id} {offset + 1}")


async def write_until_killed(path: str, run: str, durability: Durability) -> None:
    async with (
        open_sqlite(path, durability=durability, retention=RETENTION, limits=EAGER) as store,
        trio.open_nursery() as nursery,
    ):
        for i in range(TASKS):
            nursery.start_soon(answer_for_ever, store, f"{run}-{i}")


def fork_writers() -> None:
    """Fork a writer for each line of input, so that each costs no start of Python."""
    for line in sys.stdin:
        path, run, option = line.split()
        durability: Durability = "normal" if option == "normal" else "full"
        child = os.fork()
        if child == 0:
            trio.run(write_until_killed, path, run, durability)
            os._exit(0)
        say(f"started {child}")
        os.waitpid(child, 0)
        say("dead")


async def fill_disk(path: str) -> None:
    """Write until no file may grow any more, look, make room, and go on."""
    async with open_sqlite(path) as store:
        turn = await store.begin("c", "t", "u", [], at=1.0, lease_until=LEASE)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for _ in range(2):
            stored = await write_until_full(store, path, hard)
            record = await store.turn("t")
            assert record is not None
            assert await store.read("t", 0, 1_000_000) == [entry("t", i) for i in range(record.entries)]
            assert record.entries == stored, "what was refused is not there, what was acknowledged is"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
            await store.append([Batch(turn, record.entries, [entry("t", record.entries)])])
    async with open_sqlite(path) as store:
        assert len(await store.read("t", 0, 1_000_000)) == stored + 1
    say("well")


async def write_until_full(store: SqliteStore, path: str, hard: int) -> int:
    """Let the files grow by some more bytes and return how many entries are acknowledged when they can't."""
    size = max([(await trio.Path(path + suffix).stat()).st_size for suffix in ("", "-wal")])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200_000, hard))
    record = await store.turn("t")
    assert record is not None
    stored = record.entries
    refused = 0
    for _ in range(100_000):
        try:
            await store.append([Batch(record, stored, [entry("t", i) for i in range(stored, stored + 50)])])
        except StoreUnavailableError:
            refused += 1
            if refused == 3:
                return stored
        else:
            stored += 50
    raise AssertionError("the disk never filled")


if __name__ == "__main__":
    if sys.argv[1] == "crash":
        fork_writers()
    else:
        trio.run(fill_disk, sys.argv[2])
