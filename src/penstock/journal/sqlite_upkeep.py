"""What the SQLite store does between commits: packs the log, and removes what retention no longer keeps.

Each call is one slice, in a transaction of its own, of some ten milliseconds at most. The tables are described in
`sqlite.py`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from penstock.journal.store import Retention
from penstock.limits import SqliteLimits

_MOST_TURNS = 64
"""Turns that one slice looks at."""


class Upkeep:
    """An operation for the writer; see `Writer`. Its notes are hints: it is right to lose them in a crash."""

    def __init__(self, retention: Retention, limits: SqliteLimits) -> None:
        self._retention = retention
        self._limits = limits
        # Unknown at the start: the first call packs whatever an earlier process left.
        self._log_rows = limits.log_rows
        self._log_bytes = 0
        self._crowded: set[int] = set()
        """Chats that may have too many turns."""

    def logged(self, size: int) -> bool:
        """Note a row of the log. Returns whether it is time to pack."""
        self._log_rows += 1
        self._log_bytes += size
        return self._log_rows >= self._limits.log_rows or self._log_bytes >= self._limits.log_bytes

    def ended(self, chat: int) -> None:
        """Note that a turn of a chat has ended."""
        self._crowded.add(chat)

    def __call__(self, db: sqlite3.Connection) -> float:
        """Do one slice. Returns the seconds until the next one is due."""
        if self._log_rows >= self._limits.log_rows or self._log_bytes >= self._limits.log_bytes:
            self._pack(db)
            return 0.0
        return 0.0 if self._trim(db, time.time()) else self._limits.trim_s

    def _pack(self, db: sqlite3.Connection) -> None:
        """Move the log into segments: of each turn one, as the log has a turn's last entries without a gap."""
        packed: dict[int, tuple[int, list[bytes]]] = {}
        for turn, first, data in db.execute("SELECT turn, first, data FROM log ORDER BY id"):
            packed.setdefault(turn, (first, []))[1].append(data)
        db.executemany(
            "INSERT INTO segments VALUES (?, ?, ?)",
            [(turn, first, b"".join(parts)) for turn, (first, parts) in sorted(packed.items())],
        )
        db.execute("DELETE FROM log")
        self._log_rows = self._log_bytes = 0

    def _trim(self, db: sqlite3.Connection, now: float) -> bool:
        """Remove one slice of what is too old or too much. Returns whether there may be more."""
        budget = self._limits.trim_entries
        while budget > 0:
            turns = self._due_turns(db, now)
            if not turns:
                chat = self._due_chat(db, now)
                if chat is None:
                    return False
                turns = db.execute("SELECT id, entries FROM turns WHERE chat = ?", (chat,)).fetchall()
                db.execute("DELETE FROM messages WHERE chat = ?", (chat,))
                db.execute("DELETE FROM chats WHERE id = ?", (chat,))
            for turn, entries in turns:
                ...
        return True
