"""What runs in a hub. Its nursery is also round the block of whoever opened the hub, and so it is never cancelled for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class Tasks:
    """The tasks of a hub's turns, which end together.

    Args:
        nursery: where they run.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: set[trio.CancelScope] = set()
        self._cancelled = False

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object, name: str) -> None:
        """Run a function. After `cancel` it is cancelled at its first checkpoint."""
        self._nursery.start_soon(self._run, function, args, name=name)

    def cancel(self) -> None:
        """Cancel all that run, and all that are yet to come."""
        self._cancelled = True
        for scope in self._scopes:
            scope.cancel("the hub is closing")

    async def _run(self, function: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self._cancelled:
                    scope.cancel("the hub is closing")
                await function(*args)
            finally:
                self._scopes.discard(scope)
