"""Going away: who is still here, what they are told, and how long they may stay.

begin    `draining` is set, so that the apps can end their streams; idle clients are hung up; the others get
         `connection: close` with their answer
drain_s  who is still here is reset, and its app sees the disconnect
abort_s  apps that go on are cancelled, by whoever owns the nursery
"""

from __future__ import annotations

from typing import Any, Protocol

import trio


class Leaver(Protocol):
    """One client, as far as going away is concerned."""

    def go_away(self) -> None:
        """Begin to end."""

    def abort(self) -> None:
        """Reset the client's socket at once."""


class Drain:
    """The clients of one server, and its going away."""

    def __init__(self, drain_s: float) -> None:
        self.draining = trio.Event()
        self.extension: dict[str, Any] = {"draining": self.draining, "drain_s": drain_s, "restart": False}
        self._leavers: set[Leaver] = set()
        self._left = trio.Event()

    def __len__(self) -> int:
        return len(self._leavers)

    def add(self, leaver: Leaver) -> None:
        """Count a client in."""
        self._leavers.add(leaver)

    def discard(self, leaver: Leaver) -> None:
        """Count a client out."""
        self._leavers.discard(leaver)
        if not self._leavers:
            self._left.set()
            self._left = trio.Event()

    def begin(self, *, restart: bool = False) -> None:
        """Tell all apps and all clients, and whether it is for a restart. Synchronous; the second call does nothing."""
        if not self.draining.is_set():
            self.extension["restart"] = restart
            self.draining.set()
            for leaver in list(self._leavers):
                leaver.go_away()

    def abort_all(self) -> None:
        """Reset every client's socket at once. Synchronous."""
        for leaver in list(self._leavers):
            leaver.abort()

    async def wait_empty(self) -> None:
        """Wait until the last client has gone."""
        while self._leavers:
            await self._left.wait()
