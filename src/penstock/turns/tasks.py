"""What runs in a hub, in a nursery of its own: the one round the block of whoever opened the hub is never cancelled for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class Tasks:
    """The tasks of a hub's turns, which end together. `run` holds them.

    Args:
        around: where `run` runs, and what comes too late.
    """

    def __init__(self, around: trio.Nursery) -> None:
        self._around = around
        self._nursery: trio.Nursery
        self._cancelled = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC114  # the linter's list has bare names
        """Hold the tasks until they are cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._cancelled = True

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object, name: str) -> None:
        """Run a function. After `cancel` it is cancelled at its first checkpoint."""
        if self._cancelled:
            self._around.start_soon(_run_cancelled, function, args, name=name)
        else:
            self._nursery.start_soon(function, *args, name=name)

    def cancel(self) -> None:
        """Cancel all that run, and all that are yet to come."""
        self._cancelled = True
        self._nursery.cancel_scope.cancel("the hub is closing")


async def _run_cancelled(function: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
    with trio.CancelScope() as scope:
        scope.cancel("the hub is closing")
        await function(*args)
