"""What is read from a SQLite journal: functions of its connection. The format is in `sqlite.py`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import msgspec

from penstock.journal.store import ChatRecord, Look, Place, TurnRecord
from penstock.wire.messages import UIMessage

T = TypeVar("T")
Db: TypeAlias = sqlite3.Connection

_read_message = msgspec.json.Decoder(UIMessage, float_hook=float).decode

_RECORD = f"SELECT {', '.join(TurnRecord.__struct_fields__)} FROM turns JOIN chats ON chats.id = chat"


def snapshot(db: Db, work: Callable[[Db], T]) -> T:
    """Read in one transaction: all of it from the same commit."""
    db.execute("BEGIN")
    try:
        return work(db)
    finally:
        db.execute("ROLLBACK")


def _record(row: Sequence[Any]) -> TurnRecord:
    return msgspec.convert(dict(zip(TurnRecord.__struct_fields__, row, strict=True)), TurnRecord)


def find_turn(turn_id: str, db: Db) -> TurnRecord | None:
    """Return a turn's record, or None."""
    row = db.execute(f"{_RECORD} WHERE turn_id = ?", (turn_id,)).fetchone()
    return None if row is None else _record(row)


def newest_turn(chat_id: str, db: Db) -> TurnRecord | None:
    """Return the record of a chat's newest turn, or None."""
    row = db.execute(f"{_RECORD} WHERE chats.chat_id = ? AND turns.id = chats.newest", (chat_id,)).fetchone()
    return None if row is None else _record(row)


def lapsed_turns(now: float, count: int, db: Db) -> list[TurnRecord]:
    """Return running turns whose lease has ended, the longest ago first."""
    rows = db.execute(
        f"{_RECORD} WHERE state = 'running' AND lease_until < ? ORDER BY lease_until LIMIT ?", (now, count)
    )
    return [_record(row) for row in rows]


def find_chat(chat_id: str, db: Db) -> ChatRecord | None:
    """Return a chat, or None."""
    row = db.execute("SELECT id FROM chats WHERE chat_id = ?", (chat_id,)).fetchone()
    if row is None:
        return None
    rows = db.execute("SELECT json FROM messages WHERE chat = ? ORDER BY place", row)
    return ChatRecord(
        chat_id=chat_id,
        messages=tuple(_read_message(json) for (json,) in rows),
        turn=newest_turn(chat_id, db),
    )


def read_entries(turn_id: str, offset: int, count: int, db: Db) -> list[bytes]:
    """Return up to `count` entries of a turn."""
    row = db.execute("SELECT id, entries FROM turns WHERE turn_id = ?", (turn_id,)).fetchone()
    return [] if row is None else entries_between(db, row[0], offset, min(offset + count, row[1]))


def look_at(places: Sequence[Place], count: int, db: Db) -> list[Look | None]:
    """Return how turns are, with up to `count` entries from their places on."""
    found: list[Look | None] = []
    for turn, offset in places:
        record = find_turn(turn.turn_id, db)
        if record is None:
            found.append(None)
        elif record.entries <= offset:
            found.append(Look(record, ()))
        else:
            found.append(Look(record, read_entries(turn.turn_id, offset, count, db)))
    return found


def entries_between(db: Db, turn: int, offset: int, end: int) -> list[bytes]:
    """Return a turn's entries from an offset to an end, which it has."""
    if offset >= end:
        return []
    (floor,) = db.execute(
        "SELECT coalesce(max(first), 0) FROM segments WHERE turn = ? AND first <= ?", (turn, offset)
    ).fetchone()
    rows = db.execute(
        "SELECT data FROM segments WHERE turn = ? AND first BETWEEN ? AND ? ORDER BY first",
        (turn, floor, end - 1),
    ).fetchall()
    lines = b"".join(data for (data,) in rows).split(b"\n")
    lines.pop()
    if floor + len(lines) < end:
        rows = db.execute(
            "SELECT data FROM log WHERE turn = ? AND first < ? ORDER BY first", (turn, end)
        ).fetchall()
        lines += b"".join(data for (data,) in rows).split(b"\n")
        lines.pop()
    return lines[offset - floor : end - floor]
