"""Looks for the highest level that a server bears: up by a fifth while it passes, else down by a fifth until it does."""

from __future__ import annotations

STEP = 1.2
"""Levels nearer to each other are not told apart: runs on a shared machine differ by more."""
TRIES = 7


class Search:
    """One search.

    Args:
        first: the level to begin with; a good guess saves time.
        most: no level is higher.
    """

    def __init__(self, first: float, most: int) -> None:
        self._most = most
        self._tries = TRIES
        self._repeated = False
        self._passed = 0
        self._failed = 0
        self.level: int | None = max(1, min(int(first), most))
        """The level to try next; None when there is nothing left to find out."""

    def tell(self, *, passed: bool, idle: bool) -> None:
        """Say how the level went.

        Args:
            passed: whether it was borne.
            idle: whether the server had CPU to spare, so that something else may be to blame: it is tried once more.
        """
        if self.level is None:
            return
        self._tries -= 1
        again = not passed and idle and not self._repeated
        self._repeated = again
        if passed:
            self._passed = self.level
        elif not again:
            self._failed = self.level
        bracketed = self._passed and self._failed
        ends = self.level == self._most if passed else self.level == 1 and not again
        if self._tries == 0 or bracketed or ends:
            self.level = None
        elif passed:
            self.level = min(self._most, max(self.level + 1, int(self.level * STEP)))
        elif not again:
            self.level = max(1, int(self.level / STEP))
