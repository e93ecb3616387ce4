"""What the SQLite store does between commits: packs the log, and removes what retention no longer keeps.

Each call is one slice, in a transaction of its own, of some ten milliseconds at most. The tables are described in
`sqlite.py`.
"""

from __future__ import annotations

import sqlite3
import time

from penstock.journal.store import Retention
from penstock.limits import SqliteLimits

_TURN_COST = 50
"""What it takes to find and remove a turn's record, in entries."""


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
            if (turn := self._due_turn(db, now)) is not None:
                budget -= self._remove_turn(db, *turn)
            elif (chat := self._due_chat(db, now)) is not None:
                for turn in db.execute("SELECT id, entries FROM turns WHERE chat = ?", (chat,)).fetchall():
                    budget -= self._remove_turn(db, *turn)
                budget -= db.execute("DELETE FROM messages WHERE chat = ?", (chat,)).rowcount
                db.execute("DELETE FROM chats WHERE id = ?", (chat,))
            else:
                return False
        return True

    def _due_turn(self, db: sqlite3.Connection, now: float) -> tuple[int, int] | None:
        """Return the id and the entries of an ended turn that is to go."""
        while self._crowded:
            chat = next(iter(self._crowded))
            surplus: tuple[int, int] | None = db.execute(
                "SELECT id, entries FROM turns WHERE chat = ? AND ended_at IS NOT NULL"
                " ORDER BY id DESC LIMIT 1 OFFSET ?",
                (chat, self._retention.turns_per_chat),
            ).fetchone()
            if surplus is not None:
                return surplus
            self._crowded.discard(chat)
        oldest = db.execute(
            "SELECT ended_at, id, entries FROM turns WHERE ended_at IS NOT NULL ORDER BY ended_at LIMIT 1"
        ).fetchone()
        if oldest is None or not (oldest[0] < now - self._retention.turn_age_s or self._is_full(db)):
            return None
        return oldest[1], oldest[2]

    def _due_chat(self, db: sqlite3.Connection, now: float) -> int | None:
        """Return the id of a chat that is to go: not one that is being answered."""
        oldest = db.execute(
            "SELECT began_at, chats.id FROM chats LEFT JOIN turns ON turns.id = newest"
            " WHERE state IS NOT 'running' ORDER BY began_at LIMIT 1"
        ).fetchone()
        if oldest is None or not (oldest[0] < now - self._retention.chat_age_s or self._is_full(db)):
            return None
        return int(oldest[1])

    def _is_full(self, db: sqlite3.Connection) -> bool:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        return bool((pages - free) * size > self._retention.bytes)

    def _remove_turn(self, db: sqlite3.Connection, turn: int, entries: int) -> int:
        """Remove a turn, and return what that takes of the budget."""
        if self._log_rows:
            self._pack(db)  # so that it is all in one place
        db.execute("DELETE FROM segments WHERE turn = ?", (turn,))
        db.execute("DELETE FROM turns WHERE id = ?", (turn,))
        return entries + _TURN_COST
