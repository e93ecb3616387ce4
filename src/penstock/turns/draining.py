"""A hub's end: it begins once, and whoever has to stop for it is told."""

from __future__ import annotations

import weakref

import trio

from penstock.closing import CloseReason


class Draining:
    """Whether a hub takes no more turns because it is about to close."""

    def __init__(self) -> None:
        self.reason = CloseReason.drain
        """What clients are told; `restart`, if it was so begun."""
        self._began = trio.Event()
        self._scopes: weakref.WeakSet[trio.CancelScope] = weakref.WeakSet()

    def is_set(self) -> bool:
        """Whether it has begun."""
        return self._began.is_set()

    async def wait(self) -> None:
        """Sleep until it begins."""
        await self._began.wait()

    def begin(self, *, restart: bool = False) -> None:
        """Begin, for a restart or not. Only the first call counts."""
        if self._began.is_set():
            return
        if restart:
            self.reason = CloseReason.restart
        self._began.set()
        for scope in list(self._scopes):
            scope.cancel("the hub is closing")

    def cut(self) -> trio.CancelScope:
        """Return a scope that is cancelled when it begins: for the many who would else need a task to wait in."""
        scope = trio.CancelScope()
        if self._began.is_set():
            scope.cancel("the hub is closing")
        else:
            self._scopes.add(scope)
        return scope
