"""How somebody who follows turns from outside their process learns that there is more of them.

Some stores can say so; the others are asked again every so often. News is a hint and never the truth: it has no content,
may come for nothing, and may be lost, so that whoever waits for it looks again every few seconds all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import trio

if TYPE_CHECKING:
    from penstock.journal.store import TurnRecord

Listen: TypeAlias = "Callable[[TurnRecord, Callable[[], object]], AbstractContextManager[object]]"
"""Returns what calls a function, while it is entered, whenever there may be something new of a turn."""


class News:
    """News of turns, as a context manager. It counts what happens from the block's beginning on.

    Args:
        turns: which; more may come.
        listen: how to learn of it; None for a store that can't say.
        trusted_s: says for how long to trust that one would be told.
    """

    def __init__(
        self,
        turns: Sequence[TurnRecord],
        listen: Listen | None = None,
        trusted_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._turns = turns
        self._listen = listen
        self._trusted_s = trusted_s
        self._listeners: dict[str, ExitStack] = {}
        self._changed: set[str] = set()
        self._all_told_at: float | None = None
        """When all of them were to be looked at; None from then until somebody waits again."""
        self._parked = trio.lowlevel.ParkingLot()

    def __enter__(self) -> Self:
        for turn in self._turns:
            self._begin(turn)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for turn_id in list(self._listeners):
            self.ignore(turn_id)

    def listen(self, turn: TurnRecord) -> None:
        """Listen to another turn, too. It may have changed already."""
        self._begin(turn)
        self.hear(turn.turn_id)

    def _begin(self, turn: TurnRecord) -> None:
        listener = self._listeners[turn.turn_id] = ExitStack()
        if self._listen is not None:
            listener.enter_context(self._listen(turn, partial(self.hear, turn.turn_id)))

    def ignore(self, turn_id: str) -> None:
        """Listen to a turn no more."""
        self._changed.discard(turn_id)
        self._listeners.pop(turn_id).close()

    def hear(self, turn_id: str) -> None:
        """Take it that a turn may have changed."""
        self._changed.add(turn_id)
        if self._parked:
            self._parked.unpark_all()

    async def wait(self, poll_s: float) -> Collection[str]:
        """Sleep until some of the turns may have changed since the last wait ended, or since the block began.

        Args:
            poll_s: after how long all of them may have, where the store can't say.

        Returns:
            Their ids.

        Cancelled, it has missed nothing.
        """
        await trio.lowlevel.checkpoint()
        if self._all_told_at is None:
            self._all_told_at = trio.current_time()
        with trio.move_on_at(self._all_told_at + max(poll_s, self._trusted_s())) as waiting:
            while not self._changed:
                await self._parked.park()
        if trio.current_time() >= waiting.deadline:
            self._changed.update(self._listeners)
            self._all_told_at = None
        changed, self._changed = self._changed, set()
        return changed
