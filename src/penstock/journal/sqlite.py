"""The `sqlite:FILE` store: one file, kept by the SQLite of Python's standard library.

FORMAT. A SQLite database in WAL mode, with `application_id` 0x70656E73 and `user_version` 1:

    chats     (id, chat_id, began_at, newest)   newest: the id of the chat's newest turn, which may be trimmed
    messages  (chat, place, message_id, json)   in the order of place, which may have gaps
    turns     (id, turn_id, chat, epoch, request_key, state, entries, started_at, ended_at, lease_until)
    log       (id, turn, first, data)           entries as they came, of all turns
    segments  (turn, first, data)               entries of one turn side by side
    notes     (id, note)                        what processes tell each other, the last ones

An entry is one line; `data` is one or more entries of a turn, each ended by LF, and `first` the offset of the first.
A turn's entries 0 to p-1 are in `segments` and p to `entries`-1 in `log`, each exactly once.

WRITER. `append` adds a row per turn to the end of `log`, so that a commit of two hundred turns touches a handful of
pages. Kept by turn, each of those rows would dirty a page of its own: 16 times the bytes written, a third of the speed.
When `log` has grown to `log_rows`, all of it is packed: the rows of each turn become one row of `segments`, and `log`
is emptied. That, and retention, is upkeep: slices of a few milliseconds, each a transaction of its own. Pages that
retention frees are used again; the file does not shrink.

READER ALGORITHM. In one read transaction: take the turn's `id` and `entries`; of `segments` the last row at or before
the wanted offset and all after it; if they don't reach the wanted end, all rows of the turn in `log`, of which there
are few. Their lines, joined in the order of `first`, are the entries. Readers use a connection of their own, see the
last commit, and neither wait for the writer nor make it wait.

DURABILITY. A call that returned is committed. `full` syncs the disk with every commit: nothing acknowledged is lost,
as far as the disk tells the truth. `normal` syncs only when the WAL is copied into the file, after some 4 MiB: a
process that is killed loses nothing, a machine that loses power may lose the last commits, always a suffix of them in
order. Neither can leave a file that does not open. Power lost in `normal` may thus bring back a turn as running.

SEVERAL PROCESSES may have the file open; SQLite's write lock orders them. A network file system has no such lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeAlias, TypeVar

import msgspec
import trio

from penstock.errors import LocalProtocolError, StoreUnavailableError, TurnSealedError
from penstock.journal.news import News
from penstock.journal.sqlite_file import Durability, close_file, open_file
from penstock.journal.sqlite_notes import SqliteNotes, last_note, write_notes
from penstock.journal.sqlite_reader import (
    entries_between,
    find_chat,
    find_turn,
    lapsed_turns,
    look_at,
    newest_turn,
    read_entries,
    snapshot,
)
from penstock.journal.sqlite_upkeep import Upkeep
from penstock.journal.sqlite_writer import Writer
from penstock.journal.store import (
    Batch,
    ChatRecord,
    Look,
    Place,
    Retention,
    RunningTurnError,
    TurnRecord,
    TurnState,
)
from penstock.limits import SqliteLimits
from penstock.wire.messages import UIMessage

T = TypeVar("T")
Db: TypeAlias = sqlite3.Connection
_Message: TypeAlias = tuple[str, bytes]

_write_message = msgspec.json.Encoder().encode


@asynccontextmanager
async def open_sqlite(
    path: str,
    *,
    durability: Durability = "full",
    retention: Retention = Retention(),
    limits: SqliteLimits = SqliteLimits(),
) -> AsyncIterator[SqliteStore]:
    """Open a store on a file, which is made if it isn't there.

    Leaving the block writes what still waits, for at most `close_s`, and closes the file.

    Raises:
        ValueError: if the file can't be opened, is something else, or was written by a later version.
        StoreUnavailableError: if it is locked, or the disk is full.
    """
    writer, reader = await trio.to_thread.run_sync(open_file, path, durability, limits)
    store = SqliteStore(writer, reader, retention, limits)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._writer.run)
            try:
                yield store
            finally:
                store._writer.close()
    finally:
        with trio.move_on_after(limits.close_s, shield=True):
            await trio.to_thread.run_sync(close_file, writer, reader, limiter=store._reader_threads)


class SqliteStore:
    """A store in a SQLite file. Made by `open_sqlite`."""

    shared = False
    private = False

    def __init__(self, writer: Db, reader: Db, retention: Retention, limits: SqliteLimits) -> None:
        self._upkeep = Upkeep(retention, limits)
        self._writer = Writer(writer, self._upkeep, limits)
        self._reader = reader
        self._reader_threads = trio.CapacityLimiter(1)
        self._notes_s = limits.notes_s
        self._last_note = last_note(reader)
        """What was told before is not for us."""

    async def begin(
        self,
        chat_id: str,
        turn_id: str,
        request_key: str,
        messages: Sequence[UIMessage],
        *,
        at: float,
        lease_until: float,
    ) -> TurnRecord:
        """See `Store.begin`."""
        record = TurnRecord.begun(chat_id, turn_id, request_key, at, lease_until)
        await self._writer.write(partial(_begin, record, _encoded(messages)))
        return record

    async def resume(
        self, turn: TurnRecord, request_key: str, messages: Sequence[UIMessage], *, lease_until: float
    ) -> TurnRecord:
        """See `Store.resume`."""
        resumed = msgspec.structs.replace(
            turn, state=TurnState.running, request_key=request_key, lease_until=lease_until
        )
        await self._writer.write(partial(_resume, resumed, _encoded(messages)))
        return resumed

    async def append(self, batches: Sequence[Batch]) -> None:
        """See `Store.append`."""
        if not batches:
            return
        refused = await self._writer.write(partial(self._append, batches))
        if refused is not None:
            raise refused

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, *, at: float) -> bool:
        """See `Store.seal`."""
        if not batch.entries:
            raise LocalProtocolError("a seal without an entry would not show in the turn")
        last = None if message is None else _encoded([message])[0]
        return await self._writer.write(partial(self._seal, batch, state, last, at))

    async def adopt(self, turn: TurnRecord, *, lease_until: float) -> TurnRecord | None:
        """See `Store.adopt`."""
        adopted = msgspec.structs.replace(
            turn, state=TurnState.running, epoch=turn.epoch + 1, lease_until=lease_until
        )
        return adopted if await self._writer.write(partial(_adopt, turn, adopted)) else None

    async def renew(self, turns: Sequence[TurnRecord], lease_until: float) -> frozenset[str]:
        """See `Store.renew`."""
        return await self._writer.write(partial(_renew, turns, lease_until))

    async def lapsed(self, now: float, count: int) -> Sequence[TurnRecord]:
        """See `Store.lapsed`."""
        return await self._read(partial(lapsed_turns, now, count))

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """See `Store.chat`."""
        return await self._read(partial(find_chat, chat_id))

    async def turn(self, turn_id: str) -> TurnRecord | None:
        """See `Store.turn`."""
        return await self._read(partial(find_turn, turn_id))

    async def read(self, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """See `Store.read`. Cancelled, it returns when the thread that reads does."""
        return await self._read(partial(read_entries, turn_id, offset, count))

    async def look(self, places: Sequence[Place], count: int) -> list[Look | None]:
        """See `Store.look`. Cancelled, it returns when the thread that reads does."""
        return await self._read(partial(look_at, places, count))

    def news(self, *turns: TurnRecord) -> News:
        """See `Store.news`."""
        return News(turns)

    async def tell(self, notes: Sequence[bytes]) -> None:
        """See `Store.tell`."""
        await self._writer.write(partial(write_notes, notes))

    @contextmanager
    def notes(self) -> Iterator[SqliteNotes]:
        """See `Store.notes`."""
        yield SqliteNotes(self._read, self._last_note, self._notes_s)

    async def _read(self, work: Callable[[Db], T]) -> T:
        try:
            return await trio.to_thread.run_sync(snapshot, self._reader, work, limiter=self._reader_threads)
        except sqlite3.Error as exc:
            raise StoreUnavailableError(f"the journal can't be read: {exc}") from exc

    def _append(self, batches: Sequence[Batch], db: Db) -> LocalProtocolError | TurnSealedError | None:
        """Store what can be stored, and return, not raise, why something can't: an exception would undo the rest."""
        refused: LocalProtocolError | TurnSealedError | None = None
        for batch in batches:
            try:
                row = db.execute(
                    "SELECT id, entries FROM turns WHERE turn_id = ? AND epoch = ? AND state = 'running'",
                    (batch.turn.turn_id, batch.turn.epoch),
                ).fetchone()
                if row is None:
                    raise TurnSealedError("a turn is not running, or not this owner's")
                self._add(db, batch, *row)
            except LocalProtocolError as exc:
                refused = exc
            except TurnSealedError as exc:
                refused = refused or exc
        return refused

    def _seal(self, batch: Batch, state: TurnState, message: _Message | None, at: float, db: Db) -> bool:
        row = db.execute(
            "SELECT id, chat, state, entries FROM turns WHERE turn_id = ? AND epoch = ?",
            (batch.turn.turn_id, batch.turn.epoch),
        ).fetchone()
        if row is None:
            return False
        turn, chat, held_state, entries = row
        if held_state != TurnState.running.value:
            end = batch.offset + len(batch.entries)
            return (
                held_state == state.value
                and end == entries
                and entries_between(db, turn, batch.offset, end) == list(batch.entries)
            )
        if batch.offset + len(batch.entries) <= entries:
            return False
        self._add(db, batch, turn, entries)
        db.execute(
            "UPDATE turns SET state = ?, ended_at = ?, lease_until = NULL WHERE id = ?",
            (state.value, at if state.ended else None, turn),
        )
        if message is not None:
            db.execute("DELETE FROM messages WHERE chat = ? AND message_id = ?", (chat, message[0]))
            db.execute(
                "INSERT INTO messages SELECT ?1, coalesce(max(place), -1) + 1, ?2, ?3 FROM messages WHERE chat = ?1",
                (chat, *message),
            )
        self._upkeep.ended(chat)
        return True

    def _add(self, db: Db, batch: Batch, turn: int, entries: int) -> None:
        """Add what is new of a batch to a turn that has so many entries."""
        if batch.offset > entries:
            raise LocalProtocolError("entries past the end of a turn would leave a hole")
        new = batch.entries[entries - batch.offset :]
        if not new:
            return
        data = b"\n".join(new) + b"\n"
        if data.count(b"\n") != len(new):
            raise LocalProtocolError("an entry must be one line")
        db.execute("INSERT INTO log (turn, first, data) VALUES (?, ?, ?)", (turn, entries, data))
        db.execute("UPDATE turns SET entries = ? WHERE id = ?", (entries + len(new), turn))
        if self._upkeep.logged(len(data)):
            self._writer.hasten_upkeep()


