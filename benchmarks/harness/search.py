"""Looks for the highest level that a server bears, until a level that it bears and one a fifth above that it doesn't are known.

It goes up by as much as the server's CPU has left, and down by steps that double; what it jumped over, it halves.
"""

from __future__ import annotations

import math

STEP = 1.2
"""Levels nearer to each other are not told apart: runs on a shared machine differ by more."""
NEAR = 1.0
"""A jump is to where the server would use this share of its core, if an event cost there what it costs here."""
ROOM = 0.85
"""Below this share, a jump is two steps at least: batches make a full server cheaper than its CPU promises."""
TRIES = 12
"""Then it ends, unless no level has failed yet: who bears all goes on, by jumps that grow."""


def up(level: int) -> int:
    """Return the level a step above."""
    return max(level + 1, level * 6 // 5)


def down(level: int) -> int:
    """Return a level so far below that `up` of it is not below the level."""
    return max(1, min(level - 1, -(-level * 5 // 6)))


def steps_between(low: int, high: int) -> int:
    """Return how many steps it takes from one level to the other, or beyond."""
    count = 0
    while low < high:
        low, count = up(low), count + 1
    return count


class Search:
    """One search.

    Args:
        first: the level to begin with; a light one, as what it costs says how far up to go.
        most: no level is higher.
    """

    def __init__(self, first: int, most: int) -> None:
        self._most = most
        self._tries = 0
        self._jump = 1
        self._repeated = False
        self._passed = 0
        self._failed = 0
        self.level: int | None = max(1, min(first, most))
        """The level to try next; None when there is nothing left to find out."""

    def tell(self, *, passed: bool, idle: bool, used: float) -> None:
        """Say how the level went.

        Args:
            passed: whether it was borne.
            idle: whether the server had CPU to spare, so that something else may be to blame: it is tried once more.
            used: the share of its core that the server used, 1 if that isn't known.
        """
        if self.level is None:
            return
        self._tries += 1
        again = not passed and idle and not self._repeated
        self._repeated = again
        if passed:
            self._passed = self.level
        elif not again:
            self._failed = self.level
        if passed and not self._failed:
            self.level = self._above(used)
        elif self._tries >= TRIES:
            self.level = None
        elif not again:
            self.level = self._between() if self._passed else self._below()

    def _above(self, used: float) -> int | None:
        """Return the next level while none has failed."""
        if self._passed >= self._most:
            return None
        if used < ROOM:
            promised = math.log(NEAR / max(used, 0.01), STEP)
            steps = max(2, int(promised))
        else:
            steps = self._jump
            self._jump += 1
        return self._climb(self._passed, steps)

    def _between(self) -> int | None:
        """Return the next level when one has passed and a higher one failed."""
        steps = steps_between(self._passed, self._failed)
        return self._climb(self._passed, steps // 2) if steps > 1 else None

    def _below(self) -> int | None:
        """Return the next level while none has passed."""
        level = self._failed
        for _ in range(self._jump):
            level = down(level)
        self._jump *= 2
        return level if level < self._failed else None

    def _climb(self, level: int, steps: int) -> int:
        for _ in range(steps):
            level = up(level)
        return min(level, self._most)
