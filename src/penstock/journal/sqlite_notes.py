"""What processes that share a SQLite file tell each other: rows of a table that has the last `NOTES` of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import trio

from penstock.journal.notes import NOTES, Said

Db: TypeAlias = sqlite3.Connection
_Note: TypeAlias = tuple[int, bytes]


class SqliteNotes:
    """A listener; see `Notes`. It looks every `notes_s`.

    Args:
        read: reads in a thread.
        last: the id of the last note that is not for us.
        notes_s: from a look to the next.
    """

    def __init__(
        self, read: Callable[[Callable[[Db], list[_Note]]], Awaitable[list[_Note]]], last: int, notes_s: float
    ) -> None:
        self._read = read
        self._last = last
        self._notes_s = notes_s

    async def wait(self) -> Said:
        """See `Notes.wait`."""
        # Another process has no other way to tell us.
        while not (rows := await self._read(partial(_notes_after, self._last))):  # noqa: ASYNC110
            await trio.sleep(self._notes_s)
        missed = rows[0][0] != self._last + 1
        self._last = rows[-1][0]
        return Said([note for _, note in rows], missed)


def last_note(db: Db) -> int:
    """Return the id of the last note."""
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM notes").fetchone()
    return int(last)


def write_notes(notes: Sequence[bytes], db: Db) -> None:
    """Add notes, and remove the oldest."""
    for note in notes:
        last = db.execute("INSERT INTO notes (note) VALUES (?)", (note,)).lastrowid
        db.execute("DELETE FROM notes WHERE id <= ?", ((last or 0) - NOTES,))


def _notes_after(last: int, db: Db) -> list[_Note]:
    return db.execute("SELECT id, note FROM notes WHERE id > ? ORDER BY id", (last,)).fetchall()
