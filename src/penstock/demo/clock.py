"""A clock for thousands of tasks that write at a pace.

`trio.sleep_until` is a cancel scope, a timer, and an exception that is raised and caught: at some 40 us a token, `/pace`
would measure that and little else. A real producer wakes because its upstream's bytes are here, at the price of a task
switch, and that is what waking costs with this clock: of all who sleep one keeps the time, with Trio's own timer, wakes
those whose time has come, and hands over when its own has.
"""

from __future__ import annotations

import heapq
from itertools import count

import trio


class _Sleeper:
    """One who sleeps."""

    __slots__ = ("asleep", "task")

    def __init__(self) -> None:
        self.asleep = True
        self.task: trio.lowlevel.Task | None = None
        """Its task while it is parked."""

    async def park(self) -> None:
        """Sleep until woken."""
        self.task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """Wake it if it is parked."""
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)


class _Clock:
    """The sleepers of one run of Trio."""

    def __init__(self) -> None:
        self._sleepers: list[tuple[float, int, _Sleeper]] = []
        self._numbers = count()
        self._keeper: _Sleeper | None = None
        self._timer = trio.CancelScope()
        self._timer_at = 0.0
        """Its deadline; to ask the scope, or to move it, costs more."""

    async def sleep_until(self, at: float) -> None:
        """See `sleep_until` below."""
        sleeper = _Sleeper()
        heapq.heappush(self._sleepers, (at, next(self._numbers), sleeper))
        try:
            while sleeper.asleep:
                if self._keeper is None:
                    await self._keep_time(sleeper)
                else:
                    if at < self._timer_at:
                        self._timer_at = self._timer.deadline = at
                    await sleeper.park()
        finally:
            sleeper.asleep = False  # Cancelled, it stays in the heap until its time.

    async def _keep_time(self, keeper: _Sleeper) -> None:
        self._keeper = keeper
        try:
            while keeper.asleep:
                self._timer_at = self._sleepers[0][0]
                with trio.CancelScope(deadline=self._timer_at) as self._timer:
                    await trio.sleep_forever()
                self._wake_due()
        finally:
            self._keeper = None
            if self._sleepers:
                self._sleepers[0][2].wake()  # It keeps the time from now on.

    def _wake_due(self) -> None:
        now = trio.current_time()
        while self._sleepers and (self._sleepers[0][0] <= now or not self._sleepers[0][2].asleep):
            _, _, sleeper = heapq.heappop(self._sleepers)
            sleeper.asleep = False
            sleeper.wake()


_CLOCK: trio.lowlevel.RunVar[_Clock] = trio.lowlevel.RunVar("penstock.demo.clock")


async def sleep_until(at: float) -> None:
    """Sleep until a time of Trio's clock. Always a checkpoint; cancelling it costs nothing."""
    try:
        clock = _CLOCK.get()
    except LookupError:
        clock = _Clock()
        _CLOCK.set(clock)
    await clock.sleep_until(at)
