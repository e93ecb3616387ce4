"""Turns that were looked at lately and don't run here: kept for clients that come back all at once."""

from __future__ import annotations

from collections import OrderedDict

from penstock.journal.store import TurnRecord
from penstock.limits import HubLimits
from penstock.turns.handle import TurnHandle


class RecentTurns:
    """Handles by turn id, the oldest first to go."""

    def __init__(self, limits: HubLimits) -> None:
        self._limits = limits
        self._handles: OrderedDict[str, TurnHandle] = OrderedDict()
        self._sizes: dict[str, int] = {}
        """Bytes of each when it was kept. One that still grows is a replica, of which there are few."""
        self._bytes = 0

    def get(self, record: TurnRecord) -> TurnHandle | None:
        """Return the handle of an earlier look at a turn, if the turn is still what it was then."""
        handle = self._handles.get(record.turn_id)
        return handle if handle is not None and handle.shows(record) else None

    def keep(self, handle: TurnHandle) -> TurnHandle:
        """Keep a handle, instead of an older one of its turn, and return it."""
        self._drop(handle.id)
        self._handles[handle.id] = handle
        self._sizes[handle.id] = handle.bytes
        self._bytes += handle.bytes
        while len(self._handles) > 1 and (
            len(self._handles) > self._limits.kept_tails or self._bytes > self._limits.kept_tail_bytes
        ):
            self._drop(next(iter(self._handles)))
        return handle

    def _drop(self, turn_id: str) -> None:
        if self._handles.pop(turn_id, None) is not None:
            self._bytes -= self._sizes.pop(turn_id)
