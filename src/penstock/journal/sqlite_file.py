"""Opens and closes the SQLite file of a journal: its identity, schema and settings. The format is in `sqlite.py`."""

from __future__ import annotations

import os
import sqlite3
from functools import partial
from typing import Literal, TypeAlias

from penstock.errors import StoreUnavailableError
from penstock.journal.sqlite_writer import is_locked, transact
from penstock.limits import SqliteLimits

Durability: TypeAlias = Literal["full", "normal"]

APPLICATION_ID = 0x70656E73  # "pens"
VERSION = 2

_WAL_BYTES = 64 << 20
"""Above this the WAL is cut back after a burst or a long read. It is some 4 MiB else."""

_SCHEMA = f"""
CREATE TABLE chats (
    id INTEGER PRIMARY KEY,
    chat_id TEXT NOT NULL UNIQUE,
    began_at REAL NOT NULL,
    newest INTEGER
);
CREATE INDEX chats_by_age ON chats (began_at);
CREATE TABLE messages (
    chat INTEGER NOT NULL,
    place INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (chat, place)
) WITHOUT ROWID;
CREATE TABLE turns (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- chats.newest must not come to mean another turn
    turn_id TEXT NOT NULL UNIQUE,
    chat INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    request_key TEXT NOT NULL,
    state TEXT NOT NULL,
    entries INTEGER NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL,
    lease_until REAL
);
CREATE INDEX turns_by_chat ON turns (chat);
CREATE INDEX turns_by_lease ON turns (lease_until) WHERE state = 'running';
CREATE INDEX turns_by_end ON turns (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE log (
    id INTEGER PRIMARY KEY,
    turn INTEGER NOT NULL,
    first INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE segments (
    turn INTEGER NOT NULL,
    first INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (turn, first)
) WITHOUT ROWID;
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    note BLOB NOT NULL
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""


def open_file(
    path: str, durability: Durability, limits: SqliteLimits
) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Open a journal's file, or make it, and return a connection to write and one to read. In a thread.

    Raises:
        ValueError: if the file can't be opened, is something else, or was written by a later version.
        StoreUnavailableError: if it is locked, or the disk is full.
    """
    try:
        _make_private(path)
        return _open(path, durability, limits)
    except OSError as exc:
        raise ValueError(f"the journal {path} can't be opened: {exc.strerror}") from exc
    except sqlite3.Error as exc:
        if is_locked(exc) or _is_full(exc):
            raise StoreUnavailableError(f"the journal {path} can't be opened now: {exc}") from exc
        raise ValueError(f"the journal {path} can't be opened: {exc}") from exc


def close_file(writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
    """Close the connections, the reader's first: the last one to close copies the WAL into the file and removes it."""
    reader.close()
    writer.close()


def _open(
    path: str, durability: Durability, limits: SqliteLimits
) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    opened: list[sqlite3.Connection] = []
    try:
        opened.append(writer := _connect(path, limits))
        opened.append(reader := _connect(path, limits))
        _prepare(writer, path)
        writer.execute(f"PRAGMA synchronous = {durability}")
        writer.execute("PRAGMA fullfsync = ON")
        writer.execute("PRAGMA checkpoint_fullfsync = ON")
        writer.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        writer.execute(f"PRAGMA busy_timeout = {round(limits.lock_try_s * 1000)}")
        reader.execute("PRAGMA query_only = ON")
    except BaseException:
        for connection in opened:
            connection.close()
        raise
    return writer, reader


def _connect(path: str, limits: SqliteLimits) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=limits.lock_s, isolation_level=None, check_same_thread=False)


def _make_private(path: str) -> None:
    """Make the file if it isn't there, for its owner's eyes only; what SQLite adds beside it gets the same mode.

    A file that is there is left alone: to open and close it here would drop the locks of this process on it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass


def _prepare(db: sqlite3.Connection, path: str) -> None:
    """Check that the file is a journal or empty, and make it a journal."""
    if _version(db, path) == 0:
        ((_, error),) = transact(db, [partial(_create, path)])
        if error is not None:
            raise error
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ValueError(f"the journal {path} must be on a file system of this machine")


def _create(path: str, db: sqlite3.Connection) -> None:
    if _version(db, path) == 0:  # as it was before the write lock; another process may have been first
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)


def _version(db: sqlite3.Connection, path: str) -> int:
    """Return the version of the file's format, or 0 for an empty file."""
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application == APPLICATION_ID:
        if version > VERSION:
            raise ValueError(f"the journal {path} was written by a later version of penstock")
        if version < VERSION:
            raise ValueError(f"the journal {path} was written by an earlier version of penstock")
    elif application or version or tables:
        raise ValueError(f"{path} is not a journal of penstock")
    return int(version)


def _is_full(exc: sqlite3.Error) -> bool:
    code = getattr(exc, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
