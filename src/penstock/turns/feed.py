"""What happens in one chat, for those who watch it: which turns began, in order.

A watcher follows one turn after the other. While it is busy with one, another may begin and end; the feed remembers the
last few, so that a watcher which is a little late misses nothing, and says so to one that is too late.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import trio

from penstock.turns.handle import TurnHandle
from penstock.wire.messages import UIMessage

REMEMBERED = 16
"""Turns of one chat. One takes seconds at least, and a watcher that is a minute behind is better served by a snapshot."""


class Begun(NamedTuple):
    """A turn that began, or went on."""

    turn: TurnHandle
    message: UIMessage
    """What it answers."""
    sure: bool = True
    """Whether no other began between this one and the one before."""


class Feed:
    """One chat's turns, from the first watcher's coming on.

    Args:
        idle: called when the last watcher has left.
    """

    __slots__ = ("_begun", "_count", "_idle", "_news", "_watchers")

    def __init__(self, idle: Callable[[], object]) -> None:
        self._idle = idle
        self._begun: list[Begun] = []
        self._count = 0
        self._news = trio.lowlevel.ParkingLot()
        self._watchers = 0

    def add(self, begun: Begun) -> None:
        """Tell the watchers."""
        self._begun.append(begun)
        del self._begun[:-REMEMBERED]
        self._count += 1
        self._news.unpark_all()

    def watch(self) -> Watcher:
        """Return a cursor on what begins from now on. Use it as a context manager."""
        return Watcher(self, self._count)


class Watcher:
    """One watcher's place in a feed."""

    __slots__ = ("_feed", "_next")

    def __init__(self, feed: Feed, next_: int) -> None:
        self._feed = feed
        self._next = next_

    def __enter__(self) -> Self:
        self._feed._watchers += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed._watchers -= 1
        if not self._feed._watchers:
            self._feed._idle()

    async def next_turn(self) -> Begun | None:
        """Sleep until a turn has begun and return it; None if some were missed, after which the next is the newest."""
        feed = self._feed
        while self._next == feed._count:
            await feed._news.park()
        oldest = feed._count - len(feed._begun)
        if self._next < oldest:
            self._next = feed._count
            return None
        self._next += 1
        return feed._begun[self._next - 1 - oldest]
