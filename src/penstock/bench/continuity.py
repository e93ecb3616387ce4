"""Whether a client that left and came back got everything once: told by the times that the events were due."""

from __future__ import annotations

from collections.abc import Iterable


class Continuity:
    """What one turn's events say of gaps and repeats.

    Args:
        period_ns: from one event to the next; 0 if that is not known, and gaps can't be seen.
    """

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._last_ns = 0
        self.seen = 0
        self.missing = 0
        self.repeated = 0

    def feed(self, times: Iterable[int]) -> None:
        """Take the times of the next events."""
        for due_ns in times:
            if due_ns <= self._last_ns:
                self.repeated += 1
                continue
            if self._last_ns and self._period_ns:
                self.missing += max(0, round((due_ns - self._last_ns) / self._period_ns) - 1)
            self.seen += 1
            self._last_ns = due_ns

    def restart(self) -> None:
        """Begin again: what follows is a replay from the start."""
        self._last_ns = 0
        self.seen = 0

    def end(self, count: int) -> None:
        """Take the proper end of a turn of `count` events: what is missing at its edges is missing too."""
        if self.seen:
            self.missing = max(self.missing, count - self.seen)