def _encoded(messages: Sequence[UIMessage]) -> list[_Message]:
    try:
        return [(message.id, _write_message(message)) for message in messages]
    except (TypeError, ValueError) as exc:
        raise LocalProtocolError(f"a message has no JSON form: {exc}") from exc


def _begin(record: TurnRecord, messages: Sequence[_Message], db: Db) -> None:
    newest = newest_turn(record.chat_id, db)
    if newest is not None and not newest.state.ended:
        raise RunningTurnError(newest)
    if db.execute("SELECT 1 FROM turns WHERE turn_id = ?", (record.turn_id,)).fetchone() is not None:
        raise LocalProtocolError("two turns can't have the same id")
    db.execute(
        "INSERT INTO chats (chat_id, began_at) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET began_at = ?2",
        (record.chat_id, record.started_at),
    )
    (chat,) = db.execute("SELECT id FROM chats WHERE chat_id = ?", (record.chat_id,)).fetchone()
    turn = db.execute(
        """
        INSERT INTO turns (turn_id, chat, epoch, request_key, state, entries, started_at, lease_until)
        VALUES (?, ?, ?, ?, 'running', 0, ?, ?)""",
        (record.turn_id, chat, record.epoch, record.request_key, record.started_at, record.lease_until),
    ).lastrowid
    db.execute("UPDATE chats SET newest = ? WHERE id = ?", (turn, chat))
    _set_messages(db, chat, messages)


