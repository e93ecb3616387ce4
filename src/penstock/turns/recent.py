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

    def get(self, record: TurnRecord) -> TurnHandle | None:
        """Return the handle of an earlier look at a turn, if the turn is still what it was then."""
        handle = self._handles.get(record.turn_id)
        return handle if handle is not None and handle.shows(record) else None

    def keep(self, handle: TurnHandle) -> TurnHandle:
        """Keep a handle, instead of an older one of its turn, and return it."""
        self._handles[handle.id] = handle
        self._handles.move_to_end(handle.id)
        while len(self._handles) > 1 and (
            len(self._handles) > self._limits.kept_tails
            or sum(kept.bytes for kept in self._handles.values()) > self._limits.kept_tail_bytes
        ):
            self._handles.popitem(last=False)
        return handle