def _resume(resumed: TurnRecord, messages: Sequence[_Message], db: Db) -> None:
    row = db.execute(
        "SELECT id, chat FROM turns WHERE turn_id = ? AND epoch = ? AND entries = ? AND state = 'suspended'",
        (resumed.turn_id, resumed.epoch, resumed.entries),
    ).fetchone()
    if row is None:
        raise TurnSealedError("the turn is not waiting to go on")
    turn, chat = row
    db.execute(
        "UPDATE turns SET state = 'running', request_key = ?, lease_until = ? WHERE id = ?",
        (resumed.request_key, resumed.lease_until, turn),
    )
    _set_messages(db, chat, messages)


def _adopt(turn: TurnRecord, adopted: TurnRecord, db: Db) -> bool:
    if turn.state.ended or find_turn(turn.turn_id, db) != turn:
        return False
    db.execute(
        "UPDATE turns SET state = 'running', epoch = ?, lease_until = ? WHERE turn_id = ?",
        (adopted.epoch, adopted.lease_until, adopted.turn_id),
    )
    return True


def _renew(turns: Sequence[TurnRecord], lease_until: float, db: Db) -> frozenset[str]:
    return frozenset(
        turn.turn_id
        for turn in turns
        if db.execute(
            "UPDATE turns SET lease_until = ? WHERE turn_id = ? AND epoch = ? AND state = 'running'",
            (lease_until, turn.turn_id, turn.epoch),
        ).rowcount
    )


def _set_messages(db: Db, chat: int, messages: Sequence[_Message]) -> None:
    """Make the messages the chat's. They are mostly those that it has and one more, so only what differs is written."""
    held = db.execute(
        "SELECT place, message_id, json FROM messages WHERE chat = ? ORDER BY place", (chat,)
    ).fetchall()
    same = 0
    while same < min(len(held), len(messages)) and held[same][1:] == messages[same]:
        same += 1
    if same < len(held):
        db.execute("DELETE FROM messages WHERE chat = ? AND place >= ?", (chat, held[same][0]))
    place = held[same - 1][0] + 1 if same else 0
    db.executemany(
        "INSERT INTO messages VALUES (?, ?, ?, ?)",
        [(chat, place + i, *message) for i, message in enumerate(messages[same:])],
    )
